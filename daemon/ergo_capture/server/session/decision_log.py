"""The decision log of a session in the daemon: it holds decisions until the next commit."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Final

from ergo_capture.errors import ErgoCaptureError
from ergo_capture.journal.decision_rows import DecisionRows, Refusal
from ergo_capture.journal.frame import FrameKind, PendingFrame, Position
from ergo_capture.journal.payloads import Interruption, RefusedEvent
from ergo_capture.journal.recovery import RecoveredSession
from ergo_capture.kernel.events import EventLike
from ergo_capture.kernel.outcomes import Decision, RunTermination
from ergo_capture.kernel.ports import DecisionLogEntry

#: Bytes of effects at which a frame takes no further decision: a frame holds 64 MiB, and one decision half of that.
_FULL_FRAME_BYTES: Final = 16 << 20
#: Called with the index of the first of some decisions, their number, and a function that makes the first n of them.
Listener = Callable[[int, int, Callable[[int], Iterable[DecisionLogEntry]]], None]


class JournalDecisionLog:
    """A ``DecisionLog`` whose entries become DECISIONS frames of one session; a ``Submission`` to the writer.

    Args:
        initial: the session as recovery found it, or a new one.
        on_durable: called with a frame's position, its first index and its number of decisions.
        on_failed: called when decisions can never become durable.
        count: called with a termination and the number of episodes that ended so.
        on_refused: called with each event that is refused.
    """

    def __init__(
        self,
        initial: RecoveredSession,
        on_durable: Callable[[Position, int, int], None],
        on_failed: Callable[[ErgoCaptureError], None],
        count: Callable[[RunTermination, int], None] = lambda _termination, _count: None,
        on_refused: Callable[[RefusedEvent], None] = lambda _refused: None,
    ) -> None:
        self._session_number = initial.number
        self._graph = initial.description.graph
        self._deadline = initial.description.constraints.deadline
        self._on_durable = on_durable
        self._on_failed = on_failed
        self._count = count
        self._on_refused = on_refused
        #: Rows for the next frame; before them, rows that fill a frame each.
        self._rows = DecisionRows()
        self._full: deque[DecisionRows] = deque()
        #: A frame that is being written, or that a full disk refused and that is written first the next time.
        self._frame: PendingFrame | None = None
        #: Decisions and refusals logged so far, durable or not.
        self.logged = initial.decided
        #: Events that were refused: how many, and the last of them, durable or not.
        self.refused = initial.refused
        self.last_refused = initial.refusals
        self._durable = initial.decided
        self._framed = initial.decided
        #: Entries kept for a client that asked for decisions, until they are durable and taken; None for a refusal.
        self._followed: deque[DecisionLogEntry | None] | None = None
        #: Whether that client has gone.
        self._left = False
        #: Called when decisions are logged; None unless a tap watches.
        self.listener: Listener | None = None

    # --- logging ---

    def log(self, entry: DecisionLogEntry) -> None:
        """Add a decision to the next commit."""
        self._rows.add(entry)
        if entry.termination is not None:
            self._count(entry.termination, 1)
        self._end_full_frame()
        if self.listener is not None:
            self.listener(self.logged, 1, lambda _count: (entry,))
        self.logged += 1
        if self._followed is not None:
            self._followed.append(entry)

    def refuse(self, event_id: str, refusal: Refusal) -> None:
        """Add the refusal of an event to the next commit."""
        self._rows.add_refusal(refusal)
        self._end_full_frame()
        refused = RefusedEvent(self.logged, event_id, refusal.code, refusal.message)
        self.last_refused.append(refused)
        self._on_refused(refused)
        self.refused += 1
        self.logged += 1
        if self._followed is not None:
            self._followed.append(None)

    def end_run(self, interruption: Interruption) -> None:
        """Record that the run was interrupted after the last logged decision, in one frame with it."""
        rows = self._full[-1] if self._full and not self._rows.count else self._rows
        rows.add_end(interruption)

    def _end_full_frame(self) -> None:
        if self._rows.bytes >= _FULL_FRAME_BYTES:
            self._full.append(self._rows)
            self._rows = DecisionRows()

    def log_plain(self, events: Sequence[EventLike], first_episode: int) -> None:
        """Add consecutive plain invocations (``ports.RunLengthDecisionLog``)."""
        if self._followed is not None:
            for entry in self._plain_entries(events, first_episode, len(events)):
                self.log(entry)
            return
        self._rows.add_plain(first_episode, len(events))
        self._count(RunTermination.Completed, len(events))
        if self.listener is not None:
            self.listener(self.logged, len(events), partial(self._plain_entries, events, first_episode))
        self.logged += len(events)

    def _plain_entries(self, events: Sequence[EventLike], first_episode: int, count: int) -> list[DecisionLogEntry]:
        graph, deadline, completed = self._graph, self._deadline, RunTermination.Completed
        return [
            DecisionLogEntry(graph, event.event_id, event, Decision.Invoke, None, episode, deadline, completed, 0)
            for episode, event in enumerate(events[:count], first_episode)
        ]

    # --- committing ---

    @property
    def waiting(self) -> bool:
        """Whether any decision is not durable."""
        return bool(self._frame is not None or self._full or self._rows.count or self._rows.is_end)

    @property
    def is_framed(self) -> bool:
        """Whether all decisions are durable, or in the frame that is being written."""
        return not self._full and not self._rows.count and not self._rows.is_end

    @property
    def waiting_bytes(self) -> int:
        """Bytes of effects in decisions that are not durable."""
        full = sum(rows.bytes for rows in self._full)
        return self._rows.bytes + full + (0 if self._frame is None else len(self._frame.body))

    def to_frame(self) -> PendingFrame | None:
        """Return a frame of what was logged since the last one, or of as much as one frame holds."""
        if self._frame is None and (self._full or self._rows.count or self._rows.is_end):
            if self._full:
                rows = self._full.popleft()
            else:
                rows, self._rows = self._rows, DecisionRows()
            self._frame = PendingFrame(
                FrameKind.DECISIONS, self._session_number, self._framed, rows.count, rows.encode()
            )
            self._framed += rows.count
        return self._frame

    def on_durable(self, position: Position) -> None:
        """Note that the frame is on stable storage."""
        frame, self._frame = self._frame, None
        assert frame is not None
        self._durable = frame.first + frame.count
        if self._left:
            self.take_followed()
        self._on_durable(position, frame.first, frame.count)

    def on_refused(self, error: ErgoCaptureError) -> None:
        """Note that the journal has failed; while the disk is merely full, the writer tries again by itself."""
        self._on_failed(error)

    # --- for a client that asked for decisions ---

    def follow(self, *, on: bool) -> int:
        """Keep decisions for the owner until they are durable and taken with ``take_followed``.

        Decisions that are logged and not durable are among the kept ones if decisions were followed before.

        Returns:
            The number of decisions before the first that will be kept.
        """
        kept, pending = self._followed or deque(), self.logged - self._durable
        self._followed = deque(list(kept)[-pending:] if pending else ()) if on else None
        self._left = False
        return self.logged - len(self._followed or ())

    def leave(self) -> None:
        """Keep only decisions that are not durable for a client that has gone: it may resume before they are."""
        self._left = True
        self.take_followed()

    @property
    def is_followed(self) -> bool:
        """Whether a client waits for decisions."""
        return self._followed is not None

    @property
    def kept(self) -> int:
        """The number of decisions that are kept for a client, durable or not."""
        return len(self._followed or ())

    @property
    def untaken(self) -> int:
        """The number of kept decisions that are durable."""
        return len(self._followed) - (self.logged - self._durable) if self._followed else 0

    def take_followed(self) -> list[DecisionLogEntry | None]:
        """Remove and return the kept decisions that are durable; None stands for a refused event."""
        followed = self._followed
        if not followed:
            return []
        return [followed.popleft() for _ in range(self.untaken)]
