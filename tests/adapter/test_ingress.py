"""Drivers and fixtures that end a run early, and the report of it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.adapter.test_accept import MANIFEST

from ergo_capture import Constraints, FaultRuntime
from ergo_capture.adapter import load_adapter
from ergo_capture.adapter.egress import EgressFailure
from ergo_capture.adapter.host import End, Host, HostError
from ergo_capture.adapter.ingress import Observation, Progress, read_fixture, run_driver, run_fixture
from ergo_capture.kernel.ports import RunResult

HELLO = Observation("line", '{"type":"hello","protocol":"ergo-driver.v0"}\n')
END = Observation("line", '{"type":"end"}\r\n')
NO_UTF8 = Observation("not_utf8")
OVER = Observation("end_of_output")


def event(event_id: str = "a", payload: str = "{}") -> Observation:
    """Return an event as a line of a driver."""
    fields = f'"event_id":"{event_id}","kind":"Command","at":[0,0],"semantic_kind":"plain","payload":{payload}'
    return Observation("line", f'{{"type":"event","event":{{{fields}}}}}\n')


def host(runtime: Any = None) -> Host:
    """Return a run."""
    return Host("g", Constraints(), runtime or FaultRuntime(), "rpv1:none", adapter=load_adapter(MANIFEST))


@pytest.mark.parametrize(
    ("observations", "end"),
    [
        ([HELLO, event(), END, OVER], End("completed")),
        ([HELLO, event(), END], End("interrupted", "driver_terminated")),
        ([HELLO, event(), END, Observation("stop"), OVER], End("completed")),
        ([HELLO, event(), END, Observation("end_of_output", status="exit status: 1")], End("interrupted", "driver_terminated")),
        ([HELLO, event(), END, Observation("end_of_output", status=None)], End("interrupted", "driver_terminated")),
        ([HELLO, event(), END, END], End("interrupted", "protocol_violation")),
        ([HELLO, event(), END, NO_UTF8], End("interrupted", "protocol_violation")),
        ([HELLO, event(), NO_UTF8], End("interrupted", "protocol_violation")),
        ([HELLO, event(), HELLO], End("interrupted", "protocol_violation")),
        ([HELLO, event(), Observation("line", "{")], End("interrupted", "protocol_violation")),
        # A line may end with a carriage return, but with no other blank.
        ([HELLO, event(), Observation("line", '{"type":"end"}\x0b\n')], End("interrupted", "protocol_violation")),
        ([HELLO, event(), Observation("line", '{"type":"end"}X\n')], End("interrupted", "protocol_violation")),
        ([HELLO, event(), OVER], End("interrupted", "driver_terminated")),
        ([HELLO, event()], End("interrupted", "driver_terminated")),
        ([HELLO, event(), Observation("stop")], End("interrupted", "host_stop_requested")),
    ],
)  # fmt: skip
def test_a_driver_ends_a_run_after_its_first_event(observations: list[Observation], end: End) -> None:
    """The run is completed, or interrupted for a reason."""
    progress = Progress(["E1"])
    assert run_driver(host(), observations, progress) == end
    assert (progress.counts, progress.committed) == ([1], 1)


DRIVER = 'process driver ["a", "b c"]'
START, PROTOCOL, OUTPUT = "driver.start_failed", "driver.protocol_invalid", "driver.output_incomplete"


@pytest.mark.parametrize(
    ("observations", "code", "detail"),
    [
        ([OVER], START, f"{DRIVER} ended before first committed step (exit status: 0)"),
        ([], START, f"{DRIVER} ended before first committed step (exit status: 0)"),
        ([Observation("silence")], START, f"{DRIVER} did not emit a protocol frame within 5000ms before startup completed"),
        ([HELLO, Observation("end_of_output", status=None)], START, f"{DRIVER} closed stdout but did not exit within 5000ms before first committed step"),
        ([NO_UTF8], PROTOCOL, f"{DRIVER} emitted malformed protocol bytes: stream did not contain valid UTF-8"),
        ([event()], PROTOCOL, f"{DRIVER} must send hello first, got event"),
        ([HELLO, HELLO], PROTOCOL, f"{DRIVER} sent duplicate hello before first committed step"),
        ([HELLO, END], PROTOCOL, f"{DRIVER} ended before first committed step"),
        ([Observation("line", HELLO.line.replace("v0", "v1"))], PROTOCOL, f"{DRIVER} declared unsupported protocol 'ergo-driver.v1'"),
        ([HELLO, Observation("line", "[]")], PROTOCOL, f"{DRIVER} emitted invalid JSONL protocol before first committed step: missing field `type`"),
        ([HELLO, Observation("stop")], OUTPUT, "host stop requested before first committed event"),
    ],
)  # fmt: skip
def test_a_driver_that_commits_nothing_fails_the_run(observations: list[Observation], code: str, detail: str) -> None:
    """The code and the words are the reference's; the driver is named by its command."""
    with pytest.raises(HostError) as raised:
        run_driver(host(), observations, Progress(["E1"]), command=["a", "b c"])
    assert (raised.value.refusal.code, raised.value.refusal.detail) == (code, detail)


def test_a_refused_event_fails_the_run() -> None:
    """This also holds after events that were accepted."""
    with pytest.raises(HostError) as raised:
        run_driver(host(), [HELLO, event(), event()], Progress(["E1"]))
    refusal = raised.value.refusal
    assert (refusal.code, refusal.detail) == ("host.step_failed", "duplicate event_id 'a' in canonical host runner")
    assert str(raised.value) == str(refusal)


