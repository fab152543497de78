"""A python engine that answers with what was recorded, run by run; found as ``tests.engine.played:run``."""

from __future__ import annotations

from collections import deque
from typing import Any

#: The outcomes that are still to be answered, from the conformance data.
outcomes: deque[dict[str, Any]] = deque()


def run(graph_id: str, event_id: str, kind: str, at: Any, payload: bytes, deadline: Any) -> Any:
    """Return the next outcome; without effects where there are no more."""
    if not outcomes:
        return "Completed"
    outcome = outcomes.popleft()
    assert outcome["event_id"] == event_id
    return {"termination": outcome["termination"], "effects": outcome["effects"]}
