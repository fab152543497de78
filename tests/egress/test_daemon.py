"""Egress channels of the daemon's sessions."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from tests.adapter.cases import graph_id
from tests.daemons import Daemon, running_daemon
from tests.egress.channels import heard
from tests.egress.hosted import ROWS, TWO, configuration, event_lines, good, intents_of
from tests.server.looks import sessions_of, until
from tests.server.session.test_refusals import opened

from ergo_capture import decode_bundle

#: Runs that the reference loses, each for a channel that is wrong at the end: the daemon keeps them.
LOST = {"ack-duplicate-last", "dies-after-last-ack"}
#: Played elsewhere: they do not start, or their events end otherwise than by `end`.
OTHERS = {
    "ready-wrong-protocol",
    "mirror-key-not-declared",
    "end-ignored",
    "end-after-driver-protocol-violation",
    "end-after-refused-event",
    "host-stop-max-events-2",
    "ack-process-dies-idle-between",
}
PLAYED = [row for name, row in ROWS.items() if row.get("transcript") and any(row["transcript"].values())]


async def sent(daemon: Daemon, row: dict[str, Any]) -> dict[str, Any]:
    """Send a row's events through a session and close it; return ``closed``."""
    async with daemon.session(graph=graph_id(row)) as wire:
        await wire.say(*event_lines(row), {"type": "close"})
        return await wire.until("closed")


def capture_of(daemon: Daemon) -> Any:
    """Return the only bundle's JSON."""
    (bundle,) = daemon.bundles()
    return json.loads(bundle.read_bytes())


def transcript(row: dict[str, Any], name: str) -> list[Any]:
    """Return what the reference sent to a channel."""
    return [json.loads(line) for way, line in row["transcript"][name] or [] if way == "to" and line is not None]


@pytest.mark.parametrize(
    "row", [row for row in PLAYED if row["name"] not in LOST | OTHERS], ids=lambda row: row["name"]
)
async def test_a_session_sends_and_captures_what_the_reference_does(row: dict[str, Any], tmp_path: Path) -> None:
    """Acks, interruptions, and every line that a channel reads; the provenances name other commands."""
    async with running_daemon(configuration(row, tmp_path)) as daemon:
        await sent(daemon, row)
        capture = capture_of(daemon)
    expected = json.loads(row["capture"])
    for name in ("egress_provenance", "runtime_provenance"):
        assert capture.pop(name).split(":")[0] == expected.pop(name).split(":")[0]
    assert capture == expected
    for name in row["egress_script_behaviour"]:
        assert heard(tmp_path, name) == transcript(row, name)


@pytest.mark.parametrize("name", sorted(LOST))
async def test_a_channel_that_is_wrong_at_the_end_costs_no_capture(name: str, tmp_path: Path) -> None:
    """The reference loses it."""
    row = ROWS[name]
    async with running_daemon(configuration(row, tmp_path)) as daemon:
        await sent(daemon, row)
        (bundle,) = daemon.bundles()
        acks = [ack.intent_id for record in decode_bundle(bundle.read_bytes()).decisions for ack in record.intent_acks]
    assert acks == intents_of(row)
    assert ROWS[name]["capture"] is None


async def test_where_a_channel_does_not_start_no_session_is_opened(tmp_path: Path) -> None:
    """The client hears why; nothing is left."""
    row = ROWS["ready-wrong-protocol"]
    async with running_daemon(configuration(row, tmp_path)) as daemon:
        async with daemon.wire() as wire:
            await wire.say({"type": "hello", "protocol": "ergo-capture.v1"})
            await wire.read()
            await wire.say({"type": "open", "graph": graph_id(row)})
            answer = await wire.read()
        assert (answer["type"], answer["code"]) == ("error", "no_egress")
        assert "ready frame protocol mismatch: expected 'ergo-egress.v1', got 'ergo-egress.v2'" in answer["message"]
        assert answer["hint"].startswith("read what the channel wrote to its standard error")
    assert daemon.bundles() == []


async def test_a_session_whose_client_goes_while_channels_start_ends_without_a_bundle(tmp_path: Path) -> None:
    """Nobody knows its id."""
    script = good() | {"b": {"start": [{"sleep_ms": 3_600_000}]}}
    async with running_daemon(configuration(TWO, tmp_path, script)) as daemon:
        opening = asyncio.create_task(opened(daemon, graph=graph_id(TWO)))
        await until(lambda: sessions_of(daemon))
        (session,) = sessions_of(daemon)
        channels = session.egress and session.egress.channels
        await until(lambda: channels and "b" in channels.pids)
        opening.cancel()
        await until(session.over.is_set)
        assert (session.ended, session.bundles) == ("interrupted", [])


async def test_sessions_with_channels_are_bounded(tmp_path: Path) -> None:
    """Each has processes of its own."""
    text = configuration(TWO, tmp_path, good()) + "[limits]\nmax_egress_sessions = 1\n"
    async with running_daemon(text) as daemon, daemon.session(graph=graph_id(TWO)):
        async with daemon.wire() as wire:
            await wire.say({"type": "hello", "protocol": "ergo-capture.v1"})
            await wire.read()
            await wire.say({"type": "open", "graph": graph_id(TWO)})
            answer = await wire.read()
        assert (answer["code"], answer["message"]) == ("limit", "1 sessions with egress channels are open")


async def test_one_set_of_channels_serves_all_parts_of_a_session(tmp_path: Path) -> None:
    """They hear `end` once, at the session's end."""
    text = configuration(TWO, tmp_path, good()) + "[rotation]\nmax_events = 1\n"
    async with running_daemon(text) as daemon:
        async with daemon.session(graph=graph_id(TWO)) as wire:
            for line in event_lines(TWO):
                await wire.say(line, {"type": "flush"})
                await wire.until("flushed")
            await wire.say({"type": "close"})
            await wire.until("closed")
        assert len(daemon.bundles()) > 1
    assert [message["type"] for message in heard(tmp_path, "a")] == ["intent"] * 3 + ["end"]


async def test_channels_end_when_the_daemon_stops(tmp_path: Path) -> None:
    """The session stays open."""
    async with (
        running_daemon(configuration(TWO, tmp_path, good())) as daemon,
        daemon.session(graph=graph_id(TWO)) as wire,
    ):
        await wire.say(event_lines(TWO)[0], {"type": "flush"})
        await wire.until("flushed")
    assert [message["type"] for message in heard(tmp_path, "a")] == ["intent", "end"]


async def test_a_store_beyond_its_bound_kills_the_channels(tmp_path: Path) -> None:
    """The reference does so too: they get no `end`, though their intents were acknowledged."""
    text = configuration(TWO, tmp_path, good()) + '[limits]\ncontext_bytes = "1B"\n'
    async with running_daemon(text) as daemon, daemon.session(graph=graph_id(TWO)) as wire:
        await wire.say(event_lines(TWO)[0], {"type": "close"})
        assert (await wire.until("closed"))["reason"] == "context_full"
    for name in ("a", "b"):
        assert [message["type"] for message in heard(tmp_path, name)] == ["intent"]
