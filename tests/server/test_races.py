"""What happens between two things that happen at once: resuming, rotating, flushing, ending, stopping."""

from __future__ import annotations

import asyncio
import errno
import json
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest
from tests.daemons import Daemon, event, running_daemon, short_directory
from tests.doubles.gated_storage import GatedStorage
from tests.engine.engines import engine_of, process_graph

from ergo_capture import config as configuration
from ergo_capture import decode_bundle
from ergo_capture.capture.atomic import CaptureWriteError, WriteStage
from ergo_capture.config import Config
from ergo_capture.engine.process import ProcessEngine
from ergo_capture.errors import ErgoCaptureError
from ergo_capture.journal.body import SessionDescription
from ergo_capture.journal.compose import ComposeJob, compose_bundle
from ergo_capture.journal.journal import Journal
from ergo_capture.kernel.constraints import Constraints
from ergo_capture.kernel.events import ExternalEvent, ExternalEventKind
from ergo_capture.server import parts as parts_module
from ergo_capture.server import publisher as publisher_module
from ergo_capture.server import registry as registry_module
from ergo_capture.server.decision_log import JournalDecisionLog
from ergo_capture.server.session import Session
from ergo_capture.server.writer import Writer
from ergo_capture.storage import RealStorage, StorageError
from ergo_capture.units import Duration

DESCRIPTION = SessionDescription(
    session="s",
    graph="g",
    constraints=Constraints(),
    adapter_provenance="",
    runtime_provenance="",
    engine="fixed",
    labels={},
    peer=None,
    opened_at="",
    program="",
)


async def until(what: Any) -> None:
    """Wait until a condition holds."""
    with anyio.fail_after(20):
        while not what():
            await asyncio.sleep(0.001)


def sessions_of(daemon: Daemon) -> list[Session]:
    """The sessions that the daemon has."""
    return list(daemon.service.registry.sessions.values())


def manifests(daemon: Daemon) -> list[dict[str, Any]]:
    """The manifests there are, in the order of their names."""
    return [json.loads(path.read_bytes()) for path in sorted(daemon.state.rglob("*.manifest.json"))]


async def test_an_event_on_its_way_is_not_called_a_duplicate_before_it_is_durable() -> None:
    """P1: a client that resumes and sends again must not be told that an event is safe that the disk may still refuse."""
    storage = GatedStorage()
    # Why so short: a connection that has gone keeps its session while what it sent is on its way, for so long.
    text = '[limits]\nwrite_timeout = "1ms"\n'
    async with running_daemon(text, storage=storage) as daemon, daemon.wire() as second:
        async with daemon.wire() as first:
            await first.open()
            with storage.gate("write", ".journal"):
                await first.say(event("a"))
                await storage.until_held()
                await first.stream.aclose()
                (session,) = sessions_of(daemon)
                await until(lambda: session.owner is None)
                await second.say({"type": "hello", "protocol": "ergo-capture.v1"})
                await second.until("welcome")
                await second.say({"type": "open", "session": first.opened["session"]}, event("a"))
                await anyio.wait_all_tasks_blocked()
                storage.fail_next("write", errno.ENOSPC)
            opened = await second.until("opened")
            assert opened["accepted"] == 0
            assert not [f for f in await second.until_ack(1) if f["type"] == "reject"]
            await second.say({"type": "close"})
            closed = await second.until("closed")
        assert [record.event_id for record in decode_bundle(Path(closed["bundle"]).read_bytes()).events] == ["a"]


