"""The python engine: whatever its callable does costs the run, and nobody anything else."""

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
async def test_nothing_that_a_callable_raises_or_returns_gets_past_its_run(name: str, pipeline: int) -> None:
    """Be it SystemExit, a cancellation of its own, or a RunResult of the wrong shape: others are served on."""
    text = python_graph(name, engine=f"pipeline = {pipeline}")
    async with running_daemon(text) as daemon, daemon.session() as other:
        ids = [f"{what}.{number}" for number, what in enumerate(OUTCOMES)]
        assert await terminations(daemon, ids) == list(OUTCOMES.values())
        await other.say(event("ok"), {"type": "close"})
        assert (await other.until("closed"))["decisions"] == 1
