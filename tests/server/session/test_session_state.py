"""The state of one session: what its status says, and what it does when it ends, fails or is interrupted."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from tests.adapter.cases import graph_id
from tests.daemons import event, running_daemon
from tests.doubles.composers import RoomlessComposer
from tests.egress.hosted import TWO, configuration, event_lines, good
from tests.engine.engines import python_graph
from tests.server.looks import sessions_of, until
from tests.server.session.test_adapters import add, daemon_with
from tests.server.session.test_admission_queue import chunk
from tests.server.session.test_refusals import Connection, opened

from ergo_capture.errors import ErgoCaptureError
from ergo_capture.journal.payloads import Interruption, Loss
from ergo_capture.pauses import clock
from ergo_capture.protocol.capture import Code, ProtocolError
from ergo_capture.server.session.admission_queue import Rejection
from ergo_capture.server.session.session import SessionSnapshot, SessionState

LIMITED = '[graphs.default]\nmax_per_window = 1\nrate_window = "1h"\n'


class Listening(Connection):
    """An owner that keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    def progress(self) -> None:
        """Keep it."""
        self.told.append("progress")

    def session_failed(self, error: ProtocolError) -> None:
        """Keep it."""
        self.told.append((error.code, error.message))


async def test_the_status_of_a_running_session_counts_its_events() -> None:
    """It also has the deferred events, and whether a client is connected."""
    async with running_daemon(LIMITED) as daemon, daemon.session() as wire:
        await wire.say(event("a", 1), event("b", 2))
        await wire.until_ack(2, 2)
        (session,) = sessions_of(daemon)
        expected = SessionSnapshot(
            session=wire.opened["session"],
            graph="default",
            state="open",
            owned=True,
            admitted=2,
            accepted=2,
            decided=2,
            deferred=1,
            queued_bytes=0,
            part=1,
        )
        assert session.snapshot() == expected
        await wire.stream.aclose()
        await until(lambda: session.owner is None)
        assert not session.snapshot().owned


async def test_the_status_of_an_interrupted_session_says_why_and_what_is_left_over() -> None:
    """It still does after the session's end."""
    async with daemon_with(text='[limits]\ncontext_bytes = "1KiB"\n') as daemon, daemon.session() as wire:
        (session,) = sessions_of(daemon)
        names = [add("a", 101), add("b"), add("long.c", total=0), add("d"), add("e")]
        await wire.say({"type": "events", "events": [name["event"] for name in names]})
        await wire.until("left_over")
        await session.over.wait()
        found = session.snapshot()
        assert (found.state, found.interrupted_by, found.left_over, found.refused) == ("finished", "context_full", 2, 1)
        assert (found.accepted, found.decided, found.failure, found.delayed_by) == (5, 3, "", "")
        assert session.ended == "interrupted"
        assert session.left_over is not None
        assert (session.left_over.event_id, session.left_over.count) == ("d", 2)
        assert daemon.service.registry.fates["default"] == {"refused": 1, "left_over": 2, "interrupted": 1}


async def test_events_behind_an_interruption_are_rejected_with_its_reason() -> None:
    """One by one, and an id that is too long is not echoed."""
    async with running_daemon() as daemon:
        session = await opened(daemon)
        session.interruption = Interruption(reason="why", message="because")
        batch, rejections = session.admit(chunk("a", "x" * 9, "ä" * 4), 8)
        assert batch is None
        message, hint = (
            "the run was interrupted: why: because",
            "open another session; this one's bundle holds what was decided",
        )
        assert rejections == [
            Rejection(0, "a", Code.RUN_INTERRUPTED, message, hint),
            Rejection(1, None, Code.RUN_INTERRUPTED, message, hint),
            Rejection(2, "ä" * 4, Code.RUN_INTERRUPTED, message, hint),
        ]
        assert session.admission.admitted == 0
        session.interruption = None


