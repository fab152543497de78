"""The events that a session has admitted and not yet decided, and the event ids that are taken.

Ids are kept in two generations. The running one holds the ids of the current part, because a bundle must not hold an id
twice. When a part ends, its ids become the earlier generation. That is forgotten once the running one holds ``MIN_IDS``
ids, or when there is no memory for more.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

from ergo_capture.errors import ErgoCaptureError
from ergo_capture.journal.frame import FrameKind, PendingFrame, Position
from ergo_capture.journal.recovery import RecoveredSession
from ergo_capture.kernel.events import EventLike
from ergo_capture.protocol.capture import Code, EventChunk, ProtocolError
from ergo_capture.server.session.budget import EVENT_BYTES, Holding, size_of_deferred, size_of_ids, uncounted

#: How many of the latest ids are remembered across the ends of parts, at least, while there is memory for them.
MIN_IDS: Final = 100_000
#: A part with fewer ids is not ended for lack of memory: this bounds the number of parts.
_MIN_CROWDED_IDS: Final = 1_000


@dataclass(frozen=True, slots=True)
class Rejection:
    """An event of a chunk that was not admitted."""

    #: Position in the chunk, from 0.
    offset: int
    #: None if the id itself is invalid.
    event_id: str | None
    code: Code
    message: str
    hint: str


#: Returns the code, message and hint with which an event line is rejected; None if it is valid.
Check = Callable[[bytes], tuple[Code, str, str] | None]


@dataclass(slots=True)
class Generation:
    """Event ids that are forgotten together."""

    ids: set[str] = field(default_factory=set)
    #: Bytes that the ids are counted as.
    bytes: int = 0


@dataclass(slots=True, eq=False)
class EventBatch:
    """The admitted events of one chunk; a ``Submission`` to the writer."""

    queue: AdmissionQueue
    #: The event lines, verbatim; empty in a recovered batch.
    body: bytes
    events: Sequence[EventLike]
    #: Bytes that the batch is counted as while it waits.
    memory: int = 0
    #: Index of the first event in the session, and the index after the last; -1 until the frame is made.
    first: int = -1
    end: int = -1
    #: Where the frame is, once it is durable.
    position: Position | None = None
    #: The error with which the journal refused the batch, if it did.
    refused: ErgoCaptureError | None = None
    #: The generation that holds its ids.
    generation: Generation = field(default_factory=Generation)

    def to_frame(self) -> PendingFrame:
        """Return the frame of the event lines, at the session's next free index."""
        queue, count = self.queue, len(self.events)
        self.first = queue.next_index
        self.end = queue.next_index = self.first + count
        return PendingFrame(FrameKind.EVENTS, queue.session_number, self.first, count, self.body)

    def on_durable(self, position: Position) -> None:
        """Record where the frame is, and tell the session."""
        self.position = position
        self.queue.on_accepted(self, position)

    def on_refused(self, error: ErgoCaptureError) -> None:
        """Record why, release the ids, and tell the session."""
        self.refused = error
        self.queue.release_refused(self)
        self.queue.on_refused(error)


