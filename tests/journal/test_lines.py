"""Event lines: the chunks that are read at once, those that are checked line by line, and the result of both."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest

from ergo_capture.journal.lines import (
    EventFormatError,
    read_body,
    read_event,
    read_harmless,
    read_line,
    read_outlines,
    read_semantic_kinds,
    split_lines,
    unknown_field,
)
from ergo_capture.kernel.events import EventLike, ExternalEventKind, ExternalEventPayloadError
from ergo_capture.kernel.time import EventTime


def line(event_id: str = "e1", payload: str = "null", **more: Any) -> bytes:
    """Return an event line; the payload is JSON text."""
    text = json.dumps({"event_id": event_id, "kind": "Command", "at": {"secs": 1, "nanos": 2}} | more)
    return b'{"type":"event","event":%s,"payload":%s}}\n' % (text[:-1].encode(), payload.encode())


def nested(levels: int) -> str:
    """Return a payload of so many levels."""
    return '{"a":' * (levels - 1) + "{}" + "}" * (levels - 1)


def ids(events: Sequence[EventLike] | None) -> list[str]:
    """Return the ids of events."""
    assert events is not None
    return [event.event_id for event in events]


def test_a_chunk_of_plain_lines_is_read_at_once() -> None:
    """Ids, kinds and times are equal to those of the lines."""
    first, second = read_harmless(line("e1", '{"n": 1}') + line("e2")) or ()
    assert (first.event_id, first.kind, first.at.secs, first.at.nanos) == ("e1", ExternalEventKind.Command, 1, 2)
    assert (second.event_id, second.payload) == ("e2", None)


@pytest.mark.parametrize(
    "chunk",
    [
        pytest.param(line("é", '{"s": "é"}'), id="text beyond ASCII"),
        pytest.param(line(payload=nested(124)), id="124 levels"),
        pytest.param(line(payload='{"n": ' + "1" * 208 + "}"), id="208 digits"),
        pytest.param(line(payload='{"n": [1e99, 1e99]}'), id="two exponents"),
        pytest.param(line(payload='{"s": "}{"}'), id="braces in a string"),
        pytest.param(line(later_field=1), id="an unknown field"),
        pytest.param(b'{"event":' + line()[24:-2] + b',"type":"event"}\n' + line("e2"), id="fields in another order"),
    ],
)
def test_a_harmless_chunk_is_read_at_once(chunk: bytes) -> None:
    """The result is that of the checks line by line."""
    assert ids(read_harmless(chunk)) == [read_line(each).event_id for each in split_lines(chunk)]


@pytest.mark.parametrize(
    "chunk",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(line()[:-1], id="no newline at the end"),
        pytest.param(line().replace(b"}\n", b"} \n"), id="white space at the end"),
        pytest.param(b" " + line(), id="white space at the beginning"),
        pytest.param(line(payload='{"s": "?"}').replace(b"?", b"\xff"), id="not UTF-8"),
        pytest.param(line(payload='{"n": 1e400}'), id="a number beyond f64"),
        pytest.param(line(payload='{"n": 1E+400}'), id="a number beyond f64 with a sign"),
        pytest.param(line(payload='{"n": ' + "1" * 309 + "}"), id="309 digits"),
        pytest.param(line(payload='{"a":' * 127 + "{}" + "}" * 127), id="128 levels of objects"),
        pytest.param(line(payload='{"a":' + "[" * 127 + "]" * 127 + "}"), id="128 levels of arrays"),
        pytest.param(line(payload="[]"), id="an array as payload"),
        pytest.param(line().replace(b'"event"', b'"close"', 1), id="another frame"),
        pytest.param(line(kind="Other"), id="an unknown kind"),
        pytest.param(line(at={"secs": -1, "nanos": 0}), id="a negative time"),
        pytest.param(line(at={"secs": 1, "nanos": 0, "x": 0}), id="an unknown field of the time"),
        pytest.param(line()[:-1] + line(), id="two events on a line"),
        pytest.param(line().replace(b",", b",\n", 1), id="an event on two lines"),
        pytest.param(line()[:-1] + line() + line().replace(b",", b",\n", 1), id="as many lines as events"),
        pytest.param(line() + b"\n", id="an empty line"),
    ],
)
def test_a_chunk_that_may_be_harmful_is_not_read_at_once(chunk: bytes) -> None:
    """Its lines are read one by one, which refuses invalid ones."""
    assert read_harmless(chunk) is None


@pytest.mark.parametrize(
    ("chunk", "is_known"),
    [
        (line(), True),
        (line(semantic_kind="price"), True),
        (line(semantic_kind=None), True),
        (line(later_field=1), False),
        (line().replace(b'"type"', b'"x":1,"type"'), False),
        (line() + line(later_field=1), False),
    ],
)
def test_a_chunk_with_unknown_fields_is_not_read_at_once_if_they_matter(chunk: bytes, *, is_known: bool) -> None:
    """The daemon has to name the first one of a connection."""
    assert (read_harmless(chunk, known_only=True) is not None) is is_known
    assert read_harmless(chunk) is not None


def bare(text: bytes) -> bytes:
    """Return the event of a line, without its frame."""
    return text[24:-2]


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (line(), None),
        (line(semantic_kind=1), None),
        (line(payload='{"paylod": 1}'), None),
        (line(paylod={}), "paylod"),
        (line(a_b=1).replace(b"a_b", b"a`b"), "a`b"),
        (line().replace(b'"type"', b'"x":1,"type"'), "x"),
    ],
)
def test_an_unknown_field_of_an_event_is_found(text: bytes, name: str | None) -> None:
    """It may be a field of the event, framed or bare, or of the frame; payloads are not examined."""
    assert unknown_field(text, bare=False) == name
    if name != "x":
        assert unknown_field(bare(text), bare=True) == name


@pytest.mark.parametrize("before", [b"", b'"paylod":1,'])
def test_an_unknown_field_of_a_time_is_refused(before: bytes) -> None:
    """It may stand behind another unknown field."""
    text = line(at={"secs": 1, "nanos": 2, "zone": 0}).replace(b'"event_id"', before + b'"event_id"')
    for found, is_bare in ((text, False), (bare(text), True)):
        with pytest.raises(EventFormatError, match="unknown field `zone`"):
            unknown_field(found, bare=is_bare)


def test_a_line_is_read_with_its_payload_and_its_semantic_kind() -> None:
    """A payload of null is an empty one; a semantic kind that is not a string was ignored."""
    event = read_line(line("e1", '{"n":1}', semantic_kind="price"))
    assert (event.event_id, event.kind, event.at) == ("e1", ExternalEventKind.Command, EventTime(1, 2))
    assert (event.payload, event.semantic_kind) == (b'{"n":1}', "price")
    other = read_event(bare(line("e2", semantic_kind=7)))
    assert (other.event_id, other.payload, other.semantic_kind) == ("e2", b"", None)
    body = line("e1", '{"n":1}', semantic_kind="price") + line("e2", semantic_kind=7)
    assert list(read_body(body)) == [event, other]


def test_a_line_that_is_not_an_event_is_refused_with_the_place() -> None:
    """The line may be framed or bare."""
    broken = line(at={"secs": -1, "nanos": 0})
    with pytest.raises(EventFormatError, match=r"`\$\.event\.at"):
        read_line(broken)
    with pytest.raises(EventFormatError, match=r"`\$\.at"):
        read_event(bare(broken))
    with pytest.raises(EventFormatError, match=r"event\.at"):
        next(read_body(broken))
    with pytest.raises(EventFormatError, match=r"event\.at"):
        read_outlines(broken)


@pytest.mark.parametrize("payload", ["[]", '{"n": 1e400}', nested(128)])
def test_a_payload_that_the_reference_refuses_is_refused(payload: str) -> None:
    """Every reader that checks payloads refuses it."""
    with pytest.raises(ExternalEventPayloadError):
        read_line(line(payload=payload))
    with pytest.raises(ExternalEventPayloadError):
        read_event(bare(line(payload=payload)))
    assert read_line(line(payload=nested(127))).payload == nested(127).encode()


def test_lines_are_split_at_newlines_only() -> None:
    """A carriage return is white space within a line; empty lines are left out."""
    assert split_lines(b"a\r b\n\nc\x0b\n") == [b"a\r b\n", b"c\x0b\n"]


def test_outlines_have_the_times_that_the_fast_decoder_does_not_take() -> None:
    """The reference counts seconds in 64 bits without a sign."""
    late = line("e2", at={"secs": (1 << 64) - 1, "nanos": 5})
    first, second = read_outlines(line("e1", '{"n":1}') + late)
    assert (first.event_id, first.at.secs, first.kind) == ("e1", 1, ExternalEventKind.Command)
    assert (second.event_id, second.at.secs, second.at.nanos) == ("e2", (1 << 64) - 1, 5)
    assert second.kind is ExternalEventKind.Command


def test_semantic_kinds_are_read_without_the_events() -> None:
    """There is one for each event, or None."""
    assert read_semantic_kinds(line() + line(), 2) == [None, None]
    body = line(semantic_kind="price") + line() + line(semantic_kind=7)
    assert read_semantic_kinds(body, 3) == ["price", None, None]
    with pytest.raises(EventFormatError, match="truncated"):
        read_semantic_kinds(b'{"event":{"semantic_kind"', 1)
