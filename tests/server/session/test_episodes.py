"""Concurrent runs of one session: the order of their decisions, and the effect of a run that fails."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import anyio
import pytest
from tests.daemons import event, running_daemon, short_directory
from tests.doubles.gated_storage import GatedStorage
from tests.engine import scripts
from tests.engine.engines import process_graph, python_graph
from tests.server.looks import sessions_of, until

from ergo_capture import decode_bundle
from ergo_capture.engine.python import PythonEngine
from ergo_capture.kernel.constraints import Constraints
from ergo_capture.kernel.ports import IN_DOUBT
from ergo_capture.server.session.episodes import concurrency
from ergo_capture.server.session.session import SessionState


def engine(pipeline: int) -> PythonEngine:
    """Return an engine with a pipeline."""
    return PythonEngine("tests.engine.scripts:obey", pipeline)


@pytest.mark.parametrize(("limit", "expected"), [(None, 8), (3, 3), (20, 8), (0, 1)])
def test_the_pipeline_is_bounded_by_max_in_flight(limit: int | None, expected: int) -> None:
    """With a limit of 0, one run must still be possible, though none is ever offered."""
    assert concurrency(engine(8), Constraints(max_in_flight=limit), None, has_egress=False) == expected


def test_episodes_whose_intents_are_sent_run_one_after_the_other() -> None:
    """The pipeline does not matter."""
    assert concurrency(engine(8), Constraints(), None, has_egress=True) == 1


async def test_decisions_become_durable_while_a_later_run_goes_on() -> None:
    """A run without an end holds back the decisions after it, and none before it."""
    text = '[shutdown]\ndrain = "20ms"\n' + process_graph(engine="pipeline = 3")
    async with running_daemon(text) as daemon, daemon.session() as wire:
        await wire.say(event("ok.1"), event("hang"), event("ok.2"))
        await wire.until_ack(3)
        (session,) = sessions_of(daemon)
        await until(lambda: session.decided == 1)
        assert (session.decision_log.logged, session.accepted) == (1, 3)


async def test_a_run_whose_answer_comes_early_waits_for_those_before_it() -> None:
    """Decisions are logged in the order of the events."""
    async with running_daemon(process_graph(engine="pipeline = 2")) as daemon:
        async with daemon.session(decisions=True) as wire:
            await wire.say(event("hold.1"), event("release"))
            frames = await wire.until_ack(2, 2)
        decided = [frame["decision"]["event_id"] for frame in frames if frame["type"] == "decision"]
        assert decided == ["hold.1", "release"]


@pytest.mark.parametrize("pipeline", [1, 2])
async def test_a_defect_in_a_run_fails_the_session_with_its_type(
    pipeline: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Accepted events are safe, other sessions go on, and the events after it are not decided."""

    async def broken(self: PythonEngine, graph: str, event_id: str, *_: Any) -> Any:
        if event_id == "bad":
            raise LookupError("nothing there")
        return await original(self, graph, event_id, *_)

    original = PythonEngine.run
    monkeypatch.setattr(PythonEngine, "run", broken)
    async with (
        running_daemon(python_graph("obey", engine=f"pipeline = {pipeline}")) as daemon,
        daemon.session() as wire,
        daemon.session() as other,
    ):
        session = daemon.service.registry.sessions[wire.opened["session"]]
        await wire.say(event("ok"))
        await wire.until_ack(1, 1)
        await wire.say(event("bad"), event("behind"))
        await session.over.wait()
        assert session.state is SessionState.FAILED
        assert session.failure is not None
        op = "run session" if pipeline == 1 else "run episode"
        assert session.failure.message == f"{op}: LookupError: nothing there"
        assert session.failure.op == op
        assert session.decision_log.logged == 1
        assert session._episodes.is_settled
        await other.say(event("x"))
        await other.until_ack(1, 1)


async def test_the_part_after_an_end_begins_with_episode_zero() -> None:
    """It has a new supervisor, and the engine is told of the part."""
    async with (
        running_daemon(python_graph("obey") + "[rotation]\nmax_events = 2\n") as daemon,
        daemon.session(decisions=True) as wire,
    ):
        episodes = []
        for number, name in enumerate("abc", 1):
            await wire.say(event(name))
            frames = await wire.until_ack(number, number)
            episodes += [frame["decision"]["episode_id"] for frame in frames if frame["type"] == "decision"]
        assert episodes == [0, 1, 0]
        (session,) = sessions_of(daemon)
        assert (session._episodes._of.session, session._episodes._of.part) == (wire.opened["session"], 2)


