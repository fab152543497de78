"""A journal's frames as the text of a bundle, many events at a time.

Why many at a time: a record object for each event and a call for each of its parts cost twice as much as one call
of the encoder for some events, straight into the block's text. Most of what is left is the payload's array of byte
values (a table of pairs, three translations woven into one buffer, and numpy were all slower) and its SHA-256.
"""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import sha256
from typing import Final

import msgspec

from ergo_capture.journal.decision_rows import DecisionOutcome, read_rows
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


class _Element(msgspec.Struct, frozen=True, gc=False):
    """An element of ``events``, its fields in the order in which a bundle has them."""

    event_id: str
    event_time: LineTime
    kind: str
    payload: list[int]
    payload_hash: str


_decode: Final = msgspec.json.Decoder(_Line).decode_lines
_encode: Final = msgspec.json.Encoder().encode
_encode_into: Final = msgspec.json.Encoder().encode_into
_COMMA: Final = ord(",")
#: Events whose payloads are lists of numbers at a time. Why so few: they should stay in the processor's cache.
_SOME: Final = 64
_KINDS: Final = {"Pump": "Pump", "Tick": "Pump", "DataAvailable": "DataAvailable", "Command": "Command"}


def expand_events(body: bytes, start: int = 0, stop: int | None = None) -> tuple[list[str], bytes | bytearray]:
    """The events of an EVENTS body from ``start`` to before ``stop``: their ids, and their elements, each behind a comma.

    Raises:
        EventFormatError: the body is not what was accepted.
    """
    try:
        events = [line.event for line in _decode(body)][start:stop]
        kinds = [_KINDS[event.kind] for event in events]
    except (ValueError, RecursionError, KeyError):
        # Rare: a time that only EventTime can hold, a kind in another spelling. Or it is damage, which this tells.
        records = [ExternalEventRecord.from_event(event) for event in read_body(body)][start:stop]
        return [record.event_id for record in records], b"".join(b"," + encode_event(record) for record in records)
    payloads = [bytes(event.payload) for event in events]
    if b"null" in payloads:
        payloads = [b"" if payload == b"null" else payload for payload in payloads]
    # Why into one buffer: pieces that are joined are copied, and a payload's array is long.
    text = bytearray(b"]")
    for n in range(0, len(events), _SOME):
        some = slice(n, n + _SOME)
        elements = [
            _Element(event.event_id, event.at, kind, list(payload), sha256(payload).hexdigest())
            for event, kind, payload in zip(events[some], kinds[some], payloads[some], strict=True)
        ]
        end = len(text) - 1
        _encode_into(elements, text, end)
        text[end] = _COMMA
    text.pop()
    return [event.event_id for event in events], text


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
        self._after = (
            f',"deadline":{encode_time(deadline).decode()},"termination":"Completed","retry_count":0,"effects":[]}}'
        )

    def take(self, ids: list[str]) -> bytes | None:
        """The decisions of the next events, whose ids these are, each behind a comma; None where there are fewer."""
        texts: list[str] = []
        taken = 0
        while taken < len(ids):
            if not self._left:
                row = next(self._rows, None)
                if row is None:
                    return None
                if isinstance(row, DecisionOutcome):
                    texts.append("," + encode_decision(row.to_record(ids[taken], self._deadline)).decode())
                    taken += 1
                    continue
                self._episode, self._left = row.episode, row.count
            count = min(self._left, len(ids) - taken)
            texts += self._plain(ids[taken : taken + count])
            self._episode += count
            self._left -= count
            taken += count
        return "".join(texts).encode()

    def _plain(self, ids: list[str]) -> list[str]:
        """Episodes that ran at once and completed. Why text: an f-string is half of a format of bytes."""
        after = self._after
        return [
            f',{{"event_id":"{name}","decision":"Invoke","schedule_at":null,"episode_id":{episode}{after}'
            for episode, name in enumerate(_inside_quotes(ids), self._episode)
        ]

    def __repr__(self) -> str:
        return f"<DecisionTexts, {self._left} left of the run at episode {self._episode}>"


def _inside_quotes(ids: list[str]) -> list[str]:
    """Each id as JSON writes it, without its quotes."""
    text = _encode(ids).decode()
    if "\\" in text:
        return [_encode(event_id)[1:-1].decode() for event_id in ids]
    # Why this is safe: a quote inside an id would have come with a backslash.
    return text[2:-2].split('","')
