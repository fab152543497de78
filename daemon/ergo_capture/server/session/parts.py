"""The parts of one session: the events of each, the rule of rotation, and the publication of bundles."""

from __future__ import annotations

import asyncio
from array import array
from bisect import bisect_left
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final, Protocol

import msgspec
import structlog

from ergo_capture import telemetry
from ergo_capture.bundle.manifest import SNAPSHOT
from ergo_capture.config.settings import RotationConfig
from ergo_capture.errors import ErgoCaptureError
from ergo_capture.journal.frame import FrameKind, PendingFrame, Position
from ergo_capture.journal.payloads import (
    Closing,
    Interruption,
    LeftOver,
    Loss,
    Publication,
    Rotation,
    SessionDescription,
    encode_body,
)
from ergo_capture.journal.recovery import RecoveredSession
from ergo_capture.server.commit.writer import Writer
from ergo_capture.server.failures import internal_error
from ergo_capture.server.session.admission_queue import EventBatch
from ergo_capture.storage import FULL
from ergo_capture.storage.write_error import CaptureWriteError

log = structlog.get_logger()

#: Seconds between attempts to write a bundle while the disk is full; each attempt composes it again.
RETRY_SECONDS: Final = 1.0
#: Seconds that a part that is full waits for the next event.
FULL_SECONDS: Final = 1.0
#: Publications that are remembered of one session.
_MOST_PUBLICATIONS: Final = 1_000


@dataclass(slots=True)
class Part:
    """The events of a session that become one bundle."""

    #: From 1; above 1 only where the session was rotated.
    number: int
    #: Index of the part's first event in the session.
    first: int
    #: The oldest journal segment that holds a frame of it.
    segment: int
    #: Loop time at which it began, in seconds; only rotation by age uses it.
    began: float
    #: Packed positions of the frames that hold the part, in order.
    event_frames: array[int] = field(default_factory=lambda: array("Q"))
    decision_frames: array[int] = field(default_factory=lambda: array("Q"))
    #: Bytes of event lines.
    bytes: int = 0
    #: Loop time at which a bound was reached; None before.
    due_since: float | None = None
    #: The loss of acknowledged events up to its end; None for none.
    lost: Loss | None = None
    #: Whether it has to end, or to be moved forward, because it keeps too much of the journal.
    is_overdue: bool = False
    #: The context store at its beginning; None without an adapter, and in the first part.
    store: dict[str, Any] | None = None
    #: The interruption of the run in it, and the events that are left over.
    interruption: Interruption | None = None
    left_over: LeftOver | None = None


@dataclass(frozen=True, slots=True)
class RotationRule:
    """When a part ends: after the first chunk that reaches a bound; zero turns a bound off.

    A part ends at a moment when nothing is deferred, so that its bundle replays on its own. After ``force_after``
    seconds without such a moment it ends nevertheless, and its manifest says that it was forced. A part that is full by
    its events or bytes waits a second for the next event: a session that ends there has no empty last bundle. A part
    without events that keeps too much of the journal is moved forward instead.
    """

    bounds: RotationConfig

    @property
    def is_on(self) -> bool:
        """Whether the events, the bytes or the age of a part are bounded."""
        return bool(self.bounds.max_events or self.bounds.max_bytes or self.bounds.max_age)

    def is_due(self, part: Part, events: int, now: float) -> bool:
        """Return whether a part with that many decided events has reached a bound."""
        return bool(
            events
            and (
                part.is_overdue
                or (self.bounds.max_events and events >= self.bounds.max_events)
                or (self.bounds.max_bytes and part.bytes >= self.bounds.max_bytes)
                or self._is_old(part, now)
            )
        )

    def may_not_wait(self, part: Part, now: float) -> bool:
        """Return whether a part that is due ends before a further event comes."""
        waited = part.due_since is not None and now - part.due_since >= FULL_SECONDS
        return waited or part.is_overdue or self._is_old(part, now)

    def may_end(self, part: Part, deferred: int, now: float) -> bool:
        """Return whether a part that is due may end now, with that many episodes deferred."""
        return not deferred or (part.due_since is not None and now - part.due_since >= self.bounds.force_after.seconds)

    def next_check(self, part: Part, events: int, now: float) -> float | None:
        """Return the seconds after which a part may be due without a further event; None for never."""
        if part.due_since is not None:
            seconds = self.bounds.force_after.seconds if self.may_not_wait(part, now) else FULL_SECONDS
            return max(0.0, part.due_since + seconds - now)
        if not (self.bounds.max_age and events):
            return None
        return max(0.0, part.began + self.bounds.max_age.seconds - now)

    def _is_old(self, part: Part, now: float) -> bool:
        age = self.bounds.max_age
        return bool(age) and now - part.began >= age.seconds


