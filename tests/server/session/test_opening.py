"""Opening and resuming sessions: what is recorded, and what a full disk or a reload does meanwhile."""

from __future__ import annotations

import asyncio
import errno
import re
from pathlib import Path

import msgspec
import pytest
from tests.adapter.cases import graph_id
from tests.daemons import running_daemon
from tests.doubles.gated_storage import GatedStorage
from tests.egress.hosted import TWO, configuration, good
from tests.server.looks import sessions_of
from tests.server.session.test_refusals import SELF, STRANGER, Connection, opened

from ergo_capture import config as configurations
from ergo_capture.engine.process import ProcessEngine
from ergo_capture.journal.payloads import FIXED_NOT_THE_RUN, Loss, SessionDescription
from ergo_capture.kernel.constraints import Constraints
from ergo_capture.pauses import clock
from ergo_capture.protocol.capture import Acknowledged, Code, Open, ProtocolError
from ergo_capture.server.ops.reload import Reloader
from ergo_capture.server.session.pending_sessions import PendingSession
from ergo_capture.server.session.session import Session
from ergo_capture.version import PROGRAM

GRAPH = '[graphs.g]\nmax_retries = 3\nadapter_provenance = "adapter"\nruntime_provenance = "runtime"\n'


async def test_a_session_is_described_as_its_graph_is_configured() -> None:
    """The description has its opener, its labels and the program; the id has the time and the number."""
    async with running_daemon(GRAPH) as daemon:
        registry = daemon.service.registry
        session, resumed = await registry.open(Open(graph="g", labels={"l": "v"}), SELF, Connection())
        description = session.description
        assert not resumed
        assert re.fullmatch(r"\d{8}T\d{6}Z-1-[0-9a-f]{8}", description.session)
        assert description == SessionDescription(
            session=description.session,
            graph="g",
            constraints=Constraints(max_retries=3),
            adapter_provenance="adapter",
            runtime_provenance="runtime",
            engine="fixed",
            labels={"l": "v"},
            peer=SELF,
            opened_at=description.opened_at,
            program=PROGRAM,
        )
        second = await opened(daemon, graph="g")
        assert second.description.session.split("-")[1] == "2"
        assert registry.sessions == {each.description.session: each for each in (session, second)}


async def test_a_session_that_is_decided_elsewhere_says_so() -> None:
    """The graph's engine is not asked for its provenance, nor for anything else."""
    async with running_daemon(GRAPH) as daemon:
        request = Open(graph="g", decided_by="fixed")
        session, _ = await daemon.service.registry.open(request, SELF, Connection())
        assert session.description.decided_by == FIXED_NOT_THE_RUN
        assert session.graph.engine.name == "fixed"
        assert session.graph.egress is None


async def test_a_new_session_after_a_loss_records_it() -> None:
    """Its first frame names the session that is gone, and its status says it."""
    async with running_daemon() as daemon:
        told = Acknowledged(5, "e5")
        request = Open(session="gone", acknowledged=told, resume_after_loss=True)
        session, resumed = await daemon.service.registry.open(request, SELF, Connection())
        assert not resumed
        assert session.lost is not None
        assert session.description.lost == session.lost == session.snapshot().lost
        assert (session.lost.session, session.lost.acknowledged, session.lost.resumed) == ("gone", 5, True)
        session.end("interrupted", keep_empty=False)
        await session.over.wait()
        # It is kept although it is empty: its manifest says what was lost.
        assert len(session.bundles) == 1
        assert session.ended == "interrupted"


async def test_a_client_that_goes_on_after_a_known_loss_makes_its_session_complete() -> None:
    """The client need not state again what was acknowledged."""
    async with running_daemon() as daemon:
        session = await opened(daemon)
        session.owner = None
        loss = Loss(acknowledged=5, held=0, last_acknowledged="e5")
        await session.record_loss(loss)
        request = Open(session=session.description.session, resume_after_loss=True)
        await daemon.service.registry.open(request, SELF, Connection())
        assert session.lost == msgspec.structs.replace(loss, resumed=True)
        session.end("complete")
        await session.over.wait()
        assert session.ended == "complete"


async def test_opening_waits_while_the_disk_is_full() -> None:
    """The client is not refused, and the segment that its frame may land in is kept meanwhile."""
    storage = GatedStorage()
    async with running_daemon(storage=storage) as daemon:
        registry = daemon.service.registry
        with storage.gate("write", ".journal"):
            opening = asyncio.create_task(opened(daemon))
            await storage.until_held()
            (pending,) = registry.pending
            assert (pending.number, pending.segment, len(registry.pending)) == (1, 1, 1)
            assert registry._oldest_needed() == 1
            storage.fail_next("write", errno.ENOSPC, errno.ENOSPC)
        session = await opening
        assert len([call for call in storage.calls if call.startswith("-write")]) == 2
        assert len(registry.pending) == 0
        assert sessions_of(daemon) == [session]


