"""The daemon is killed between each pair of steps of sending intents."""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import pytest
from tests.adapter.cases import graph_id
from tests.daemons import COMMAND, PATIENCE, DaemonProcess, short_directory
from tests.egress.channels import heard
from tests.egress.hosted import TWO, configuration, event_lines, good, intents_of

from ergo_capture import decode_bundle
from ergo_capture.client import CaptureClient, ClientError
from ergo_capture.journal.decision_rows import DecisionOutcome, read_decisions
from ergo_capture.journal.frame import Position
from ergo_capture.journal.reader import read_frames
from ergo_capture.journal.scan import scan
from ergo_capture.journal.session_frames import read_history
from ergo_capture.storage import RealStorage

DYING = Path(__file__).with_name("dying_daemon.py")
GRAPH = graph_id(TWO)
IDS = ["e1", "e2", "e3"]


def in_journal(state: Path) -> tuple[int, set[str]]:
    """Return how many episodes the journal knows the outcome of, and the intents whose acks it holds."""
    journal, storage = state / "journal", RealStorage()
    known, acked = 0, set()
    for frames in scan(journal, storage).sessions.values():
        for frame in read_frames(journal, map(Position.unpack, frames.decisions), storage):
            for outcome in read_decisions(frame.body):
                assert isinstance(outcome, DecisionOutcome)
                known += 1
                acked |= {ack.intent_id for ack in outcome.intent_acks}
        pending = read_history(journal, frames, storage).outcome
        if pending is not None:
            known += 1
            acked |= {ack.intent_id for ack in pending.acks}
    return known, acked


def sent(place: Path) -> Counter[str]:
    """Return how often each intent was sent."""
    lines = [*heard(place, "a"), *heard(place, "b")]
    return Counter(line["intent_id"] for line in lines if line["type"] == "intent")


def runs(place: Path) -> list[str]:
    """Return the events that the engine was asked to run."""
    calls = place / "calls"
    return calls.read_text().split() if calls.exists() else []


async def begin(daemon: DaemonProcess) -> tuple[str | None, bool]:
    """Send the events; return the session, if one was opened, and whether the daemon has decided all of them."""
    session = None
    with suppress(ClientError):
        async with CaptureClient(daemon.socket, give_up_after=0) as client:
            session = await client.open(GRAPH)
            for name, line in zip(IDS, event_lines(TWO), strict=True):
                await client.send_line(line + b"\n", name)
                await client.drain()
            await client.flush()
            return session, True
    return session, False


async def finish(daemon: DaemonProcess, session: str) -> list[Any]:
    """Resume the session, send the events again, close; return the decisions of its bundle."""
    async with CaptureClient(daemon.socket) as client:
        await client.open(GRAPH, session=session)
        for name, line in zip(IDS, event_lines(TWO), strict=True):
            await client.send_line(line + b"\n", name)
        await client.drain()
        published = await client.close()
    return list(decode_bundle(Path(published.bundle).read_bytes()).decisions)


async def killed_at(step: int, place: Path, *, in_doubt: str = "reinvoke") -> bool:
    """Kill a daemon at a step, start it again and compare; return whether it was killed at all."""
    text = configuration(TWO, place, good()) + f'[session]\nin_doubt = "{in_doubt}"\n'
    with DaemonProcess(place, place / "state", config=text) as daemon:
        daemon.command = [sys.executable, str(DYING), str(step)]
        await asyncio.to_thread(daemon.start)
        session, is_decided = await begin(daemon)
        assert session is not None
        if is_decided:
            return False
        assert daemon.process is not None
        await asyncio.to_thread(daemon.process.wait, PATIENCE)
        known, acked = in_journal(daemon.state)
        before, calls = sent(place), runs(place)
        daemon.command = COMMAND
        await asyncio.to_thread(daemon.start)
        decisions = await finish(daemon, session)
    # An episode without an outcome may have run: it is in doubt where it must not run again, and none of its intents was sent.
    lost = {index for index, record in enumerate(decisions) if (record.interruption or "").startswith("in_doubt")}
    assert lost <= ({known} if in_doubt == "interrupt" else set())
    expected = [intents_of(TWO)[2 * index : 2 * index + 2] for index in range(len(IDS))]
    assert [[ack.intent_id for ack in record.intent_acks] for record in decisions] == [
        [] if index in lost else intents for index, intents in enumerate(expected)
    ]
    # No intent is lost, and none whose ack is in the journal is sent again.
    assert set(sent(place)) == {name for index, intents in enumerate(expected) if index not in lost for name in intents}
    again = sent(place) - before
    assert again.keys() & acked == set()
    # An episode whose outcome is in the journal is not run again, and an intent is sent only after it.
    assert runs(place)[len(calls) :] == IDS[known + len(lost) :]
    assert before.keys() <= set(intents_of(TWO)[: 2 * known])
    return True