async def test_a_session_fails_once_and_tells_its_connection() -> None:
    """Later failures follow from the first one; its memory is released."""
    async with running_daemon() as daemon:
        session = await opened(daemon)
        session.owner = owner = Listening()
        first = ErgoCaptureError("first")
        session.fail(first)
        session.fail(ErgoCaptureError("second"))
        await session.over.wait()
        assert owner.told == ["progress", (Code.STORAGE_FAILED, "the session has failed: first")]
        assert (session.failure, session.state) == (first, SessionState.FAILED)
        assert session.snapshot().failure == "first"
        session.end("complete")
        assert session.ended is None
        with pytest.raises(ErgoCaptureError, match="first"):
            await session.flush()
        assert daemon.service.registry.ids.used == 0


async def test_a_finished_session_tells_its_connection_and_cannot_fail() -> None:
    """Its last bundle is durable."""
    async with running_daemon() as daemon:
        session = await opened(daemon)
        session.owner = owner = Listening()
        session.end("complete")
        session.end("interrupted")
        await session.over.wait()
        session.fail(ErgoCaptureError("late"))
        assert owner.told == ["progress"]
        assert (session.state, session.ended, session.failure) == (SessionState.FINISHED, "complete", None)
        assert session.bundles == [session.publication and session.publication.bundle]
        assert session.reason == ""
        assert daemon.service.registry.sessions == {}
        assert daemon.service.registry.finished == 1