async def test_a_session_is_known_as_long_as_its_part_goes_on() -> None:
    """P5: the frame that says what a session is outlives two restarts and the retirement of segments."""
    text = "[rotation]\nmax_events = 1\n"
    with short_directory() as place:
        async with running_daemon(text, state=place / "state") as daemon, daemon.session() as wire:
            name = wire.opened["session"]
            await wire.say(event("a"))
            await until(lambda: sessions_of(daemon)[0].parts.current.number == 2)
            await until(lambda: len(daemon.bundles()) == 1)
        for event_id in ("b", "c"):
            async with running_daemon("", state=place / "state") as daemon, daemon.session(session=name) as wire:
                await wire.say(event(event_id))
                await wire.until_ack(1, 1)
                # Another session ends, and with it whatever no session needs.
                async with daemon.session() as other:
                    await other.say(event("x"), {"type": "close"})
                    await other.until("closed")
                await until(lambda: len(sessions_of(daemon)) == 1)
        async with running_daemon("", state=place / "state") as daemon:
            assert daemon.service.registry.quarantined == {}
            async with daemon.session(session=name) as wire:
                await wire.say({"type": "close"})
                closed = await wire.until("closed")
            assert [e.event_id for e in decode_bundle(Path(closed["bundle"]).read_bytes()).events] == ["b", "c"]


async def test_a_snapshot_that_comes_late_does_not_reopen_a_session_that_is_over() -> None:
    """The manifest of a closed session says complete, though a flush had chosen the session while it was open."""
    async with running_daemon() as daemon, daemon.session() as wire:
        await wire.say(event("a"), {"type": "close"})
        (session,) = sessions_of(daemon)
        await wire.until("closed")
        flushed = await session.flush()
        assert flushed == session.publication
        assert [m["ended"] for m in manifests(daemon)] == ["complete"]


async def test_a_bundle_that_cannot_be_written_at_the_stop_holds_nothing_else_up() -> None:
    """P10: the other sessions are drained, the journal is sealed, and the exit code says that something is undone."""
    text = "[graphs.one]\n[graphs.two]\n"
    async with running_daemon(text) as daemon, daemon.session(graph="one") as one, daemon.session(graph="two") as two:
        await one.say(event("a"))
        await one.until_ack(1, 1)
        await two.say(event("b"))
        await two.until_ack(1, 1)
        (daemon.state / "bundles" / "one").write_text("not a directory")
        daemon.service.stop()
        assert [f["code"] for f in await two.rest() if f["type"] == "error"] == ["shutting_down"]
        assert [f["code"] for f in await one.rest() if f["type"] == "error"] == ["shutting_down"]
        assert daemon.service.unfinished
        assert [m["graph"] for m in manifests(daemon)] == ["two"]


