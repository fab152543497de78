"""Access by the kernel's credentials and the group database: connecting, opening, resuming; permissions of files."""

from __future__ import annotations

import asyncio
import grp
import json
import os
import pwd
import stat
from pathlib import Path
from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.daemons import Daemon, configured, event, running_daemon, short_directory
from tests.server.users import NOBODY, needs_root, talk_as

from ergo_capture.bundle.names import bundle_path, manifest_path
from ergo_capture.cli import app
from ergo_capture.config import ConfigError
from ergo_capture.journal.payloads import Peer
from ergo_capture.server.service import Service
from ergo_capture.server.session.access import Access, access_of, groups_of

HELLO = {"type": "hello", "protocol": "ergo-capture.v1", "client": "stranger"}
OPEN = {"type": "open"}
CLOSE = {"type": "close"}
#: The socket lets everybody in, so that it is the lists that decide.
WIDE = '[socket]\nmode = "0666"\n'


async def as_nobody(daemon: Daemon, *frames: dict[str, Any], **who: int) -> list[dict[str, Any]]:
    """Return the daemon's answers to another user."""
    daemon.socket.parent.chmod(0o755)
    return await anyio.to_thread.run_sync(lambda: talk_as(daemon.socket, *frames, **who))


# --- the lists themselves ---


def test_an_empty_list_admits_everybody() -> None:
    """It admits everyone whom the socket's mode admits."""
    assert Access().admits(Peer(uid=NOBODY, gid=NOBODY, pid=1))


def test_a_list_admits_only_its_users_its_groups_and_root() -> None:
    """Users and groups are compared by number."""
    access = Access(frozenset({1000}), frozenset({50}))
    assert access.admits(Peer(uid=1000, gid=1, pid=1))
    assert access.admits(Peer(uid=4242, gid=50, pid=1))
    assert access.admits(Peer(uid=0, gid=0, pid=1))
    assert not access.admits(Peer(uid=4242, gid=1000, pid=1))


def member_of_another_group() -> tuple[pwd.struct_passwd, int] | None:
    """Return a user of this host who is a member of a second group, and that group; None where there is none."""
    for group in grp.getgrall():
        for name in group.gr_mem:
            try:
                user = pwd.getpwnam(name)
            except KeyError:
                continue
            if user.pw_gid != group.gr_gid and user.pw_uid:
                return user, group.gr_gid
    return None


