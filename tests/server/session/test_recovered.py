"""Sessions that a start finds in the journal: what they go on with, and how they end if nobody comes back."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tests.daemons import event, running_daemon, short_directory
from tests.doubles.composers import RoomlessComposer
from tests.engine.engines import process_graph
from tests.server.looks import manifests, sessions_of, until
from tests.server.session.test_adapters import add, daemon_with

from ergo_capture import decode_bundle
from ergo_capture.journal.payloads import Loss
from ergo_capture.journal.recovery import QuarantinedSession
from ergo_capture.kernel.outcomes import RunTermination
from ergo_capture.kernel.ports import IN_DOUBT
from ergo_capture.server.session import admission_queue

SOON = '[session]\nlinger = "1ms"\n'


@pytest.mark.parametrize("killed", [False, True])
async def test_a_session_whose_client_does_not_come_back_ends_as_the_last_stop_was(killed: bool) -> None:
    """Interrupted after a stop in order, recovered after a crash."""
    with short_directory() as place:
        state, copy = place / "state", place / "copy"
        async with running_daemon(state=state) as daemon, daemon.session() as wire:
            await wire.say(event("a"))
            await wire.until_ack(1, 1)
            shutil.copytree(state, copy, ignore=shutil.ignore_patterns("*.sock"))
        async with running_daemon(SOON, copy if killed else state) as daemon:
            await until(lambda: daemon.service.registry.finished == 1)
            (manifest,) = manifests(daemon)
        assert (manifest["session"], manifest["events"]) == (wire.opened["session"], 1)
        assert manifest["ended"] == ("recovered" if killed else "interrupted")


async def test_the_first_undecided_event_is_in_doubt_with_an_engine_that_answers_at_once_too() -> None:
    """``session.in_doubt``: its episode may have run, and one at a time does."""
    text = '[session]\nin_doubt = "interrupt"\n[journal]\ndecision_delay = "1h"\n'
    with short_directory() as place:
        async with running_daemon(text, place / "state") as daemon, daemon.session() as wire:
            await wire.say(event("a"), event("b"))
            await wire.until_ack(2)
            shutil.copytree(place / "state", place / "copy", ignore=shutil.ignore_patterns("*.sock"))
        async with (
            running_daemon(text, place / "copy") as daemon,
            daemon.session(session=wire.opened["session"]) as wire,
        ):
            await wire.say(event("c"), {"type": "close"})
            closed = await wire.until("closed")
        decided = [record.termination for record in decode_bundle(Path(closed["bundle"]).read_bytes()).decisions]
        assert decided == [IN_DOUBT.termination, RunTermination.Completed, RunTermination.Completed]


async def test_a_session_that_is_decided_elsewhere_goes_on_so() -> None:
    """The graph's engine is not asked after a start either."""
    text = process_graph()
    with short_directory() as place:
        async with running_daemon(text, place / "state") as daemon, daemon.session(decided_by="fixed") as wire:
            await wire.say(event("hang.1"))
            await wire.until_ack(1, 1)
        async with (
            running_daemon(text, place / "state") as daemon,
            daemon.session(session=wire.opened["session"]) as wire,
        ):
            await wire.say(event("hang.2"))
            await wire.until_ack(1, 1)
            (session,) = sessions_of(daemon)
            assert (session.graph.engine.name, session.accepted, session.decided) == ("fixed", 2, 2)


