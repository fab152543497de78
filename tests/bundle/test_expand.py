"""Text that is expanded many events at a time equals the text of each record encoded alone."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ergo_capture import Decision, ErrKind, EventTime, ExternalEvent, ExternalEventKind, RunTermination
from ergo_capture.bundle.writer.expand import DecisionTexts, expand_events
from ergo_capture.journal.decision_rows import DecisionOutcome, DecisionRows, read_decisions
from ergo_capture.journal.lines import EventFormatError, read_body
from ergo_capture.kernel.ports import DecisionLogEntry
from ergo_capture.kernel.records import ExternalEventRecord, encode_decision, encode_event

_EVENT = ExternalEvent.mechanical("e", ExternalEventKind.Command)

ids = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
times = st.fixed_dictionaries({"secs": st.integers(0, 2**64 - 6), "nanos": st.integers(0, 2**32 - 1)})
payloads = st.none() | st.dictionaries(ids, st.integers() | ids | st.none(), max_size=3)


@st.composite
def bodies(draw: st.DrawFn) -> bytes:
    """Generate the body of an EVENTS frame."""
    lines = []
    for _ in range(draw(st.integers(1, 8))):
        event: dict[str, Any] = {
            "event_id": draw(ids),
            "kind": draw(st.sampled_from(["Pump", "Tick", "DataAvailable", "Command"])),
            "at": draw(times),
        }
        if draw(st.booleans()):
            event["payload"] = draw(payloads)
        lines.append(msgspec.json.encode({"type": "event", "event": event}) + b"\n")
    return b"".join(lines)


@st.composite
def entries(draw: st.DrawFn) -> list[DecisionLogEntry]:
    """Generate decisions as a run may log them."""
    plain = st.just((Decision.Invoke, None, RunTermination.Completed, 0))
    failed = st.just((Decision.Invoke, None, RunTermination.Failed(ErrKind.NetworkTimeout), 2))
    deferred = st.builds(lambda s: (Decision.Defer, EventTime(s), None, 0), st.integers(0, 99)) | st.just(
        (Decision.Defer, None, None, 0)
    )
    episode = draw(st.integers(0, 2**40))
    found = []
    for number in range(draw(st.integers(1, 12))):
        decision, schedule_at, termination, retries = draw(plain | plain | failed | deferred)
        episode += draw(st.sampled_from([1, 1, 1, 5]))
        found.append(
            DecisionLogEntry(
                graph_id="g",
                event_id=f"e{number}",
                event=_EVENT,
                decision=decision,
                schedule_at=schedule_at,
                episode_id=episode,
                deadline=None,
                termination=termination,
                retry_count=retries,
            )
        )
    return found


@given(bodies())
def test_events_of_a_block_equal_the_events_encoded_alone(body: bytes) -> None:
    """P11: escapes, absent payloads, Tick, and times that carry."""
    records = [ExternalEventRecord.from_event(event) for event in read_body(body)]
    names, (text, _, _) = expand_events(body)
    assert names == [record.event_id for record in records]
    assert text == b"".join(b"," + encode_event(record) for record in records)


@given(entries(), st.data(), st.sampled_from([None, EventTime(3, 7)]))
def test_decisions_of_a_block_equal_the_decisions_encoded_alone(
    found: list[DecisionLogEntry], data: st.DataObject, deadline: EventTime | None
) -> None:
    """P11: however the decisions are divided into frames, and the events into blocks."""
    frames, names = [], [data.draw(ids) for _ in found]
    rest = found
    while rest:
        count = data.draw(st.integers(1, len(rest)))
        rows = DecisionRows()
        for entry in rest[:count]:
            rows.add(entry)
        frames.append(rows.encode())
        rest = rest[count:]
    outcomes = [
        outcome for frame in frames for outcome in read_decisions(frame) if isinstance(outcome, DecisionOutcome)
    ]
    expected = [encode_decision(o.to_record(n, deadline)) for o, n in zip(outcomes, names, strict=True)]
    decisions, texts, left = DecisionTexts(iter(frames), deadline), list[bytes](), names
    while left:
        count = data.draw(st.integers(1, len(left)))
        taken = decisions.take(left[:count])
        assert taken is not None
        texts.append(bytes(taken.text))
        left = left[count:]
    assert b"".join(texts) == b"".join(b"," + text for text in expected)
    assert decisions.take(["one more"]) is None


@given(bodies(), st.data())
def test_a_slice_of_a_body_equals_its_events_encoded_alone(body: bytes, data: st.DataObject) -> None:
    """P11: a part may begin and end inside a frame."""
    records = [ExternalEventRecord.from_event(event) for event in read_body(body)]
    start = data.draw(st.integers(0, len(records)))
    stop = data.draw(st.integers(start, len(records) + 2))
    names, (text, _, _) = expand_events(body, start, stop)
    assert names == [record.event_id for record in records[start:stop]]
    assert text == b"".join(b"," + encode_event(record) for record in records[start:stop])


def test_a_body_that_is_not_event_lines_is_refused() -> None:
    """P6: a body that cannot have been accepted is not expanded."""
    with pytest.raises(EventFormatError):
        expand_events(b'{"type":"event","event":{"event_id":"a","kind":"Sneeze","at":{"secs":1,"nanos":0}}}\n')