async def test_sessions_that_end_together_retire_the_journal_one_after_the_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two that let go of the same segment would both delete it, and the second fail."""
    storage = GatedStorage()
    under_way: list[int] = [0, 0]

    class Counted:
        @staticmethod
        async def run_sync(call: Any, *arguments: Any) -> Any:
            counts = call.__name__ == "retire"
            under_way[0] += counts
            under_way[1] = max(under_way)
            try:
                return await anyio.to_thread.run_sync(call, *arguments)
            finally:
                under_way[0] -= counts

    monkeypatch.setattr(registry_module, "to_thread", Counted)
    with short_directory() as place:
        async with running_daemon(state=place / "state") as daemon, daemon.session() as wire:
            await wire.say(event("a"))
            await wire.until_ack(1, 1)
        async with (
            running_daemon(storage=storage, state=place / "state") as daemon,
            daemon.session(session=wire.opened["session"]) as one,
            daemon.session() as two,
        ):
            with storage.gate("remove", ".journal"):
                for ending in (one, two):
                    await ending.say({"type": "close"})
                    await ending.until("closed")
                await until(lambda: not sessions_of(daemon))
                await storage.until_held()
            async with daemon.session() as wire:
                await wire.say(event("b"))
                await wire.until_ack(1, 1)
        assert under_way == [0, 1]


async def test_a_segment_that_cannot_be_deleted_costs_no_session_anything(capsys: pytest.CaptureFixture[str]) -> None:
    """It is said once, and stays until the next start."""
    storage = GatedStorage()
    with short_directory() as place:
        async with running_daemon(state=place / "state") as daemon, daemon.session() as wire:
            await wire.say(event("a"))
            await wire.until_ack(1, 1)
        async with running_daemon(storage=storage, state=place / "state") as daemon:
            storage.fail_next("remove", errno.EIO)
            for name in (wire.opened["session"], None):
                async with daemon.session(session=name) as wire:
                    await wire.say(event("b"), {"type": "close"})
                    await wire.until("closed")
                await until(lambda: any(call.startswith("-remove") for call in storage.calls))
            assert len(list((place / "state" / "journal").glob("*.journal"))) == 2
        assert capsys.readouterr().out.count("segment.kept") == 1
        async with running_daemon(state=place / "state"):
            assert len(list((place / "state" / "journal").glob("*.journal"))) == 1


async def test_a_start_that_cannot_delete_a_segment_ends_with_a_sentence() -> None:
    """P4: start-up ends by itself, also where the writer runs already."""
    with short_directory() as place:
        for fault in (None, errno.EIO):
            storage = GatedStorage()
            async with running_daemon(storage=storage, state=place / "state") as daemon, daemon.session() as wire:
                storage.fail_next("remove", fault)
                await wire.say(event("a"), {"type": "close"})
                await wire.until("closed")
                await until(lambda: not sessions_of(daemon))
        storage = GatedStorage()
        storage.fail_next("remove", errno.EIO)
        with pytest.raises(ErgoCaptureError, match="remove"), anyio.fail_after(20):
            async with running_daemon(storage=storage, state=place / "state"):
                pass


async def test_a_session_that_has_failed_is_not_taken_up_again() -> None:
    """P9: nothing decides what it is sent, so that it would only pile up, acknowledged, until a restart."""
    text = "[rotation]\nmax_events = 1\n"
    async with running_daemon(text) as daemon:
        (daemon.state / "bundles" / "default").write_text("not a directory")
        async with daemon.session() as wire:
            await wire.say(event("a"))
            assert (await wire.rest())[-1]["code"] == "storage_failed"
        async with daemon.wire() as again:
            await again.say({"type": "hello", "protocol": "ergo-capture.v1"})
            await again.say({"type": "open", "session": wire.opened["session"]}, event("b"))
            frames = await again.rest()
        assert [f["type"] for f in frames] == ["welcome", "error"]
        assert frames[-1]["code"] == "storage_failed"
        assert sessions_of(daemon)[0].intake.admitted == 1
        assert daemon.service.registry.queue.used == daemon.service.registry.ids.used == 0


async def test_a_close_that_was_taken_is_answered_though_the_daemon_stops() -> None:
    """The session ends and is published; its client must hear of the bundle, for it cannot ask again."""
    storage = GatedStorage()
    async with running_daemon(storage=storage) as daemon, daemon.session() as wire:
        await wire.say(event("a"))
        await wire.until_ack(1, 1)
        with storage.gate("write", ".journal"):
            await wire.say({"type": "close"})
            await storage.until_held()
            daemon.service.stop()
            await until(lambda: daemon.service.phase == "stopping")
            await anyio.wait_all_tasks_blocked()
        assert [f["type"] for f in await wire.rest() if f["type"] != "ack"] == ["closed"]


async def test_a_flush_that_was_taken_is_answered_though_the_daemon_stops() -> None:
    """What was taken is answered; then the client is told that the daemon stops."""
    storage = GatedStorage()
    async with running_daemon(storage=storage) as daemon, daemon.session() as wire:
        with storage.gate("write", ".journal"):
            await wire.say(event("a"), {"type": "flush"}, event("b"))
            await storage.until_held()
            daemon.service.stop()
            await until(lambda: daemon.service.phase == "stopping")
            await anyio.wait_all_tasks_blocked()
        frames = [f for f in await wire.rest() if f["type"] != "ack"]
        assert [f["type"] for f in frames] == ["flushed", "error"]
        assert frames[-1]["code"] == "shutting_down"


async def test_a_client_that_reads_nothing_does_not_hold_the_stop_up() -> None:
    """P10: however patient the daemon is with a client while it serves, it is not when it stops."""
    text = '[limits]\nwrite_timeout = "0s"\n'
    async with running_daemon(text) as daemon, daemon.session(decisions=True) as wire:
        (session,) = sessions_of(daemon)
        (connection,) = daemon.service.clients.connections
        number = 0
        while not connection._replies.unsaid:
            number += 1
            await wire.say(*(event(f"{'e' * 900}{number}-{n}") for n in range(100)))
            await until(lambda: session.decided == session.intake.admitted)
        daemon.service.stop()
        await until(lambda: not daemon.service.clients.connections)
        assert connection.fatal is not None


async def test_a_part_that_is_published_lets_the_journal_go_while_its_session_goes_on() -> None:
    """A session that never ends, with rotation, must not fill the disk."""
    text = '[rotation]\nmax_events = 10\n[journal]\nsegment_bytes = "64KiB"\n'
    async with running_daemon(text) as daemon, daemon.session() as wire:
        for start in range(0, 200, 10):
            await wire.say(*(event(f"e{n}", payload={"x": "y" * 2000}) for n in range(start, start + 10)))
            await wire.until_ack(start + 10, start + 10)
        await until(lambda: len(list((daemon.state / "journal").glob("*.journal"))) <= 3)


async def test_no_more_sessions_of_a_user_are_opened_at_once_than_may_be() -> None:
    """Those that wait for the disk count too."""
    storage = GatedStorage()
    text = "[limits]\nmax_user_sessions = 1\n"
    async with running_daemon(text, storage=storage) as daemon, daemon.wire() as one, daemon.wire() as two:
        with storage.gate("write", ".journal"):
            for wire in (one, two):
                await wire.say({"type": "hello", "protocol": "ergo-capture.v1"}, {"type": "open"})
                await wire.until("welcome")
            await storage.until_held()
            await anyio.wait_all_tasks_blocked()
        answers = [await one.read(), await two.read()]
        assert sorted(answer["type"] for answer in answers) == ["error", "opened"]


async def test_decisions_keep_their_numbers_over_a_resume() -> None:
    """A decision that was made and not durable when its session was taken up is told, or its number is left out."""
    storage = GatedStorage()
    text = '[journal]\ndecision_delay = "0s"\n'
    async with running_daemon(text, storage=storage) as daemon, daemon.wire() as second:
        async with daemon.session(decisions=True) as first:
            await first.say(event("a"))
            await first.until_ack(1, 1)
            (session,) = sessions_of(daemon)
            with storage.gate("write", ".journal", after=1):
                await first.say(event("b"))
                await first.until_ack(2)
                await storage.until_held()
                await first.stream.aclose()
                await until(lambda: session.owner is None)
                opened = await second.open(session=first.opened["session"], decisions=True)
                await second.say(event("c"))
        decisions = [f for f in await second.until_ack(1, 1) if f["type"] == "decision"]
        assert opened["decided"] == 1
        assert [(f["index"], f["decision"]["event_id"]) for f in decisions] == [(2, "b"), (3, "c")]


async def test_a_worker_process_that_cannot_be_started_is_done_without(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host out of processes: the bundle is composed in a thread, and nobody is let go."""

    async def refused(*_: Any) -> Any:
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr("anyio.to_process.run_sync", refused)
    monkeypatch.setattr(publisher_module, "_IN_THREAD", 0)
    async with running_daemon() as daemon, daemon.session() as wire:
        await wire.say(event("a"), {"type": "flush"}, {"type": "close"})
        await wire.until("flushed")
        closed = await wire.until("closed")
        assert decode_bundle(Path(closed["bundle"]).read_bytes()).events


