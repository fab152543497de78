"""The order of journal and dispatch, and sessions whose channels have changed after a start."""

from __future__ import annotations

import errno
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest
import structlog
from tests.adapter.cases import graph_id
from tests.daemons import running_daemon
from tests.doubles.gated_storage import GatedStorage
from tests.egress.channels import heard, puppet, ready
from tests.egress.hosted import ROWS, TWO, configuration, event_lines, good, intents_of
from tests.server.looks import sessions_of

from ergo_capture import decode_bundle
from ergo_capture.server.session import egress

GRAPH = graph_id(TWO)
LINES = event_lines(TWO)


async def until(condition: Callable[[], bool]) -> None:
    """Wait until a condition holds."""
    with anyio.fail_after(20):
        while not condition():
            await anyio.sleep(0.002)


def counts(place: Path) -> tuple[int, int]:
    """Return how many intents each channel has read."""
    return len(heard(place, "a")), len(heard(place, "b"))


async def test_an_intent_is_sent_only_after_its_outcome_is_synced(tmp_path: Path) -> None:
    """The second one is sent only after the ack of the first."""
    storage = GatedStorage()
    async with (
        running_daemon(configuration(TWO, tmp_path, good()), storage=storage) as daemon,
        daemon.session(graph=GRAPH) as wire,
    ):
        await wire.say(LINES[0])
        await wire.until_ack(1, 1)
        # The first commit is of the event.
        with storage.gate("sync", ".journal", after=1):
            await wire.say(LINES[1])
            await storage.until_held()
            assert (tmp_path / "calls").read_text().split() == ["e1", "e2"]
            assert counts(tmp_path) == (1, 1)
        await wire.until_ack(2, 2)
        with storage.gate("sync", ".journal", after=2):
            await wire.say(LINES[2])
            await storage.until_held()
            assert counts(tmp_path) == (3, 2)
        await wire.until_ack(3, 3)
        assert counts(tmp_path) == (3, 3)


async def test_a_full_disk_holds_intents_back(tmp_path: Path) -> None:
    """They are sent once, after the outcome was written."""
    storage = GatedStorage()
    async with (
        running_daemon(configuration(TWO, tmp_path, good()), tmp_path / "state", storage) as daemon,
        daemon.session(graph=GRAPH) as wire,
    ):
        with storage.gate("write", ".journal", after=1):
            await wire.say(LINES[0])
            await storage.until_held()
            storage.fail_next("write", errno.ENOSPC, errno.ENOSPC)
        await wire.until_ack(1, 1)
        await wire.say({"type": "close"})
        closed = await wire.until("closed")
    assert [call for call in storage.calls if call.startswith("-write")]
    assert counts(tmp_path) == (2, 2)
    (record,) = decode_bundle(Path(closed["bundle"]).read_bytes()).decisions
    assert [ack.intent_id for ack in record.intent_acks] == intents_of(TWO)[:2]