class Publisher(Protocol):
    """Composes the bundles of sessions' parts."""

    async def compose(
        self, description: SessionDescription, part: Part, count: int, ended: str, *, forced: bool = False
    ) -> Publication:
        """Compose the bundle of the part's first ``count`` events; it is durable under its name afterwards."""

    async def bundles(self, description: SessionDescription, parts: range, known: Mapping[int, str]) -> list[str]:
        """Return the paths of the bundles of these parts that exist; ``known`` holds some of them, by part."""


@dataclass(slots=True, eq=False)
class _Repeated:
    """A frame that is written again while the part that it begins is empty; a ``Submission`` to the writer."""

    frame: Callable[[], PendingFrame]
    is_empty: Callable[[], bool]
    on_durable: Callable[[Position], None]

    def to_frame(self) -> PendingFrame | None:
        """Return the frame; None if the part has events by now, because the frame must not come after them."""
        return self.frame() if self.is_empty() else None

    def on_refused(self, error: ErgoCaptureError) -> None:
        """Do nothing: the session meets the error itself."""


class Parts:
    """The parts of one session.

    Args:
        initial: the session as recovery found it, or a new one.
        writer: makes frames durable.
        publisher: composes bundles.
    """

    def __init__(self, initial: RecoveredSession, writer: Writer, publisher: Publisher) -> None:
        self._number = initial.number
        self._description = initial.description
        self._writer = writer
        self._publisher = publisher
        self._loop = asyncio.get_running_loop()
        #: The part that new events go to.
        self.current = Part(
            initial.part,
            initial.first,
            initial.segment,
            self._loop.time(),
            initial.event_frames,
            initial.decision_frames,
            initial.event_bytes,
            lost=initial.lost,
            store=None if initial.rotation is None else initial.rotation.store,
        )
        #: The end of the part before the current one, and its publication; None in the first part.
        self._rotation = initial.rotation
        self._publications = dict(initial.publications)
        #: Parts that ended before the start and whose bundles are not known to be durable.
        self._unpublished = initial.unpublished
        #: The oldest segment that the current part needs once those are published.
        self._part_segment = initial.part_segment
        #: Whether the CLOSE frame is durable.
        self.is_closed = initial.closing is not None
        #: The bundle of the part before the current one; None where there is none, or it was published before the start.
        self._previous: asyncio.Future[Publication] | None = None
        #: Held while a bundle is composed: a late snapshot would replace the bundle that was composed after it.
        self._compose_lock = asyncio.Lock()
        #: The error for which the bundle of an ended part waits for room on the disk; empty for none.
        self.delayed_by = ""

    @property
    def segment(self) -> int:
        """The oldest journal segment that is still needed."""
        return self.current.segment

    # --- the end of a part ---

    async def rotate(
        self,
        boundary: int,
        early: Collection[EventBatch],
        last_event_id: str | None,
        *,
        forced: bool,
        store: dict[str, Any] | None,
        refused: int,
    ) -> None:
        """End the current part and publish it.

        Args:
            boundary: events of the session before the next part; all of them are decided.
            early: the batches that are accepted and not decided; they belong to the next part.
            last_event_id: id of the session's last accepted event.
            forced: whether episodes are deferred.
            store: the context store; None without an adapter.
            refused: events of the session that were refused.

        Raises:
            ErgoCaptureError: the part could not be published; the journal holds all of it.
        """
        old = self.current
        new = Part(old.number + 1, boundary, old.segment, self._loop.time(), lost=old.lost, store=store)
        positions = [batch.position.pack() for batch in early if batch.position is not None]
        new.event_frames = array("Q", positions)
        new.bytes = sum(len(batch.body) for batch in early)
        if positions:
            # Packed positions ascend.
            del old.event_frames[bisect_left(old.event_frames, positions[0]) :]
            old.bytes -= new.bytes
        self.current = new
        previous = self._previous = self._loop.create_future()
        try:
            rotation = self._rotation = Rotation(
                old.number, forced, utc_now(), self._describe(old), last_event_id, store, refused
            )
            body = encode_body(rotation)
            position = await self._writer.append(PendingFrame(FrameKind.ROTATE, self._number, boundary, 0, body))
            previous.set_result(await self._publish(old, boundary - old.first, "rotated", forced=forced))
        except Exception as error:
            previous.set_exception(
                error if isinstance(error, ErgoCaptureError) else internal_error("publish part", error)
            )
            # Mark it as retrieved: it is raised here, and no other task may wait for it.
            previous.exception()
            raise
        first_frames = [Position.unpack(packed).segment for packed in new.event_frames[:1]]
        new.segment = min([position.segment, *first_frames])

    async def finish(
        self,
        decided: int,
        ended: str,
        *,
        keep_empty: bool,
        interruption: Interruption | None = None,
        left_over: LeftOver | None = None,
    ) -> Publication:
        """Close the session, which has that many decisions, and publish its last part.

        Args:
            decided: decisions of the session.
            ended: what the manifest says.
            keep_empty: whether a session without events leaves a bundle.
            interruption: the interruption of the run; None for none.
            left_over: the events after it; None for none.

        Raises:
            ErgoCaptureError: the session could not be closed, or the part not published; the journal holds all of it.
        """
        if not self.is_closed:
            body = encode_body(Closing(ended, utc_now(), keep_empty, interruption, left_over))
            behind = 0 if left_over is None else left_over.count
            await self._writer.append(PendingFrame(FrameKind.CLOSE, self._number, decided, behind, body))
            self.is_closed = True
        self.current.interruption, self.current.left_over = interruption, left_over
        if not decided and not keep_empty and not await self._has_snapshot():
            nothing = Publication(self.current.number, bundle="", manifest="", sha256="", final=True)
            await self._writer.append(self._published_frame(nothing))
            return nothing
        return await self._publish(self.current, decided - self.current.first, ended, final=True)

    async def _has_snapshot(self) -> bool:
        """Return whether a flush has published a bundle of the first part, which says that the part goes on."""
        # Wait for a snapshot that is being composed.
        async with self._compose_lock:
            return bool(await self._publisher.bundles(self._description, range(1, 2), {}))

    async def record_loss(self, loss: Loss) -> None:
        """Record in the journal, and in the bundle of the current part, that acknowledged events are missing.

        Raises:
            ErgoCaptureError: the journal has failed, or the daemon stops.
        """
        self.current.lost = loss
        await self._writer.append(PendingFrame(FrameKind.LOSS, self._number, 0, 0, encode_body(loss)))

    # --- bundles ---

    async def publish_recovered(self) -> None:
        """Publish the parts that had ended before the start and were not published.

        Raises:
            ErgoCaptureError: a part could not be published; the journal holds all of it.
        """
        for pending in self._unpublished:
            part = Part(
                pending.part,
                pending.first,
                pending.segment,
                self._loop.time(),
                pending.event_frames,
                pending.decision_frames,
                lost=pending.lost,
                store=pending.store,
            )
            await self._publish(part, pending.count, pending.ended, forced=pending.forced)
        self._unpublished = []
        self.current.segment = self._part_segment

    async def snapshot(self, decided: int) -> Publication:
        """Compose a bundle of the current part's decided events; the part goes on.

        If it has no decided events, return the bundle of the part before, which holds all that is decided.

        Args:
            decided: decisions of the session.

        Raises:
            ErgoCaptureError: composing failed; the journal holds all of it.
        """
        part = self.current
        if decided <= part.first and self._previous is not None:
            return await asyncio.shield(self._previous)
        async with self._compose_lock:
            return await self._publisher.compose(self._describe(part), part, decided - part.first, SNAPSHOT)

    def _describe(self, part: Part) -> SessionDescription:
        """Return the session's description, with the loss of events up to the end of the part."""
        return msgspec.structs.replace(self._description, lost=part.lost)

    async def _publish(
        self, part: Part, count: int, ended: str, *, final: bool = False, forced: bool = False
    ) -> Publication:
        """Compose the bundle of a part that has ended, and commit its PUBLISHED frame; wait while the disk is full."""
        while True:
            try:
                async with self._compose_lock:
                    publication = await self._publisher.compose(self._describe(part), part, count, ended, forced=forced)
                self.delayed_by = ""
                break
            except CaptureWriteError as error:
                # A failed session continues only after a restart; a full disk is not a reason to fail.
                if not is_full(error):
                    raise
                if not self.delayed_by:
                    self.delayed_by = error.message
                    session = self._description.session
                    log.error(telemetry.BUNDLE_DELAYED, session=session, error=error.message, hint=error.hint)  # noqa: TRY400
            await asyncio.sleep(RETRY_SECONDS)
        publication = msgspec.structs.replace(publication, final=final)
        await self._writer.append(self._published_frame(publication))
        self._publications[part.number] = publication
        if len(self._publications) > _MOST_PUBLICATIONS:
            del self._publications[min(self._publications)]
        return publication

    def _published_frame(self, publication: Publication) -> PendingFrame:
        body = encode_body(publication)
        return PendingFrame(FrameKind.PUBLISHED, self._number, publication.part, int(publication.final), body)

    async def bundles(self) -> list[str]:
        """Return the paths of the bundles of all parts that were published, in order, at most the last 1,000."""
        last = max(self._publications, default=0)
        first = max(1, last - _MOST_PUBLICATIONS + 1)
        known = {part: publication.bundle for part, publication in self._publications.items()}
        return await self._publisher.bundles(self._description, range(first, last + 1), known)

    # --- the journal's segments ---

    def move_forward(self, is_empty: Callable[[], bool], on_moved: Callable[[], None]) -> None:
        """Repeat the frames that say where the current part begins, so that older segments can be deleted.

        Args:
            is_empty: returns whether the part has no events and the session goes on; if not, nothing is repeated.
            on_moved: called when the frames are durable.
        """
        part = self.current
        publication = self._publications.get(part.number - 1)

        def opening() -> PendingFrame:
            return PendingFrame(FrameKind.OPEN, self._number, 0, 0, encode_body(self._describe(part)))

        def rotated(rotation: Rotation) -> PendingFrame:
            body = encode_body(msgspec.structs.replace(rotation, description=self._describe(part)))
            return PendingFrame(FrameKind.ROTATE, self._number, part.first, 0, body)

        frames: list[Callable[[], PendingFrame]]
        if self._rotation is None:
            frames = [opening]
        elif publication is not None:
            frames = [partial(rotated, self._rotation), partial(self._published_frame, publication)]
        else:
            return
        positions: list[Position] = []

        def on_durable(position: Position) -> None:
            positions.append(position)
            if len(positions) == len(frames):
                part.segment, part.is_overdue = positions[0].segment, False
                on_moved()

        for frame in frames:
            self._writer.submit_lazily(_Repeated(frame, is_empty, on_durable), urgent=True)


def is_full(error: CaptureWriteError) -> bool:
    """Return whether a bundle could not be written because the disk is full."""
    return isinstance(error.cause, OSError) and error.cause.errno in FULL


def utc_now() -> str:
    """Return the time of the wall clock, RFC 3339 in UTC. It is evidence only: no decision depends on it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