@pytest.mark.parametrize("step", [1, 3, 4, 9])
async def test_killed_at_any_step_no_intent_is_lost_and_none_acknowledged_is_sent_again(step: int) -> None:
    """The decisions are those of a run without a kill."""
    with short_directory() as place:
        assert await killed_at(step, place)


async def test_an_episode_whose_outcome_is_known_is_not_in_doubt() -> None:
    """Its intents are sent, though episodes that may have run are not run again."""
    with short_directory() as place:
        assert await killed_at(3, place, in_doubt="interrupt")


@pytest.mark.soak
@pytest.mark.parametrize("in_doubt", ["reinvoke", "interrupt"])
async def test_killed_at_every_step_of_a_session(in_doubt: str) -> None:
    """The kills are before and after each commit, each intent and each ack of three episodes."""
    for step in range(60):
        with short_directory() as place:
            if not await killed_at(step, place, in_doubt=in_doubt):
                return
    pytest.fail("it never came to the end")


def many(count: int) -> dict[str, Any]:
    """Return a row with so many events, each with an intent for either channel."""
    outcomes, feed = [], []
    for number in range(count):
        text = json.dumps(TWO["engine_outcomes"][0])
        for intent in intents_of(TWO)[:2]:
            text = text.replace(intent, f"{intent[:20]}-{number}")
        outcomes.append(json.loads(text) | {"event_id": f"m{number}"})
        feed.append(TWO["feed"][1].replace('"e1"', f'"m{number}"'))
    return {**TWO, "engine_outcomes": outcomes, "feed": feed}


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(3))
async def test_killed_at_random_no_intent_is_lost_and_none_acknowledged_is_sent_again(seed: int) -> None:
    """Ten times, while a client sends as fast as it can."""
    random, row = Random(seed), many(3000)
    ids = [outcome["event_id"] for outcome in row["engine_outcomes"]]
    with short_directory() as place:
        text = configuration(row, place, good())
        with DaemonProcess(place, place / "state", config=text) as daemon:
            session: str | None = None
            progress: set[int] = set()
            await asyncio.to_thread(daemon.start)
            for _ in range(10):
                session = session or await opened(daemon)
                sending = asyncio.create_task(send_all(daemon, session, ids, event_lines(row)))
                await asyncio.sleep(random.uniform(0.05, 1.0))
                await asyncio.to_thread(daemon.kill)
                await sending
                known, acked = in_journal(daemon.state)
                progress.add(known)
                before = sent(place)
                assert before.keys() <= set(intents_of(row)[: 2 * known])
                await asyncio.to_thread(daemon.start)
                # The outcome that the journal holds is gone on with at once.
                await asyncio.sleep(0.2)
                assert (sent(place) - before).keys() & acked == set()
            assert session is not None
            # Some of the kills came while intents were sent.
            assert len(progress - {0, len(ids)}) > 1
            async with CaptureClient(daemon.socket) as client:
                await client.open(GRAPH, session=session)
                for name, line in zip(ids, event_lines(row), strict=True):
                    await client.send_line(line + b"\n", name)
                await client.drain()
                published = await client.close()
        decisions = decode_bundle(Path(published.bundle).read_bytes()).decisions
        assert [ack.intent_id for record in decisions for ack in record.intent_acks] == intents_of(row)
        assert set(sent(place)) == set(intents_of(row))


async def opened(daemon: DaemonProcess) -> str:
    """Open a session and leave it; return its id."""
    async with CaptureClient(daemon.socket, give_up_after=0) as client:
        return await client.open(GRAPH)


async def send_all(daemon: DaemonProcess, session: str, ids: list[str], lines: list[bytes]) -> None:
    """Send all events through a session, until the daemon is gone."""
    with suppress(ClientError):
        async with CaptureClient(daemon.socket, give_up_after=0) as client:
            await client.open(GRAPH, session=session)
            for name, line in zip(ids, lines, strict=True):
                await client.send_line(line + b"\n", name)
            await client.drain()
            await client.flush()
