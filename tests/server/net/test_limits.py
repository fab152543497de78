"""Limits on clients: at the limit a client gets an error code and is counted, and others are served."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
import pytest
from tests.daemons import Daemon, DaemonProcess, Wire, event, running_daemon, short_directory
from tests.doubles.faulty_storage import FaultyStorage
from tests.engine.engines import process_graph
from tests.server.looks import is_served
from tests.server.users import needs_root, talk_as

from ergo_capture import decode_bundle
from ergo_capture.config import parse
from ergo_capture.journal.payloads import Peer
from ergo_capture.protocol.capture import BadLine, EventChunk
from ergo_capture.server.net.connection import READ_BYTES, SMALL_READ_BYTES, SocketReader
from ergo_capture.server.net.frame_reader import FrameReader
from ergo_capture.server.ops.reload import Reloader
from ergo_capture.server.session import admission_queue
from ergo_capture.server.session.budget import Budget
from ergo_capture.server.session.pending_sessions import RateLimiter
from ergo_capture.server.session.session import Session

HELLO = {"type": "hello", "protocol": "ergo-capture.v1"}
ONE, OTHER = Peer(uid=1, gid=1, pid=1), Peer(uid=2, gid=2, pid=2)


async def last_code(daemon: Daemon, *frames: Any) -> str:
    """Return the code that ends a connection which sent these frames."""
    async with daemon.wire() as wire:
        await wire.say(*frames)
        code: str = (await wire.rest())[-1]["code"]
        return code


# --- how many ---


async def test_one_user_cannot_use_every_connection() -> None:
    """limits.max_user_clients; the place is free again when the client is gone."""
    async with running_daemon("[limits]\nmax_user_clients = 2\n") as daemon:
        async with daemon.session(), daemon.session():
            assert await last_code(daemon) == "limit"
            assert daemon.service.clients.refusals["limit"] == 1
        with anyio.fail_after(20):
            while daemon.service.clients.admission.clients:
                await anyio.sleep(0.001)
        await is_served(daemon)


@needs_root
async def test_the_limit_of_one_user_does_not_affect_another() -> None:
    """Another user is served while root has as many clients as one user may have."""
    async with running_daemon('[socket]\nmode = "0666"\n[limits]\nmax_user_clients = 1\n') as daemon, daemon.session():
        daemon.socket.parent.chmod(0o755)
        assert await last_code(daemon) == "limit"
        frames = (HELLO, {"type": "open"}, {"type": "close"})
        answers = await anyio.to_thread.run_sync(lambda: talk_as(daemon.socket, *frames))
        assert answers[-1]["type"] == "closed"


async def test_one_user_cannot_open_every_session() -> None:
    """limits.max_user_sessions; sessions that linger without a client count."""
    async with running_daemon("[limits]\nmax_user_sessions = 2\n") as daemon:
        for _ in range(2):
            async with daemon.session():
                pass
        assert await last_code(daemon, HELLO, {"type": "open"}) == "limit"


async def test_sessions_that_are_opened_too_fast_wait() -> None:
    """limits.user_opens_per_second: the third waits, and is told of a shutdown meanwhile."""
    async with running_daemon() as daemon, daemon.session(), daemon.session(), daemon.wire() as third:
        daemon.service.registry._rate_limiter = RateLimiter(1e-6)
        for _ in range(2):
            daemon.service.registry._rate_limiter.reserve(os.getuid(), asyncio.get_running_loop().time())
        await third.say({"type": "hello", "protocol": "ergo-capture.v1"}, {"type": "open"}, {"type": "ping"})
        await third.until("welcome")
        await anyio.wait_all_tasks_blocked()
        assert len(daemon.service.registry.sessions) == 2
        daemon.service.stop()
        assert (await third.read())["code"] == "shutting_down"


async def test_resuming_a_session_is_not_rate_limited() -> None:
    """A thousand clients that return after a restart are all served at once."""
    async with running_daemon() as daemon:
        async with daemon.session() as first:
            session = first.opened["session"]
        await until_unowned(daemon, session)
        daemon.service.registry._rate_limiter = RateLimiter(1e-6)
        for _ in range(2):
            daemon.service.registry._rate_limiter.reserve(os.getuid(), asyncio.get_running_loop().time())
        async with daemon.session(session=session) as again:
            assert again.opened["resumed"] is True


def test_the_rate_limiter_allows_five_seconds_worth_at_once_after_a_pause() -> None:
    """A caller that is too early gets its delay; users do not affect each other."""
    pace = RateLimiter(10)
    assert [pace.reserve(1, 100.0) for _ in range(50)] == [0.0] * 50
    assert [round(pace.reserve(1, 100.0), 3) for _ in range(3)] == [0.1, 0.2, 0.3]
    assert pace.reserve(2, 100.0) == 0.0
    assert round(pace.reserve(1, 100.2), 3) == 0.2
    assert [pace.reserve(1, 110.0) for _ in range(50)] == [0.0] * 50
    assert round(pace.reserve(1, 110.0), 3) == 0.1


def test_a_rate_of_zero_is_no_limit() -> None:
    """limits.user_opens_per_second = 0."""
    pace = RateLimiter(0)
    assert [pace.reserve(None, 1.0) for _ in range(1000)] == [0.0] * 1000


async def test_replaced_limits_apply_to_those_who_come_next() -> None:
    """Existing clients and sessions stay, and count."""
    async with running_daemon() as daemon, daemon.session() as wire:
        registry = daemon.service.registry
        service = daemon.service
        service.reloader = Reloader(service.components, lambda: parse("[limits]\nmax_sessions = 1\n", "test"))
        await service.reload()
        assert registry.limits.max_sessions == 1
        assert await last_code(daemon, HELLO, {"type": "open"}) == "limit"
        service.clients.admission.max_clients = 1
        assert "limits.max_clients" in (await only_answer(daemon))["hint"]
        await wire.say(event("a"), {"type": "close"})
        assert (await wire.until("closed"))["events"] == 1


async def only_answer(daemon: Daemon) -> dict[str, Any]:
    """Return the first answer on a connection that sends nothing."""
    async with daemon.wire() as wire:
        return await wire.read()


async def test_sessions_that_are_being_opened_count_too() -> None:
    """Twenty are requested at once, before the disk has answered the first; two are opened."""
    codes: Counter[str] = Counter()
    async with running_daemon("[limits]\nmax_sessions = 2\n") as daemon:

        async def try_to_open() -> None:
            async with daemon.wire() as wire:
                await wire.say(HELLO, {"type": "open"})
                await wire.read()
                codes[(await wire.read())["type"]] += 1

        async with anyio.create_task_group() as tasks:
            for _ in range(20):
                tasks.start_soon(try_to_open)
        assert codes == {"opened": 2, "error": 18}


# --- how long ---


@pytest.mark.parametrize(
    "frames",
    [
        [{**HELLO, "client": "é" * 129}],
        [{**HELLO, "protocol": "x" * 257}],
        [HELLO, {"type": "open", "graph": "g" * 257}],
        [HELLO, {"type": "open", "session": "s" * 257}],
        [HELLO, {"type": "open", "labels": {"é" * 1025: "é" * 1024}}],
    ],
    ids=["client", "protocol", "graph", "session", "labels"],
)
async def test_names_are_bounded_in_bytes(frames: list[Any]) -> None:
    """limits.max_name_bytes and max_label_bytes; no answer repeats a name that is too long."""
    async with running_daemon() as daemon, daemon.wire() as wire:
        await wire.say(*frames)
        error = (await wire.rest())[-1]
        assert error["code"] == "limit"
        assert len(error["message"]) < 200


async def test_names_at_the_bound_are_accepted() -> None:
    """256 bytes of name, 4096 bytes of labels."""
    async with running_daemon() as daemon, daemon.wire() as wire:
        await wire.say({**HELLO, "client": "é" * 128}, {"type": "open", "labels": {"é" * 1024: "é" * 1024}})
        await wire.until("opened")


async def test_an_id_that_is_too_long_is_not_echoed() -> None:
    """The event has a bad payload and an id of half a megabyte, and the answer is short."""
    async with running_daemon() as daemon, daemon.session() as wire:
        await wire.say(event("x" * 500_000, payload=[1]))
        reject = await wire.until("reject")
        assert (reject["code"], reject["event_id"]) == ("invalid_payload", None)


# --- how slowly ---


@pytest.mark.parametrize("opened", [False, True], ids=["hello_timeout", "frame_timeout"])
async def test_a_byte_now_and_then_does_not_restart_the_time_out(opened: bool) -> None:
    """The time-out is for the whole hello or frame, against slow-loris clients."""
    text = '[limits]\nhello_timeout = "{}"\nframe_timeout = "300ms"\n'.format("30s" if opened else "300ms")
    async with running_daemon(text) as daemon, daemon.wire() as wire:
        if opened:
            await wire.open()
        with anyio.fail_after(20):
            assert await answer_to_a_trickle(wire) == "limit"
        assert daemon.service.clients.refusals["limit"] == 1


async def answer_to_a_trickle(wire: Wire) -> str:
    """Send byte by byte until there is an answer, and return its code."""
    answers: list[dict[str, Any]] = []

    async def listen() -> None:
        answers.append(await wire.read())
        trickle.cancel()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(listen)
        with anyio.CancelScope() as trickle:
            for byte in b'{"type":"event",' + b" " * 100_000:
                await wire.stream.send(bytes([byte]))
                await anyio.sleep(0.02)
    code: str = answers[0]["code"]
    return code


async def test_a_complete_frame_restarts_the_time_out() -> None:
    """Many frames in halves, each within frame_timeout, all together longer."""
    async with running_daemon('[limits]\nframe_timeout = "500ms"\n') as daemon, daemon.session() as wire:
        for number in range(20):
            line = json.dumps(event(f"e{number}")).encode() + b"\n"
            await wire.stream.send(line[:30])
            await anyio.sleep(0.04)
            await wire.stream.send(line[30:])
            await wire.until_ack(number + 1)
        assert daemon.service.clients.refusals["limit"] == 0


# --- how much is read at once ---


def test_a_read_full_of_bad_lines_gives_a_bounded_number_of_items() -> None:
    """The connection ends after the first few, and the rest of 131,072 lines of garbage in one read is not examined."""
    items = FrameReader(1 << 20, 10_000, 5).feed(b"x\n" * 131_072)
    assert [type(item) for item in items] == [BadLine] * 5


def test_a_frame_full_of_bad_events_gives_a_bounded_number_of_items() -> None:
    """The same holds within one frame."""
    items = FrameReader(1 << 20, 10_000, 5).feed(b'{"type":"events","events":[' + b"1," * 9_000 + b"1]}\n")
    assert [type(item) for item in items] == [BadLine] * 5


def test_a_line_that_comes_byte_by_byte_is_read_whole() -> None:
    """It is held until it is complete."""
    reader, line = FrameReader(1 << 20, 10_000, 5), json.dumps(event("a")).encode() + b"\n"
    items = [item for byte in line + line[:9] for item in reader.feed(bytes([byte]))]
    assert [type(item) for item in items] == [EventChunk]
    assert (reader.mid_frame, reader.held_bytes) == (True, 9)


# --- how much is held ---


async def test_the_client_that_holds_most_memory_is_dropped_and_the_others_stay() -> None:
    """limits.held_bytes: of three begun lines the longest is too much; its client is told why."""
    text = '[session]\nlinger = "50ms"\n[limits]\nheld_bytes = "300KiB"\n'
    async with running_daemon(text) as daemon:
        async with daemon.session() as small, daemon.session() as big, daemon.session() as last:
            for wire, size in ((small, 50_000), (big, 200_000)):
                await wire.stream.send(b'{"type":"event",' + b" " * size)
                await until_held(daemon, size)
            await last.stream.send(b'{"type":"event",' + b" " * 100_000)
            answer = (await big.rest())[-1]
            assert (answer["code"], "limits.held_bytes" in answer["hint"]) == ("limit", True)
            for wire in (small, last):
                await wire.stream.send(b'"event":{"event_id":"a","kind":"Pump","at":{"secs":0,"nanos":0}}}\n')
                await wire.until_ack(1)
        await until_nothing_is_held(daemon)


async def until_held(daemon: Daemon, size: int) -> None:
    """Wait until one connection holds at least that many bytes."""
    with anyio.fail_after(20):
        while not any(connection.holding.bytes >= size for connection in daemon.service.clients.connections):
            await anyio.sleep(0.001)


async def until_nothing_is_held(daemon: Daemon) -> None:
    """Wait until every budget is back at zero."""
    registry = daemon.service.registry
    with anyio.fail_after(20):
        while daemon.service.clients.connections or registry.sessions:
            await anyio.sleep(0.001)
    for budget in (daemon.service.clients.held, registry.queue, registry.ids):
        assert (budget.used, dict(budget.by_user)) == (0, {})
        assert budget.peak > 0


async def test_answers_that_were_read_since_do_not_count_as_held() -> None:
    """The client is silent for a while; another one begins a long line."""
    text = '[limits]\nheld_bytes = "64KiB"\n'
    async with running_daemon(text) as daemon, daemon.session() as wire, daemon.session() as other:
        await wire.say(event("a"))
        await wire.until_ack(1)
        # Counted as pending when they are composed, before the socket takes them.
        await wire.say(*(event("a") for _ in range(150)))
        await wire.until_ack(151)
        assert daemon.service.clients.held.used > 20_000
        await other.stream.send(b"x" * 60_000)
        held = daemon.service.clients.held
        with anyio.fail_after(20):
            while held.used < 60_000:
                await asyncio.sleep(0.001)
        await wire.say({"type": "ping"})
        assert (await wire.until("pong"))["type"] == "pong"
        assert daemon.service.clients.refusals["limit"] == 0


async def test_unread_decisions_stop_the_reading() -> None:
    """P9: limits.reply_bytes bounds decisions as other answers; after write_timeout the client is disconnected."""
    text = '[limits]\nwrite_timeout = "300ms"\nreply_bytes = "16KiB"\nsession_queue_bytes = "64KiB"\n'
    async with running_daemon(text) as daemon, daemon.session(decisions=True) as mute:
        session = daemon.service.registry.sessions[mute.opened["session"]]
        most = 0
        with anyio.fail_after(30), suppress(anyio.BrokenResourceError):
            for number in range(1_000_000):
                await mute.say(*(event(f"{number}-{i}") for i in range(100)))
                most = max(most, session.decision_log.untaken)
        assert daemon.service.clients.refusals["limit"] == 1
        # The socket's own buffer, one read, and the answers that wait within reply_bytes, rather than all that was sent.
        assert most < 8_000
        await is_served(daemon)


# --- how much waits ---


@contextmanager
def nothing_is_decided(monkeypatch: pytest.MonkeyPatch) -> Iterator[anyio.Event]:
    """Hold all sessions back from deciding until the event is set."""
    decide, gate = Session._decide, anyio.Event()

    async def waiting(session: Session, batch: Any) -> None:
        await gate.wait()
        await decide(session, batch)

    with monkeypatch.context() as patch:
        patch.setattr(Session, "_decide", waiting)
        yield gate
        gate.set()


async def test_undecided_events_are_bounded_over_all_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    """limits.queue_bytes: ten clients send what they can, memory stays bounded, and at last all is decided."""
    text = '[limits]\nqueue_bytes = "1MiB"\n'
    with nothing_is_decided(monkeypatch) as gate:
        async with running_daemon(text) as daemon:
            budget = daemon.service.registry.queue
            names: list[str] = []

            async def push() -> None:
                async with daemon.session() as wire:
                    names.append(wire.opened["session"])
                    for number in range(100):
                        await wire.say(*(event(f"{number}-{i}", payload={"x": "y" * 200}) for i in range(100)))
                    await wire.say({"type": "close"})
                    assert (await wire.until("closed"))["events"] == 10_000

            async with anyio.create_task_group() as tasks:
                for _ in range(10):
                    tasks.start_soon(push)
                with anyio.fail_after(20):
                    while budget.used < budget.total:
                        await anyio.sleep(0.001)
                gate.set()
            # Above the bound: one large read each until it is reached, and one small one each after that.
            assert budget.peak < budget.total + 10 * 1_000_000
            assert len(names) == 10


async def test_a_budget_is_divided_between_users() -> None:
    """One user's share ends before all is used; another user has room."""
    budget = Budget(100, 60)
    one, other = budget.holding(ONE), budget.holding(OTHER)
    one.hold(60)
    assert (one.has_room, other.has_room) == (False, True)
    other.hold(50)
    assert (other.has_room, budget.exceeded) == (False, True)
    one.free()
    assert one.has_room
    assert (budget.used, budget.peak, dict(budget.by_user)) == (50, 110, {2: 50})