@pytest.fixture(autouse=True)
def killed_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the time that hanging channels get to end."""
    monkeypatch.setattr(egress, "_STOP_SECONDS", 0.05)


async def hanging_session(place: Path, state: Path) -> str:
    """Leave a session whose second intent was sent and not acknowledged; return its id."""
    text = configuration(TWO, place, good(b=[[{"sleep_ms": 3_600_000}]])).replace("500ms", "1h")
    async with (
        running_daemon(text + '[shutdown]\ndrain = "100ms"\n', state) as daemon,
        daemon.session(graph=GRAPH) as wire,
    ):
        await wire.say(LINES[0])
        await until(lambda: counts(place) == (1, 1))
        (session,) = sessions_of(daemon)
        assert session.egress is not None
        assert session.egress.waits_for == "egress channel 'b' to acknowledge an intent"
        return str(wire.opened["session"])


async def test_a_stop_while_an_intent_hangs_loses_nothing(tmp_path: Path) -> None:
    """The next start sends only that intent again; the episode is not run again."""
    state = tmp_path / "state"
    session = await hanging_session(tmp_path, state)
    async with (
        running_daemon(configuration(TWO, tmp_path, good()), state) as daemon,
        daemon.session(graph=GRAPH, session=session) as wire,
    ):
        await wire.say(LINES[1], {"type": "close"})
        closed = await wire.until("closed")
    first, second = decode_bundle(Path(closed["bundle"]).read_bytes()).decisions
    assert [ack.intent_id for ack in first.intent_acks + second.intent_acks] == intents_of(TWO)[:4]
    sent = {name: [message.get("intent_id") for message in heard(tmp_path, name)] for name in ("a", "b")}
    assert sent["b"] == [intents_of(TWO)[1]] * 2 + [intents_of(TWO)[3], None]
    assert [intent for intent in sent["a"] if intent is not None] == [intents_of(TWO)[0], intents_of(TWO)[2]]
    assert (tmp_path / "calls").read_text().split() == ["e1", "e2"]


async def test_channels_of_a_recovered_session_are_tried_until_they_start(tmp_path: Path) -> None:
    """Meanwhile the session waits, and the log says why; the channels are not the ones that it was opened with."""
    state = tmp_path / "state"
    session = await hanging_session(tmp_path, state)
    text = configuration(TWO, tmp_path, good())
    flag = tmp_path / "may start"
    wait = f"import os, sys; os.path.exists({str(flag)!r}) or sys.exit(7); os.execv(sys.argv[1], sys.argv[1:])"
    command = list(puppet(tmp_path, "b", {"start": [ready("beta")]}))
    text = text.replace(json.dumps(command), json.dumps([sys.executable, "-c", wait, *command]))
    with structlog.testing.capture_logs() as lines:
        async with running_daemon(text, state) as daemon, daemon.session(graph=GRAPH, session=session) as wire:
            await wire.say({"type": "close"})
            await until(lambda: any(line["event"] == "egress.away" for line in lines))
            (recovered,) = sessions_of(daemon)
            assert recovered.egress is not None
            assert recovered.egress.waits_for == "egress channel 'b' to start"
            flag.touch()
            closed = await wire.until("closed")
    (record,) = decode_bundle(Path(closed["bundle"]).read_bytes()).decisions
    assert len(record.intent_acks) == 2
    (away,) = (line for line in lines if line["event"] == "egress.away")
    about = {"session": session, "graph": GRAPH, "log_level": "warning"}
    assert "channel closed stdout before ready handshake" in away.pop("error")
    assert away.pop("hint")
    assert away == about | {"event": "egress.away", "channel": "b"}
    assert [line for line in lines if line["event"] == "egress.changed"] == [about | {"event": "egress.changed"}]


async def test_a_session_whose_graph_has_no_channels_any_more_goes_on_once_they_are_back(tmp_path: Path) -> None:
    """The session stops until then, and nothing is lost."""
    state = tmp_path / "state"
    session = await hanging_session(tmp_path, state)
    text = configuration(TWO, tmp_path, good())
    without = text[: text.index(f"[graphs.{GRAPH}.egress.")]
    with structlog.testing.capture_logs() as lines:
        async with running_daemon(without, state) as daemon:
            await until(lambda: any(line["event"] == "session.failed" for line in lines))
            (stopped,) = sessions_of(daemon)
            assert stopped.failure is not None
            assert stopped.failure.op == "send intents"
    (failed,) = (line for line in lines if line["event"] == "session.failed")
    assert failed["error"] == (
        f"send intents of session '{session}': graph '{GRAPH}' has no egress channel for them any more"
    )
    assert failed["hint"] == (
        f"restore [graphs.{GRAPH}.egress] as it was when the session was opened, and start the daemon again: the session "
        "goes on from there"
    )
    async with running_daemon(text, state) as daemon, daemon.session(graph=GRAPH, session=session) as wire:
        await wire.say({"type": "close"})
        closed = await wire.until("closed")
    assert len(decode_bundle(Path(closed["bundle"]).read_bytes()).decisions[0].intent_acks) == 2


@pytest.mark.parametrize(
    ("steps", "reason"),
    [
        ([{"sleep_ms": 400}, {"ack": {}}], "egress_ack_timeout"),
        ([], "egress_ack_timeout"),
        ([{"ack": {"intent_id": "other"}}], "egress_protocol_violation"),
        ([{"send": "nonsense"}], "egress_protocol_violation"),
        ([{"exit": 1}], "egress_io"),
        ([{"close_stdout": None}, {"sleep_ms": 3_600_000}], "egress_io"),
    ],
)
async def test_what_a_channel_does_wrong_interrupts_the_run(
    steps: list[dict[str, Any]], reason: str, tmp_path: Path
) -> None:
    """The manifest says so, and the events after it are left over."""
    row = ROWS["ok-three-intents"]
    script = {"a": {"start": [ready("send_one")], "intents": [[{"ack": {}}], steps]}}
    text = configuration(row, tmp_path, script).replace("2000ms", "200ms")
    async with (
        running_daemon(text, tmp_path / "state") as daemon,
        daemon.session(graph=graph_id(row)) as wire,
    ):
        lines = event_lines(row)
        await wire.say(*lines, {"type": "close"})
        closed = await wire.until("closed")
    manifest = json.loads(Path(closed["manifest"]).read_bytes())
    assert (manifest["ended"], manifest["interruption"]["reason"]) == ("interrupted", reason)
    bundle = decode_bundle(Path(closed["bundle"]).read_bytes())
    assert [len(record.intent_acks) for record in bundle.decisions] == [1, 0]
    assert (bundle.decisions[1].interruption or "").startswith("egress dispatch failed: ")
    rest = Path(closed["bundle"]).parent / f"{wire.opened['session']}.rest.jsonl"
    assert rest.read_bytes().splitlines() == lines[2:]
