"""The parts of one session on their way to bundles: growing, ended, published."""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import Collection
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final, Protocol

import anyio
import msgspec
import structlog

from ergo_capture import telemetry
from ergo_capture.errors import ErgoCaptureError
from ergo_capture.journal.frame import FrameKind, PendingFrame, Position
from ergo_capture.journal.payloads import Closing, Publication, Rotation, SessionDescription, encode_body
from ergo_capture.journal.recovery import PendingPublication, RecoveredSession
from ergo_capture.server.commit.submission import Batch, append
from ergo_capture.server.commit.writer import Writer
from ergo_capture.server.failures import mistake
from ergo_capture.storage import FULL
from ergo_capture.storage.write_error import CaptureWriteError

log = structlog.get_logger()

#: Seconds between attempts to write a bundle while the disk is full. Each composes anew.
RETRY_SECONDS: Final = 1.0


@dataclass(slots=True)
class Part:
    """The stretch of a session that becomes one bundle."""

    #: From 1; more than one only where the session was rotated.
    number: int
    #: Index of the part's first event in the session.
    first: int
    #: The oldest journal segment that holds a frame of it.
    segment: int
    #: Loop time it began, in seconds; only rotation by age looks at it.
    began: float
    #: Packed positions of the frames that hold the part, in order.
    event_frames: array[int] = field(default_factory=lambda: array("Q"))
    decision_frames: array[int] = field(default_factory=lambda: array("Q"))
    #: Bytes of event lines.
    bytes: int = 0
    #: Loop time at which a bound was passed; None before.
    due_since: float | None = None


@dataclass(frozen=True, slots=True)
class RotationRule:
    """When a part ends: after the first chunk that reaches a bound; zero turns a bound off.

    It ends at a moment when nothing is deferred, so that its bundle replays on its own. After
    ``force_after`` seconds without such a moment it ends all the same, and its manifest says so.
    """

    max_events: int = 0
    max_bytes: int = 0
    #: Seconds.
    max_age: float = 0.0
    #: Seconds.
    force_after: float = 60.0

    def is_due(self, part: Part, events: int, now: float) -> bool:
        """Whether a part with that many decided events has reached a bound."""
        return bool(
            events
            and (
                (self.max_events and events >= self.max_events)
                or (self.max_bytes and part.bytes >= self.max_bytes)
                or (self.max_age and now - part.began >= self.max_age)
            )
        )

    def may_end(self, part: Part, deferred: int, now: float) -> bool:
        """Whether a part that is due ends now, with that many episodes deferred."""
        return not deferred or (part.due_since is not None and now - part.due_since >= self.force_after)

    def next_look(self, part: Part, events: int, now: float) -> float | None:
        """Seconds until time alone can change the answer; None where it cannot."""
        if part.due_since is not None:
            return max(0.0, part.due_since + self.force_after - now)
        return max(0.0, part.began + self.max_age - now) if self.max_age and events else None


class Publisher(Protocol):
    """Makes bundles of sessions' parts."""

    async def publish(
        self, description: SessionDescription, part: Part, count: int, ended: str, *, forced: bool = False
    ) -> Publication:
        """Compose ``count`` events of the part and publish them durably."""