async def test_the_memory_for_event_ids_is_bounded() -> None:
    """limits.ids_bytes: the session accepts no more, can be resumed and closed, and releases its memory."""
    async with running_daemon('[limits]\nids_bytes = "64KiB"\n') as daemon:
        async with daemon.session() as wire:
            with anyio.fail_after(20), suppress(anyio.BrokenResourceError, anyio.EndOfStream):
                for number in range(0, 100_000, 100):
                    await wire.say(*(event(f"e{number + i}") for i in range(100)))
                    await wire.until_ack(number + 100)
            session = wire.opened["session"]
        assert daemon.service.clients.refusals["limit"] == 1
        await until_unowned(daemon, session)
        async with daemon.wire() as again:
            opened = await again.open(session=session)
            assert 0 < opened["accepted"] < 1000
            await again.say({"type": "close"})
            assert (await again.until("closed"))["events"] == opened["accepted"]
        await is_served(daemon)
        assert daemon.service.registry.ids.used == 0


async def test_deferred_episodes_are_counted_with_the_ids() -> None:
    """limits.ids_bytes: a graph that always defers reaches the bound sooner, and releases all of it."""
    text = '[limits]\nids_bytes = "64KiB"\n[graphs.default]\nmax_in_flight = 0\n'
    async with running_daemon(text) as daemon:
        async with daemon.session() as wire:
            await wire.say(*(event(f"e{number}") for number in range(50)))
            await wire.until_ack(50, 50)
            assert daemon.service.registry.ids.used >= 50 * (120 + 300)
            await wire.say({"type": "close"})
            await wire.until("closed")
        await is_served(daemon)
        assert daemon.service.registry.ids.used == 0