async def test_a_session_whose_client_goes_in_the_moment_that_it_is_opened_lingers() -> None:
    """Its frame is durable, and nobody owns it."""
    async with running_daemon() as daemon:
        registry = daemon.service.registry
        opening = asyncio.create_task(opened(daemon))
        start = registry.pending.start

        def start_and_hang_up(pending: PendingSession, segment: int) -> Session:
            asyncio.get_running_loop().call_soon(opening.cancel)
            return start(pending, segment)

        registry.pending.start = start_and_hang_up
        with pytest.raises(asyncio.CancelledError):
            await opening
        (session,) = sessions_of(daemon)
        assert len(registry.pending) == 0
        assert list(registry._lingering) == [session.description.session]
        assert session.owner is None


async def test_opening_fails_with_the_journal() -> None:
    """The client is told, and nothing is left of the session."""
    storage = GatedStorage()
    async with running_daemon(storage=storage) as daemon:
        storage.fail_next("write", errno.EIO)
        with pytest.raises(ProtocolError, match="the journal has failed") as caught:
            await opened(daemon)
        assert caught.value.code is Code.STORAGE_FAILED
        assert len(daemon.service.registry.pending) == 0


async def test_an_engine_that_a_reload_replaces_while_a_session_is_opened_is_not_asked() -> None:
    """The session is opened with the graph as it is configured by then."""
    text = "[limits]\nuser_opens_per_second = 1000\n"
    async with running_daemon(text + "[graphs.g]\n") as daemon:
        registry = daemon.service.registry
        registry._rate_limiter.rate = 20
        for _ in range(101):
            registry._rate_limiter.reserve(SELF.uid, asyncio.get_running_loop().time())
        opening = asyncio.create_task(opened(daemon, graph="g"))
        await asyncio.sleep(0)
        assert not opening.done()
        before = registry.graphs["g"]
        config = daemon.service.components.config
        graphs = dict(configurations.parse('[graphs.g]\nmax_retries = 7\nengine = "fixed"\n', "test").graphs)
        daemon.service.reloader = Reloader(
            daemon.service.components, lambda: msgspec.structs.replace(config, graphs=graphs)
        )
        await daemon.service.reload()
        assert registry.graphs["g"] is not before
        session = await opening
        assert session.description.constraints.max_retries == 7
        assert session.graph is registry.graphs["g"]


async def test_an_engine_is_held_to_the_adapter_and_the_channels_of_its_graph(tmp_path: Path) -> None:
    """One that states others is refused."""
    async with running_daemon(configuration(TWO, tmp_path, good())) as daemon:
        graph = daemon.service.registry.graphs[graph_id(TWO)]
        assert isinstance(graph.engine, ProcessEngine)
        assert graph.egress is not None
        assert graph.engine._required == {
            "adapter_provenance": graph.adapter_provenance,
            "egress_provenance": graph.egress.provenance(),
        }


async def test_a_session_is_resumed_by_its_user_and_its_timer_is_stopped() -> None:
    """It belongs to the new connection."""
    async with running_daemon() as daemon:
        registry = daemon.service.registry
        session = await opened(daemon, STRANGER)
        session.owner = None
        registry.leave(session, may_come_back=True)
        timer = registry._lingering[session.description.session]
        owner = Connection()
        assert await registry.open(Open(session=session.description.session), STRANGER, owner) == (session, True)
        assert (session.owner, timer.cancelled(), registry._lingering) == (owner, True, {})
        session.owner = None
        # Root may resume anything.
        assert (await registry.open(Open(session=session.description.session), SELF, owner))[1]


async def test_a_session_ends_when_its_client_does_not_come_back() -> None:
    """Interrupted; a suspension of the process does not count, because the client could not come back."""
    async with running_daemon('[session]\nlinger = "1ms"\n') as daemon:
        registry = daemon.service.registry
        session = await opened(daemon)
        name = session.description.session
        session.owner = None
        registry._lingering[name] = asyncio.get_running_loop().call_later(3600, lambda: None)
        registry._end_lingering(session, "interrupted", clock.now() + 60)
        ends = [session.ended]
        again = registry._lingering[name]
        remaining = again.when() - asyncio.get_running_loop().time()
        assert 59 < remaining <= 60
        again.cancel()
        registry.linger(session)
        await session.over.wait()
        assert [*ends, session.ended] == [None, "interrupted"]
        assert (session.bundles, registry._lingering) == ([], {})


async def test_a_session_that_has_an_owner_again_does_not_end_with_the_timer() -> None:
    """Whoever has it keeps it."""
    async with running_daemon() as daemon:
        registry = daemon.service.registry
        session = await opened(daemon)
        registry._lingering[session.description.session] = asyncio.get_running_loop().call_later(3600, lambda: None)
        registry._end_lingering(session, "interrupted", 0.0)
        assert session.ended is None


async def test_a_driver_that_leaves_ends_its_session_with_its_reason() -> None:
    """It does not know the session's id, so it cannot come back."""
    async with running_daemon() as daemon:
        registry = daemon.service.registry
        for reason in ("driver_terminated", "driver_io"):
            session = await opened(daemon)
            if reason == "driver_io":
                registry.leave(session, may_come_back=False, reason=reason)
            else:
                registry.leave(session, may_come_back=False)
            await session.over.wait()
            assert (session.ended, session.reason) == ("interrupted", reason)
