"""What of a chunk of events a session may admit, and what is said about the rest.

Both look at all ids of a chunk at once first, because nearly every chunk has nothing to refuse.
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from ergo_capture.kernel.events import EventLike
from ergo_capture.protocol.capture import Code, EventChunk


@dataclass(frozen=True, slots=True)
class Refusal:
    """One event of a chunk that was not admitted."""

    #: Position in the chunk, from 0.
    offset: int
    #: None where the id itself is what is wrong.
    event_id: str | None
    code: Code
    message: str
    hint: str


def without_long_ids(chunk: EventChunk, limit: int) -> tuple[EventChunk, list[Refusal]]:
    """The events whose ids have at most ``limit`` bytes in UTF-8, and why not the others."""
    # Why a quarter: a character takes four bytes at the most, so shorter ids need no encoding.
    if max(map(len, chunk.ids)) <= limit // 4:
        return chunk, []
    long_ids = {offset for offset, event_id in enumerate(chunk.ids) if len(event_id.encode()) > limit}
    if not long_ids:
        return chunk, []
    lines = chunk.body.split(b"\n")
    kept = [offset for offset in range(len(chunk.events)) if offset not in long_ids]
    body = b"".join(lines[offset] + b"\n" for offset in kept)
    message, hint = f"the event id is longer than {limit} bytes", "use shorter event ids"
    refusals = [Refusal(offset, None, Code.LIMIT, message, hint) for offset in sorted(long_ids)]
    return EventChunk(body, [chunk.events[offset] for offset in kept]), refusals


def without_duplicates(
    chunk: EventChunk, ids: AbstractSet[str], session: str
) -> tuple[list[EventLike], bytes, list[Refusal]]:
    """The events whose ids are neither in ``ids`` nor twice in the chunk, their lines, and why not the others."""
    kept: list[EventLike] = []
    lines: list[bytes] = []
    refusals: list[Refusal] = []
    seen: set[str] = set()
    # Why not splitlines: it would also split at a lone carriage return inside white space.
    for offset, (event, line) in enumerate(zip(chunk.events, chunk.body.split(b"\n"), strict=False)):
        event_id = event.event_id
        if event_id in ids or event_id in seen:
            message = f"event id {event_id!r} is already in session {session}"
            hint = "an event that was accepted need not be sent again"
            refusals.append(Refusal(offset, event_id, Code.DUPLICATE_EVENT_ID, message, hint))
            continue
        seen.add(event_id)
        kept.append(event)
        lines.append(line + b"\n")
    return kept, b"".join(lines), refusals