async def test_a_rotated_session_forgets_the_ids_of_earlier_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A session that never ends must not reach the limit of ids; those of the current part are known."""
    monkeypatch.setattr(admission_queue, "MIN_IDS", 20)
    async with running_daemon("[rotation]\nmax_events = 10\n") as daemon:
        async with daemon.session() as wire:
            for start in range(0, 1000, 5):
                await wire.say(*(event(f"e{start + n}") for n in range(5)))
                await wire.until_ack(start + 5, start + 5)
                assert daemon.service.registry.ids.used < 60 * 130
            await wire.say(event("e999"), event("e1000"), event("e0"), {"type": "close"})
            frames = await wire.rest()
            assert [f["event_id"] for f in frames if f["type"] == "reject"] == ["e999"]
            for path in daemon.bundles():
                ids = [e.event_id for e in decode_bundle(path.read_bytes()).events]
                assert len(ids) == len(set(ids))
        await is_served(daemon)
        assert daemon.service.registry.ids.used == 0


@pytest.mark.parametrize("frame", ["event", "events"])
async def test_a_deferred_episode_keeps_no_payload_without_an_engine_that_needs_it(frame: str) -> None:
    """P9: the payload is in the journal."""
    async with running_daemon("[graphs.default]\nmax_in_flight = 0\n") as daemon, daemon.session() as wire:
        tracemalloc.start()
        try:
            for number in range(200):
                said = event(f"e{number}", payload={"pad": "x" * 50_000})
                await wire.say(said if frame == "event" else {"type": "events", "events": [said["event"]]})
                await wire.until_ack(number + 1, number + 1)
            assert tracemalloc.get_traced_memory()[0] < 4_000_000
        finally:
            tracemalloc.stop()


async def test_a_payload_that_an_engine_needs_is_counted_with_its_deferred_episode() -> None:
    """P9: and no more once the episode has run; also after a restart."""
    text = '[limits]\nids_bytes = "1MiB"\n' + process_graph(graph='max_per_window = 1\nrate_window = "1s"')
    with short_directory() as place:
        async with running_daemon(text, place / "state") as daemon, daemon.session() as wire:
            await wire.say(*(event(f"e{number}", payload={"pad": "x" * 50_000}) for number in range(5)))
            await wire.until_ack(5, 5)
            assert daemon.service.registry.ids.used > 4 * 50_000
            await wire.say(event("p", 1, "Pump"))
            await wire.until_ack(6, 6)
            assert 3 * 50_000 < daemon.service.registry.ids.used < 4 * 50_000
        async with running_daemon(text, place / "state") as daemon:
            assert 3 * 50_000 < daemon.service.registry.ids.used < 4 * 50_000
            async with daemon.session(session=wire.opened["session"]) as wire:
                with anyio.fail_after(20), suppress(anyio.BrokenResourceError, anyio.EndOfStream):
                    for number in range(1, 31):
                        await wire.say(event(f"f{number}", payload={"pad": "x" * 50_000}))
                        await wire.until_ack(number, number)
            assert daemon.service.clients.refusals["limit"] == 1


async def test_a_finished_session_releases_its_memory_at_once() -> None:
    """P9: the session is in a reference cycle with its log; thousands may come and go before a collection."""
    async with running_daemon("[graphs.default]\nmax_in_flight = 0\n") as daemon, daemon.session() as wire:
        session = daemon.service.registry.sessions[wire.opened["session"]]
        await wire.say(*(event(f"e{number}") for number in range(50)))
        await wire.until_ack(50, 50)
        assert (session.admission.id_count, session.deferred) == (50, 50)
        await wire.say({"type": "close"})
        await wire.until("closed")
        await anyio.wait_all_tasks_blocked()
        assert (session.admission.id_count, session.deferred, session.admission.admitted) == (0, 0, 50)


async def test_a_client_is_read_in_small_pieces_after_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    """P9: other clients must not wait for 256 KiB of refusals."""
    sizes: list[int] = []
    receive = SocketReader.receive

    async def noted(reader: SocketReader, size: int, max_wait: float | None = None) -> bytes:
        sizes.append(size)
        return await receive(reader, size, max_wait)

    async with running_daemon() as daemon, daemon.session() as wire:
        monkeypatch.setattr(SocketReader, "receive", noted)
        await wire.say(event("a"))
        await wire.until_ack(1, 1)
        await wire.say(event("a"))
        await wire.until("reject")
        await wire.until_ack(2, 2)
        await wire.say(event("b"))
        await wire.until_ack(3, 3)
    assert sizes[:3] == [READ_BYTES, SMALL_READ_BYTES, READ_BYTES]


@pytest.mark.parametrize("is_dropped", [False, True])
async def test_a_closed_connection_releases_its_begun_line_at_once(is_dropped: bool) -> None:
    """P9: whether the client hung up or was dropped for limits.held_bytes."""
    held = "300KiB" if is_dropped else "8MiB"
    gc.collect()
    gc.disable()
    tracemalloc.start()
    try:
        async with running_daemon(f'[limits]\nheld_bytes = "{held}"\n') as daemon:
            before, _ = tracemalloc.get_traced_memory()
            for _ in range(10):
                async with daemon.session() as wire:
                    await wire.stream.send(b'{"type":"event",' + b" " * 400_000)
                    if is_dropped:
                        assert (await wire.rest())[-1]["code"] == "limit"
                    else:
                        await until_held(daemon, 400_000)
            with anyio.fail_after(20):
                while daemon.service.clients.connections:
                    await anyio.sleep(0.001)
            after, _ = tracemalloc.get_traced_memory()
            assert after - before < 1_000_000
    finally:
        tracemalloc.stop()
        gc.enable()


async def until_unowned(daemon: Daemon, session: str) -> None:
    """Wait until the session has no connection."""
    with anyio.fail_after(20):
        while daemon.service.registry.sessions[session].owner is not None:
            await anyio.sleep(0.001)


async def test_every_budget_is_back_at_zero_whatever_happened() -> None:
    """Duplicates, rejected events, half frames, a full disk, resumed sessions, unread answers: nothing leaks."""
    storage = FaultyStorage()
    async with running_daemon('[session]\nlinger = "50ms"\n', storage=storage) as daemon:
        async with daemon.session() as wire:
            await wire.say(event("a"), event("a"), event("b", payload=[1]), event("c"))
            await wire.until_ack(4, 4)
            storage.fail_next("write", 28, 28, 28)
            await wire.say(*(event(f"full-{i}") for i in range(100)))
            await wire.until_ack(104)
            await wire.stream.send(b'{"type":"event","event":{"event_id":"half')
        async with daemon.session(decisions=True) as mute:
            await mute.say(*(event(f"e{i}") for i in range(5000)))
        await until_nothing_is_held(daemon)


# --- how many descriptors ---


async def test_the_daemon_survives_running_out_of_descriptors(tmp_path: Path) -> None:
    """Waiting clients are served when there are descriptors again; the log names the limit to raise."""
    with short_directory() as place, DaemonProcess(place, tmp_path / "state", config="[log]\nburst = 2\n") as daemon:
        daemon.prefix = ["prlimit", "--nofile=64:64"]
        await anyio.to_thread.run_sync(daemon.start)
        crowd = [await anyio.connect_unix(str(daemon.socket)) for _ in range(80)]
        said = await anyio.to_thread.run_sync(daemon.until_logged, "client.unaccepted")
        assert said["level"] == "error"
        assert "LimitNOFILE" in said["hint"]
        for stream in crowd:
            await stream.aclose()
        async with await anyio.connect_unix(str(daemon.socket)) as stream:
            wire = Wire(stream)
            await wire.open()
            await wire.say(event("a"), {"type": "close"})
            assert (await wire.until("closed"))["events"] == 1
        assert await anyio.to_thread.run_sync(daemon.stop) == 0


def test_the_limit_of_open_files_is_raised_to_what_clients_need(tmp_path: Path) -> None:
    """It is raised as far as the hard limit allows, which stays."""
    with short_directory() as place, DaemonProcess(place, tmp_path / "state") as daemon:
        daemon.prefix = ["prlimit", "--nofile=64:300"]
        daemon.start()
        assert daemon.process is not None
        limits = Path(f"/proc/{daemon.process.pid}/limits").read_text()
        assert next(line.split()[3:5] for line in limits.splitlines() if "open files" in line) == ["300", "300"]
        assert daemon.stop() == 0
