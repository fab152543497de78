"""Runs of the reference's host, simulated: drivers, fixtures, egress."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.adapter.cases import Clock, VirtualChannels, VirtualDriver, case_of, rows
from tests.adapter.test_accept import MANIFEST
from tests.adapter.test_composition import SEND
from tests.adapter.test_egress import CONFIG

from ergo_capture import encode_bundle
from ergo_capture.adapter.egress import parse_egress_config
from ergo_capture.adapter.errors import AdapterError
from ergo_capture.adapter.simulate import Case, CaseError, EngineOutcome, Outcome, read_case, simulate
from ergo_capture.bundle.format import CaptureJsonStyle
from ergo_capture.kernel.effects import IntentRecord
from ergo_capture.kernel.records import CapturedIntentAck

#: Refused alike, in words that end otherwise: the position that serde_json adds, the excerpt that toml adds.
WORDED_OTHERWISE = {"unknown-kind", "toml-no-default"}
POSITION = re.compile(r" at line \d+ column \d+|TOML parse error at line .*?\^\n(?=missing)", re.DOTALL)

ROWS = [row for name in ("ingress", "fixtures", "egress") for row in rows(name)]


def played(row: dict[str, Any]) -> tuple[Outcome, VirtualChannels | None]:
    """Return the outcome of a row on our host, with a driver and channels that follow its scripts."""
    case, clock = case_of(row), Clock()
    steps = row.get("driver_steps") or row.get("feed_steps")
    if steps is None and case.driver_lines is not None:
        steps = [{"line": line} for line in case.driver_lines]
    stops = [row[name] for name in ("max_duration_ms", "stop_after_ms") if row.get(name) is not None]
    driver = None if steps is None else VirtualDriver(steps, clock, min(stops) if stops else None)
    channels = None
    if row.get("transcript") is not None and any(row["transcript"].values()):
        assert case.egress_toml is not None
        channels = VirtualChannels(parse_egress_config(case.egress_toml), row["egress_script_behaviour"], clock)
    return simulate(case, observations=driver, channels=channels), channels


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["name"])
def test_a_run_ends_as_the_references_did(row: dict[str, Any]) -> None:
    """Three things are equal: the capture's bytes, the printed line or refusal, and what each channel was asked."""
    outcome, channels = played(row)
    style = CaptureJsonStyle.Pretty if row.get("pretty") else CaptureJsonStyle.Compact
    capture = None if outcome.bundle is None else encode_bundle(outcome.bundle, style).decode()
    assert capture == row["capture"]
    if outcome.refusal is None:
        assert outcome.summary == row["stdout"].split("\n")[0]
        assert "".join(f"warning: {text}\n" for text in outcome.warnings).strip() == row["stderr"].strip()
    elif row["name"] in WORDED_OTHERWISE:
        told = re.sub(r"\n+code:", "\ncode:", POSITION.sub("", row["stderr"]).strip())
        assert POSITION.sub("", outcome.summary) == told
    else:
        assert outcome.summary == row["stderr"].strip()
    for name, channel in channels.channels.items() if channels is not None else ():
        read = [line for way, line in row["transcript"][name] or [] if way == "to" and line is not None]
        assert channel.sent == read


def minimal(**fields: Any) -> Case:
    """Return a case of one event without an adapter."""
    fixture = '{"kind":"event","event":{"type":"Command","id":"a"}}\n'
    base = {"graph_id": "g", "fixture": fixture, "engine_outcomes": [{"event_id": "a", "termination": "Completed"}]}
    return read_case(json.dumps(base | fields))


def test_outcomes_of_another_event_are_an_error_of_the_case() -> None:
    """Otherwise they would be taken for outcomes of the event."""
    with pytest.raises(CaseError, match=r"none for a run of 'a': the next is of 'b'$"):
        simulate(minimal(engine_outcomes=[{"event_id": "b", "termination": "Completed"}]))
    with pytest.raises(CaseError, match=r"none for a run of 'a': there are no more$"):
        simulate(minimal(engine_outcomes=[]))


def test_a_deadline_of_zero_calls_no_engine() -> None:
    """Nothing has to be recorded for it."""
    outcome = simulate(minimal(engine_outcomes=[], constraints={"deadline": {"secs": 0, "nanos": 0}}))
    assert outcome.bundle is not None
    assert outcome.bundle.decisions[0].termination is not None
    assert outcome.bundle.decisions[0].termination.name == "Aborted"


