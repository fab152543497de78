"""Prune after each publication and at an interval, by the rules of the configuration, and log what was deleted."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import anyio
import structlog
from anyio import to_thread

from ergo_capture import telemetry
from ergo_capture.bundle.retention import RetentionRules
from ergo_capture.errors import ErgoCaptureError
from ergo_capture.server.ops.pruner import Pruned, Pruner
from ergo_capture.server.ops.status_model import RetentionStatus

log = structlog.get_logger()

#: Seconds without a round for each second that the last one took to find the expired bundles. Deleting them does not
#: count: where bundles are published faster than a tenth of the time suffices to delete them, they would pile up.
_PAUSE_RATIO: Final = 9.0
#: Seconds by which the wall clock may differ from the steady one between two checks without counting as a jump.
_JUMP_SECONDS: Final = 60.0
#: Seconds without deletions by age after a jump of the clock, if no interval is set.
_HOLD_SECONDS: Final = 600.0


class ClockWatch:
    """Compares the wall clock with one that is never set.

    After a jump, and after a start, bundles are not deleted by age for a while: a clock that is years ahead for a
    moment must not delete young bundles.

    Args:
        wall: the wall clock, in seconds.
        steady: a clock that is never set and runs while the machine sleeps, in seconds.
    """

    def __init__(
        self,
        wall: Callable[[], float] = time.time,
        steady: Callable[[], float] = lambda: time.clock_gettime(time.CLOCK_BOOTTIME),
    ) -> None:
        self._wall, self._steady = wall, steady
        self._offset = wall() - steady()
        #: The time of the last jump, or of the start, on the steady clock.
        self._since = steady()
        #: Seconds of the last jump; positive if it was forwards.
        self.jump = 0.0

    def has_jumped(self) -> bool:
        """Return whether the wall clock was set since the last call, rather than corrected slowly."""
        steady = self._steady()
        offset = self._wall() - steady
        jump, self._offset = offset - self._offset, offset
        if abs(jump) <= _JUMP_SECONDS:
            return False
        self.jump, self._since = jump, steady
        return True

    def seconds_to_wait(self, hold: float) -> float:
        """Return the seconds until ages may be judged, ``hold`` seconds after the last jump; 0 for now."""
        return max(0.0, self._since + hold - self._steady())


class Retention:
    """Prunes after each publication and at an interval, in a worker thread.

    Args:
        pruner: deletes the bundles.
        rules: the bounds.
        interval: seconds between rounds; 0 for rounds after publications only.
        clock: says when ages may be judged.
    """

    def __init__(self, pruner: Pruner, rules: RetentionRules, interval: float, clock: ClockWatch | None = None) -> None:
        self._rules = rules
        self._pruner = pruner
        self._interval = interval
        self._clock = clock or ClockWatch()
        self._due = asyncio.Event()
        self._due.set()
        self._is_short = False
        #: Bundles deleted since the start, and the bytes of their files.
        self.pruned = 0
        self.pruned_bytes = 0
        #: The number of bundles with an impossible time of end.
        self.suspects = 0

    def count_as_free(self, spare_bytes: Callable[[], Mapping[Path, int]]) -> None:
        """Count as free the bytes that ``spare_bytes`` returns by directory: they are freed when the disk is full."""
        self._pruner.spare_bytes = spare_bytes

    def bury_with(self, bury: Callable[[Path, str], None]) -> None:
        """Call ``bury`` for each bundle that is about to be deleted, with the reason."""
        self._pruner.bury = bury

    @property
    def ages_held_seconds(self) -> float:
        """Seconds until bundles are deleted by their age again; 0 where they are."""
        return self._clock.seconds_to_wait(self._interval or _HOLD_SECONDS)

    def status(self) -> RetentionStatus | None:
        """Return the status of retention; None if no age is bounded."""
        if not self._rules.have_ages:
            return None
        return RetentionStatus(ages_held_seconds=self.ages_held_seconds, suspects=self.suspects)

    def look(self) -> None:
        """Start a round soon: a bundle was published."""
        self._due.set()

    def apply(self, rules: RetentionRules, interval: float) -> None:
        """Use other bounds, and start a round soon."""
        self._rules, self._interval = rules, interval
        self._due.set()

    async def run(self) -> None:
        """Prune until cancelled; a deletion in progress is finished."""
        try:
            # Do it under any rules: those that began it may be gone from the configuration.
            await to_thread.run_sync(self._pruner.finish_begun)
        except ErgoCaptureError as error:
            self._report_failure(error)
        while True:
            waits = (self._interval, self.ages_held_seconds if self._rules.have_ages else 0)
            with anyio.move_on_after(min(filter(None, waits), default=None)):
                await self._due.wait()
            self._due.clear()
            if self._rules.are_set:
                await self.take_round()
                # Pause: with many bundles a look takes long, and every publication asks for one.
                await anyio.sleep(_PAUSE_RATIO * self._pruner.look_seconds)

    async def take_round(self) -> None:
        """Delete the bundles that exceed a bound now, and log each."""
        self._look_at_the_clock()
        rules, by_age = self._rules, not self.ages_held_seconds
        is_invalid = False

        def may_delete() -> bool:
            nonlocal is_invalid
            # After a jump of the clock the ages of this round are wrong.
            is_invalid = self._look_at_the_clock() and by_age
            return not is_invalid

        steps = self._pruner.prune(rules if by_age else rules.without_ages(), may_delete=may_delete)
        try:
            while (step := await to_thread.run_sync(next, steps, None)) is not None:
                self._report(step)
            if is_invalid:
                self._due.set()
                return
            self._report_suspects()
            free = await to_thread.run_sync(self._pruner.free_bytes) if rules.keep_free_bytes else {}
        except ErgoCaptureError as error:
            self._report_failure(error)
            return
        short = any(room < rules.keep_free_bytes for room in free.values())
        if short and not self._is_short:
            log.warning(
                telemetry.RETENTION_SHORT,
                keep_free_bytes=rules.keep_free_bytes,
                unshipped=len(self._pruner.unshipped),
                hint="no further bundle may be deleted: free some space, or lower retention.keep_free_bytes; a bundle "
                "that is not shipped stays until retention.give_up_after",
            )
        self._is_short = short

    def _look_at_the_clock(self) -> bool:
        jumped = self._clock.has_jumped()
        if jumped and self._rules.have_ages:
            log.warning(
                telemetry.RETENTION_HELD,
                jump_seconds=round(self._clock.jump, 3),
                seconds=round(self.ages_held_seconds, 3),
                hint="the clock was set: no bundle is deleted by its age for that long; check that the time is right",
            )
        return jumped

    def _report_suspects(self) -> None:
        """Log that times of bundles are impossible, if there are more such bundles than before."""
        suspects = self._pruner.suspects
        if len(suspects) > self.suspects:
            log.warning(
                telemetry.RETENTION_SUSPECT,
                bundles=len(suspects),
                newest=str(suspects[-1].path),
                ended_at=str(suspects[-1].ended_at),
                hint="the clock was wrong when they ended: they are deleted by number, size and free space, and by the "
                "age of bundles published after them",
            )
        self.suspects = len(suspects)

    def _report_failure(self, error: ErgoCaptureError) -> None:
        """Log that a round failed; the next one tries again."""
        log.error(telemetry.RETENTION_FAILED, error=error.message, path=error.path, hint=error.hint)

    def _report(self, step: Pruned) -> None:
        bundle = step.choice.bundle
        if step.kept is not None:
            log.warning(
                telemetry.BUNDLE_UNSOUND,
                bundle=str(bundle.path),
                graph=bundle.graph,
                reason=step.kept,
                hint="it is kept at any age: check it with `ergo-capture verify`, then move it away",
            )
            return
        self.pruned += 1
        self.pruned_bytes += bundle.size
        if step.choice.is_given_up:
            log.error(
                telemetry.RETENTION_GAVE_UP,
                bundle=str(bundle.path),
                graph=bundle.graph,
                bytes=bundle.size,
                reason=step.choice.reason,
                hint="it was deleted before every target of retention.shipped_to held it: see `ergo-capture ship "
                "status` and `ergo-capture ship check`",
            )
            return
        log.info(
            telemetry.BUNDLE_PRUNED,
            bundle=str(bundle.path),
            graph=bundle.graph,
            bytes=bundle.size,
            reason=step.choice.reason,
        )
