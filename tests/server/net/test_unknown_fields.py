"""Unknown fields of an event: the client is told of the first; in a time they are refused, as by the reference."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.daemons import event, running_daemon

from ergo_capture import decode_bundle
from ergo_capture.client import CaptureClient, Note
from ergo_capture.protocol.capture import BadLine, EventChunk, UnknownField
from ergo_capture.server.net.frame_reader import FrameReader


def within(event_id: str, **more: Any) -> dict[str, Any]:
    """Return an event frame whose event has these further fields."""
    frame = event(event_id)
    return frame | {"event": frame["event"] | more}


def chunks_of(*frames: dict[str, Any], reader: FrameReader | None = None) -> list[EventChunk]:
    """Return the chunks that a reader makes of frames that arrive together."""
    found = []
    for item in (reader or FrameReader(1 << 20, 10_000, 5)).feed(
        b"".join(json.dumps(f).encode() + b"\n" for f in frames)
    ):
        assert isinstance(item, EventChunk)
        found.append(item)
    return found


async def test_the_first_unknown_field_of_a_connection_is_noted() -> None:
    """The note has the event's number, and comes before the acknowledgement; the event is captured."""
    async with running_daemon() as daemon, daemon.session() as wire:
        await wire.say(event("e1"), within("e2", paylod={"x": 1}), within("e3", paylod={}), {"type": "close"})
        frames = await wire.rest()
        (note,) = [frame for frame in frames if frame["type"] == "note"]
        assert (note["index"], note["event_id"]) == (2, "e2")
        assert "'paylod'" in note["message"]
        assert frames.index(note) < [frame["type"] for frame in frames].index("ack")
        assert [record.event_id for record in decode_bundle(daemon.bundles()[0].read_bytes()).events] == [
            "e1",
            "e2",
            "e3",
        ]


@pytest.mark.parametrize(
    ("frames", "expected"),
    [
        ([event("e1"), within("e2", paylod={})], UnknownField(1, "paylod")),
        ([event("e1") | {"lables": {}}], UnknownField(0, "lables")),
        ([{"type": "events", "events": [event("e1")["event"], within("e2", a=1)["event"]]}], UnknownField(1, "a")),
        ([within("e1", **{"x` - at `$.y": 1})], UnknownField(0, "x` - at `$.y")),
        ([event("e1"), within("e2", semantic_kind="price")], None),
        ([within("e1", semantic_kind=7)], None),
        ([{"type": "events", "events": [within("e1", semantic_kind=None)["event"]]}], None),
        ([event("e1", payload={"paylod": 1})], None),
    ],
)
def test_a_chunk_says_which_field_is_unknown(frames: list[dict[str, Any]], expected: UnknownField | None) -> None:
    """The field may be in the frame or in the event; ``semantic_kind`` is a field of the reference's drivers."""
    (chunk,) = chunks_of(*frames)
    assert chunk.unknown == expected


def test_unknown_fields_are_told_once_and_cost_nothing_afterwards() -> None:
    """Later chunks are read in one go again."""
    reader = FrameReader(1 << 20, 10_000, 5)
    (first,) = chunks_of(within("e1", a=1), within("e2", b=1), reader=reader)
    (second,) = chunks_of(within("e3", a=1), reader=reader)
    assert (first.unknown, second.unknown) == (UnknownField(0, "a"), None)
    assert type(second.events) is list


@pytest.mark.parametrize("frame", [event("e1"), {"type": "events", "events": [event("e1")["event"]]}])
@pytest.mark.parametrize("noted", [False, True])
def test_an_unknown_field_of_a_time_is_refused(frame: dict[str, Any], *, noted: bool) -> None:
    """The reference allows nothing else there."""
    reader = FrameReader(1 << 20, 10_000, 5)
    if noted:
        chunks_of(within("e0", a=1), reader=reader)
    inner = frame["event"] if "event" in frame else frame["events"][0]
    strange = inner | {"at": {"secs": 1, "nanos": 0, "micros": 3}, "paylod": {}}
    frame = frame | ({"event": strange} if "event" in frame else {"events": [strange]})
    (item,) = reader.feed(json.dumps(frame).encode() + b"\n")
    assert isinstance(item, BadLine)
    assert (item.code, item.event_id) == ("bad_frame", "e1")
    assert "micros" in item.message


async def test_the_drivers_of_the_reference_are_told_nothing() -> None:
    """Their protocol has no frame for it."""
    async with running_daemon() as daemon, daemon.wire() as wire:
        await wire.say({"type": "hello", "protocol": "ergo-driver.v0"}, within("e1", paylod={}), {"type": "end"})
        assert [frame["type"] for frame in await wire.rest()] == ["closed"]


async def test_a_client_passes_a_note_on_with_the_place_of_its_event() -> None:
    """The place may be any value that the caller gives with the event."""
    notes: list[Note] = []
    async with running_daemon() as daemon, CaptureClient(daemon.socket, on_note=notes.append) as client:
        await client.open("default")
        await client.send_line(json.dumps(event("e1")).encode() + b"\n", "e1", 41)
        await client.send_line(json.dumps(within("e2", paylod={})).encode() + b"\n", "e2", 42)
        await client.drain()
        (note,) = notes
        assert (note.event_id, note.place) == ("e2", 42)
        assert (client.accepted, client.rejected) == (2, 0)