def test_effects_without_an_adapter_end_the_run() -> None:
    """The reference ends it too."""
    effects = [{"kind": "set_context", "writes": []}]
    outcome = simulate(minimal(engine_outcomes=[{"event_id": "a", "termination": "Completed", "effects": effects}]))
    assert outcome.refusal is not None
    assert outcome.refusal.detail == "effects emitted in adapter-independent mode"


EXACTLY_ONE = "^read case: exactly one of `driver_lines` and `fixture` is needed$"


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"adapter_yml": ""}, "adapter_yml"),
        ({"driver_lines": []}, EXACTLY_ONE),
        ({"fixture": None}, EXACTLY_ONE),
        ({"numbers": "other"}, "numbers"),
        ({"engine_outcomes": [{"event_id": "a", "termination": "Done"}]}, "unknown variant"),
        ({"constraints": {"max_retries": -1}}, "max_retries"),
    ],
)
def test_a_case_that_is_none_is_refused(fields: dict[str, Any], complaint: str) -> None:
    """The message names the field, and the hint says what a case holds."""
    with pytest.raises(CaseError, match=complaint) as caught:
        minimal(**fields)
    assert caught.value.hint is not None
    assert "engine_outcomes" in caught.value.hint


def test_an_adapter_of_the_case_is_refused_as_the_reference_does() -> None:
    """The refusal has the reference's code."""
    outcome = simulate(minimal(adapter_yaml="kind: adapter\n"))
    assert (outcome.status, outcome.reason) == ("refused", "adapter.setup_failed")


def test_numbers_are_read_exactly_where_a_case_says_so() -> None:
    """This applies to a driver's events, and to a fixture of a graph without an adapter."""
    line = '{"kind":"event","event":{"type":"Command","id":"a","payload":{"fixed":1.3000000000000003}}}'
    event = (
        '{"event_id":"a","kind":"Command","at":[0,0],"semantic_kind":"plain","payload":{"fixed":1.3000000000000003}}'
    )
    driver = {"driver_lines": [HELLO, f'{{"type":"event","event":{event}}}'], "adapter_yaml": MANIFEST}
    for numbers, text in (("reference", b'{"fixed":1.3000000000000005}'), ("exact", b'{"fixed":1.3000000000000003}')):
        for fields in ({"fixture": line}, driver | {"fixture": None}):
            outcome = simulate(minimal(**fields, numbers=numbers))
            assert outcome.bundle is not None
            assert outcome.bundle.events[0].payload == text


