"""An engine whose outcomes are given beforehand, and scenarios that describe one."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ergo_capture import EventTime, ExternalEvent, ExternalEventKind, FaultRuntime, RunTermination
from ergo_capture.errors import ErgoCaptureError
from ergo_capture.kernel.outcomes import ErrKind
from ergo_capture.kernel.scenario import read_scenario

EVENT = ExternalEvent.mechanical("e", ExternalEventKind.Command)
COMPLETED, ABORTED, TIMED_OUT = RunTermination.Completed, RunTermination.Aborted, RunTermination.TimedOut
ERROR = RunTermination.Failed(ErrKind.RuntimeError)
PLAN = '{"default":"Aborted","schedule":{"e":["TimedOut",{"Failed":"RuntimeError"}]}}'


def attempts(runtime: FaultRuntime, count: int, event_id: str = "e") -> list[RunTermination]:
    """Return how so many attempts end."""
    return [runtime.run("g", event_id, EVENT, None) for _ in range(count)]


def test_outcomes_of_an_event_are_used_up_in_order() -> None:
    """The default comes after them, as for any other event."""
    runtime = FaultRuntime.from_json(PLAN)
    assert attempts(runtime, 1, "other") == [ABORTED]
    assert attempts(runtime, 3) == [TIMED_OUT, ERROR, ABORTED]


def test_new_outcomes_replace_those_that_are_left() -> None:
    """The event may also have had none."""
    runtime = FaultRuntime.from_json(PLAN)
    runtime.push_outcomes("e", [COMPLETED])
    runtime.push_outcomes("f", [ERROR])
    assert attempts(runtime, 2) == [COMPLETED, ABORTED]
    assert attempts(runtime, 2, "f") == [ERROR, ABORTED]


def test_a_deadline_of_zero_aborts_and_uses_up_nothing() -> None:
    """Rule 5; any other deadline changes nothing."""
    runtime = FaultRuntime.from_json(PLAN)
    assert runtime.run("g", "e", EVENT, EventTime(0, 0)) is ABORTED
    assert runtime.run("g", "e", EVENT, EventTime(0, 1)) is TIMED_OUT


def test_every_attempt_ends_alike_only_without_scheduled_outcomes() -> None:
    """Outcomes that were used up do not count."""
    assert FaultRuntime().constant is COMPLETED
    assert FaultRuntime(TIMED_OUT).constant is TIMED_OUT
    assert FaultRuntime(TIMED_OUT, {"e": []}).constant is TIMED_OUT
    runtime = FaultRuntime(TIMED_OUT, {"e": [ERROR]})
    assert runtime.constant is None
    attempts(runtime, 1)
    assert runtime.constant is TIMED_OUT


@pytest.mark.parametrize("text", ["{}", '{"schedule":null}', '{"x":1,"schedule":{}}', '{"default":{"Completed":null}}'])
def test_without_a_plan_every_attempt_completes(text: str) -> None:
    """Absent fields have defaults, and others are ignored."""
    assert FaultRuntime.from_json(text).constant is COMPLETED


TERMINATIONS = "`Completed`, `TimedOut`, `Aborted`, `Failed`"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "Input data was truncated"),
        ("[]", "Expected `object`, got `array`"),
        ('{"schedule":[1]}', "`schedule` must be an object of lists"),
        ('{"schedule":{"e":"TimedOut"}}', "`schedule.e` must be a list"),
        ('{"schedule":{"e":["Nope"]}}', f"unknown variant `Nope`, expected one of {TERMINATIONS}"),
        ('{"default":"Nope"}', f"unknown variant `Nope`, expected one of {TERMINATIONS}"),
        ('{"default":null}', f"unknown variant `None`, expected one of {TERMINATIONS}"),
    ],
)
def test_an_invalid_plan_is_refused_with_the_place(text: str, message: str) -> None:
    """The hint is a valid plan."""
    with pytest.raises(ErgoCaptureError) as raised:
        FaultRuntime.from_json(text)
    assert raised.value.message == f"read outcomes: {message}"
    assert raised.value.op == "read outcomes"
    assert raised.value.hint is not None
    valid = raised.value.hint.removeprefix("write ")
    assert attempts(FaultRuntime.from_json(valid), 3, "event-id") == [TIMED_OUT, ERROR, COMPLETED]


SCENARIO: dict[str, Any] = {
    "graph_id": "g",
    "events": [
        {"event_id": "a", "kind": "Command", "at": {"secs": 1, "nanos": 2}, "payload_utf8": '{"n":1}'},
        {"event_id": "b", "kind": "Pump"},
    ],
    "constraints": {"max_retries": 3},
    "default": "Aborted",
    "schedule": {"a": ["TimedOut"]},
}


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_scenario_has_events_limits_and_outcomes(wrapped: bool) -> None:
    """It may be wrapped as in the conformance data."""
    scenario = read_scenario(json.dumps({"scenario": SCENARIO} if wrapped else SCENARIO).encode())
    assert scenario.graph_id == "g"
    assert scenario.constraints.max_retries == 3
    assert (scenario.adapter_provenance, scenario.runtime_provenance) == ("none", "rpv1:none")
    assert [event.to_event() for event in scenario.events] == [
        ExternalEvent("a", ExternalEventKind.Command, EventTime(1, 2), b'{"n":1}'),
        ExternalEvent("b", ExternalEventKind.Pump, EventTime(0, 0), b""),
    ]
    assert attempts(scenario.runtime(), 2, "a") == [TIMED_OUT, ABORTED]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"graph_id": 1}, "Expected `str`, got `int` - at `$.graph_id`"),
        ({"x": 1}, "Object contains unknown field `x`"),
        ({"constraints": {"x": 1}}, "Object contains unknown field `x` - at `$.constraints`"),
        ({"default": "Nope"}, f"unknown variant `Nope`, expected one of {TERMINATIONS}"),
        ({"schedule": {"a": ["Nope"]}}, f"unknown variant `Nope`, expected one of {TERMINATIONS}"),
    ],
)
def test_an_invalid_scenario_is_refused_with_the_field(change: dict[str, Any], message: str) -> None:
    """The hint shows the form of a scenario."""
    with pytest.raises(ErgoCaptureError) as raised:
        read_scenario(json.dumps(SCENARIO | change).encode())
    assert raised.value.message == f"read scenario: {message}"
    assert raised.value.op == "read scenario"
    assert raised.value.hint is not None
    assert all(f'"{field}":' in raised.value.hint for field in [*SCENARIO, "event_id", "kind", "at", "payload_utf8"])
