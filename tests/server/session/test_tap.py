"""Following decisions live: in order, durable, bounded, and honest about what is skipped."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, cast

import anyio
import pytest
from tests.daemons import Wire, event, running_daemon
from tests.server.looks import until

from ergo_capture.kernel.events import ExternalEvent, ExternalEventKind
from ergo_capture.kernel.outcomes import Decision, RunTermination
from ergo_capture.kernel.ports import DecisionLogEntry
from ergo_capture.protocol.control import Skipped, TappedDecision
from ergo_capture.server.ops import control
from ergo_capture.server.session.session import Session, SessionState
from ergo_capture.server.session.tap import Tap

LIMITED = '[graphs.default]\nmax_per_window = 1\nrate_window = "1h"\n'


async def tapping(wire: Wire, of: str, **options: Any) -> None:
    """Start a tap on a control connection."""
    await wire.say({"command": "tap", "of": of, **options})
    answer = await wire.read()
    assert answer["type"] == "tapping", answer


async def shown(wire: Wire, count: int) -> list[dict[str, Any]]:
    """Read lines until they account for ``count`` decisions, shown or skipped."""
    lines: list[dict[str, Any]] = []
    while count > 0:
        lines.append(await wire.read())
        count -= lines[-1]["count"] if lines[-1]["type"] == "skipped" else 1
    assert count == 0
    return lines


async def test_a_tap_shows_each_decision_as_the_bundle_will_hold_it() -> None:
    """Decisions come in order, with number, session, and the event's kind and time."""
    async with running_daemon(LIMITED) as daemon, daemon.session() as wire, daemon.control() as operator:
        await tapping(operator, "default")
        await wire.say(event("a", 1), event("b", 2))
        lines = await shown(operator, 2)
        assert [line["index"] for line in lines] == [0, 1]
        assert {line["session"] for line in lines} == {wire.opened["session"]}
        assert [line["decision"]["decision"] for line in lines] == ["Invoke", "Defer"]
        assert (lines[1]["kind"], lines[1]["at"]) == ("Command", {"secs": 2, "nanos": 0})
        await wire.say({"type": "close"})
        import json
        from pathlib import Path

        bundle = json.loads(Path((await wire.until("closed"))["bundle"]).read_bytes())
        assert [line["decision"] for line in lines] == bundle["decisions"]


async def test_a_tap_of_a_graph_follows_sessions_that_are_opened_later_and_no_other_graph() -> None:
    """Decisions of other graphs are neither shown nor counted."""
    async with running_daemon("[graphs.a]\n[graphs.b]\n") as daemon, daemon.control() as operator:
        await tapping(operator, "a")
        async with daemon.session(graph="b") as other, daemon.session(graph="a") as wire:
            await other.say(event("x"))
            await other.until_ack(1, 1)
            await wire.say(event("y"))
            (line,) = await shown(operator, 1)
            assert line["decision"]["event_id"] == "y"


async def test_a_tap_of_a_session_ends_with_the_session() -> None:
    """The last line says how the session ended; then the connection ends."""
    async with running_daemon() as daemon, daemon.session() as wire, daemon.control() as operator:
        await tapping(operator, wire.opened["session"])
        await wire.say(event("a"), {"type": "close"})
        lines = await operator.rest()
        assert [line["type"] for line in lines] == ["decision", "ended"]
        assert lines[-1]["how"] == "complete"


async def test_decisions_above_the_rate_are_counted_and_reported() -> None:
    """Shown and skipped decisions add up to all decisions, in the stream and in the status."""
    async with running_daemon() as daemon, daemon.session() as wire, daemon.control() as operator:
        await tapping(operator, "default", rate=50)
        await wire.say(*[event(f"e{n}") for n in range(3000)])
        lines = await shown(operator, 3000)
        decisions = [line for line in lines if line["type"] == "decision"]
        assert decisions[0]["index"] == 0
        assert 5 <= len(decisions) < 1500
        # Every gap between two that are shown is accounted for where it is.
        number = 0
        for line in lines:
            assert line["type"] == "skipped" or line["index"] == number
            number += line["count"] if line["type"] == "skipped" else 1
        taps = daemon.service.registry.taps
        for gone in (False, True):
            if gone:
                # The counts stay when the watcher has gone.
                await operator.stream.aclose()
                await until(lambda: not taps._taps)
            status = (await daemon.ask("status"))["status"]["totals"]
            assert (status["decisions_tapped"], status["decisions_skipped"]) == (len(decisions), 3000 - len(decisions))


async def test_a_watcher_that_does_not_read_holds_nothing_up() -> None:
    """Events are acknowledged and decided, and the tap keeps a bounded number of decisions."""
    async with running_daemon() as daemon, daemon.session() as wire, daemon.control() as operator:
        await operator.say({"command": "tap", "of": "default", "rate": 10000})
        while not daemon.service.registry.taps._taps:
            await anyio.sleep(0.01)
        for start in range(0, 20_000, 1000):
            await wire.say(*[event(f"e{n}") for n in range(start, start + 1000)])
            await wire.until_ack(start + 1000, start + 1000)
        (tap,) = daemon.service.registry.taps._taps
        assert len(tap._kept) <= tap._limit <= 1000


