"""Bad input is answered with a code, a message and a hint, and affects no other client."""

from __future__ import annotations

from typing import Any

import anyio
import anyio.lowlevel
import pytest
from tests.daemons import Daemon, event, running_daemon
from tests.server.looks import is_served
from tests.shared import conformance

HELLO = {"type": "hello", "protocol": "ergo-capture.v1"}


async def final_error(daemon: Daemon, *frames: Any) -> dict[str, Any]:
    """Return the error that ends a connection which sent these frames."""
    async with daemon.wire() as wire:
        await wire.say(*frames)
        frames_read = await wire.rest()
    error = frames_read[-1]
    assert error["type"] == "error"
    assert error["message"]
    assert error["hint"]
    return error


@pytest.mark.parametrize(
    ("code", "frames"),
    [
        ("bad_frame", [b"garbage"]),
        ("bad_frame", [{"type": "open"}]),
        ("bad_frame", [event("a")]),
        ("bad_frame", [HELLO, event("a")]),
        ("bad_frame", [HELLO, HELLO]),
        ("bad_frame", [HELLO, {"type": "open"}, {"type": "open"}]),
        ("bad_frame", [HELLO, {"type": "flush"}]),
        ("bad_frame", [{"type": "hello", "protocol": 7}]),
        ("bad_frame", [{"type": "hello"}]),
        ("bad_frame", [{**HELLO, "surplus": 1}]),
        ("unsupported_protocol", [{"type": "hello", "protocol": "ergo-capture.v9"}]),
        ("unknown_graph", [HELLO, {"type": "open", "graph": "nope"}]),
        ("unknown_session", [HELLO, {"type": "open", "session": "nope"}]),
        ("limit", [HELLO, {"type": "open", "labels": {"k": "v" * 5000}}]),
    ],
)
async def test_a_conversation_that_cannot_continue_ends_with_its_code(code: str, frames: list[Any]) -> None:
    """P9: the next client is served."""
    async with running_daemon() as daemon:
        assert (await final_error(daemon, *frames))["code"] == code
        await is_served(daemon)
        assert daemon.service.clients.refusals[code] == 1


@pytest.mark.parametrize("line", [x for x in conformance("payloads.jsonl") if x["error"]], ids=lambda x: x["error"])
async def test_a_payload_that_the_reference_refuses_is_rejected_alone(line: dict[str, Any]) -> None:
    """The events before and after it are accepted."""
    payload = bytes.fromhex(line["payload_hex"])
    if b"\n" in payload:
        pytest.skip("a line cannot carry it")
    async with running_daemon() as daemon, daemon.session() as wire:
        head = b'{"type":"event","event":{"event_id":"bad","kind":"Command","at":{"secs":0,"nanos":0},"payload":'
        await wire.say(event("before"), head + payload + b"}}", event("after"), {"type": "ping"})
        frames: list[Any] = []
        while not frames or frames[-1]["type"] != "pong":
            frames.append(await wire.read())
        rejects = [frame for frame in frames if frame["type"] == "reject"]
        if payload == b"null":
            assert rejects == []
            return
        assert [reject["index"] for reject in rejects] == [2]
        assert rejects[0]["code"] in {"invalid_payload", "bad_frame"}
        await wire.say({"type": "close"})
        assert (await wire.until("closed"))["events"] == 2


@pytest.mark.parametrize(
    "payload",
    [
        b'{"a":1e999}',
        b'{"a":"\xff"}',
        b'{"a":"\\ud800"}',
        b'{"a":' + b"9" * 400 + b"}",
        b'{"a":' + b"[" * 200 + b"]" * 200 + b"}",
        b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b"[" * 300_000,
    ],
    ids=["huge exponent", "not UTF-8", "lone surrogate", "400 digits", "200 levels", "100,000 levels", "never closed"],
)
async def test_a_malicious_payload_is_rejected_alone(payload: bytes) -> None:
    """It is among a thousand good events in one write, which are all accepted."""
    head = b'{"type":"event","event":{"event_id":"bad","kind":"Command","at":{"secs":0,"nanos":0},"payload":'
    async with running_daemon() as daemon, daemon.session() as wire:
        good = [event(f"e{i}") for i in range(1000)]
        await wire.say(*good[:500], head + payload + b"}}", *good[500:], {"type": "close"})
        reject = await wire.until("reject")
        assert reject["index"] == 501
        assert reject["code"] in {"invalid_payload", "bad_frame"}
        assert (await wire.until("closed"))["events"] == 1000