def test_a_host_stops_after_so_many_events_of_a_driver() -> None:
    """Numbers are read as the host was told."""
    run, progress = host(), Progress(["E1"])
    observations = [HELLO, event("a", '{"fixed":8.683244e-56}'), event("b"), event("c")]
    assert run_driver(run, observations, progress, max_events=2, numbers="exact") == End(
        "interrupted", "host_stop_requested"
    )
    assert [record.payload for record in run.bundle().events] == [b'{"fixed":8.683244e-56}', b"{}"]


def fixture(*records: Any) -> str:
    """Return a fixture of episodes (their ids) and events, with blanks in its lines."""
    lines = [
        {"kind": "episode_start", "id": record}
        if isinstance(record, str | None)
        else {"kind": "event", "event": record}
        for record in records
    ]
    return "\n\n".join(json.dumps(line) for line in lines)


ONE: dict[str, Any] = {"type": "Command", "semantic_kind": "plain"}


def test_a_fixture_has_episodes_of_events() -> None:
    """Labels and ids are made up where they are left out; a payload may be left out."""
    text = fixture(ONE, ONE | {"id": "x"}, None, ONE, "last", ONE | {"payload": {"note": "a b"}})
    found = [
        (episode.label, [(each.event_id, each.payload) for each in episode.events])
        for episode in read_fixture(text, bound=True)
    ]
    assert found == [
        ("E1", [("fixture_evt_1", {}), ("x", {})]),
        ("E1", [("fixture_evt_3", {})]),
        ("last", [("fixture_evt_4", {"note": "a b"})]),
    ]


@pytest.mark.parametrize(
    ("text", "code", "detail"),
    [
        ("", "driver.input_invalid", "fixture input 'f' contained no episodes"),
        (fixture("a"), "driver.input_invalid", "fixture input 'f' contained no events"),
        (fixture(ONE, "a"), "driver.input_invalid", "episode 'a' has no events"),
        (
            fixture(ONE, ONE | {"payload": [1]}),
            "driver.input_invalid",
            "failed to parse fixture: fixture parse error at line 3 in 'f': payload must be a JSON object, got array",
        ),
        (
            fixture(ONE, ONE | {"x": 1}),
            "driver.input_invalid",
            ("failed to parse fixture: fixture parse error at line 3 in 'f': unknown field `x`, expected one of `type`, `id`, "
            "`payload`, `semantic_kind`"),
        ),
        (
            "1",
            "driver.input_invalid",
            ("failed to parse fixture: fixture parse error at line 1 in 'f': invalid type: integer `1`, expected internally "
            "tagged enum FixtureRecord"),
        ),
        (fixture(ONE | {"id": "x"}, ONE | {"id": "x"}), "fixture.duplicate_event_id", None),
        (fixture({"type": "Command"}), "fixture.semantic_kind_missing", None),
    ],
)  # fmt: skip
def test_a_fixture_that_is_none_is_refused(text: str, code: str, detail: str | None) -> None:
    """The error names the line."""
    with pytest.raises(HostError) as raised:
        read_fixture(text, bound=True, name="f")
    assert (raised.value.refusal.code, raised.value.refusal.detail) == (code, detail)


class Unanswered:
    """An engine whose second episode fails because its channel does not answer."""

    def __init__(self) -> None:
        self._calls = 0

    def run(self, *_: object) -> RunResult:
        """Complete, but not the second time."""
        self._calls += 1
        if self._calls == 2:
            raise EgressFailure("egress_ack_timeout", "c", "i")
        return RunResult(FaultRuntime().default)


def test_an_event_that_interrupts_a_run_is_counted_and_not_committed() -> None:
    """This holds for drivers and for fixtures."""
    end = End("interrupted", "egress_ack_timeout", "c", "i")
    progress = Progress(["E1"])
    assert run_driver(host(Unanswered()), [HELLO, event("a"), event("b"), event("c")], progress) == end
    assert (progress.counts, progress.committed) == ([2], 1)
    episodes = read_fixture(fixture("one", ONE, "two", ONE, ONE), bound=True)
    progress = Progress(episode.label for episode in episodes)
    assert run_fixture(host(Unanswered()), episodes, progress) == end
    assert (progress.labels, progress.counts, progress.committed) == (["one", "two"], [1, 1], 1)


@pytest.mark.parametrize(
    ("max_events", "end", "counts"),
    [
        (None, End("completed"), [1, 2]),
        (4, End("completed"), [1, 2]),
        (3, End("interrupted", "host_stop_requested"), [1, 2]),
        (1, End("interrupted", "host_stop_requested"), [1, 0]),
    ],
)
def test_a_host_stops_after_so_many_events_of_a_fixture(max_events: int | None, end: End, counts: list[int]) -> None:
    """It also stops if there are no more."""
    episodes = read_fixture(fixture("one", ONE, "two", ONE, ONE), bound=True)
    progress = Progress(episode.label for episode in episodes)
    assert run_fixture(host(), episodes, progress, max_events=max_events) == end
    assert progress.counts == counts


def test_a_host_that_stops_before_the_first_event_fails() -> None:
    """It has nothing to capture."""
    with pytest.raises(HostError) as raised:
        run_fixture(host(), read_fixture(fixture(ONE), bound=True), Progress(["E1"]), max_events=0)
    assert raised.value.refusal.code == "driver.output_incomplete"
    assert raised.value.refusal.detail == "host stop requested before first committed event"
