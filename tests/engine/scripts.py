"""Callables for the python engine of tests; found as ``tests.engine.scripts:NAME``."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

from tests.engine.puppet import EFFECT

from ergo_capture import RunTermination
from ergo_capture.kernel.effects import ActionEffect, EffectWrite, Value
from ergo_capture.kernel.ports import RunResult


def obey(graph_id: str, event_id: str, kind: str, at: Any, payload: bytes, deadline: Any) -> Any:
    """Do what the puppet does, as far as a function can."""
    what = event_id.partition(".")[0]
    if what == "fail":
        return {"Failed": "NetworkTimeout"}
    if what == "effect":
        return {"termination": "Completed", "effects": [EFFECT], "interruption": "a word"}
    if what == "raise":
        raise LookupError("nothing there")
    if what == "wrong":
        return {"termination": "Finished"}
    if what == "forever":
        time.sleep(3600)
    if what == "hang":
        time.sleep(0.6)
    return None


async def obey_later(graph_id: str, event_id: str, kind: str, at: Any, payload: bytes, deadline: Any) -> Any:
    """Do the same in a coroutine."""
    if event_id.startswith("hang"):
        await asyncio.sleep(60)
    await asyncio.sleep(0)
    return obey(graph_id, event_id, kind, at, payload, deadline)


_released = threading.Event()


def release() -> None:
    """Let the calls of ``stuck`` return."""
    _released.set()


_go = asyncio.Event()


def hold() -> None:
    """Hold the episodes of ``say_much`` back."""
    global _go  # noqa: PLW0603 - an event belongs to one loop
    _go = asyncio.Event()


def go() -> None:
    """Let them run."""
    _go.set()


async def say_much(*_: Any) -> Any:
    """Return an effect of 1 MiB."""
    await _go.wait()
    writes = [{"key": "x", "value": {"String": "y" * (1 << 20)}}]
    return {"termination": "Completed", "effects": [{"kind": "k", "writes": writes}]}


def say_too_much(graph_id: str, event_id: str, *_: Any) -> Any:
    """Return more than a decision can hold, for ``much``: numbers that are short as sent and long as stored."""
    writes = [{"key": "x", "value": {"Number": 1e15}}] * 1_100_000 if event_id.startswith("much") else []
    return {"termination": "Completed", "effects": [{"kind": "k", "writes": writes}]}


def stuck(graph_id: str, event_id: str, *_: Any) -> None:
    """Return, for ``hang`` not before ``release`` is called."""
    if event_id.startswith("hang"):
        _released.wait(60)


not_callable = 3


async def turns(_graph: str, event_id: str, *_: Any) -> None:
    """Return after a number of turns of the loop that depends on the id."""
    for _turn in range(sum(event_id.encode()) % 7):
        await asyncio.sleep(0)


class _Counted:
    """Counts the runs under way at once, and the most there were."""

    def __init__(self) -> None:
        self.now = self.most = 0

    async def __call__(self, *_: Any) -> None:
        self.now += 1
        self.most = max(self.most, self.now)
        for _turn in range(20):
            await asyncio.sleep(0)
        self.now -= 1


counted = _Counted()


def break_out(_graph: str, event_id: str, *_: Any) -> Any:
    """Raise or return what no callable should, by the id's first word."""
    match event_id.partition(".")[0]:
        case "exit":
            raise SystemExit(3)
        case "interrupt":
            raise KeyboardInterrupt
        case "cancelled":
            raise asyncio.CancelledError
        case "stop":
            raise StopIteration
        case "base":
            raise BaseException("at the root")  # noqa: TRY002 - that is what it does
        case "bare":
            return RunResult("Completed")  # type: ignore[arg-type]
        case "surrogate":
            return RunResult(RunTermination.Completed, interruption="\ud800")
        case "nan":
            return RunResult(RunTermination.Completed, (_effect(float("nan")),))
        case "none":
            return RunResult(RunTermination.Completed, None)  # type: ignore[arg-type]
        case "result":
            return RunResult(RunTermination.Completed, (_effect(1.5),), interruption="a word")
    return None


def _effect(number: float) -> ActionEffect:
    return ActionEffect("k", (EffectWrite("x", Value(Number=number)),))


async def break_out_later(*arguments: Any) -> Any:
    """Do the same in a coroutine."""
    await asyncio.sleep(0)
    return break_out(*arguments)


class _Breaker:
    """Does the same in an object whose call is a coroutine."""

    async def __call__(self, *arguments: Any) -> Any:
        return break_out(*arguments)


breaker = _Breaker()