async def test_wrong_types_in_an_event_are_counted_as_bad_frames() -> None:
    """Each is rejected by its number; after limits.max_bad_frames the connection ends."""
    bad = [
        {"type": "event", "event": {"event_id": 1, "kind": "Command", "at": {"secs": 0, "nanos": 0}}},
        {"type": "event", "event": {"event_id": "x", "kind": "Bogus", "at": {"secs": 0, "nanos": 0}}},
        {"type": "event", "event": {"event_id": "x", "kind": "Command", "at": {"secs": -1, "nanos": 0}}},
        {"type": "event", "event": {"event_id": "x", "kind": "Command", "at": {"secs": 1 << 64, "nanos": 0}}},
        {"type": "event"},
    ]
    async with running_daemon() as daemon, daemon.session() as wire:
        await wire.say(event("good"), *bad, event("never read"))
        frames = await wire.rest()
        assert [f["index"] for f in frames if f["type"] == "reject"] == [2, 3, 4, 5, 6]
        assert frames[-1]["type"] == "error"
        assert frames[-1]["code"] == "bad_frame"
        (session,) = daemon.service.registry.sessions.values()
        assert session.accepted == 1


async def test_the_largest_times_and_times_with_a_carry_are_accepted() -> None:
    """Times that the fast path cannot check take the slow path and are read correctly."""
    async with running_daemon() as daemon, daemon.session() as wire:
        late = {"event_id": "late", "kind": "Tick", "at": {"secs": (1 << 64) - 1, "nanos": 999_999_999}}
        carried = {"event_id": "carried", "kind": "Command", "at": {"secs": 1, "nanos": 3_000_000_000}}
        await wire.say({"type": "event", "event": late}, {"type": "event", "event": carried})
        frames = await wire.until_ack(2, 2)
        assert [frame["type"] for frame in frames if frame["type"] != "ack"] == []


async def test_an_oversized_frame_is_refused_before_it_is_complete() -> None:
    """P9: the answer comes while the line has no end yet, and the connection stays."""
    async with running_daemon('[limits]\nmax_frame_bytes = "4KiB"\n') as daemon, daemon.session() as wire:
        await wire.stream.send(b'{"type":"event","event":{"event_id":"' + b"x" * 100_000)
        assert (await wire.until("reject"))["code"] == "too_large"
        await wire.stream.send(b"x" * 100_000 + b'"}}\n')
        await wire.say(event("after"), {"type": "close"})
        assert (await wire.until("closed"))["events"] == 1


async def test_a_long_line_among_short_ones_is_refused_alone() -> None:
    """Although all came in one write."""
    async with running_daemon('[limits]\nmax_frame_bytes = "4KiB"\n') as daemon, daemon.session() as wire:
        lines = [event(f"e{i}", payload={"x": "y" * 300}) for i in range(40)]
        lines[20] = event("long", payload={"x": "y" * 5000})
        await wire.say(*lines, {"type": "close"})
        reject = await wire.until("reject")
        assert (reject["index"], reject["code"]) == (21, "too_large")
        assert (await wire.until("closed"))["events"] == 39


async def test_an_id_that_is_too_long_is_refused_alone() -> None:
    """The length counts in bytes, not characters."""
    async with running_daemon("[limits]\nmax_id_bytes = 8\n") as daemon, daemon.session() as wire:
        await wire.say(event("12345678"), event("éééé"), event("ééééé"), event("ok"), {"type": "close"})
        assert (await wire.until("reject"))["index"] == 3
        assert (await wire.until("closed"))["events"] == 3


@pytest.mark.parametrize("payload", [None, 3], ids=["an event", "an invalid payload"])
async def test_the_limit_of_an_id_counts_bytes(payload: Any) -> None:
    """Five characters of two bytes are more than eight; an id that is too long is not repeated."""
    async with running_daemon("[limits]\nmax_id_bytes = 8\n") as daemon, daemon.session() as wire:
        await wire.say(event("é" * 4, payload=payload and {}), event("é" * 5, payload=payload))
        frames = await wire.until_ack(2)
        (reject,) = [frame for frame in frames if frame["type"] == "reject"]
        assert (reject["index"], reject["event_id"]) == (2, None)
        assert reject["code"] == ("limit" if payload is None else "invalid_payload")


async def test_events_of_one_frame_are_accepted_or_rejected_one_by_one() -> None:
    """A bad event among them is rejected by its own number."""
    events = [event(f"e{i}")["event"] for i in range(4)]
    events[2]["payload"] = "no object"
    async with running_daemon() as daemon, daemon.session() as wire:
        await wire.say({"type": "events", "events": events}, {"type": "close"})
        reject = await wire.until("reject")
        assert (reject["index"], reject["event_id"], reject["code"]) == (3, "e2", "invalid_payload")
        assert (await wire.until("closed"))["events"] == 3


async def test_two_values_on_a_line_are_not_two_events() -> None:
    """A frame is one JSON object on one line: neither two on one line, nor one on two."""
    one = b'{"type":"event","event":{"event_id":"%b","kind":"Command","at":{"secs":0,"nanos":0}}}'
    async with running_daemon("[limits]\nmax_bad_frames = 9\n") as daemon, daemon.session() as wire:
        await wire.say(one % b"a" + one % b"b", (one % b"c").replace(b',"kind"', b',\n"kind"'), one % b"d")
        frames = await wire.until_ack(4)
        assert sum(frame["type"] == "reject" for frame in frames) == 3
        await wire.say({"type": "close"})
        assert (await wire.until("closed"))["events"] == 1


