"""A driver's frames, with the leniencies of the reference's deserialisers."""

from __future__ import annotations

from typing import Any

import pytest

from ergo_capture.adapter import HostedEvent
from ergo_capture.adapter.events import read_frame
from ergo_capture.kernel.events import ExternalEventKind
from ergo_capture.kernel.time import EventTime

EVENT = HostedEvent("a", ExternalEventKind.Pump, EventTime(1, 0), "s", {"n": 1})


@pytest.mark.parametrize(
    ("line", "tag", "content"),
    [
        ('{"protocol":"p","type":"hello","x":1}', "hello", "p"),
        ('["hello","p"]', "hello", "p"),
        ('{"type":"end","x":[]}', "end", None),
        ('["end"]', "end", None),
        ('{"type":"event","event":["a","Tick",[1,0],"s",{"n":1}]}', "event", EVENT),
        ('["event",{"event_id":"a","kind":{"Pump":null},"at":[1,0],"semantic_kind":"s","payload":{"n":2,"n":1}}]', "event", EVENT),
        ('{"type":"event","event":{"event_id":"a","kind":{"Pump":{}},"at":[0,1000000000],"semantic_kind":"s","payload":{"n":1},"x":1}}', "event", EVENT),
        (' {"type" : "end"}\t', "end", None),
    ],
)  # fmt: skip
def test_a_frame_is_read(line: str, tag: str, content: Any) -> None:
    """Structs may be arrays, variants objects, and unknown fields are ignored."""
    assert read_frame(line) == (tag, content)


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("", "Expecting value"),
        ("3", "invalid type: integer `3`, expected internally tagged enum ProcessDriverMessage"),
        ("[]", "missing field `type`"),
        ('{"type":"end","type":"end"}', "duplicate field `type`"),
        ('{"type":3}', "invalid type: integer `3`, expected variant identifier"),
        ('{"type":"stop"}', "unknown variant `stop`, expected one of `hello`, `event`, `end`"),
        ('["end",1]', "invalid length 1, expected 0 elements in sequence"),
        (
            '{"type":"event","event":["a","Pump",[1,0]]}',
            "invalid length 3, expected struct HostedEvent with 5 elements",
        ),
        ('{"type":"event","event":["a",{"Pump":null,"x":null}]}', "expected map with a single key"),
        ('{"type":"event","event":["a",{"Never":1}]}', "unknown variant `Never`"),
        ('{"type":"event","event":["a",{"Pump":1}]}', "invalid type: integer `1`, expected unit"),
        ('{"type":"event","event":["a","Pump",[1]]}', "invalid length 1, expected struct Duration"),
        ('{"type":"event","event":["a","Pump",[1,0,0]]}', "invalid length 3"),
        ('{"type":"end","x":1e999}', "number out of range"),
        ('{"type":"end","x":"\\udc00"}', "lone surrogate"),
        ('{"type":"end","x":' + "[" * 127 + "]" * 127 + "}", "recursion limit exceeded"),
    ],
)
def test_a_line_that_is_no_frame_is_refused(line: str, complaint: str) -> None:
    """The message has serde's words for the value that is there instead."""
    with pytest.raises(ValueError) as caught:
        read_frame(line)
    assert complaint in str(caught.value)