async def test_losses_are_joined_and_recorded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever claims the same again changes nothing."""
    async with running_daemon() as daemon:
        session = await opened(daemon)
        loss = Loss(acknowledged=5, held=0, last_acknowledged="e5")
        recorded = []
        original = session.parts.record_loss

        async def record(lost: Loss) -> None:
            recorded.append(lost)
            await original(lost)

        monkeypatch.setattr(session.parts, "record_loss", record)
        for claim in (loss, loss, Loss(acknowledged=9, held=0, last_acknowledged="e9")):
            await session.record_loss(claim)
        assert session.lost == session.parts.current.lost == recorded[-1]
        assert [each.acknowledged for each in recorded] == [5, 9]
        session.end("complete", keep_empty=False)
        await session.over.wait()
        assert session.ended == "lost"
        assert len(session.bundles) == 1


async def test_episodes_are_counted_by_session_and_by_graph() -> None:
    """The counts are by the terminations of episodes."""
    async with running_daemon(LIMITED) as daemon, daemon.session() as wire, daemon.session() as other:
        for each in (wire, other):
            await each.say(event("a", 1), event("b", 2))
            await each.until_ack(2, 2)
        for session in sessions_of(daemon):
            assert {kind.name: count for kind, count in session.terminations.items()} == {"Completed": 1}
        counts = daemon.service.registry.episodes["default"]
        assert {kind.name: count for kind, count in counts.items()} == {"Completed": 2}


async def test_a_snapshot_is_published_only_of_new_decisions_of_an_open_session() -> None:
    """An empty part has none, and neither has a session that is ending."""
    async with running_daemon() as daemon:
        session = await opened(daemon)
        await session.publish_decided()
        assert daemon.bundles() == []
        session.admit(chunk("a"), 8)
        await session.until_decided(1)
        await session.publish_decided()
        (bundle,) = daemon.bundles()
        before = bundle.stat().st_ino
        session.end("complete")
        await session.publish_decided()
        assert bundle.stat().st_ino == before
        await session.over.wait()


async def test_a_flush_before_any_event_publishes_an_empty_bundle() -> None:
    """There is no part before it."""
    async with running_daemon() as daemon:
        session = await opened(daemon)
        publication = await session.flush()
        assert (publication.part, publication.final) == (1, False)
        assert [str(path) for path in daemon.bundles()] == [publication.bundle]


async def test_decisions_that_somebody_waits_for_do_not_wait_for_an_event_to_ride_with() -> None:
    """A flush, a client that asked for decisions, and an end."""
    async with running_daemon('[journal]\ndecision_delay = "1h"\n') as daemon:
        async with daemon.session() as wire:
            await wire.say(event("a"))
            await wire.until_ack(1)
            await wire.say({"type": "flush"})
            await wire.until("flushed")
            await wire.say(event("b"))
            await wire.until_ack(2)
            await wire.say({"type": "close"})
            assert (await wire.until("closed"))["decisions"] == 2
        async with daemon.session(decisions=True) as wire:
            await wire.say(event("a"))
            await wire.until("decision")


async def test_an_episode_that_must_not_run_twice_does_not_wait_for_an_event_either() -> None:
    """The decision before it is written at once."""
    text = '[journal]\ndecision_delay = "1h"\n[session]\nin_doubt = "interrupt"\n' + python_graph("obey")
    async with running_daemon(text) as daemon, daemon.session() as wire:
        await wire.say(*(event(name) for name in "abc"))
        await wire.until_ack(3, 3)


async def test_an_intent_does_not_wait_for_an_event_either(tmp_path: Path) -> None:
    """The decisions before its outcome are written with it."""
    text = '[journal]\ndecision_delay = "1h"\n' + configuration(TWO, tmp_path, good())
    async with running_daemon(text) as daemon, daemon.session(graph=graph_id(TWO)) as wire:
        lines = event_lines(TWO)[:2]
        await wire.say(*lines)
        await wire.until_ack(2)
        await until(lambda: daemon.service.registry.intents[graph_id(TWO)]["acknowledged"] == 4)


async def test_room_is_waited_for_until_events_are_decided_or_the_session_fails() -> None:
    """The wait ends then."""
    async with running_daemon() as daemon:
        session = await opened(daemon)
        session.admit(chunk("a"), 8)
        assert session.admission.is_full(1)
        await session.room(1)
        assert not session.admission.queued_bytes
        await session.until_decided(1)
        session.fail(ErgoCaptureError("over"))
        session.admission.queued_bytes = 5
        await session.room(1)
        await session.until_decided(2)
        session.admission.admitted = 9
        with pytest.raises(ErgoCaptureError, match="over"):
            await session.until_decided(2)
        await session.until_accepted()


async def test_a_session_lingers_longer_by_the_time_that_the_process_was_suspended() -> None:
    """Its client could not come back meanwhile."""
    async with running_daemon('[session]\nlinger = "1h"\n') as daemon:
        session, registry = await opened(daemon), daemon.service.registry
        session.owner = None
        registry.linger(session)
        registry._lingering[session.description.session].cancel()
        registry._end_lingering(session, "interrupted", clock.now() + 0.2)
        at_once = session.ended
        await until(session.over.is_set)
        assert (at_once, session.ended) == (None, "interrupted")
        assert registry._lingering == {}


async def test_a_flush_of_an_ending_session_that_the_stop_cuts_off_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    """It must not wait for a bundle that only the next start publishes."""
    composer = RoomlessComposer(monkeypatch)
    async with running_daemon('[shutdown]\ndrain = "20ms"\n') as daemon:
        session = await opened(daemon)
        session.admit(chunk("a"), 8)
        session.end("complete")
        flushing = asyncio.create_task(session.flush())
        await until(lambda: composer.attempts > 1)
    with pytest.raises(ErgoCaptureError) as caught:
        await flushing
    assert caught.value.message == "publish session: RuntimeError: it ended without a bundle"


async def test_only_an_open_session_lingers() -> None:
    """One that ends needs no client to come back."""
    async with running_daemon() as daemon:
        session, registry = await opened(daemon), daemon.service.registry
        session.end("complete")
        registry.linger(session)
        assert registry._lingering == {}
        await session.over.wait()
        registry.linger(session)
        assert registry._lingering == {}


async def test_a_driver_that_goes_before_any_event_leaves_no_bundle() -> None:
    """Its stream was interrupted, as it did not end it."""
    async with running_daemon() as daemon:
        session = await opened(daemon)
        daemon.service.registry.leave(session, may_come_back=False)
        await session.over.wait()
        assert (session.ended, session.reason, session.bundles) == ("interrupted", "driver_terminated", [])


async def test_a_session_whose_decisions_the_journal_refuses_fails() -> None:
    """They can never become durable."""
    async with running_daemon() as daemon:
        session, error = await opened(daemon), ErgoCaptureError("the journal has failed")
        session.decision_log.on_refused(error)
        assert session.failure is error