async def test_a_session_has_one_connection_at_a_time() -> None:
    """A second one is refused as ``session_busy``."""
    async with running_daemon() as daemon, daemon.session() as wire:
        opening = {"type": "open", "session": wire.opened["session"]}
        assert (await final_error(daemon, HELLO, opening))["code"] == "session_busy"


async def test_more_clients_than_allowed_are_refused_with_a_reason() -> None:
    """limits.max_clients; clients that are connected stay."""
    async with running_daemon("[limits]\nmax_clients = 1\n") as daemon, daemon.session() as wire:
        async with daemon.wire() as other:
            assert (await other.rest())[-1]["code"] == "limit"
        await wire.say(event("a"), {"type": "close"})
        assert (await wire.until("closed"))["events"] == 1


async def test_more_sessions_than_allowed_are_refused_with_a_reason() -> None:
    """limits.max_sessions."""
    async with running_daemon("[limits]\nmax_sessions = 1\n") as daemon, daemon.session():
        assert (await final_error(daemon, HELLO, {"type": "open"}))["code"] == "limit"


@pytest.mark.parametrize(
    ("setting", "sent"),
    [("hello_timeout", b""), ("hello_timeout", b'{"type":"he')],
)
async def test_a_client_that_does_not_complete_the_handshake_in_time_is_disconnected(setting: str, sent: bytes) -> None:
    """limits.hello_timeout, against slow-loris clients."""
    async with running_daemon(f'[limits]\n{setting} = "50ms"\n') as daemon, daemon.wire() as wire:
        if sent:
            await wire.stream.send(sent)
        assert (await wire.rest())[-1]["code"] == "limit"


async def test_a_begun_frame_has_a_time_out() -> None:
    """limits.frame_timeout; what was accepted before is safe."""
    async with running_daemon('[limits]\nframe_timeout = "50ms"\n') as daemon, daemon.session() as wire:
        await wire.say(event("a"))
        await wire.until_ack(1)
        await wire.stream.send(b'{"type":"event"')
        assert (await wire.rest())[-1]["code"] == "limit"


async def test_a_client_that_never_reads_is_served_and_harms_nobody() -> None:
    """P9: acknowledgements coalesce; its events are captured, and other clients are not delayed."""
    async with running_daemon() as daemon, daemon.session() as mute:
        for number in range(200):
            await mute.say(*(event(f"{number}-{i}") for i in range(20)))
        await is_served(daemon)
        session = daemon.service.registry.sessions[mute.opened["session"]]
        with anyio.fail_after(20):
            await session.until_decided(session.admission.admitted)
            while session.accepted < 4000:
                await anyio.sleep(0.01)


async def test_a_client_that_provokes_answers_and_never_reads_them_is_disconnected() -> None:
    """P9: pending answers are bounded; at the bound the client is not read any more."""
    text = '[limits]\nwrite_timeout = "100ms"\n'
    async with running_daemon(text) as daemon, daemon.session() as mute:
        frames = [event("same", payload={}) for _ in range(500)]
        try:
            for _ in range(200):
                await mute.say(*frames)
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            pass
        else:
            pytest.fail("it was never disconnected")
        await is_served(daemon)


async def test_a_connection_that_breaks_in_mid_frame_loses_no_complete_event() -> None:
    """The session can be resumed, with every event before the begun one."""
    async with running_daemon() as daemon:
        async with daemon.session() as wire:
            await wire.say(event("a"))
            await wire.stream.send(b'{"type":"event","event":{"event_id":"half')
            await wire.until_ack(1)
            name = wire.opened["session"]
        await anyio.lowlevel.checkpoint()
        with anyio.fail_after(10):
            while daemon.service.registry.sessions[name].owner is not None:
                await anyio.sleep(0.001)
        async with daemon.wire() as again:
            opened = await again.open(session=name)
            assert opened["last_event_id"] == "a"


@pytest.mark.parametrize(
    "line", [b"\x00\xff\xfe", b"[]", b'"x"', b"{", b"null", b"{}", b'{"type":"nope"}', b'{"type":1}']
)
async def test_garbage_between_events_does_not_affect_them(line: bytes) -> None:
    """It is answered and counted, and the events around it are accepted."""
    async with running_daemon() as daemon, daemon.session() as wire:
        await wire.say(event("a"), line, event("b"), {"type": "close"})
        assert (await wire.until("reject"))["code"] == "bad_frame"
        assert (await wire.until("closed"))["events"] == 2


async def test_answers_come_in_the_order_of_the_requests() -> None:
    """Hello, open and a bad line in one write give welcome, opened and the rejection."""
    async with running_daemon() as daemon, daemon.wire() as wire:
        await wire.say(HELLO, {"type": "open"}, b"garbage", {"type": "ping"})
        kinds = [(await wire.read())["type"] for _ in range(5)]
        assert kinds == ["welcome", "opened", "reject", "ack", "pong"]