class Parts:
    """The parts of one session.

    Args:
        number: the session's number in the journal.
        description: what the session is.
        segment: the journal segment of its OPEN frame.
        rule: when a part ends.
        writer: makes frames durable.
        publisher: makes bundles.
    """

    def __init__(
        self,
        number: int,
        description: SessionDescription,
        segment: int,
        rule: RotationRule,
        writer: Writer,
        publisher: Publisher,
    ) -> None:
        self._number = number
        self._description = description
        self._rule = rule
        self._writer = writer
        self._publisher = publisher
        self._loop = asyncio.get_running_loop()
        #: The part that grows.
        self.current = Part(1, 0, segment, self._loop.time())
        self._unpublished: list[PendingPublication] = []
        #: The oldest segment that the part that grows needs, once those before it are published.
        self._part_segment = segment
        #: Whether the CLOSE frame is durable already.
        self.is_closed = False
        #: The bundle of the part before the one that grows, once it is durable; None where there is none, or not since
        #: the start.
        self._before: asyncio.Future[Publication] | None = None
        #: Held while a bundle is made. Why: a snapshot that comes late would take the place of the bundle behind it.
        self._in_order = anyio.Lock()

    def take_over(self, recovered: RecoveredSession) -> None:
        """Go on where recovery found the session."""
        part = self.current = Part(recovered.part, recovered.first, recovered.segment, self._loop.time())
        part.event_frames = recovered.event_frames
        part.decision_frames = recovered.decision_frames
        part.bytes = recovered.event_bytes
        self._unpublished = recovered.unpublished
        self._part_segment = recovered.part_segment
        self.is_closed = recovered.closing is not None

    @property
    def segment(self) -> int:
        """The oldest journal segment that is still needed."""
        return self.current.segment

    # --- what is durable ---

    def add_events(self, position: Position, size: int) -> None:
        """A frame of events, in lines of so many bytes, is on stable storage."""
        self.current.event_frames.append(position.pack())
        self.current.bytes += size

    def add_decisions(self, position: Position) -> None:
        """A frame of decisions is on stable storage."""
        self.current.decision_frames.append(position.pack())

    # --- the end of a part ---

    def is_due(self, logged: int) -> bool:
        """Whether the part should end, with so many decisions of the session logged; once it should, it stays so."""
        part, now = self.current, self._loop.time()
        if part.due_since is None and self._rule.is_due(part, logged - part.first, now):
            part.due_since = now
        return part.due_since is not None

    def may_end(self, deferred: int) -> bool:
        """Whether a part that is due ends now, with so many episodes deferred."""
        return self._rule.may_end(self.current, deferred, self._loop.time())

    def next_look(self, logged: int) -> float | None:
        """Seconds until time alone can change these answers; None where it cannot."""
        return self._rule.next_look(self.current, logged - self.current.first, self._loop.time())

    async def rotate(self, boundary: int, early: Collection[Batch], last_event_id: str | None, *, forced: bool) -> None:
        """End the part at ``boundary``, a count of events of the session, all decided; the next one begins with ``early``.

        Raises:
            ErgoCaptureError: what failed; the journal holds all of it.
        """
        old = self.current
        new = Part(old.number + 1, boundary, old.segment, self._loop.time())
        # Why: one accepted batch is one frame, and those not yet decided belong to the new part.
        new.event_frames = old.event_frames[len(old.event_frames) - len(early) :] if early else array("Q")
        new.bytes = sum(len(batch.body) for batch in early)
        if early:
            del old.event_frames[-len(early) :]
            old.bytes -= new.bytes
        self.current = new
        before = self._before = self._loop.create_future()
        try:
            body = encode_body(Rotation(old.number, forced, utc_now(), self._description, last_event_id))
            position = await append(self._writer, PendingFrame(FrameKind.ROTATE, self._number, boundary, 0, body))
            before.set_result(await self._publish(old, boundary - old.first, "rotated", final=False, forced=forced))
        except Exception as error:
            before.set_exception(error if isinstance(error, ErgoCaptureError) else mistake(error))
            # Why asked: it is raised here, and nobody else may want it.
            before.exception()
            raise
        first_frames = [Position.unpack(packed).segment for packed in new.event_frames[:1]]
        new.segment = min([position.segment, *first_frames])

    # --- bundles ---

    async def publish_left_over(self) -> None:
        """Publish the parts that had ended and were not published when the daemon stopped.

        Raises:
            ErgoCaptureError: what failed; the journal holds all of it.
        """
        for pending in self._unpublished:
            part = Part(pending.part, pending.first, pending.segment, self._loop.time())
            part.event_frames, part.decision_frames = pending.event_frames, pending.decision_frames
            await self._publish(part, pending.count, pending.ended, final=False, forced=pending.forced)
        self._unpublished = []
        self.current.segment = self._part_segment

    async def publish_as_it_is(self, decided: int, ended: str) -> Publication:
        """Publish the part that grows, up to so many decisions of the session; it goes on growing.

        Where nothing of it is decided yet, the part before it holds all that there is, and is waited for.

        Raises:
            ErgoCaptureError: what failed; the journal holds all of it.
        """
        part = self.current
        if decided <= part.first and self._before is not None:
            return await asyncio.shield(self._before)
        return await self._make(part, decided - part.first, ended)

    async def finish(self, decided: int, ended: str) -> Publication:
        """Close the session with so many decisions, and publish its last part.

        Raises:
            ErgoCaptureError: what failed; the journal holds all of it.
        """
        if not self.is_closed:
            body = encode_body(Closing(ended, utc_now()))
            await append(self._writer, PendingFrame(FrameKind.CLOSE, self._number, decided, 0, body))
            self.is_closed = True
        return await self._publish(self.current, decided - self.current.first, ended, final=True)

    async def _publish(self, part: Part, count: int, how: str, *, final: bool, forced: bool = False) -> Publication:
        publication = await self._publish_when_there_is_room(part, count, how, forced=forced)
        publication = msgspec.structs.replace(publication, final=final)
        frame = PendingFrame(FrameKind.PUBLISHED, self._number, part.number, int(final), encode_body(publication))
        await append(self._writer, frame)
        return publication

    async def _publish_when_there_is_room(self, part: Part, count: int, how: str, *, forced: bool) -> Publication:
        said = False
        while True:
            try:
                return await self._make(part, count, how, forced=forced)
            except CaptureWriteError as error:
                # Why: a session that fails goes on with the next start only, and a full disk is no reason for one.
                if not is_full(error):
                    raise
                if not said:
                    said = True
                    session = self._description.session
                    log.error(telemetry.BUNDLE_DELAYED, session=session, error=error.message, hint=error.hint)  # noqa: TRY400
            await asyncio.sleep(RETRY_SECONDS)

    async def _make(self, part: Part, count: int, how: str, *, forced: bool = False) -> Publication:
        async with self._in_order:
            return await self._publisher.publish(self._description, part, count, how, forced=forced)

    def __repr__(self) -> str:
        return f"<Parts of {self._description.session}, at part {self.current.number}>"


def is_full(error: CaptureWriteError) -> bool:
    """Whether a bundle could not be written because there is no room for it."""
    return isinstance(error.cause, OSError) and error.cause.errno in FULL


def utc_now() -> str:
    """The wall clock as RFC 3339 in UTC: evidence, never an input of a decision."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
