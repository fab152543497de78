"""The last bundle of a session that is over, and the part of a loss that it covers."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest
from tests.daemons import Daemon, running_daemon

from ergo_capture.bundle.manifest import MANIFEST_FORMAT, Manifest
from ergo_capture.journal.payloads import Loss, Peer
from ergo_capture.protocol.capture import Acknowledged
from ergo_capture.server.session import registry
from ergo_capture.server.session.continuity import Finished, find_finished, loss_behind, loss_of

PEER = Peer(uid=7, gid=8, pid=9)


def manifest(session: str = "s", **fields: Any) -> Manifest:
    """Return the manifest of a session of three events; ``fields`` replace its own."""
    usual: dict[str, Any] = {
        "format": MANIFEST_FORMAT,
        "session": session,
        "graph": "g",
        "part": 1,
        "ended": "complete",
        "forced": False,
        "first_event": 0,
        "events": 3,
        "decisions": 3,
        "bundle": f"{session}.capture.json",
        "bytes": 1,
        "sha256": "",
        "style": "pretty",
        "labels": {},
        "peer": msgspec.to_builtins(PEER),
        "engine": "fixed",
        "adapter_provenance": "",
        "runtime_provenance": "",
        "opened_at": "",
        "ended_at": "",
        "program": "",
        "last_event_id": "e3",
    }
    return Manifest(**(usual | fields))


def finished(**fields: Any) -> Finished:
    """Return a finished session with that manifest."""
    return Finished(Path("/b"), manifest(**fields))


def write(bundles: Path, what: Manifest, name: str = "") -> Path:
    """Write a manifest, and its bundle beside it; return the bundle's path."""
    folder = bundles / what.graph
    folder.mkdir(parents=True, exist_ok=True)
    stem = name or what.bundle.removesuffix(".capture.json")
    (folder / f"{stem}.manifest.json").write_bytes(msgspec.json.encode(what))
    path = folder / what.bundle
    path.write_bytes(b"{}")
    return path


def test_the_last_final_bundle_is_the_one_with_most_events(tmp_path: Path) -> None:
    """All parts and graphs count, but not snapshots."""
    write(tmp_path, manifest(ended="rotated", events=9))
    last = write(tmp_path, manifest(bundle="s~3.capture.json", part=3, first_event=10, events=2))
    write(tmp_path, manifest(bundle="s~2.capture.json", part=2, first_event=4, events=6, ended="interrupted"))
    write(tmp_path, manifest(bundle="s~4.capture.json", part=4, first_event=12, events=9, ended="open"))
    found = find_finished(tmp_path, "s")
    assert found is not None
    assert (found.bundle, found.events, found.opened_by) == (last, 12, PEER)


