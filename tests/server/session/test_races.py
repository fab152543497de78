"""What happens between two things that happen at once: resuming, rotating, reloading, closing."""

from __future__ import annotations

import asyncio
import errno
import threading
from contextlib import suppress
from pathlib import Path

import anyio
import msgspec
from tests.daemons import Daemon, Wire, event, running_daemon, short_directory
from tests.doubles.gated_storage import GatedStorage
from tests.engine.engines import engine_of, process_graph
from tests.server.looks import manifests, sessions_of, until

from ergo_capture import config as configuration
from ergo_capture import decode_bundle
from ergo_capture.config import Config
from ergo_capture.engine.process import ProcessEngine
from ergo_capture.protocol.capture import Code, ProtocolError
from ergo_capture.units import Duration


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
    """P5: the frame that says what a session is outlives two restarts and the deletion of segments."""
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
        assert sessions_of(daemon)[0].admission.admitted == 1
        assert daemon.service.registry.queue.used == daemon.service.registry.ids.used == 0


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


async def test_a_session_that_is_closed_while_its_part_ends_is_closed_after_it() -> None:
    """The word that it is to end comes while its task waits for the disk, and must not be lost."""
    storage = GatedStorage()
    with short_directory() as place:
        async with running_daemon(state=place / "state") as daemon, daemon.session() as wire:
            await wire.say(event("a"))
            await wire.until_ack(1, 1)
        # Why after one: the start writes the seal again.
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
            config = daemon.service.components.config
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
        assert daemon.service.components.config.session.linger.seconds == 2


async def test_an_engine_whose_graph_is_gone_ends_with_its_last_session() -> None:
    """A reload takes the graph away: its open session goes on, and nothing is left running once that is over."""
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


async def go_while_opening(daemon: Daemon, wire: Wire, storage: GatedStorage) -> None:
    """A client asks for a session and is gone before the session is durable, for which it has to wait at the gate."""
    await wire.say({"type": "hello", "protocol": "ergo-capture.v1"}, {"type": "open"})
    await wire.until("welcome")
    await storage.until_held()
    (connection,) = daemon.service.clients.connections
    connection.drop(ProtocolError(Code.LIMIT, "the test wants it gone", ""))
    await until(lambda: not daemon.service.clients.connections)


async def test_a_session_whose_client_goes_while_it_is_opened_ends_like_any_other() -> None:
    """What is opened durably lingers and gets its bundle, and is no surprise of the next start."""
    storage = GatedStorage()
    text = '[session]\nlinger = "1ms"\n[limits]\nwrite_timeout = "1ms"\n'
    async with running_daemon(text, storage=storage) as daemon, daemon.wire() as wire:
        with storage.gate("write", ".journal"):
            await go_while_opening(daemon, wire, storage)
            assert sessions_of(daemon) == []
        await until(lambda: daemon.service.registry.finished == 1)
        assert [(m["ended"], m["events"]) for m in manifests(daemon)] == [("interrupted", 0)]
        assert not daemon.service.registry.pending


async def test_a_session_that_cannot_be_opened_for_a_client_that_has_gone_is_forgotten() -> None:
    """A full disk: nobody waits for the session any more, and nothing is tried again."""
    storage = GatedStorage()
    async with running_daemon(storage=storage) as daemon, daemon.wire() as wire:
        with storage.gate("write", ".journal"):
            await go_while_opening(daemon, wire, storage)
            assert len(daemon.service.registry.pending) == 1
            storage.fail_next("write", errno.ENOSPC)
        await until(lambda: not daemon.service.registry.pending)
        assert sessions_of(daemon) == []