async def test_a_bundle_that_cannot_be_read_back_is_an_answer_and_no_hang_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of the system in composing is told to the client that asked."""

    def broken(_: Any) -> Any:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(publisher_module, "compose_bundle", broken)
    async with running_daemon() as daemon, daemon.session() as wire:
        await wire.say(event("a"), {"type": "flush"})
        frames = await wire.rest()
        assert [f["code"] for f in frames if f["type"] == "error"] == ["storage_failed"]
        monkeypatch.undo()


async def test_a_writer_that_is_abandoned_ends_though_the_disk_is_full_at_that_moment() -> None:
    """P10: the attempt that is under way is the last one, whatever becomes of it."""
    storage = GatedStorage()
    with short_directory() as place:
        journal, _ = Journal.open(place, storage)
        writer = Writer(journal, retry_delay=0.01)
        running = asyncio.create_task(writer.run())
        log = JournalDecisionLog(1, DESCRIPTION, 0, lambda *_: None, lambda _: None)
        log.log_plain([ExternalEvent.mechanical("a", ExternalEventKind.Command)], 1)
        with storage.gate("write", ".journal"):
            writer.submit_lazily(log, urgent=True)
            await storage.until_held()
            storage.fail_next("write", *[errno.ENOSPC] * 100_000)
            writer.close()
            writer.abandon()
        with anyio.fail_after(20):
            await running
        journal.close()


async def test_a_bundle_waits_for_room_on_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """P8: where the disk is full as a part ends, the session goes on, and its bundles are written once there is room."""
    full = True
    attempts = 0

    def compose(job: ComposeJob) -> Any:
        nonlocal attempts
        attempts += 1
        if full:
            error = OSError(errno.ENOSPC, "No space left on device")
            raise CaptureWriteError.step(WriteStage.WRITE_TEMP_FILE, Path(job.destination), Path("x"), error) from error
        return compose_bundle(job)

    monkeypatch.setattr(publisher_module, "compose_bundle", compose)
    monkeypatch.setattr(parts_module, "RETRY_SECONDS", 0.01)
    async with running_daemon("[rotation]\nmax_events = 1\n") as daemon, daemon.session() as wire:
        await wire.say(event("a"))
        await until(lambda: attempts > 2)
        await wire.say(event("b"))
        await wire.until_ack(2)
        full = False
        await wire.until_ack(2, 2)
        await wire.say({"type": "close"})
        await wire.until("closed")
        ids = [e.event_id for path in daemon.bundles() for e in decode_bundle(path.read_bytes()).events]
        assert ids == ["a", "b"]


async def test_the_state_is_locked_until_nothing_of_the_daemon_is_at_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """P12: a bundle that is still being written when the drain's time is over belongs to a daemon that holds the lock."""
    begun, go_on = threading.Event(), threading.Event()

    def compose(job: ComposeJob) -> Any:
        begun.set()
        go_on.wait(20)
        return compose_bundle(job)

    monkeypatch.setattr(publisher_module, "compose_bundle", compose)
    async with running_daemon('[shutdown]\ndrain = "10ms"\n') as daemon, daemon.session() as wire:
        await wire.say(event("a"), {"type": "flush"})
        await until(begun.is_set)
        daemon.service.stop()
        said = ""
        with anyio.fail_after(20):
            while "daemon.stopped" not in (said := said + capsys.readouterr().out):
                await asyncio.sleep(0.001)
        await anyio.wait_all_tasks_blocked()
        try:
            with pytest.raises(StorageError):
                RealStorage().lock(daemon.state / "lock")
        finally:
            go_on.set()