def test_a_member_of_a_listed_group_is_admitted_by_the_group_database(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process connected with another group."""
    found = member_of_another_group()
    if found is None:
        # This host has no such user: the database is given one, the look-up of the user stays real.
        user, group = pwd.getpwuid(NOBODY), 4711
        monkeypatch.setattr(os, "getgrouplist", lambda _name, gid: [gid, group])
    else:
        user, group = found
    peer = Peer(uid=user.pw_uid, gid=user.pw_gid, pid=1)
    assert group in groups_of(peer)
    assert Access(groups=frozenset({group})).admits(peer)
    assert not Access(groups=frozenset({group + 100_000})).admits(peer)


def test_names_and_numbers_mean_the_same_users_and_groups() -> None:
    """``root`` and 0 are equal, in both lists."""
    group = grp.getgrgid(0).gr_name
    assert access_of(["root", 4242], [group, 7], "access") == Access(frozenset({0, 4242}), frozenset({0, 7}))


@pytest.mark.parametrize(("users", "groups"), [(["no-such-user"], []), ([], ["no-such-group"]), (["a\0b"], [])])
def test_an_unknown_name_is_a_configuration_error(users: list[str | int], groups: list[str | int]) -> None:
    """The error has the setting, the name and a hint."""
    with pytest.raises(ConfigError, match=r"graphs\.g\.(users|groups)") as caught:
        access_of(users, groups, "graphs.g")
    assert "getent" in (caught.value.hint or "")


# --- config check ---


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Return a configuration file whose state directory is the test's own."""
    path = tmp_path / "config.toml"
    path.write_text(f'[state]\ndirectory = "{tmp_path / "state"}"\n')
    path.chmod(0o640)
    return path


@pytest.mark.parametrize("section", ["access", "graphs.default"])
def test_config_check_finds_an_unknown_name(file: Path, section: str, capsys: pytest.CaptureFixture[str]) -> None:
    """It exits with 78, as the daemon would."""
    file.write_text(f'[{section}]\nusers = ["no-such-user"]\n')
    assert app.run(["config", "check", "--config", str(file)]) == 78
    assert f"`{section}.users`: there is no user 'no-such-user'" in capsys.readouterr().err


def test_config_check_warns_of_loose_permissions(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each kind once, with its path, its mode and a command; the check still succeeds."""
    state = file.parent / "state"
    state.mkdir(mode=0o750)
    for name in ("bundles", "journal"):
        (state / name).mkdir()
        (state / name).chmod(0o755)
    segment = state / "journal" / "1.journal"
    segment.write_bytes(b"")
    segment.chmod(0o644)
    file.chmod(0o664)
    assert app.run(["config", "check", "--config", str(file)]) == 0
    said = capsys.readouterr().err.splitlines()
    warnings = [line for line in said if line.startswith("Warning: ")]
    assert warnings[0] == f"Warning: '{file}' has mode 0664, 0644 at the most"
    assert warnings[1].endswith("has mode 0755, 0750 at the most, and 1 more")
    assert warnings[2] == f"Warning: '{segment}' has mode 0644, 0640 at the most"
    assert [line for line in said if line.startswith("Try: chmod")]


def test_config_check_does_not_warn_of_strict_permissions(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is written to stderr."""
    (file.parent / "state").mkdir(mode=0o750)
    assert app.run(["config", "check", "--config", str(file)]) == 0
    assert capsys.readouterr().err == ""


# --- what is written ---


async def test_files_are_readable_by_owner_and_group_only_whatever_the_umask() -> None:
    """Journal, bundles, manifests, lock and directories; the socket has the configured mode."""
    before = os.umask(0)
    try:
        async with running_daemon('[socket]\nmode = "0600"\n') as daemon:
            async with daemon.session() as wire:
                await wire.say(event("a"), CLOSE)
                await wire.until("closed")
            for path in [daemon.state, *daemon.state.rglob("*")]:
                most = 0o750 if path.is_dir() else 0o640
                assert stat.S_IMODE(path.stat().st_mode) & ~most == 0, path
            assert stat.S_IMODE(daemon.socket.stat().st_mode) == 0o600
    finally:
        os.umask(before)


async def test_the_daemon_creates_the_socket_directory_with_mode_0755() -> None:
    """The socket's own mode and group decide who connects."""
    with short_directory() as place:
        service = Service(configured(place / "state", place / "run" / "deeper" / "s"))
        task = asyncio.create_task(service.run())
        with anyio.fail_after(20):
            await service.ready.wait()
        assert stat.S_IMODE((place / "run" / "deeper").stat().st_mode) & 0o711 == 0o711
        assert stat.S_IMODE((place / "run" / "deeper" / "s").stat().st_mode) == 0o660
        service.stop()
        await task


names = st.one_of(
    st.text(max_size=300), st.sampled_from(["..", ".", "/", "../../etc/passwd", "a/../..", "\0", "~", ""])
)


@given(graph=names, session=names, part=st.integers(1, 9))
def test_no_name_escapes_the_state_directory(graph: str, session: str, part: int) -> None:
    """Every graph and session name gives one directory below bundles, and one file in it whose name fits."""
    state = Path("/state")
    for path in (bundle_path(state, graph, session, part), manifest_path(bundle_path(state, graph, session, part))):
        text = str(path)
        assert os.path.normpath(text) == text
        assert path.parent.parent == state / "bundles"
        assert path.parent.name not in {"", ".", ".."}
        assert "\0" not in text
        assert len(os.fsencode(path.name)) <= 255


@given(one=st.tuples(names, names), other=st.tuples(names, names))
def test_different_names_give_different_files(one: tuple[str, str], other: tuple[str, str]) -> None:
    """A client cannot overwrite another's bundle by a name that maps to the same file."""
    state = Path("/state")
    assert (bundle_path(state, *one, 1) == bundle_path(state, *other, 1)) == (one == other)


@pytest.mark.parametrize("name", ["../../../../tmp/escaped", "/etc/passwd", "..", "a\0b", "\ud7ff\u2028"])
async def test_names_from_a_client_are_never_used_as_paths(name: str) -> None:
    """A label is kept as text, an unknown graph or session is refused, and nothing is written elsewhere."""
    async with running_daemon() as daemon:
        above = daemon.state.parent
        before = {path for path in above.rglob("*") if daemon.state not in path.parents}
        for frame, code in (
            ({"type": "open", "graph": name}, "unknown_graph"),
            ({"type": "open", "session": name}, ""),
        ):
            async with daemon.wire() as wire:
                await wire.say(HELLO, frame)
                assert (await wire.rest())[-1]["code"] == (code or "unknown_session")
        async with daemon.session(labels={name: name}) as wire:
            await wire.say(event(name), CLOSE)
            closed = await wire.until("closed")
        assert json.loads(Path(closed["manifest"]).read_bytes())["labels"] == {name: name}
        assert Path(closed["bundle"]).resolve().is_relative_to(daemon.state.resolve())
        assert {path for path in above.rglob("*") if daemon.state not in path.parents} == before


# --- another user ---


@needs_root
async def test_the_socket_mode_excludes_other_users() -> None:
    """With the default 0660 the kernel refuses them before the daemon does."""
    async with running_daemon() as daemon:
        with pytest.raises(PermissionError, match="Permission denied"):
            await as_nobody(daemon, HELLO)


@needs_root
async def test_a_user_who_is_not_listed_is_refused_and_counted() -> None:
    """The code is ``forbidden``, before anything is read; a listed user is served."""
    async with running_daemon(f"{WIDE}[access]\nusers = [4242]\n") as daemon:
        (answer,) = await as_nobody(daemon, HELLO, OPEN, CLOSE)
        assert (answer["type"], answer["code"]) == ("error", "forbidden")
        assert "access.users" in answer["hint"]
        assert daemon.service.clients.refusals["forbidden"] == 1
        answers = await as_nobody(daemon, HELLO, OPEN, CLOSE, uid=4242)
        assert answers[-1]["type"] == "closed"


@needs_root
async def test_a_member_of_a_listed_group_is_served() -> None:
    """The process connected with that group."""
    async with running_daemon(f"{WIDE}[access]\ngroups = [4711]\n") as daemon:
        assert (await as_nobody(daemon, HELLO))[-1]["code"] == "forbidden"
        assert (await as_nobody(daemon, HELLO, OPEN, CLOSE, gid=4711))[-1]["type"] == "closed"


@needs_root
async def test_a_graph_has_its_own_list() -> None:
    """Only users on the list open its sessions; other graphs are open to everybody who may connect."""
    text = f"{WIDE}[graphs.secret]\nusers = [4242]\n[graphs.default]\n"
    async with running_daemon(text) as daemon:
        secret = {"type": "open", "graph": "secret"}
        answers = await as_nobody(daemon, HELLO, secret)
        assert answers[-1]["code"] == "forbidden"
        assert "graphs.secret.users" in answers[-1]["hint"]
        assert (await as_nobody(daemon, HELLO, OPEN, CLOSE))[-1]["type"] == "closed"
        assert (await as_nobody(daemon, HELLO, secret, CLOSE, uid=4242))[-1]["type"] == "closed"
        assert len(daemon.bundles()) == 2


@needs_root
async def test_a_session_is_resumed_only_by_its_user_or_root() -> None:
    """Another user is refused as ``forbidden``; the manifest names the user who opened the session."""
    async with running_daemon(WIDE) as daemon:
        opened = (await as_nobody(daemon, HELLO, OPEN, event("a"), uid=4242))[1]
        resume = {"type": "open", "session": opened["session"]}
        await until_free(daemon, opened["session"])
        assert (await as_nobody(daemon, HELLO, resume))[-1]["code"] == "forbidden"
        again = await as_nobody(daemon, HELLO, resume, event("b"), uid=4242)
        assert again[1]["resumed"] is True
        await until_free(daemon, opened["session"])
        async with daemon.wire() as root:
            await root.open(session=opened["session"])
            await root.say(CLOSE)
            closed = await root.until("closed")
        manifest = json.loads(Path(closed["manifest"]).read_bytes())
        assert manifest["peer"]["uid"] == 4242
        assert manifest["events"] == 2


async def until_free(daemon: Daemon, session: str) -> None:
    """Wait until the session has no connection."""
    with anyio.fail_after(20):
        while daemon.service.registry.sessions[session].owner is not None:
            await anyio.sleep(0.001)
