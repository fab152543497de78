"""Log lines of sessions name the session and its graph, and say what an operator should do next."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
import structlog
from tests.adapter.cases import graph_id
from tests.daemons import event, running_daemon, short_directory
from tests.doubles.composers import RoomlessComposer
from tests.egress.channels import ready
from tests.egress.hosted import ROWS, TWO, configuration, event_lines, good, intents_of
from tests.server.looks import manifests, sessions_of, until
from tests.server.session.test_adapters import add, daemon_with
from tests.server.session.test_quarantine import damaged
from tests.server.session.test_refusals import Connection

from ergo_capture.errors import ErgoCaptureError
from ergo_capture.protocol.capture import Acknowledged, Open, ProtocolError
from ergo_capture.server.commit.writer import WriterClosed
from ergo_capture.server.session import parts, quarantine
from ergo_capture.server.session.snapshots import Snapshots

STORE_BOUND = '[limits]\ncontext_bytes = "1KiB"\n'


@pytest.fixture
def lines() -> Iterator[list[Any]]:
    """Yield the lines that are logged during the test."""
    with structlog.testing.capture_logs() as captured:
        yield captured


def named(lines: list[Any], name: str) -> list[dict[str, Any]]:
    """Return the lines of one name."""
    return [line for line in lines if line["event"] == name]


async def test_a_finished_session_is_logged_with_what_it_came_to(lines: list[Any]) -> None:
    """Refused events count as events, and not as decisions."""
    async with daemon_with() as daemon, daemon.session() as wire:
        await wire.say(add("a", 101), add("b", 1), add("c", 1, total=1), {"type": "close"})
        await wire.until("closed")
        await until(lambda: named(lines, "session.finished"))
        assert named(lines, "session.finished") == [
            {
                "event": "session.finished",
                "log_level": "info",
                "session": wire.opened["session"],
                "graph": "default",
                "ended": "complete",
                "events": 3,
                "decisions": 2,
            }
        ]


async def test_a_refused_event_is_logged_with_its_id_and_the_reason(lines: list[Any]) -> None:
    """It is a warning, because the session goes on."""
    async with daemon_with() as daemon, daemon.session() as wire:
        await wire.say(add("a", 101), add("b", 1))
        refused = await wire.until("refused")
        assert named(lines, "event.refused") == [
            {
                "event": "event.refused",
                "log_level": "warning",
                "session": wire.opened["session"],
                "graph": "default",
                "event_id": "b",
                "error": refused["message"],
            }
        ]


async def test_effects_that_the_adapter_refuses_are_logged_as_the_engines_fault(lines: list[Any]) -> None:
    """The line has the event and the outcome of the episode."""
    async with daemon_with() as daemon, daemon.session() as wire:
        await wire.say(add("undeclared.a"))
        await wire.until_ack(1, 1)
        (line,) = named(lines, "engine.failed")
        assert line.pop("error").startswith("the adapter refuses its effects, and the episode Failed(RuntimeError): ")
        assert line.pop("hint")
        assert line == {
            "event": "engine.failed",
            "log_level": "error",
            "graph": "default",
            "engine": "python",
            "event_id": "undeclared.a",
        }


async def test_an_interrupted_run_is_logged_with_the_setting_that_bounds_the_store(lines: list[Any]) -> None:
    """The line also says where the left-over events are."""
    async with daemon_with(text=STORE_BOUND) as daemon, daemon.session() as wire:
        await wire.say({"type": "events", "events": [add(name)["event"] for name in ("long.a", "b")]})
        left = await wire.until("left_over")
        assert named(lines, "session.interrupted") == [
            {
                "event": "session.interrupted",
                "log_level": "error",
                "session": wire.opened["session"],
                "graph": "default",
                "reason": "context_full",
                "error": left["message"],
                "hint": "raise limits.context_bytes, or let the graph write less; send what is left over, the .rest.jsonl "
                "beside the bundle, in another session",
            }
        ]


async def test_an_intent_that_is_not_acknowledged_is_logged_with_its_id_and_its_channel(
    lines: list[Any], tmp_path: Path
) -> None:
    """The interruption of the run is logged too, and the manifest names intent and channel."""
    script = good(b=[[{"sleep_ms": 3_600_000}]])
    text = configuration(TWO, tmp_path, script).replace("500ms", "20ms")
    async with running_daemon(text) as daemon, daemon.session(graph=graph_id(TWO)) as wire:
        await wire.say(event_lines(TWO)[0])
        await until(lambda: named(lines, "session.finished") or named(lines, "session.interrupted"))
        (session,) = sessions_of(daemon)
        intent = intents_of(TWO)[1]
        about = {"session": wire.opened["session"], "graph": graph_id(TWO), "log_level": "error"}
        assert named(lines, "egress.failed") == [
            about
            | {
                "event": "egress.failed",
                "channel": "b",
                "intent_id": intent,
                "error": f"ack timeout on channel 'b' for intent '{intent}'",
                "hint": "see what the channel wrote to its standard error (egress.said)",
            }
        ]
        assert named(lines, "session.interrupted") == [
            about
            | {
                "event": "session.interrupted",
                "reason": "egress_ack_timeout",
                "error": f"egress dispatch failed: ack timeout on channel 'b' for intent '{intent}'",
                "hint": "events behind it are in the .rest.jsonl beside the bundle",
            }
        ]
        assert session.interruption is not None
        assert (session.interruption.channel, session.interruption.intent_id) == ("b", intent)
        assert daemon.service.registry.intents[graph_id(TWO)] == {"acknowledged": 1, "failed": 1}


async def test_a_channel_that_is_wrong_at_the_end_is_logged(lines: list[Any], tmp_path: Path) -> None:
    """No intent is named, because all of them were acknowledged."""
    row = ROWS["dies-after-last-ack"]
    async with running_daemon(configuration(row, tmp_path)) as daemon, daemon.session(graph=graph_id(row)) as wire:
        await wire.say(*event_lines(row), {"type": "close"})
        await wire.until("closed")
    (line,) = named(lines, "egress.failed")
    assert line.pop("error")
    assert line == {
        "event": "egress.failed",
        "log_level": "error",
        "session": wire.opened["session"],
        "graph": graph_id(row),
        "channel": next(iter(row["egress_script_behaviour"])),
        "hint": "see what the channel wrote to its standard error (egress.said)",
    }


async def test_a_channel_that_has_ended_by_itself_when_the_daemon_stops_is_not_logged(
    lines: list[Any], tmp_path: Path
) -> None:
    """The session stays open, and the next start starts a new channel."""
    row = ROWS["dies-after-last-ack"]
    async with (
        running_daemon(configuration(row, tmp_path)) as daemon,
        daemon.session(graph=graph_id(row)) as wire,
    ):
        said = event_lines(row)
        await wire.say(*said)
        await wire.until_ack(len(said), len(said))
    assert named(lines, "session.finished") == named(lines, "egress.failed") == []


async def test_what_a_channel_writes_to_its_standard_error_is_logged(lines: list[Any], tmp_path: Path) -> None:
    """Each line is logged with its channel."""
    script = {"a": {"start": [{"stderr": "hello\n"}, ready("alpha")]}, "b": {"start": [ready("beta")]}}
    async with running_daemon(configuration(TWO, tmp_path, script)) as daemon:
        async with daemon.session(graph=graph_id(TWO)) as wire:
            await until(lambda: named(lines, "egress.said"))
        assert named(lines, "egress.said") == [
            {
                "event": "egress.said",
                "log_level": "info",
                "session": wire.opened["session"],
                "graph": graph_id(TWO),
                "channel": "a",
                "said": "hello",
            }
        ]


async def test_a_snapshot_that_fails_is_logged_and_tried_again(lines: list[Any]) -> None:
    """A snapshot that was published is not written again until there are new decisions."""
    async with running_daemon() as daemon, daemon.session() as wire:
        in_the_way = daemon.state / "bundles" / "default"
        in_the_way.write_text("not a directory")
        await wire.say(event("a"))
        await wire.until_ack(1, 1)
        snapshots = Snapshots(daemon.service.registry.sessions, 3600)
        await snapshots.take_round()
        (line,) = named(lines, "snapshot.failed")
        assert line == {
            "event": "snapshot.failed",
            "log_level": "error",
            "session": wire.opened["session"],
            "error": "create capture output directory: File exists (os error 17)",
            "hint": f"make '{in_the_way}' a directory that you may write to",
        }
        in_the_way.unlink()
        inodes = set()
        for _ in range(2):
            await snapshots.take_round()
            (bundle,) = daemon.bundles()
            inodes.add(bundle.stat().st_ino)
        assert len(inodes) == 1
        assert [manifest["ended"] for manifest in manifests(daemon)] == ["open"]


async def test_a_bundle_that_waits_for_room_is_logged_once(lines: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of attempts does not matter; the next time that the disk is full, it is logged again."""
    monkeypatch.setattr(parts, "FULL_SECONDS", 0.01)
    composer = RoomlessComposer(monkeypatch)
    async with running_daemon("[rotation]\nmax_events = 1\n") as daemon, daemon.session() as wire:
        for number, name in enumerate(("a", "b"), 1):
            composer.is_full, before = True, composer.attempts
            await wire.say(event(name), event(name + "2"))
            await until(lambda before=before: composer.attempts > before + 2)
            assert len(named(lines, "bundle.delayed")) == number
            composer.is_full = False
            await wire.until_ack(2 * number, 2 * number)
            (session,) = sessions_of(daemon)
            await until(lambda session=session: not session.parts.delayed_by)
        (line, _) = named(lines, "bundle.delayed")
        assert "No space left on device" in line.pop("error")
        assert line.pop("hint")
        assert line == {"event": "bundle.delayed", "log_level": "error", "session": wire.opened["session"]}