async def test_an_error_in_a_worker_process_arrives_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a large bundle cannot be written, its client hears why, and the session goes on."""
    monkeypatch.setattr(publisher_module, "_IN_THREAD", 0)
    async with running_daemon() as daemon, daemon.session() as wire:
        (daemon.state / "bundles" / "default").write_text("not a directory")
        await wire.say(event("a"), {"type": "flush"})
        assert "create capture output directory" in (await wire.rest())[-1]["message"]
        (session,) = sessions_of(daemon)
        assert session.failure is None
        with pytest.raises(CaptureWriteError) as caught:
            await session.flush()
        assert caught.value.stage is WriteStage.CREATE_OUTPUT_DIRECTORY
        assert isinstance(caught.value.cause, OSError)
        (daemon.state / "bundles" / "default").unlink()


async def test_a_session_that_is_closed_while_its_part_ends_is_closed_after_it() -> None:
    """The word that it is to end comes while its task waits for the disk, and must not be lost."""
    storage = GatedStorage()
    with short_directory() as place:
        async with running_daemon(state=place / "state") as daemon, daemon.session() as wire:
            await wire.say(event("a"))
            await wire.until_ack(1, 1)
        gate = storage.gate("write", ".journal")
        gate.__enter__()
        async with (
            running_daemon("[rotation]\nmax_events = 1\n", storage=storage, state=place / "state") as daemon,
            daemon.session(session=wire.opened["session"]) as wire,
        ):
            await storage.until_held()
            await wire.say({"type": "close"})
            (session,) = sessions_of(daemon)
            await until(lambda: session.ended is not None)
            gate.__exit__(None, None, None)
            await wire.until("closed")


async def test_a_rotation_that_the_stop_cuts_off_is_no_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing more goes into the journal once the drain is over; the next start publishes what is left."""
    storage = GatedStorage()
    text = '[rotation]\nmax_events = 1\n[shutdown]\ndrain = "10ms"\n'
    with short_directory() as place:
        async with running_daemon(text, storage=storage, state=place / "state") as daemon, daemon.session() as wire:
            with storage.gate("write", ".journal", after=2):
                await wire.say(event("a"))
                await wire.until_ack(1, 1)
                await storage.until_held()
                daemon.service.stop()
                await until(lambda: daemon.service._writer._closed)
        assert "session.failed" not in capsys.readouterr().out
        async with running_daemon(state=place / "state") as daemon:
            await until(lambda: [(m["ended"], m["events"]) for m in manifests(daemon)[:1]] == [("rotated", 1)])