async def test_retries_are_counted_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine is asked for every attempt; the decision has the last one."""
    asked: list[tuple[str, str]] = []

    def fail(graph: str, event_id: str, *_: Any) -> Any:
        asked.append((graph, event_id))
        return {"Failed": "NetworkTimeout"}

    monkeypatch.setattr(scripts, "fail", fail, raising=False)
    async with (
        running_daemon(python_graph("fail", graph="max_retries = 2")) as daemon,
        daemon.session(decisions=True) as wire,
    ):
        await wire.say(event("a"))
        frames = await wire.until_ack(1, 1)
    (decision,) = (frame["decision"] for frame in frames if frame["type"] == "decision")
    assert (asked, decision["retry_count"]) == ([("default", "a")] * 3, 2)
    assert decision["termination"] == {"Failed": "NetworkTimeout"}


@pytest.mark.parametrize(
    ("mode", "pipeline", "doubtful"), [("interrupt", 1, 1), ("interrupt", 2, 2), ("reinvoke", 2, 0)]
)
async def test_undecided_events_whose_episodes_may_have_run_are_in_doubt_after_a_restart(
    mode: str, pipeline: int, doubtful: int
) -> None:
    """If no episode may run twice, as many are in doubt as could be under way; the others run."""
    text = f'[session]\nin_doubt = "{mode}"\n[shutdown]\ndrain = "20ms"\n'
    with short_directory() as place:
        hanging = python_graph("obey_later", engine=f"pipeline = {pipeline}")
        async with running_daemon(text + hanging, place / "state") as daemon, daemon.session() as wire:
            await wire.say({"type": "events", "events": [event(name)["event"] for name in ("hang", "b", "c", "d")]})
            await wire.until_ack(4)
        answering = python_graph("obey", engine=f"pipeline = {pipeline}").replace("hang", "ok")
        async with running_daemon(text + answering, place / "state") as daemon:
            async with daemon.session(session=wire.opened["session"]) as wire:
                await wire.say({"type": "close"})
                closed = await wire.until("closed")
            records = decode_bundle(Path(closed["bundle"]).read_bytes()).decisions
        found = [record.termination and record.termination.name for record in records]
        assert found == ["Aborted"] * doubtful + ["Completed"] * (4 - doubtful)
        assert [(record.retry_count, record.interruption) for record in records] == [
            (0, IN_DOUBT.interruption if name == "Aborted" else None) for name in found
        ]


@pytest.mark.parametrize(("mode", "called"), [("interrupt", ["a"]), ("reinvoke", ["a", "b", "c"])])
async def test_a_run_waits_for_the_decision_before_it_where_no_episode_may_run_twice(
    mode: str, called: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a crash would leave two of them in doubt."""
    asked: list[str] = []
    monkeypatch.setattr(scripts, "note", lambda _graph, event_id, *_: asked.append(event_id), raising=False)
    storage = GatedStorage()
    text = f'[session]\nin_doubt = "{mode}"\n' + python_graph("note")
    async with running_daemon(text, storage=storage) as daemon, daemon.session() as wire:
        with storage.gate("sync", ".journal", after=1):
            await wire.say({"type": "events", "events": [event(name)["event"] for name in "abc"]})
            await storage.until_held()
            await until(lambda: len(asked) >= len(called))
            await anyio.wait_all_tasks_blocked()
            assert asked == called
        await wire.until_ack(3, 3)
        assert asked == ["a", "b", "c"]


async def test_with_a_pipeline_a_run_waits_until_no_more_than_its_length_is_in_doubt(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The decision of the first is not durable and the second is under way, so the third waits."""
    asked: list[str] = []
    go = asyncio.Event()

    async def note(_graph: str, event_id: str, *_: Any) -> None:
        asked.append(event_id)
        if event_id == "b":
            await go.wait()

    monkeypatch.setattr(scripts, "note", note, raising=False)
    storage = GatedStorage()
    text = '[session]\nin_doubt = "interrupt"\n' + python_graph("note", engine="pipeline = 2")
    async with running_daemon(text, storage=storage) as daemon, daemon.session() as wire:
        with storage.gate("sync", ".journal", after=1):
            await wire.say({"type": "events", "events": [event(name)["event"] for name in "abc"]})
            await storage.until_held()
            await until(lambda: len(asked) >= 2)
            await anyio.wait_all_tasks_blocked()
            assert asked == ["a", "b"]
        await until(lambda: asked == ["a", "b", "c"])
        go.set()
        await wire.until_ack(3, 3)
