"""What one session has taken from its clients: ids that are used up, events that wait, the memory both count as."""

from __future__ import annotations

from typing import Final

from ergo_capture.journal.recovery import RecoveredSession
from ergo_capture.protocol.capture import Code, EventChunk, ProtocolError
from ergo_capture.server.commit.submission import Batch, BatchOwner
from ergo_capture.server.session.budget import EVENT_BYTES, Holding, size_of_ids, uncounted
from ergo_capture.server.session.deduplication import Refusal, without_duplicates

#: Ids that are remembered at the least, whatever parts have ended, for clients that send again what they did not need to.
LEAST_IDS: Final = 100_000


class Intake:
    """The events of one session from the moment their ids are taken to their decision.

    Until it is charged to budgets, and after it is closed, nothing is counted.
    """

    def __init__(self) -> None:
        self.ids: set[str] = set()
        #: Ids from before some part ended, how many events of the session had come by then; and what both count as.
        self._earlier: set[str] = set()
        self._earlier_end = 0
        self._ids_bytes = self._earlier_bytes = 0
        #: Events whose id is taken: accepted, or still queued.
        self.admitted = 0
        #: Bytes of event lines that were admitted and not yet decided.
        self.queued_bytes = 0
        self._next_index = 0
        self._events_held, self._ids_held = uncounted(), uncounted()
        #: Of what is held for ids, the part for deferred episodes.
        self._deferred_held = 0

    def take_over(self, recovered: RecoveredSession) -> None:
        """Go on where recovery found the session."""
        self.ids = recovered.ids
        self.admitted = self._next_index = recovered.accepted

    # --- events come and go ---

    def admit(self, chunk: EventChunk, session_id: str, owner: BatchOwner) -> tuple[Batch | None, list[Refusal]]:
        """A chunk's events as a batch, all but those whose ids are taken; None where nothing is left."""
        events, body = chunk.events, chunk.body
        refusals: list[Refusal] = []
        fresh = set(chunk.ids)
        if len(fresh) != len(events) or not (self.ids.isdisjoint(fresh) and self._earlier.isdisjoint(fresh)):
            events, body, refusals = without_duplicates(chunk, fresh & self.ids | fresh & self._earlier, session_id)
            fresh = {event.event_id for event in events}
            if not events:
                return None, refusals
        self.ids |= fresh
        self.admitted += len(events)
        self.queued_bytes += len(body)
        held = len(body) + EVENT_BYTES * len(events)
        self._events_held.hold(held)
        self._hold_ids(size_of_ids(fresh))
        return Batch(owner, body, events, held=held), refusals

    def take_indices(self, count: int) -> int:
        """The index of the next frame's first event."""
        first = self._next_index
        self._next_index += count
        return first

    def refuse(self, batch: Batch) -> None:
        """A batch is not on stable storage; its ids are free again."""
        if batch.first >= 0:
            self._next_index = min(self._next_index, batch.first)
        ids = [event.event_id for event in batch.events]
        self.ids.difference_update(ids)
        self._earlier.difference_update(ids)
        self.admitted -= len(ids)
        self.queued_bytes -= len(batch.body)
        self._events_held.hold(-batch.held)
        self._hold_ids(-size_of_ids(ids))

    def end_part(self, boundary: int) -> None:
        """A part has ended, at that event of the session: earlier ids are forgotten, if none is of the part that begins.

        Why: a session that is rotated may never end, and would otherwise come to the limit of what is remembered.
        """
        if len(self.ids) >= LEAST_IDS and self._earlier_end <= boundary:
            self._ids_held.hold(-self._earlier_bytes)
            self._earlier, self._earlier_bytes, self._earlier_end = self.ids, self._ids_bytes, self.admitted
            self.ids, self._ids_bytes = set(), 0

    def _hold_ids(self, size: int) -> None:
        self._ids_held.hold(size)
        self._ids_bytes += size

    def release(self, batch: Batch, deferred_bytes: int) -> None:
        """A batch is decided and waits no more, and deferred episodes take so many bytes now; the ids stay taken."""
        self.queued_bytes -= len(batch.body)
        self._events_held.hold(-batch.held)
        self._count_deferred(deferred_bytes)

    # --- memory ---

    def charge(self, events: Holding, ids: Holding, deferred_bytes: int) -> None:
        """Count here from now on; ids that are taken and bytes of episodes that are deferred are counted at once."""
        self._events_held, self._ids_held = events, ids
        self._hold_ids(size_of_ids(self.ids))
        self._deferred_held = 0
        self._count_deferred(deferred_bytes)

    def _count_deferred(self, held: int) -> None:
        if held != self._deferred_held:
            self._ids_held.hold(held - self._deferred_held)
            self._deferred_held = held

    def close(self) -> None:
        """Nothing waits any more, and no id will be asked for."""
        self._events_held.free()
        self._ids_held.free()
        # Why: a batch that is refused after this must not be taken off the budget again.
        self._events_held, self._ids_held = uncounted(), uncounted()
        self.ids, self._earlier = set(), set()

    @property
    def has_room(self) -> bool:
        """Whether there is memory for many more events to wait."""
        return self._events_held.has_room

    def is_full(self, limit: int) -> bool:
        """Whether more than ``limit`` bytes wait, or anything waits while the budget has no room.

        Where nothing waits there is always room for a little: a session need not wait for others.
        """
        return self.queued_bytes >= limit or bool(self.queued_bytes and not self.has_room)

    def check_ids(self) -> None:
        """Raise where there is no memory to know more ids by.

        Raises:
            ProtocolError: no more events can be taken.
        """
        if not self._ids_held.has_room:
            raise ProtocolError(
                Code.LIMIT,
                f"there is no memory for more event ids than the {len(self.ids) + len(self._earlier)} of this session and those of others",
                "close the session and open another, or raise limits.ids_bytes and limits.user_ids_bytes",
            )

    def __repr__(self) -> str:
        return f"<Intake {self.admitted} admitted, {self.queued_bytes} bytes queued>"
