"""The protocols' messages: each side reads what the other writes."""

from __future__ import annotations

import msgspec
import pytest

from ergo_capture import EventTime, ExternalEvent, ExternalEventKind
from ergo_capture.journal.lines import read_line
from ergo_capture.protocol import capture, control

CAPTURE: list[capture.Answer] = [
    capture.Welcome("ergo-capture.v1", "ergo-capture 0", {"max_id_bytes": 1}),
    capture.Opened(session="s", resumed=True, accepted=3, decided=2, last_event_id="e"),
    capture.Ack(3, 2, 3),
    capture.Reject(1, None, capture.Code.TOO_LARGE, "m", "h"),
    capture.Note(2, "e", "m", "h"),
    capture.Refused(2, "e", capture.Code.SCHEMA_VIOLATION, "m", 1),
    capture.LeftOver(3, "e", 1, "context_full", "m"),
    capture.DecisionFrame(index=1, decision={"event_id": "e"}),
    capture.Flushed("b", "m", "0"),
    capture.Closed(events=1, decisions=1, session="s", bundle="b", manifest="m", sha256="0"),
    capture.Pong(),
    capture.Error(capture.Code.LIMIT, "m", "h"),
    capture.Error(capture.Code.ACKNOWLEDGED_LOST, "m", "h", capture.Lost(3, 2, "e")),
]
CONTROL: list[control.Answer] = [
    control.Status(msgspec.Raw(b'{"a":1}')),
    control.Metrics("# HELP"),
    control.Reloaded(["a"], []),
    control.Flushed(["b"]),
    control.Stopping(["s"]),
    control.Buried(),
    control.Tapping("g", 100),
    control.TappedDecision("s", 1, ExternalEventKind.Pump, control.Time(1, 2), msgspec.Raw(b"{}")),
    control.Skipped(2),
    control.Ended("complete"),
    control.Error(control.FAILED, "m", None, 1),
]


def test_a_client_reads_every_answer_of_the_daemon() -> None:
    """All answers come in one read, in order."""
    assert capture.read_answers(b"".join(map(capture.encode, CAPTURE))) == CAPTURE
    assert {type(answer) for answer in CAPTURE} == set(capture.Answer.__args__)


@pytest.mark.parametrize("answer", CONTROL, ids=lambda answer: type(answer).__name__)
def test_an_operator_reads_every_answer_of_the_daemon(answer: control.Answer) -> None:
    """Encoded again it is the same line: text that is passed on is compared, not parsed."""
    line = control.encode(answer)
    read = control.read_answer(line)
    assert read is not None
    assert type(read) is type(answer)
    assert control.encode(read) == line
    assert {type(one) for one in CONTROL} == set(control.Answer.__args__)


def test_an_answer_of_an_unknown_type_is_left_out() -> None:
    """Other answers may come with it; a known type with a missing field is an error."""
    assert capture.read_answers(b'{"type":"novelty"}\n{"type":"pong"}\n') == [capture.Pong()]
    assert control.read_answer(b'{"type":"novelty"}\n') is None
    with pytest.raises(ValueError, match="accepted"):
        capture.read_answers(b'{"type":"novelty"}\n{"type":"ack"}\n')
    with pytest.raises(ValueError, match="count"):
        control.read_answer(b'{"type":"skipped"}\n')


def test_an_event_line_is_read_back_as_the_event() -> None:
    """Newlines between the tokens of a payload become spaces, so that the line stays one."""
    event = ExternalEvent.with_payload("é", ExternalEventKind.Command, EventTime(1, 2), b'{"a":\n1}')
    line = capture.event_line(event)
    assert line.count(b"\n") == 1
    assert read_line(line) == msgspec.structs.replace(event, payload=b'{"a": 1}')
    assert capture.wrap_event(capture.unwrap_event(line)) == line


def test_a_line_that_is_not_an_event_line_is_unwrapped_as_it_is() -> None:
    """It is shown to the user, who sent it."""
    assert capture.unwrap_event(b"not json\n") == b"not json"