class AdmissionQueue:
    """Admits events to one session: refuses ids that are too long or taken, and counts memory.

    Args:
        initial: the session as recovery found it, or a new one.
        events: counts the memory of events that wait to be decided.
        ids: counts the memory of ids and of deferred episodes.
        on_accepted: called with a batch and the position of its frame when it is durable.
        on_refused: called with the error when the journal has refused a batch.
    """

    def __init__(
        self,
        initial: RecoveredSession,
        events: Holding,
        ids: Holding,
        on_accepted: Callable[[EventBatch, Position], None],
        on_refused: Callable[[ErgoCaptureError], None],
    ) -> None:
        self.session_number = initial.number
        self.on_accepted = on_accepted
        self.on_refused = on_refused
        #: Events whose id is taken: accepted, or waiting for the journal.
        self.admitted = initial.accepted
        #: Index in the session of the first event of the next frame.
        self.next_index = initial.accepted
        #: Bytes of event lines that were admitted and are not yet decided.
        self.queued_bytes = 0
        self._session_id = initial.description.session
        self._events_memory = events
        self._ids_memory = ids
        #: Bytes counted in ``_ids_memory`` for deferred episodes.
        self._deferred_bytes = size_of_deferred(initial.supervisor)
        self._running = Generation(initial.ids, size_of_ids(initial.ids))
        self._earlier = Generation()
        #: Batches that are admitted, and neither refused nor decided.
        self._waiting: deque[EventBatch] = deque()
        ids.hold(self._running.bytes + self._deferred_bytes)

    def admit(
        self, chunk: EventChunk, max_id_bytes: int, check: Check | None = None
    ) -> tuple[EventBatch | None, list[Rejection]]:
        """Take the ids of a chunk's events.

        Args:
            chunk: events with their lines.
            max_id_bytes: longest event id, in bytes of UTF-8.
            check: a further check of each event line; None for none.

        Returns:
            The admitted events, None if there are none, and the rejections in the order of the chunk.

        Raises:
            ProtocolError: ``limit``: there is no memory for more ids.
        """
        if not self._ids_memory.has_room:
            self._forget_earlier()
        if not self._ids_memory.has_room:
            raise ProtocolError(
                Code.LIMIT,
                f"there is no memory for more event ids than the {self.id_count} of this session and those of others",
                "close the session and open another, or raise limits.ids_bytes and limits.user_ids_bytes",
            )
        events, body = chunk.events, chunk.body
        rejections: list[Rejection] = []
        running = self._running
        fresh = set(chunk.ids)
        if not (
            check is None
            and len(fresh) == len(events)
            and running.ids.isdisjoint(fresh)
            and self._earlier.ids.isdisjoint(fresh)
            # A character takes at most four bytes, so that most ids need no encoding.
            and (
                max(map(len, chunk.ids)) <= max_id_bytes // 4
                or max(len(event_id.encode()) for event_id in chunk.ids) <= max_id_bytes
            )
        ):
            events, body, rejections = self._select(chunk, max_id_bytes, check)
            if not events:
                return None, rejections
            fresh = {event.event_id for event in events}
        batch = EventBatch(self, body, events, len(body) + EVENT_BYTES * len(events), generation=running)
        size = size_of_ids(fresh)
        running.ids |= fresh
        running.bytes += size
        if self._earlier.ids and len(running.ids) >= MIN_IDS:
            self._forget_earlier()
        self._waiting.append(batch)
        self._ids_memory.hold(size)
        self._events_memory.hold(batch.memory)
        self.admitted += len(events)
        self.queued_bytes += len(body)
        return batch, rejections

    def _select(
        self, chunk: EventChunk, max_id_bytes: int, check: Check | None
    ) -> tuple[list[EventLike], bytes, list[Rejection]]:
        """Return the events that can be admitted, their lines, and the rejections of the others."""
        kept: list[EventLike] = []
        lines: list[bytes] = []
        rejections: list[Rejection] = []
        seen: set[str] = set()
        # Not splitlines(): it would also split at a lone carriage return inside white space.
        for offset, (event, line) in enumerate(zip(chunk.events, chunk.body.split(b"\n"), strict=False)):
            event_id = event.event_id
            if len(event_id.encode()) > max_id_bytes:
                message = f"the event id is longer than {max_id_bytes} bytes"
                rejections.append(Rejection(offset, None, Code.LIMIT, message, "use shorter event ids"))
            elif event_id in seen or event_id in self._running.ids or event_id in self._earlier.ids:
                message = f"event id {event_id!r} is already in session {self._session_id}"
                hint = "an event that was accepted need not be sent again"
                rejections.append(Rejection(offset, event_id, Code.DUPLICATE_EVENT_ID, message, hint))
            elif check is not None and (refused := check(line)) is not None:
                rejections.append(Rejection(offset, event_id, *refused))
            else:
                seen.add(event_id)
                kept.append(event)
                lines.append(line + b"\n")
        return kept, b"".join(lines), rejections

    def release_refused(self, batch: EventBatch) -> None:
        """Release the ids and the memory of a batch that the journal has refused."""
        if batch.first >= 0:
            self.next_index = min(self.next_index, batch.first)
        with suppress(ValueError):
            # A session that is over has removed the batch already.
            self._waiting.remove(batch)
        ids = [event.event_id for event in batch.events]
        size = size_of_ids(ids)
        generation = batch.generation
        generation.ids.difference_update(ids)
        generation.bytes -= size
        self._ids_memory.hold(-size)
        self._events_memory.hold(-batch.memory)
        self.admitted -= len(ids)
        self.queued_bytes -= len(batch.body)

    def release_decided(self, batch: EventBatch, deferred_bytes: int) -> None:
        """Release the memory of a batch that is decided; its ids stay taken.

        Args:
            batch: the batch.
            deferred_bytes: what the session's deferred episodes take now.
        """
        # In order: the batch is the first one, unless recovery made it.
        if self._waiting and self._waiting[0] is batch:
            self._waiting.popleft()
        self.queued_bytes -= len(batch.body)
        self._events_memory.hold(-batch.memory)
        if deferred_bytes != self._deferred_bytes:
            self._ids_memory.hold(deferred_bytes - self._deferred_bytes)
            self._deferred_bytes = deferred_bytes

    def end_part(self) -> None:
        """Begin a new generation of ids because a part has ended; waiting events belong to the next part.

        Without it a session that is rotated for ever would reach the limit of ids.
        """
        crowded = self._ids_memory.is_crowded
        if len(self._running.ids) < MIN_IDS and not crowded:
            # The ids of several short parts are remembered together.
            return
        ended, running = self._running, Generation()
        for batch in self._waiting:
            running.ids.update(event.event_id for event in batch.events)
            batch.generation = running
        running.bytes = size_of_ids(running.ids)
        ended.ids -= running.ids
        ended.bytes -= running.bytes
        self._forget_earlier()
        self._earlier, self._running = ended, running
        if crowded:
            self._forget_earlier()

    def _forget_earlier(self) -> None:
        self._ids_memory.hold(-self._earlier.bytes)
        self._earlier = Generation()

    def close(self) -> None:
        """Release all memory; nothing more is admitted."""
        self._events_memory.free()
        self._ids_memory.free()
        # A batch that is refused after this must not be subtracted from the budget again.
        self._events_memory, self._ids_memory = uncounted(), uncounted()
        self._running, self._earlier = Generation(), Generation()
        self._waiting.clear()

    def certainly_lacks(self, event_id: str, index: int) -> bool:
        """Return whether the event at ``index`` certainly has another id: the id of so late an event is remembered."""
        return (
            index >= self.admitted - self.id_count
            and event_id not in self._running.ids
            and event_id not in self._earlier.ids
        )

    @property
    def id_count(self) -> int:
        """The number of event ids that are remembered."""
        return len(self._running.ids) + len(self._earlier.ids)

    @property
    def is_crowded(self) -> bool:
        """Whether memory for ids is short and the end of the current part would release some."""
        return len(self._running.ids) >= _MIN_CROWDED_IDS and self._ids_memory.is_crowded

    @property
    def has_room(self) -> bool:
        """Whether the budget has memory for more events to wait."""
        return self._events_memory.has_room

    def is_full(self, limit: int) -> bool:
        """Return whether more than ``limit`` bytes wait, or anything waits while the budget has no room.

        A session without waiting events always has room for one read, so that no session waits for others.
        """
        return self.queued_bytes >= limit or bool(self.queued_bytes and not self._events_memory.has_room)
