"""Lines of ``ergo-driver.v0`` are read as the reference's host reads them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.adapter.cases import flight, rows

from ergo_capture.adapter.events import read_frame
from ergo_capture.protocol import driver
from ergo_capture.protocol.driver import LineKind, read_driver_line

LINES = sorted({line for row in rows("ingress") for line in row["driver_lines"] or []})


def references(line: str) -> LineKind:
    """Return the kind of line that the reference sees."""
    try:
        return LineKind[read_frame(line.rstrip("\r\n"))[0].upper()]
    except ValueError:
        return LineKind.UNREADABLE


@pytest.mark.parametrize("line", LINES, ids=range(len(LINES)))
def test_a_line_is_what_the_reference_takes_it_for(line: str) -> None:
    """This holds for all recorded lines, except that an event with an invalid payload may count as an event."""
    found = read_driver_line(line.encode())
    assert found.kind in {references(line), LineKind.EVENT}
    if found.kind is LineKind.EVENT and references(line) is LineKind.EVENT:
        event = read_frame(line)[1]
        assert found.text == event.event_id
        frame = json.loads(found.frame)["event"]
        assert (frame["event_id"], frame.get("semantic_kind")) == (event.event_id, event.semantic_kind)


@pytest.mark.parametrize(
    ("line", "at", "payload"),
    [
        ('["event",{"event_id":"a","kind":"Tick","at":[1,2],"semantic_kind":"k","payload":{"x":1}}]', [1, 2], {"x": 1}),
        ('{"type":"event","event":["a","Pump",[1,2],"k",{"x":1}]}', [1, 2], {"x": 1}),
        (
            '{"type":"event","event":{"event_id":"a","kind":"Pump","at":[1,1000000002],"semantic_kind":"k"}}',
            [2, 2],
            None,
        ),
    ],
)
def test_an_event_in_another_shape_becomes_a_frame(line: str, at: list[int], payload: Any) -> None:
    """The frame has the shape that the daemon reads."""
    found = read_driver_line(line.encode())
    assert found.kind is LineKind.EVENT
    assert json.loads(found.frame) == {
        "type": "event",
        "event": {
            "event_id": "a",
            "kind": "Pump",
            "at": {"secs": at[0], "nanos": at[1]},
            "semantic_kind": "k",
            "payload": payload,
        },
    }


@pytest.mark.parametrize(
    "line", [b"", b" ", b"\xff", b"{}", b"[]", b'{"type":"event"}', b"[" * 10_000, b'{"type":"x"}']
)
def test_anything_else_is_unreadable(line: bytes) -> None:
    """The reason is given."""
    found = read_driver_line(line)
    assert found.kind is LineKind.UNREADABLE
    assert found.text


def test_the_usual_lines_need_no_slow_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    """Usual lines are those of the flights, hello and end included."""
    monkeypatch.setattr(driver, "_read_slowly", None)
    _, lines, _ = flight("flights-acc-2000")
    kinds = [read_driver_line(line.encode()).kind for line in lines]
    assert (kinds[0], kinds[-1], set(kinds[1:-1])) == (LineKind.HELLO, LineKind.END, {LineKind.EVENT})
