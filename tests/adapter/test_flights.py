"""2,000 real flights, twice."""

from __future__ import annotations

import json

import pytest
from tests.adapter.cases import flight

from ergo_capture import encode_bundle
from ergo_capture.adapter.simulate import read_case, simulate


@pytest.mark.parametrize("name", ["flights-acc-2000", "flights-late-2000"])
def test_real_flights_lead_to_the_references_capture(name: str) -> None:
    """The graph adds up what it has seen; the engine repeats the recorded outcomes."""
    about, lines, capture = flight(name)
    captured = json.loads(capture)
    outcomes = [
        {
            "event_id": decision["event_id"],
            "termination": decision["termination"],
            "effects": [effect["effect"] for effect in decision["effects"]],
        }
        for decision in captured["decisions"]
        if decision["decision"] == "Invoke"
    ]
    case = {
        "graph_id": captured["graph_id"],
        "runtime_provenance": captured["runtime_provenance"],
        "adapter_yaml": about["adapter_yaml"],
        "driver_lines": lines,
        "engine_outcomes": outcomes,
    }
    outcome = simulate(read_case(json.dumps(case)))
    assert outcome.bundle is not None
    assert encode_bundle(outcome.bundle) == capture
    assert outcome.summary == about["stdout"].split("\n")[0]