def test_a_missing_extra_is_no_refusal_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error is for the person who installed the program."""
    monkeypatch.setitem(__import__("sys").modules, "yaml", None)
    with pytest.raises(AdapterError, match="'yaml', which is not installed") as caught:
        simulate(minimal(adapter_yaml="kind: adapter\n"))
    assert caught.value.code == "extra_missing"
    assert "pip install 'ergo-capture[adapter]'" in caught.value.fix


def test_an_engine_outcome_keeps_what_a_case_holds() -> None:
    """Terminations are written as the reference writes them."""
    (outcome,) = minimal(
        engine_outcomes=[{"event_id": "a", "termination": {"Failed": "SemanticError"}}]
    ).engine_outcomes
    assert outcome == EngineOutcome("a", {"Failed": "SemanticError"})


HELLO = '{"type":"hello","protocol":"ergo-driver.v0"}'
LINES = st.sampled_from(
    [
        HELLO,
        '{"type":"end"}',
        "",
        "[]",
        '["end"]',
        '{"type":"event"}',
        '{"type":"event","event":{"event_id":"a","kind":"Pump","at":[0,0],"semantic_kind":"op","payload":{}}}',
        '{"type":"event","event":{"event_id":"b","kind":"Tick","at":[0,0],"semantic_kind":"op","payload":{"a":1}}}',
        '{"type":"event","event":{"event_id":"c","kind":"Pump","at":[0,0],"semantic_kind":"op","payload":[]}}',
        '{"type":"event","event":{"event_id":"d","kind":"Pump","at":[0,-1],"semantic_kind":"op","payload":{}}}',
    ]
)


@given(st.lists(st.one_of(LINES, st.text(max_size=5)), max_size=6), st.booleans(), st.none() | st.integers(0, 3))
def test_any_stream_of_a_driver_ends_in_one_of_three_ways(
    lines: list[str], greet: bool, max_events: int | None
) -> None:
    """The run is completed or interrupted with a capture, or refused without one."""
    adapter = next(row["adapter_yaml"] for row in ROWS if row["name"] == "constraints-pump-payload-is-not-used")
    case = Case("g", [], driver_lines=[HELLO, *lines] if greet else lines, adapter_yaml=adapter, max_events=max_events)
    outcome = simulate(case)
    assert outcome.status in {"completed", "interrupted", "refused"}
    assert (outcome.bundle is None) is (outcome.status == "refused") is (outcome.refusal is not None)


@given(
    st.text(max_size=60)
    | st.lists(st.sampled_from(["{", "}", '"kind"', ":", '"event"', ",", "\n", '"type"', "1"])).map("".join)
)
def test_any_fixture_is_played_or_refused(fixture: str) -> None:
    """No other error is raised."""
    assert simulate(Case("g", [], fixture=fixture)).status == "refused"


@pytest.mark.parametrize(
    ("nodes", "where", "detail"),
    [
        (
            [{"id": "n1", "reads": [{"name": "x", "type": "Number", "required": True}]}, {"id": "n2", "reads": [{"name": "x", "type": "Number", "required": True}]}],
            "node 'n1'",
            "required source context at node(s): n1, n2",
        ),
        (
            [{"id": "n1", "writes": [{"name": "x", "type": "Number"}]}, {"id": "n2", "intents": [{"kind": "k", "fields": []}]}],
            "node 'n1'",
            "action writes at node(s): n1, n2",
        ),
        (
            [{"id": "n1", "writes": [{"name": "x", "type": "Number"}]}, {"id": "n2", "reads": [{"name": "x", "type": "Number", "required": True}]}],
            "node 'n2'",
            "required source context at node(s): n2\ndetail: action writes at node(s): n1",
        ),
    ],
)  # fmt: skip
def test_a_graph_that_needs_an_adapter_names_its_nodes(nodes: list[Any], where: str, detail: str) -> None:
    """The message names the nodes that read and the nodes that write."""
    refusal = simulate(minimal(nodes=nodes)).refusal
    assert refusal is not None
    assert (refusal.code, refusal.where, refusal.detail) == ("adapter.required_for_graph", where, detail)


def test_nodes_that_can_do_without_need_no_adapter() -> None:
    """A node whose reads are all optional needs no adapter."""
    nodes = [{"id": "n1", "reads": [{"name": "x", "type": "Number"}]}]
    assert simulate(minimal(nodes=nodes)).status == "completed"


def test_a_case_names_its_driver_by_its_command() -> None:
    """The message also says how the driver exited."""
    case = minimal(
        fixture=None,
        driver_lines=[],
        driver_command=["python", "d.py"],
        driver_status="exit status: 2",
        adapter_yaml=MANIFEST,
    )
    refusal = simulate(case).refusal
    assert refusal is not None
    detail = 'process driver ["python", "d.py"] ended before first committed step (exit status: 2)'
    assert (refusal.code, refusal.detail) == ("driver.start_failed", detail)


class Ended:
    """Channels that note whether they were ended by a host that stopped."""

    def __init__(self) -> None:
        self.host_stop: bool | None = None

    def start(self) -> None:
        """Do nothing."""

    def dispatch(self, intent: IntentRecord) -> CapturedIntentAck:
        """Fail: there are no intents."""
        raise AssertionError(intent)

    def finish(self, *, host_stop: bool) -> None:
        """Note the end."""
        self.host_stop = host_stop


@pytest.mark.parametrize(("max_events", "host_stop"), [(1, True), (2, False)])
def test_channels_are_told_whether_the_host_stopped(max_events: int, host_stop: bool) -> None:
    """A channel may then have ended without a request."""
    channels = Ended()
    simulate(minimal(max_events=max_events), channels=channels)
    assert channels.host_stop is host_stop


def test_a_refused_run_keeps_the_warnings_of_its_configuration() -> None:
    """They come first, and may tell why it is refused."""
    adapter = MANIFEST.replace("effects: [", f"effects: [{SEND}, ")
    outcome = simulate(
        minimal(fixture=None, driver_lines=[], adapter_yaml=adapter, egress_toml=CONFIG, nodes=[], engine_outcomes=[])
    )
    assert (outcome.status, outcome.reason) == ("refused", "driver.start_failed")
    assert outcome.warnings == ("egress route declared for non-emittable kind 'send'",)


def test_a_case_that_is_none_says_what_one_is() -> None:
    """The hint says it."""
    with pytest.raises(CaseError, match=r"^read case: ") as raised:
        read_case("{}")
    assert raised.value.op == "simulate"
    assert raised.value.hint is not None
    assert raised.value.hint.startswith('a case is {"graph_id": ')
