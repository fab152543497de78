"""A journal's frames as the text of a bundle, many events at a time.

Owns: event lines -> elements of ``events``, decision rows -> elements of ``decisions``.
Not here: files, styles and order (``compose.py``); one record's text (``kernel/records.py``), which this
equals to the byte, and which is what does the rare cases here.

Why many at a time: a record object for each event and a call for each of its parts cost as much again as all
the rest, 13 us an event against 6. What is left is the payload's array of byte values (2 us for 256 bytes; a
table of pairs, three translations woven into one buffer, and numpy were all slower), two SHA-256 and a format.
"""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import sha256
from itertools import repeat
from typing import Final

import msgspec

from ergo_capture.journal.body import DecisionOutcome, read_rows
from ergo_capture.journal.lines import LineTime, read_body
from ergo_capture.kernel.records import ExternalEventRecord, encode_decision, encode_event, encode_time
from ergo_capture.kernel.time import EventTime


class _Event(msgspec.Struct, frozen=True, gc=False):
    event_id: str
    kind: str
    at: LineTime
    payload: msgspec.Raw = msgspec.Raw(b"null")


class _Line(msgspec.Struct, frozen=True, gc=False, tag_field="type", tag="event"):
    event: _Event


_decode: Final = msgspec.json.Decoder(_Line).decode_lines
_encode: Final = msgspec.json.Encoder().encode
_KINDS: Final = {"Pump": b"Pump", "Tick": b"Pump", "DataAvailable": b"DataAvailable", "Command": b"Command"}
_EVENT: Final = b'{"event_id":"%b","event_time":{"secs":%d,"nanos":%d},"kind":"%b","payload":%b,"payload_hash":"%b"}'


def expand_events(body: bytes) -> tuple[list[str], list[bytes]]:
    """The events of an EVENTS body: their ids, and each one's element of a bundle's ``events``.

    Raises:
        EventFormatError: the body is not what was accepted.
    """
    try:
        events = [line.event for line in _decode(body)]
        kinds = [_KINDS[event.kind] for event in events]
    except (ValueError, RecursionError, KeyError):
        # Rare: a time that only EventTime can hold, a kind in another spelling. Or it is damage, which this tells.
        records = [ExternalEventRecord.from_event(event) for event in read_body(body)]
        return [record.event_id for record in records], [encode_event(record) for record in records]
    ids = [event.event_id for event in events]
    payloads = [bytes(event.payload) for event in events]
    if b"null" in payloads:
        payloads = [b"" if payload == b"null" else payload for payload in payloads]
    texts = [
        _EVENT
        % (name, event.at.secs, event.at.nanos, kind, _encode(list(payload)), sha256(payload).hexdigest().encode())
        for name, event, kind, payload in zip(_inside_quotes(ids), events, kinds, payloads, strict=True)
    ]
    return ids, texts


def _inside_quotes(ids: list[str]) -> list[bytes]:
    """Each id as JSON writes it, without its quotes."""
    text = _encode(ids)
    if b"\\" in text:
        return [_encode(event_id)[1:-1] for event_id in ids]
    # Why this is safe: a quote inside an id would have come with a backslash.
    return text[2:-2].split(b'","')


class DecisionTexts:
    """Takes decisions from their frames in the order of their events, as elements of a bundle's ``decisions``.

    Args:
        bodies: the DECISIONS bodies, in order.
        deadline: the constraints' one, which every record bears.
    """

    def __init__(self, bodies: Iterator[bytes], deadline: EventTime | None) -> None:
        self._rows = (row for body in bodies for row in read_rows(body))
        self._deadline = deadline
        #: Of the run that is being taken: the next episode, and how many are left.
        self._episode = self._left = 0
        self._plain = (
            b'{"event_id":"%%b","decision":"Invoke","schedule_at":null,"episode_id":%%d,"deadline":%b,'
            b'"termination":"Completed","retry_count":0,"effects":[]}'
        ) % encode_time(deadline)

    def take(self, ids: list[str]) -> list[bytes] | None:
        """The decisions of the next events, whose ids these are; None where there are fewer."""
        texts: list[bytes] = []
        names = _inside_quotes(ids)
        while len(texts) < len(ids):
            if not self._left:
                row = next(self._rows, None)
                if row is None:
                    return None
                if isinstance(row, DecisionOutcome):
                    texts.append(encode_decision(row.to_record(ids[len(texts)], self._deadline)))
                    continue
                self._episode, self._left = row.episode, row.count
            start = len(texts)
            count = min(self._left, len(ids) - start)
            episodes = range(self._episode, self._episode + count)
            texts += map(bytes.__mod__, repeat(self._plain), zip(names[start : start + count], episodes, strict=True))
            self._episode += count
            self._left -= count
        return texts
