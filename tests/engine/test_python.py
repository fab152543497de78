"""The python engine: whatever its callable raises or returns, only that run fails."""

from __future__ import annotations

import pytest
from tests.daemons import event, running_daemon
from tests.engine.engines import python_graph, terminations

OUTCOMES = {
    "exit": "RuntimeError",
    "interrupt": "RuntimeError",
    "cancelled": "RuntimeError",
    "stop": "RuntimeError",
    "base": "RuntimeError",
    "bare": "RuntimeError",
    "surrogate": "RuntimeError",
    "nan": "RuntimeError",
    "none": "RuntimeError",
    "result": "Completed",
    "ok": "Completed",
}


@pytest.mark.parametrize("pipeline", [1, 4])
@pytest.mark.parametrize("name", ["break_out", "break_out_later", "breaker"])
async def test_whatever_a_callable_raises_or_returns_fails_its_own_run_only(name: str, pipeline: int) -> None:
    """It may raise SystemExit or a CancelledError, or return an invalid RunResult; other sessions go on."""
    text = python_graph(name, engine=f"pipeline = {pipeline}")
    async with running_daemon(text) as daemon, daemon.session() as other:
        ids = [f"{what}.{number}" for number, what in enumerate(OUTCOMES)]
        assert await terminations(daemon, ids) == list(OUTCOMES.values())
        await other.say(event("ok"), {"type": "close"})
        assert (await other.until("closed"))["decisions"] == 1