async def test_a_loss_is_logged_with_both_numbers_and_both_ids(lines: list[Any]) -> None:
    """The session may be open or gone; the line says whether the client goes on."""
    async with running_daemon() as daemon, daemon.session() as wire:
        await wire.say(event("a"))
        await wire.until_ack(1, 1)
        (session,) = sessions_of(daemon)
        registry, peer = daemon.service.registry, session.description.peer
        assert peer is not None
        session.owner = None
        told = Acknowledged(10, "e10")
        for name, goes_on in ((wire.opened["session"], False), ("gone", True)):
            request = Open(session=name, acknowledged=told, resume_after_loss=goes_on)
            with contextlib.suppress(ProtocolError):
                await registry.open(request, peer, Connection())
        about = {
            "event": "session.lost",
            "log_level": "error",
            "graph": "default",
            "acknowledged": 10,
            "last_acknowledged": "e10",
            "hint": "the state directory is older than what was acknowledged: find out whether a backup was restored, or "
            "the disk lost what it had synced",
        }
        assert named(lines, "session.lost") == [
            about | {"session": wire.opened["session"], "held": 1, "last_held": "a", "resumed": False},
            about | {"session": "gone", "held": 0, "last_held": None, "resumed": True},
        ]
        assert registry.losses == 2


async def test_a_quarantined_session_that_cannot_be_set_aside_is_logged_and_kept(
    lines: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is logged once, and the next start tries again."""
    attempts = 0

    def full(*_: Any) -> None:
        nonlocal attempts
        attempts += 1
        raise ErgoCaptureError("no room", path="/x", hint="look")

    monkeypatch.setattr(quarantine, "set_aside", full)
    monkeypatch.setattr(quarantine, "_LOOK_SECONDS", 0.001)
    with short_directory() as place:
        name = await damaged(place / "state")
        async with running_daemon(state=place / "state") as daemon:
            await until(lambda: named(lines, "quarantine.kept"))
            found = daemon.service.registry.quarantine
            found._due.set()
            await until(lambda: not found._due.is_set())
            await anyio.wait_all_tasks_blocked()
            assert list(found.segments) == list(found.reasons) == [name]
    assert attempts == 1
    assert named(lines, "quarantine.kept") == [
        {"event": "quarantine.kept", "log_level": "error", "error": "no room", "path": "/x", "hint": "look"}
    ]


async def test_a_session_that_fails_is_logged_with_the_cause(lines: list[Any]) -> None:
    """A failure of the journal is not logged again for each session, and a stop is not a failure."""
    async with running_daemon() as daemon, daemon.session() as wire, daemon.session() as other:
        (session, second) = sessions_of(daemon)
        failure = ErgoCaptureError("no part", hint="look")
        failure.__cause__ = cause = OSError("the cause")
        session.fail(failure)
        running = daemon.service.components.running
        assert running is not None
        await session.over.wait()
        await until(lambda: named(lines, "session.failed"))
        assert named(lines, "session.failed") == [
            {
                "event": "session.failed",
                "log_level": "error",
                "session": wire.opened["session"],
                "graph": "default",
                "error": "no part",
                "hint": "look",
                "exc_info": cause,
            }
        ]
        second.fail(WriterClosed("the daemon stops"))
        await second.over.wait()
        assert other.opened["session"] in daemon.service.registry.sessions
    assert len(named(lines, "session.failed")) == 1
