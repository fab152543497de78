"""A block of events that is decoded at once holds what serde reads, whatever stands between its brackets."""

from __future__ import annotations

import json

from hypothesis import example, given, settings
from hypothesis import strategies as st

from ergo_capture.bundle.reader.blocks import read_events
from ergo_capture.kernel.records import ExternalEventRecord
from ergo_capture.kernel.serde import bundle as serde
from ergo_capture.kernel.serde.parsing import parse


def event_text(event_id: str, numbers: str, more: str = "") -> str:
    """Return an event whose payload's array has a given text."""
    quoted = json.dumps(event_id, ensure_ascii=False)
    return (
        f'{{"event_id":{quoted},"event_time":{{"secs":1,"nanos":2}},"kind":"Command",{more}'
        f'"payload":[{numbers}],"payload_hash":"00"}}'
    )


def read_by_serde(block: str) -> list[ExternalEventRecord] | None:
    """Return what serde reads of elements with commas between them; None where it refuses them."""
    try:
        return [serde.read_event(value) for value in parse(f"[{block}]")]
    except (ValueError, RecursionError):
        return None


ids = st.sampled_from(["a", "", "-", "[", "]", "[]", "[1]", "]1,2[", "1,255", '"', "\\", 'x","payload":[7'])
numbers = st.sampled_from(
    ["123,125", "", " ", "\n 1,\n 2\n", "255", "1,255", "255,255", "256", "-0", "-1", "1.0", "1e1", "1,", ",1", "1 2",
     "[1]", "[", "1],[2", '1],"payload":[2', '"]"', "null", "{}", "01", "9" * 30]
)  # fmt: skip
fields = st.sampled_from(
    ["", "", "", '"x":[],', '"x":[1],', '"payload":[1],', '"x":"[",', '"kind":"Pump",', '"kin\\u0064":1,']
)
texts = st.builds(event_text, ids, numbers, fields)


@settings(max_examples=500)
@given(st.lists(texts, min_size=1, max_size=4).map(",".join))
@example(event_text("[1,2]", "3"))
@example(event_text("[1", "2]"))
@example(",".join([event_text("a", "1,255,2"), event_text("b", "")]))
@example(",".join([event_text("a", "1"), event_text("]", "2", '"x":"[",')]))
def test_a_block_is_read_as_serde_reads_it_or_not_at_all(block: str) -> None:
    """Brackets in ids, arrays where none belong, and numbers like the one between two payloads."""
    found = read_events(block.encode())
    if found is not None:
        assert found == read_by_serde(block)


@given(st.lists(st.tuples(st.text(max_size=3), st.binary(max_size=4)), min_size=1, max_size=6))
def test_usual_events_are_read_at_once(events: list[tuple[str, bytes]]) -> None:
    """Either layout will do, and empty payloads; a bracket in an id or a byte of 255 leaves the block to serde."""
    for space in ("", "\n        "):
        text = ",".join(event_text(name, ("," + space).join(map(str, payload))) for name, payload in events)
        found = read_events(text.encode())
        usual = all(
            not set(name) & set('[]\\"') and name.isprintable() and 255 not in payload for name, payload in events
        )
        if usual:
            assert found is not None
            assert [(event.event_id, event.payload) for event in found] == events
