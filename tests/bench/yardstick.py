"""The least cost of reading a bundle: decode its events with msgspec, make bytes of the payloads, hash them.

Run as a script in a process of its own, so that its user time can be compared with a command's:
``python yardstick.py BUNDLE``.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import msgspec

#: Bytes that are decoded at a time; with more, the lists of numbers leave the processor's cache.
_BLOCK = 32 * 1024
_BEGIN = b',{"event_id":'


class _Time(msgspec.Struct, gc=False):
    secs: int
    nanos: int


class _Event(msgspec.Struct, gc=False):
    event_id: str
    event_time: _Time
    kind: str
    payload: list[int]
    payload_hash: str


def run(bundle: Path) -> int:
    """Read the events of a compact bundle, and return their number."""
    decode = msgspec.json.Decoder(list[_Event]).decode
    sha256, count, held = hashlib.sha256, 0, b""
    with bundle.open("rb", buffering=0) as file:
        head = file.read(4096)
        file.seek(head.index(b'"events":[') + len(b'"events":['))
        while True:
            more = file.read(_BLOCK)
            held += more
            end = held.find(b'],"decisions":[')
            last = end >= 0
            if not last:
                end = held.rfind(_BEGIN)
                if end < 0:
                    assert more, "the events have an end"
                    continue
            for event in decode(b"[%b]" % held[:end]):
                payload = bytes(bytearray(event.payload))
                assert sha256(payload).hexdigest() == event.payload_hash
                count += 1
            if last:
                return count
            held = held[end + 1 :]


if __name__ == "__main__":
    run(Path(sys.argv[1]))
