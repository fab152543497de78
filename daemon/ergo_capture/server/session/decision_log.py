"""The daemon's capturing decision log: what the supervisor logs waits here for the next commit."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Final

from ergo_capture.errors import ErgoCaptureError
from ergo_capture.journal.decision_rows import DecisionRows
from ergo_capture.journal.frame import FrameKind, PendingFrame, Position
from ergo_capture.journal.payloads import SessionDescription
from ergo_capture.kernel.events import EventLike
from ergo_capture.kernel.outcomes import Decision, RunTermination
from ergo_capture.kernel.ports import DecisionLogEntry

#: What engines said that is too much for one more decision in a frame; a frame holds 64 MiB, a decision half of that.
_FULL_FRAME_BYTES: Final = 16 << 20
#: Told of a session's decisions: the index of the first, how many, and a function that makes the first n of them.
Listener = Callable[[int, int, Callable[[int], Iterable[DecisionLogEntry]]], None]


class JournalDecisionLog:
    """A DecisionLog whose entries become DECISIONS frames of one session.

    Args:
        session: the session's number in the journal.
        description: what the session is.
        first: index of the first decision that will be logged.
        on_durable: told of the frame's position, first index and count.
        on_failed: told when decisions can never become durable.
    """

    def __init__(
        self,
        session: int,
        description: SessionDescription,
        first: int,
        on_durable: Callable[[Position, int, int], None],
        on_failed: Callable[[ErgoCaptureError], None],
    ) -> None:
        self._session = session
        self._graph = description.graph
        self._deadline = description.constraints.deadline
        self._on_durable = on_durable
        self._on_failed = on_failed
        self._rows = DecisionRows()
        #: Rows that fill a frame each and come before those.
        self._full: deque[DecisionRows] = deque()
        #: A frame that is being written, or that a full disk refused and that goes first the next time.
        self._frame: PendingFrame | None = None
        #: Decisions logged so far, durable or not; and those that are durable.
        self.logged = first
        self._durable = first
        self._framed = first
        #: Entries kept for a client that asked for decisions, until they are durable and taken.
        self._followed: deque[DecisionLogEntry] | None = None
        #: Whether that client has gone, so that nobody takes them.
        self._left = False
        #: Told of decisions as they are logged, where somebody watches.
        self.listener: Listener | None = None

    def log(self, entry: DecisionLogEntry) -> None:
        """Keep the decision for the next commit."""
        self._rows.add(entry)
        if self._rows.bytes >= _FULL_FRAME_BYTES:
            self._full.append(self._rows)
            self._rows = DecisionRows()
        if self.listener is not None:
            self.listener(self.logged, 1, lambda _count: (entry,))
        self.logged += 1
        if self._followed is not None:
            self._followed.append(entry)

    def log_plain(self, events: Sequence[EventLike], first_episode: int) -> None:
        """Keep a run of plain invocations (``ports.RunLengthDecisionLog``)."""
        if self._followed is not None:
            for offset, event in enumerate(events):
                self.log(self._plain_entry(event, first_episode + offset))
            return
        self._rows.add_plain(first_episode, len(events))
        if self.listener is not None:
            self.listener(self.logged, len(events), partial(self._plain_entries, events, first_episode))
        self.logged += len(events)

    def _plain_entry(self, event: EventLike, episode: int) -> DecisionLogEntry:
        completed = RunTermination.Completed
        return DecisionLogEntry(
            self._graph, event.event_id, event, Decision.Invoke, None, episode, self._deadline, completed, 0
        )

    def _plain_entries(self, events: Sequence[EventLike], first_episode: int, count: int) -> list[DecisionLogEntry]:
        return [self._plain_entry(event, first_episode + offset) for offset, event in enumerate(events[:count])]

    @property
    def waiting(self) -> bool:
        """Whether there is anything that is not durable yet."""
        return bool(self._frame is not None or self._full or self._rows.count)

    @property
    def waiting_bytes(self) -> int:
        """Bytes of what engines said of decisions that are not durable yet."""
        full = sum(rows.bytes for rows in self._full)
        return self._rows.bytes + full + (0 if self._frame is None else len(self._frame.body))

    def to_frame(self) -> PendingFrame | None:
        """What was logged since the last frame, or as much of it as one frame holds."""
        if self._frame is None and (self._full or self._rows.count):
            if self._full:
                rows = self._full.popleft()
            else:
                rows, self._rows = self._rows, DecisionRows()
            self._frame = PendingFrame(FrameKind.DECISIONS, self._session, self._framed, rows.count, rows.encode())
            self._framed += rows.count
        return self._frame

    def on_durable(self, position: Position) -> None:
        """The frame is on stable storage."""
        frame, self._frame = self._frame, None
        assert frame is not None
        self._durable = frame.first + frame.count
        if self._left:
            self.take_followed()
        self._on_durable(position, frame.first, frame.count)

    def on_refused(self, error: ErgoCaptureError) -> None:
        """The journal has failed; a disk that is merely full is the writer's to wait for."""
        self._on_failed(error)

    # --- for a client that asked for decisions ---

    def follow(self, *, on: bool) -> int:
        """Keep decisions for the owner until they are durable and taken with ``take_followed``.

        Returns how many decisions come before the first that will be kept. Those that are made and not durable are
        among the kept where decisions were followed before.
        """
        kept, pending = self._followed or deque(), self.logged - self._durable
        self._followed = deque(list(kept)[-pending:] if pending else ()) if on else None
        self._left = False
        return self.logged - len(self._followed or ())

    def leave(self) -> None:
        """The client has gone: what is durable is not kept for it, and what is not only until it is.

        Why until then: one that comes back before is told of it.
        """
        self._left = True
        self.take_followed()

    @property
    def kept(self) -> int:
        """Decisions that are kept for a client, durable or not."""
        return len(self._followed or ())

    @property
    def is_followed(self) -> bool:
        """Whether a client waits for decisions."""
        return self._followed is not None

    @property
    def untaken(self) -> int:
        """The kept decisions that are durable by now and were not taken."""
        return len(self._followed) - (self.logged - self._durable) if self._followed else 0

    def take_followed(self) -> list[DecisionLogEntry]:
        """The kept decisions that are durable by now."""
        followed = self._followed
        if not followed:
            return []
        return [followed.popleft() for _ in range(self.untaken)]

    def __repr__(self) -> str:
        return f"<JournalDecisionLog session {self._session}, {self.logged} logged, {self._rows.count} waiting>"
