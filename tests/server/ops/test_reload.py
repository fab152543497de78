"""Reloading the configuration: settings that take effect at once, settings that need a restart, and invalid files."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest
from tests.daemons import Daemon, DaemonProcess, command, configured, event, running_daemon, short_directory

from ergo_capture import config as configuration
from ergo_capture.config import Config, ConfigError, parse
from ergo_capture.server.ops.reload import Reloader, differences, merged, takes_effect


def set_config(daemon: Daemon, text: str) -> None:
    """Set the content of the daemon's configuration file."""

    def reread() -> Config:
        return configured(daemon.state, daemon.socket, text)

    daemon.service.reloader = Reloader(daemon.service.components, reread)


async def reload(daemon: Daemon, text: str) -> dict[str, Any]:
    """Return the answer to a reload with that file."""
    set_config(daemon, text)
    return await daemon.ask("reload")


async def test_reloading_the_same_file_changes_nothing() -> None:
    """The answer lists no setting."""
    async with running_daemon() as daemon:
        assert await reload(daemon, "") == {"type": "reloaded", "applied": [], "restart": []}


async def test_an_added_graph_is_served_at_once_and_a_removed_one_takes_no_new_sessions() -> None:
    """An open session of the removed graph goes on to its end."""
    async with running_daemon("[graphs.old]\n") as daemon, daemon.session(graph="old") as wire:
        answer = await reload(daemon, "[graphs.new]\n")
        assert answer["applied"] == ["graphs.new", "graphs.old"]
        async with daemon.session(graph="new"):
            pass
        async with daemon.wire() as late:
            await late.say({"type": "hello", "protocol": "ergo-capture.v1"}, {"type": "open", "graph": "old"})
            assert (await late.until("error"))["code"] == "unknown_graph"
        await wire.say(event("a"), {"type": "close"})
        assert (await wire.until("closed"))["events"] == 1


async def test_reloaded_limits_apply_to_those_who_come_next() -> None:
    """With one client connected and max_clients = 1 the next is refused; with 2 it is admitted."""
    async with running_daemon() as daemon, daemon.session():
        assert (await reload(daemon, "[limits]\nmax_clients = 1\n"))["applied"] == ["limits.max_clients"]
        async with daemon.wire() as wire:
            assert (await wire.read())["code"] == "limit"
        await reload(daemon, "[limits]\nmax_clients = 2\n")
        async with daemon.session():
            pass


async def test_every_limit_is_in_force_after_a_reload() -> None:
    """Frames, ids, sessions, memory: each reaches the component that applies it."""
    text = """
    [limits]
    max_sessions = 7
    max_user_sessions = 6
    user_opens_per_second = 8
    max_frame_bytes = "1KiB"
    queue_bytes = "3MiB"
    user_queue_bytes = "2MiB"
    ids_bytes = "5MiB"
    user_ids_bytes = "4MiB"
    held_bytes = "1MiB"
    [session]
    linger = "7s"
    [rotation]
    max_events = 9
    """
    async with running_daemon() as daemon:
        await reload(daemon, text)
        service, registry = daemon.service, daemon.service.registry
        assert (registry.limits.max_sessions, registry.limits.max_user_sessions) == (7, 6)
        assert registry._rate_limiter.rate == 8
        assert service.clients.limits.max_frame_bytes == 1024
        assert (registry.queue.total, registry.queue.per_user) == (3 << 20, 2 << 20)
        assert (registry.ids.total, registry.ids.per_user) == (5 << 20, 4 << 20)
        assert service.clients.held.total == 1 << 20
        assert registry._linger == 7
        async with daemon.session() as wire:
            await wire.say(*[event(f"e{n}") for n in range(9)])
            await wire.until_ack(9, 9)
            while not daemon.bundles():
                await anyio.sleep(0.01)


async def test_a_changed_graph_applies_to_the_sessions_opened_next() -> None:
    """An open session keeps its constraints, as its bundle says; another engine needs a restart."""
    async with running_daemon("[graphs.default]\nmax_retries = 1\n") as daemon, daemon.session() as before:
        changed = '[graphs.default]\nmax_retries = 2\nengine = { kind = "fixed", termination = "TimedOut" }\n'
        answer = await reload(daemon, changed)
        assert answer["applied"] == ["graphs.default.max_retries"]
        assert answer["restart"] == ["graphs.default.engine"]
        async with daemon.session() as after:
            retries = []
            for wire in (before, after):
                await wire.say(event("a"), {"type": "close"})
                bundle = json.loads(Path((await wire.until("closed"))["bundle"]).read_bytes())
                retries.append(bundle["config"]["max_retries"])
                assert bundle["decisions"][0]["termination"] == "Completed"
        assert retries == [1, 2]