async def test_parts_that_were_not_published_are_published_at_the_next_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each with the loss up to its end and with the store that it began with; the session goes on behind them."""
    composer = RoomlessComposer(monkeypatch)
    text = '[rotation]\nmax_events = 2\n[shutdown]\ndrain = "20ms"\n'
    with short_directory() as place:
        async with daemon_with(text=text, state=place / "state") as daemon, daemon.session() as wire:
            (session,) = sessions_of(daemon)
            await wire.say(add("a", 1), add("b", 2))
            await wire.until_ack(2, 2)
            await session.record_loss(Loss(acknowledged=9, held=2, last_acknowledged="x", last_held="b"))
            await wire.say(add("c", 3))
            await wire.until_ack(3)
            await until(lambda: composer.attempts > 1)
            assert session.parts.current.number == 2
        attempts = composer.attempts
        async with daemon_with(text=text, state=place / "state") as daemon:
            await until(lambda: composer.attempts > attempts)
            assert daemon.service.registry._oldest_needed() == 1
            composer.is_full = False
            await until(lambda: manifests(daemon))
            (manifest,) = manifests(daemon)
            assert (manifest["part"], manifest["ended"], manifest["events"]) == (1, "rotated", 2)
            assert manifest["lost"]["acknowledged"] == 9
            assert not manifest["forced"]
            async with daemon.session(session=wire.opened["session"]) as wire:
                (session,) = sessions_of(daemon)
                await wire.say(add("d", 4))
                await wire.until_ack(1, 1)
                assert (session.parts.current.number, session.parts.current.store) == (2, {"total": 3.0})
                await wire.say({"type": "close"})
                closed = await wire.until("closed")
            assert len(closed["bundles"]) == 2
            second = decode_bundle(Path(closed["bundle"]).read_bytes())
            assert [record.payload for record in second.events] == [b'{"n":3,"total":3.0}', b'{"n":4,"total":6.0}']
            (_, last) = manifests(daemon)
            assert last["store"] == {"total": {"Number": 3.0}} or last["store"] == {"total": 3.0}


async def test_a_recovered_session_counts_what_was_decided_before() -> None:
    """Its events, its episodes by how they ended, its ids and its journal's segment."""
    with short_directory() as place:
        async with running_daemon(state=place / "state") as daemon, daemon.session() as wire:
            await wire.say(event("a"), event("b"))
            await wire.until_ack(2, 2)
        async with running_daemon(state=place / "state") as daemon:
            (session,) = sessions_of(daemon)
            assert (session.accepted, session.decided, session.last_event_id) == (2, 2, "b")
            assert {kind.name: count for kind, count in session.terminations.items()} == {"Completed": 2}
            assert (session.admission.admitted, session.admission.id_count, session.parts.segment) == (2, 2, 1)
            assert daemon.service.registry._oldest_needed() == 1
            assert daemon.service.registry.ids.used > 0
            async with daemon.session(session=wire.opened["session"]) as wire:
                await wire.say(event("a"), event("c"))
                frames = await wire.until_ack(2)
                assert [frame["event_id"] for frame in frames if frame["type"] == "reject"] == ["a"]


async def test_a_session_whose_graph_is_gone_stays_in_the_journal() -> None:
    """It goes on when the graph is configured again; until then it keeps its segment."""
    with short_directory() as place:
        async with running_daemon(state=place / "state") as daemon, daemon.session() as wire:
            await wire.say(event("a"))
            await wire.until_ack(1, 1)
        name = wire.opened["session"]
        async with running_daemon("[graphs.other]\n", place / "state") as daemon:
            registry = daemon.service.registry
            reason = "its graph 'default' is not configured any more; configure it and restart"
            assert registry.quarantined == {name: reason}
            assert registry.quarantine._pinned == [
                QuarantinedSession(
                    number=1, session=name, reason=reason, first_segment=1, last_segment=1, is_damaged=False
                )
            ]
            assert (registry.quarantine.segments, registry._oldest_needed()) == ({name: 1}, 1)
            assert registry.sessions == {}
        async with running_daemon(state=place / "state") as daemon:
            (session,) = sessions_of(daemon)
            assert session.description.session == name


async def test_a_scripted_engine_goes_on_with_its_script_after_a_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """An id that comes again in a later part takes the outcome behind the one that it took before the start."""
    monkeypatch.setattr(admission_queue, "MIN_IDS", 1)
    with short_directory() as place:
        (place / "script.json").write_text(json.dumps({"schedule": {"a": ["TimedOut", "Aborted"]}}))
        text = f'[graphs.default]\nengine = {{ kind = "scripted", file = "{place}/script.json" }}\n'
        async with running_daemon(text, place / "state") as daemon, daemon.session() as wire:
            await wire.say(event("a"))
            await wire.until_ack(1, 1)
        async with (
            running_daemon(text + "[rotation]\nmax_events = 1\n", place / "state") as daemon,
            daemon.session(session=wire.opened["session"]) as wire,
        ):
            for number, name in enumerate("bca", 1):
                await wire.say(event(name))
                await wire.until_ack(number, number)
            await wire.say({"type": "close"})
            closed = await wire.until("closed")
        decided = [
            (record.event_id, record.termination and record.termination.name)
            for path in closed["bundles"]
            for record in decode_bundle(Path(path).read_bytes()).decisions
        ]
        assert decided == [("a", "TimedOut"), ("b", "Completed"), ("c", "Completed"), ("a", "Aborted")]