@pytest.mark.parametrize("parts", [1, 2])
def test_a_session_whose_parts_all_stand_is_found_by_their_names(
    parts: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many clients may resume sessions that are over, and other bundles may stand by the ten thousand."""
    last = write(tmp_path, manifest(ended="complete" if parts == 1 else "rotated"))
    if parts == 2:
        last = write(tmp_path, manifest(bundle="s~2.capture.json", part=2, first_event=3))
    monkeypatch.setattr(os, "scandir", listing_only(tmp_path))
    found = find_finished(tmp_path, "s")
    assert found is not None
    assert (found.bundle, found.events) == (last, 3 * parts)


def test_the_bundle_of_two_of_one_part_that_has_more_events_is_the_last(tmp_path: Path) -> None:
    """It may be the one that stands under the part's own name."""
    first = write(tmp_path, manifest())
    write(tmp_path, manifest(bundle="s~1~2.capture.json", events=1))
    found = find_finished(tmp_path, "s")
    assert found is not None
    assert found.bundle == first


@pytest.mark.parametrize(
    "other",
    [
        manifest(ended="rotated", bundle="s~3.capture.json", part=3, first_event=9),
        manifest(bundle="s~1~2.capture.json", first_event=9),
        manifest(graph="h", bundle="s~2.capture.json", part=2, first_event=9),
    ],
)
def test_a_session_that_does_not_end_in_those_parts_is_looked_for_in_all_bundles(
    other: Manifest, tmp_path: Path
) -> None:
    """A part in between is missing, another bundle has the name of one, or they are not those of one graph."""
    write(tmp_path, manifest(ended="rotated"))
    last = write(tmp_path, other)
    found = find_finished(tmp_path, "s")
    assert found is not None
    assert (found.bundle, found.events) == (last, 12)


def listing_only(directory: Path) -> Callable[[str | Path], Any]:
    """Return a ``scandir`` that lists one directory and refuses others."""
    real = os.scandir

    def scan(path: str | Path) -> Any:
        assert Path(path) == directory
        return real(path)

    return scan


async def test_one_thread_looks_for_the_sessions_of_many_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other threads are left to publications: a look may have to list many thousands of bundles."""
    at_once, most = 0, 0

    def look(_bundles: Path, _session: str) -> None:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        time.sleep(0.05)
        at_once -= 1

    monkeypatch.setattr(registry, "find_finished", look)

    async def resume(daemon: Daemon) -> None:
        async with daemon.wire() as wire:
            await wire.say(
                {"type": "hello", "protocol": "ergo-capture.v1"},
                {"type": "open", "graph": "default", "session": "nobody"},
            )
            assert (await wire.until("error"))["code"] == "unknown_session"

    async with running_daemon() as daemon, anyio.create_task_group() as clients:
        for _ in range(4):
            clients.start_soon(resume, daemon)
    assert most == 1


def test_a_bundle_that_was_removed_is_not_the_last_one(tmp_path: Path) -> None:
    """A manifest alone proves nothing."""
    write(tmp_path, manifest(bundle="s~2.capture.json", first_event=3)).unlink()
    first = write(tmp_path, manifest())
    found = find_finished(tmp_path, "s")
    assert found is not None
    assert found.bundle == first


def test_bundles_of_other_sessions_are_not_found(tmp_path: Path) -> None:
    """The names of their files do not matter; bundles elsewhere and invalid manifests are not found either."""
    write(tmp_path, manifest("s2"))
    write(tmp_path, manifest("other"), name="s")
    (tmp_path / "g" / "s.x.manifest.json").write_bytes(b"nonsense")
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "g" / "s~9.manifest.json").write_bytes(msgspec.json.encode(manifest(bundle="../g/other.capture.json")))
    assert find_finished(tmp_path, "s") is None
    assert find_finished(tmp_path, "x") is None
    assert find_finished(tmp_path / "nowhere", "s") is None
    assert find_finished(tmp_path, "other") is None
    mine = write(tmp_path, manifest())
    found = find_finished(tmp_path, "s")
    assert found is not None
    assert found.bundle == mine


def test_an_opener_that_the_manifest_does_not_say_is_nobody() -> None:
    """0.1.0 may have written anything there."""
    assert finished(peer=None).opened_by is None
    assert finished(peer={"uid": "root"}).opened_by is None


@pytest.mark.parametrize(
    ("acknowledged", "last", "held_last", "is_lost"),
    [
        (11, "x", "e3", False),
        (12, "e3", "e3", False),
        (12, "x", "e3", True),
        (12, None, "e3", False),
        (12, "x", None, False),
        (13, "e3", "e3", True),
    ],
)
def test_a_loss_is_covered_by_the_bundles_that_hold_it(
    acknowledged: int, last: str | None, held_last: str | None, is_lost: bool
) -> None:
    """They must have as many events or more; at equal numbers, the last ids must be equal if both are known."""
    over = finished(first_event=10, events=2, last_event_id=held_last)
    loss = Loss(acknowledged=acknowledged, held=4, last_acknowledged=last, last_held="e4")
    left = Loss(acknowledged=acknowledged, held=12, last_acknowledged=last, last_held=held_last)
    assert loss_behind(loss, over) == (left if is_lost else None)


def test_all_events_of_a_session_that_is_gone_are_lost() -> None:
    """The loss has the session's name, because the client goes on in another session."""
    assert loss_of(Acknowledged(5, "e5"), session="s") == Loss(
        acknowledged=5, held=0, last_acknowledged="e5", session="s"
    )
