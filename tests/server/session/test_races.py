"""Resuming, rotating, reloading and closing, at the same time as something else."""

from __future__ import annotations

import asyncio
import errno
import threading
from contextlib import suppress
from pathlib import Path

import anyio
import msgspec
import pytest
from tests.daemons import Daemon, Wire, event, running_daemon, short_directory
from tests.doubles.gated_storage import GatedStorage
from tests.engine.engines import engine_of, process_graph
from tests.server.looks import manifests, sessions_of, until

from ergo_capture import config as configuration
from ergo_capture import decode_bundle
from ergo_capture.config import Config
from ergo_capture.engine.process import ProcessEngine
from ergo_capture.protocol.capture import Code, ProtocolError
from ergo_capture.server.session import parts
from ergo_capture.units import Duration


async def test_an_event_on_its_way_is_not_called_a_duplicate_before_it_is_durable() -> None:
    """P1: a client that resumes and sends again is not told ``duplicate`` for an event that the disk may still refuse."""
    storage = GatedStorage()
    # A connection that has ended keeps its session for this time while its events are on their way to the journal.
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


async def test_the_frame_that_describes_a_session_is_kept_while_its_part_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """P5: it outlives two restarts and the deletion of segments."""
    monkeypatch.setattr(parts, "FULL_SECONDS", 0.01)
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
                # Another session ends, and the segments that no session needs are deleted.
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


async def test_a_session_that_has_failed_cannot_be_resumed(monkeypatch: pytest.MonkeyPatch) -> None:
    """P9: nothing would decide its events; they would pile up, acknowledged, until a restart."""
    monkeypatch.setattr(parts, "FULL_SECONDS", 0.01)
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
        assert sessions_of(daemon)[0].admission.admitted == 1
        assert daemon.service.registry.queue.used == daemon.service.registry.ids.used == 0


async def test_pending_sessions_count_towards_the_limit_of_a_user() -> None:
    """P9: two sessions are requested while the disk does not answer, and one is allowed."""
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


async def test_decisions_keep_their_indices_over_a_resume() -> None:
    """A decision that was not durable when its session was resumed is sent to the client that resumed it."""
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


async def test_a_session_that_is_closed_while_its_part_ends_is_closed_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The request to end comes while the task waits for the disk, and must not be lost."""
    monkeypatch.setattr(parts, "FULL_SECONDS", 0.01)
    storage = GatedStorage()
    with short_directory() as place:
        async with running_daemon(state=place / "state") as daemon, daemon.session() as wire:
            await wire.say(event("a"))
            await wire.until_ack(1, 1)
        # After one write: the start writes the seal again.
        gate = storage.gate("write", ".journal", after=1)
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


async def test_concurrent_reloads_take_effect_in_their_order() -> None:
    """The reload that was requested last wins, although the first one takes long to read its file."""
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
            config = daemon.service.components.config
            session = msgspec.structs.replace(config.session, linger=Duration(linger * 1_000_000_000))
            return msgspec.structs.replace(config, session=session)

        daemon.service.reloader._reread = reread
        first = asyncio.create_task(daemon.service.reload())
        await until(first_reads.is_set)
        second = asyncio.create_task(daemon.service.reload())
        # If reloads did not wait for each other, this one would be done before the first.
        with suppress(TimeoutError), anyio.fail_after(0.2):
            await asyncio.shield(second)
        first_may_go_on.set()
        await asyncio.gather(first, second)
        assert daemon.service.components.config.session.linger.seconds == 2


async def test_an_engine_whose_graph_was_removed_stops_with_its_last_session() -> None:
    """A reload removes the graph. Its open session goes on, and the engine stops when that session is over."""
    async with running_daemon(process_graph()) as daemon, daemon.session() as wire:
        await wire.say(event("a"))
        await wire.until_ack(1, 1)
        engine = engine_of(daemon.service)
        assert isinstance(engine, ProcessEngine)
        config = daemon.service.components.config
        other = dict(configuration.parse("[graphs.other]\n", "test").graphs)
        daemon.service.reloader._reread = lambda: msgspec.structs.replace(config, graphs=other)
        await daemon.service.reload()
        await wire.say(event("b"))
        await wire.until_ack(2, 2)
        assert engine.pid is not None
        await wire.say({"type": "close"})
        await wire.until("closed")
        await until(lambda: engine.pid is None)


async def hang_up_while_opening(daemon: Daemon, wire: Wire, storage: GatedStorage) -> None:
    """Request a session, and drop the client while the OPEN frame waits at the gate."""
    await wire.say({"type": "hello", "protocol": "ergo-capture.v1"}, {"type": "open"})
    await wire.until("welcome")
    await storage.until_held()
    (connection,) = daemon.service.clients.connections
    connection.drop(ProtocolError(Code.LIMIT, "dropped by the test", ""))
    await until(lambda: not daemon.service.clients.connections)


async def test_a_session_whose_client_hangs_up_while_it_is_opened_lingers_and_ends() -> None:
    """Its OPEN frame is durable, so it ends like any other session; without an event it leaves no bundle."""
    storage = GatedStorage()
    text = '[session]\nlinger = "1ms"\n[limits]\nwrite_timeout = "1ms"\n'
    async with running_daemon(text, storage=storage) as daemon, daemon.wire() as wire:
        with storage.gate("write", ".journal"):
            await hang_up_while_opening(daemon, wire, storage)
            assert sessions_of(daemon) == []
        await until(lambda: daemon.service.registry.finished == 1)
        assert manifests(daemon) == []
        assert not daemon.service.registry.pending


async def test_a_session_that_the_disk_refuses_after_its_client_has_hung_up_is_not_tried_again() -> None:
    """The disk is full, and nobody waits for the session."""
    storage = GatedStorage()
    async with running_daemon(storage=storage) as daemon, daemon.wire() as wire:
        with storage.gate("write", ".journal"):
            await hang_up_while_opening(daemon, wire, storage)
            assert len(daemon.service.registry.pending) == 1
            storage.fail_next("write", errno.ENOSPC)
        await until(lambda: not daemon.service.registry.pending)
        assert sessions_of(daemon) == []
