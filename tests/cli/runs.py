"""A small run as a bundle, and variants of it with one change; shared by the tests of replay and inspection."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ergo_capture import (
    ActionEffect,
    CapturingSession,
    Constraints,
    EventTime,
    ExternalEvent,
    ExternalEventKind,
    MemoryDecisionLog,
    RunTermination,
    decode_bundle,
    encode_bundle,
)
from ergo_capture.kernel.effects import EffectWrite, Value
from ergo_capture.kernel.events import EventLike
from ergo_capture.kernel.ports import RunResult

#: Outcomes of the run's engine, for a scripted one.
SCRIPT: dict[str, Any] = {"default": "Completed", "schedule": {"e4": ["TimedOut", "Completed"]}}


class Engine:
    """Completes everything; ``e4`` at the second attempt, ``e6`` with an effect."""

    def __init__(self) -> None:
        self.tried: set[str] = set()

    def run(self, graph_id: str, event_id: str, event: EventLike, deadline: EventTime | None) -> RunResult:
        """Return the outcome of one attempt."""
        if event_id == "e4" and event_id not in self.tried:
            self.tried.add(event_id)
            return RunResult(RunTermination.TimedOut)
        return RunResult(RunTermination.Completed)


class EngineWithEffects(Engine):
    """The same engine, with an effect for ``e6``."""

    def run(self, graph_id: str, event_id: str, event: EventLike, deadline: EventTime | None) -> RunResult:
        """Return the outcome of one attempt."""
        result = super().run(graph_id, event_id, event, deadline)
        effect = ActionEffect("set", (EffectWrite("x", Value(Number=1.5)),))
        return RunResult(result.termination, (effect,)) if event_id == "e6" else result


def bundle(path: Path, change: Callable[[Any], None] | None = None, *, effects: bool = False) -> Path:
    """Write the run's bundle and return its path, with a change made to its JSON."""
    limits = Constraints(max_per_window=3, rate_window=EventTime(10, 0), max_retries=2)
    runtime = EngineWithEffects() if effects else Engine()
    session = CapturingSession("g", limits, MemoryDecisionLog(), runtime, "rpv1:none")
    for number in range(10):
        kind = ExternalEventKind.Pump if number == 8 else ExternalEventKind.Command
        payload = b"" if kind is ExternalEventKind.Pump else json.dumps({"n": number}).encode()
        session.on_event(ExternalEvent.with_payload(f"e{number}", kind, EventTime(number * 4, 0), payload))
    text = encode_bundle(session.into_bundle())
    if change is not None:
        data = json.loads(text)
        change(data)
        text = json.dumps(data, separators=(",", ":")).encode() + b"\n"
        decode_bundle(text)
    path.write_bytes(text)
    return path


def script(path: Path) -> str:
    """Write a scripted engine with the run's outcomes, and return it as an engine's SPEC."""
    path.write_text(json.dumps(SCRIPT))
    return f"scripted:{path}"