async def test_a_watcher_that_stalls_is_dropped_without_an_error_in_the_log(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its tap is removed."""
    monkeypatch.setattr(control, "WRITE_SECONDS", 0.05)
    async with running_daemon() as daemon, daemon.session() as wire, daemon.control() as operator:
        await operator.say({"command": "tap", "of": "default", "rate": 10000})
        taps = daemon.service.registry.taps._taps
        while not taps:
            await anyio.sleep(0.01)
        sent = 0
        while taps:
            await wire.say(*[event(f"e{sent + n}") for n in range(1000)])
            sent += 1000
            await wire.until_ack(sent, sent)
    assert "client.failed" not in capsys.readouterr().out


async def test_a_tap_ends_when_its_watcher_hangs_up_or_sends_anything() -> None:
    """The watched sessions have no listener afterwards."""
    async with running_daemon() as daemon, daemon.session() as wire:
        session = daemon.service.registry.sessions[wire.opened["session"]]
        for last_word in (b"", b"enough"):
            async with daemon.control() as operator:
                await tapping(operator, "default")
                assert session.decision_log.listener is not None
                if last_word:
                    await operator.say(last_word)
                    assert await operator.rest() == []
            while daemon.service.registry.taps._taps:
                await anyio.sleep(0.01)
            assert session.decision_log.listener is None


async def test_a_tap_of_an_unknown_name_is_refused() -> None:
    """The hint lists the graphs."""
    async with running_daemon() as daemon:
        answer = await daemon.ask("tap", of="nothing")
        assert answer["code"] == "unknown_session"
        assert "default" in answer["hint"]


class Source:
    """The members of a session that a tap uses."""

    def __init__(self) -> None:
        self.decided = 0
        self.state = SessionState.OPEN

        class Description:
            session = "s"

        self.description = Description()


def entries(first: int) -> Any:
    """Return a function that makes the entries of a chunk from index ``first``."""
    asked: list[int] = []

    def make(count: int) -> list[DecisionLogEntry]:
        asked.append(count)
        event = ExternalEvent.mechanical("e", ExternalEventKind.Command)
        completed = RunTermination.Completed
        return [
            DecisionLogEntry("g", f"e{first + n}", event, Decision.Invoke, None, first + n, None, completed, 0)
            for n in range(count)
        ]

    make.asked = asked  # type: ignore[attr-defined]
    return make


def in_short(news: Sequence[TappedDecision | Skipped]) -> list[str]:
    """Return news as text: the number of each decision shown, and ``-n`` for n that are not."""
    return [f"-{item.count}" if isinstance(item, Skipped) else str(item.index) for item in news]


async def test_nothing_is_shown_before_it_is_durable() -> None:
    """Decisions wait in the tap until they are durable; those left out meanwhile are reported after them."""
    source = Source()
    session = cast("Session", source)
    ticks: asyncio.Queue[None] = asyncio.Queue()

    async def sleep(_seconds: float) -> None:
        await ticks.get()

    tap = Tap(30, sleep)
    watching = tap.watch()
    make = entries(0)
    tap.offer(session, 0, 10, make)
    assert make.asked == [3], "entries that are not shown are not made"
    source.decided = 2
    assert in_short(await anext(watching)) == ["0", "1"]
    tap.offer(session, 10, 1, entries(10))
    source.decided = 11
    ticks.put_nowait(None)
    assert in_short(await anext(watching)) == ["2", "-7", "10"]
    assert (tap.shown, tap.skipped) == (4, 7)
    await watching.aclose()  # type: ignore[attr-defined]


async def test_a_tap_keeps_no_more_than_it_may_show_in_a_tick() -> None:
    """The tick may have several chunks; skipped decisions are counted at their places."""
    source = Source()
    session = cast("Session", source)
    tap = Tap(30)
    tap.offer(session, 0, 2, entries(0))
    second, third = entries(2), entries(4)
    tap.offer(session, 2, 2, second)
    tap.offer(session, 4, 1, third)
    assert (second.asked, third.asked) == ([1], [])
    source.decided = 5
    tap.session_over("complete")
    assert [in_short(news) async for news in tap.watch()] == [["0", "1", "2", "-2"]]
    assert (tap.shown, tap.skipped, tap.ended) == (3, 2, "complete")


async def test_a_tap_is_shown_what_was_left_out_before_it_kept_anything() -> None:
    """A rate below one in a tick still shows one, and rests accordingly."""
    source = Source()
    session = cast("Session", source)
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)
        tap.session_over("failed")

    tap = Tap(4, sleep)
    tap.offer(session, 0, 2, entries(0))
    source.decided = 2
    assert [in_short(news) async for news in tap.watch()] == [["0", "-1"]]
    assert pauses == [0.25]


async def test_decisions_of_a_session_that_failed_are_skipped_and_not_shown() -> None:
    """They never become durable, so they count as not made."""
    source = Source()
    session = cast("Session", source)
    tap = Tap(100)
    tap.offer(session, 0, 4, entries(0))
    source.decided, source.state = 1, SessionState.FAILED
    tap.session_over("failed")
    news = [item async for batch in tap.watch() for item in batch]
    assert in_short(news) == ["0", "-3"]
    assert (tap.shown, tap.skipped) == (1, 3)


@pytest.mark.parametrize("rate", [1, 9, 10, 95, 10_000])
async def test_no_rate_is_exceeded(rate: int) -> None:
    """There are many ticks, each with more decisions than may be shown."""
    source = Source()
    source.decided = 1 << 60
    session = cast("Session", source)
    slept = 0.0

    async def sleep(seconds: float) -> None:
        nonlocal slept
        slept += seconds
        tap.offer(session, 0, 5000, entries(0))

    tap = Tap(rate, sleep)
    tap.offer(session, 0, 5000, entries(0))
    watching = tap.watch()
    while slept < 20:
        await anext(watching)
    assert tap.shown <= rate * (slept + max(0.1, 1 / rate)) + 1e-6
    await watching.aclose()  # type: ignore[attr-defined]