async def test_reloads_that_come_together_take_effect_in_their_order() -> None:
    """The last word is that of the reload that was asked for last, though the first one's file took long to read."""
    first_reads, first_may_go_on = threading.Event(), threading.Event()
    async with running_daemon() as daemon:
        reads = 0

        def reread() -> Config:
            nonlocal reads
            reads += 1
            linger = reads
            if reads == 1:
                first_reads.set()
                first_may_go_on.wait(20)
            config = daemon.service.config
            session = msgspec.structs.replace(config.session, linger=Duration(linger * 1_000_000_000))
            return msgspec.structs.replace(config, session=session)

        daemon.service.reloader._reread = reread
        first = asyncio.create_task(daemon.service.reload())
        await until(first_reads.is_set)
        second = asyncio.create_task(daemon.service.reload())
        # Why so: where reloads do not wait for each other, this one is done before the first.
        with suppress(TimeoutError), anyio.fail_after(0.2):
            await asyncio.shield(second)
        first_may_go_on.set()
        await asyncio.gather(first, second)
        assert daemon.service.config.session.linger.seconds == 2


async def test_an_engine_whose_graph_is_gone_ends_with_its_last_session() -> None:
    """A reload takes the graph away: its open session goes on, and nothing is left running once that is over."""
    async with running_daemon(process_graph()) as daemon, daemon.session() as wire:
        await wire.say(event("a"))
        await wire.until_ack(1, 1)
        engine = engine_of(daemon.service)
        assert isinstance(engine, ProcessEngine)
        config = daemon.service.config
        other = dict(configuration.parse("[graphs.other]\n", "test").graphs)
        daemon.service.reloader._reread = lambda: msgspec.structs.replace(config, graphs=other)
        await daemon.service.reload()
        await wire.say(event("b"))
        await wire.until_ack(2, 2)
        assert engine.pid is not None
        await wire.say({"type": "close"})
        await wire.until("closed")
        await until(lambda: engine.pid is None)