async def test_settings_that_need_a_restart_are_named_in_every_reload() -> None:
    """They are not half in force meanwhile: the configuration has the old values."""
    text = '[socket]\nbacklog = 7\n[journal]\nqueue_frames = 9\n[log]\nlevel = "warning"\nformat = "json"\n'
    async with running_daemon() as daemon:
        answer = await reload(daemon, text)
        assert answer["applied"] == ["log.level"]
        assert answer["restart"] == ["socket.backlog", "journal.queue_frames", "log.format"]
        again = await reload(daemon, text)
        assert again["applied"] == []
        assert again["restart"] == answer["restart"]
        assert daemon.service.components.config.socket.backlog == Config().socket.backlog


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("[limits]\nmax_clients = 0\n", "max_clients"),
        ("[limits]\nmax_clients = 1\n[graphs.x]\nmax_per_window = 0\nrate_window = '1s'\nengine='no'", "engine"),
        ("[limits]\nmax_clients = 1\n[access]\nusers = ['nobody-has-this-name']\n", "access.users"),
        ("[limits]\nmax_clients = 1\n[graphs.x]\nengine = { kind = 'scripted', file = '/nowhere/x' }\n", "/nowhere/x"),
        ("limits = [", "TOML"),
    ],
)
async def test_an_invalid_file_changes_nothing_and_is_explained(text: str, word: str) -> None:
    """The settings beside the invalid one do not change either; the daemon serves as before."""
    async with running_daemon() as daemon, daemon.session() as wire:
        before = daemon.service.components.config
        answer = await reload(daemon, text)
        assert answer["type"] == "error"
        assert word in answer["message"] + answer["hint"]
        assert daemon.service.components.config is before
        assert daemon.service.clients.admission.max_clients == before.limits.max_clients
        assert list(daemon.service.registry.graphs) == ["default"]
        await wire.say(event("a"))
        await wire.until_ack(1, 1)


async def test_a_defect_in_a_reload_is_logged_and_answered_and_the_daemon_stays() -> None:
    """The exception may be of any type."""
    async with running_daemon() as daemon, daemon.session() as wire:

        def broken() -> Config:
            raise RuntimeError("a defect")

        daemon.service.reloader = Reloader(daemon.service.components, broken)
        answer = await daemon.ask("reload")
        assert (answer["type"], answer["code"]) == ("error", "failed")
        assert "a defect" in answer["message"]
        await wire.say(event("a"))
        await wire.until_ack(1, 1)


async def test_a_reload_succeeds_where_the_descriptor_limit_cannot_be_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit of clients is in force; clients without a descriptor are refused when they come."""
    import resource

    def refuse(*_: object) -> None:
        raise ValueError("not allowed to raise maximum limit")

    async with running_daemon() as daemon:
        monkeypatch.setattr(resource, "setrlimit", refuse)
        answer = await reload(daemon, "[limits]\nmax_clients = 10000000\n")
        assert answer["applied"] == ["limits.max_clients"]


def test_sighup_reloads_the_file_and_logs_the_result() -> None:
    """An invalid file is logged as refused, and the daemon stays."""
    with short_directory() as place, DaemonProcess(place, place / "state", config="[graphs.a]\n") as daemon:
        daemon.start()
        assert daemon.process is not None
        daemon.config.write_text("[graphs.a\n")
        daemon.process.send_signal(signal.SIGHUP)
        refused = daemon.until_logged("config.refused")
        assert str(daemon.config) in refused["error"]
        daemon.config.write_text('[graphs.a]\n[graphs.b]\n[log]\nformat = "json"\n')
        daemon.process.send_signal(signal.SIGHUP)
        reloaded = daemon.until_logged("config.reloaded")
        assert (reloaded["applied"], reloaded["restart"]) == (["graphs.b"], ["log.format"])
        # Paths given on the command line are not a change of the file.
        asked = command("reload", "--socket", str(daemon.socket))
        assert (asked.returncode, asked.stdout) == (0, "needs a restart: log.format\n")
        assert daemon.stop() == 0


def test_differences_are_found_key_by_key() -> None:
    """A name that contains a dot is taken as one name."""
    old = parse('[graphs."a.b"]\n', "old")
    new = parse('[graphs."a.b"]\nmax_retries = 3\n[limits]\nmax_clients = 3\n[socket]\nbacklog = 3\n', "new")
    found = differences(old, new)
    assert found == [("socket", "backlog"), ("limits", "max_clients"), ("graphs", "a.b", "max_retries")]
    assert [takes_effect(setting) for setting in found] == [False, True, True]
    assert differences(old, old) == []
    half = merged(old, new, [setting for setting in found if takes_effect(setting)])
    assert differences(half, new) == [("socket", "backlog")]


def test_every_setting_either_takes_effect_or_is_named() -> None:
    """After merging everything that takes effect, exactly the settings that need a restart differ."""
    old = parse("", "old")
    new = msgspec.structs.replace(
        old,
        bundle=configuration.parse('[bundle]\nstyle = "pretty"\n', "x").bundle,
        shutdown=configuration.parse('[shutdown]\ndrain = "1s"\n', "x").shutdown,
        snapshot=configuration.parse('[snapshot]\ninterval = "1s"\n', "x").snapshot,
        control=configuration.parse('[control]\npath = "/x"\n', "x").control,
    )
    found = differences(old, new)
    applied = [setting for setting in found if takes_effect(setting)]
    assert differences(merged(old, new, applied), new) == [setting for setting in found if setting not in applied]


def test_an_unreadable_file_is_a_configuration_error() -> None:
    """The exit code of the command line is 78, as everywhere."""
    with pytest.raises(ConfigError) as refused:
        configuration.load(Path("/nowhere/config.toml"))
    assert refused.value.exit_code == 78
