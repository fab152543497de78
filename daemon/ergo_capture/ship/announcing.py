"""Announce shipped bundles: find receipts without a mark, publish, wait for the acknowledgement, mark the receipt.

The receipts are the only state. After a kill between the acknowledgement and the mark the announcement is repeated; the
stream drops the repetition within its window of duplicates.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import anyio
import msgspec
import structlog
from anyio import CapacityLimiter, to_thread

from ergo_capture import telemetry
from ergo_capture.bundle.catalogue import StoredBundle
from ergo_capture.bundle.receipt import (
    Receipt,
    Receipts,
    encode_receipt,
    place_of,
    read_receipt,
    receipt_path,
    valid_receipt,
)
from ergo_capture.config.shipping import ShipConfig
from ergo_capture.errors import ErgoCaptureError
from ergo_capture.ship.announcement import make_announcement
from ergo_capture.ship.jetstream import AnnounceAway, AnnounceError, AnnounceRefused, Publisher, connected
from ergo_capture.ship.plan import Plan
from ergo_capture.ship.rounds import Outage, run_rounds
from ergo_capture.storage import directory_lock
from ergo_capture.storage.atomic import write_bytes_atomic

log = structlog.get_logger()

#: How many announcements may wait for their acknowledgements at once.
_AT_ONCE: Final = 8


@dataclass
class AnnounceCounts:
    """The counts since the start."""

    announced: int = 0
    #: How many of them the stream had already.
    duplicates: int = 0
    #: By reason: ``away``, ``refused``, ``failed``.
    failures: Counter[str] = field(default_factory=Counter)


class Announcer:
    """Announces the bundles of a state directory once they are shipped.

    Args:
        ship: the settings, with at least one server.
        listed: returns the bundles, the oldest first.
        host: the name of this host in the store.
        counts: the counts from before a reload.
    """

    def __init__(
        self,
        ship: ShipConfig,
        listed: Callable[[], list[StoredBundle]],
        host: str,
        counts: AnnounceCounts | None = None,
    ) -> None:
        self.counts = counts or AnnounceCounts()
        #: Shipped bundles that are not announced, by path; the last look found them.
        self.waiting: dict[Path, StoredBundle] = {}
        #: The outage of the servers, from the first failed round.
        self.outage = Outage(ship.back_off_limit.seconds)
        self._settings = ship.announce
        self._listed = listed
        self._host = host
        self._interval = ship.interval.seconds
        self._receipts = Receipts({name: place_of(target) for name, target in ship.targets.items()})
        self._stopped = asyncio.Event()
        self._threads = CapacityLimiter(_AT_ONCE + 1)

    async def run(self) -> None:
        """Announce until ``stop``."""
        await run_rounds(self.look, self.announce_due, self._delay, interval=self._interval, stopped=self._stopped)

    def _delay(self, pause: float) -> float:
        return pause if self.outage.error is None else self.outage.next_delay()

    def stop(self) -> None:
        """Begin no further announcement."""
        self._stopped.set()

    def oldest_seconds(self) -> float:
        """Return the age of the oldest bundle that is shipped and not announced, from its end."""
        return Plan(self.waiting).oldest_seconds(datetime.now(UTC))

    async def look(self) -> None:
        """Find the bundles that wait. A directory that cannot be read counts as empty: the shipper logs the error."""
        try:
            self.waiting = await to_thread.run_sync(self._look, limiter=self._threads, abandon_on_cancel=True)
        except ErgoCaptureError:
            self.waiting = {}

    def _look(self) -> dict[Path, StoredBundle]:
        bundles = self._listed()
        self._receipts.forget_gone(bundles)
        subject = self._settings.subject
        finished = (bundle for bundle in bundles if bundle.problem is None)
        return {bundle.path: bundle for bundle in finished if self._receipts.unannounced(bundle, subject)}

    async def announce_due(self) -> None:
        """Announce the bundles that the last look found, until a server fails."""
        queue, trouble = deque(self.waiting.values()), list[ErgoCaptureError]()
        if not queue or self._stopped.is_set():
            # A server that failed is tried again when there is something to announce.
            return
        try:
            async with connected(self._settings) as publisher, anyio.create_task_group() as tasks:
                for _ in range(min(_AT_ONCE, len(queue))):
                    tasks.start_soon(self._work, publisher, queue, trouble)
        except ErgoCaptureError as error:
            trouble.append(error)
        if trouble:
            self._note_failure(trouble[0])
        elif not self._stopped.is_set():
            self._note_success()

    async def _work(self, publisher: Publisher, queue: deque[StoredBundle], trouble: list[ErgoCaptureError]) -> None:
        while queue and not self._stopped.is_set() and all(isinstance(each, AnnounceRefused) for each in trouble):
            bundle = queue.popleft()
            try:
                await self._announce(publisher, bundle)
            except AnnounceRefused as error:
                # Continue: a stream may take the subject of another graph.
                trouble.append(error)
                others = [other for other in queue if other.graph != bundle.graph]
                queue.clear()
                queue.extend(others)
            except ErgoCaptureError as error:
                trouble.append(error)

    async def _announce(self, publisher: Publisher, bundle: StoredBundle) -> None:
        receipts = await to_thread.run_sync(self._read, bundle, limiter=self._threads, abandon_on_cancel=True)
        unmarked = {name: each for name, each in receipts.items() if each.announced != self._settings.subject}
        if not unmarked:
            # The bundle was published again, or is gone.
            return
        if len(unmarked) == len(receipts):
            # Announce each bundle once, even if several stores hold it.
            receipt = next(iter(unmarked.values()))
            message = make_announcement(bundle, receipt, self._host, self._settings.subject)
            was_there = await publisher.publish(message)
            self.counts.announced += 1
            self.counts.duplicates += was_there
        await to_thread.run_sync(self._mark, bundle, unmarked, limiter=self._threads, abandon_on_cancel=True)
        self.waiting.pop(bundle.path, None)

    def _read(self, bundle: StoredBundle) -> dict[str, Receipt]:
        """Return the valid receipts of a bundle, in the order of the targets."""
        found = ((name, valid_receipt(bundle, name, place)) for name, place in self._receipts.places.items())
        return {name: receipt for name, receipt in found if receipt is not None}

    def _mark(self, bundle: StoredBundle, receipts: Mapping[str, Receipt]) -> None:
        """Mark receipts, unless they have changed since they were announced.

        Raises:
            ErgoCaptureError: one could not be written; the announcement is repeated.
        """
        with directory_lock(bundle.path.parent) as alone:
            if not alone or not bundle.is_still_there:
                return
            for name, receipt in receipts.items():
                path = receipt_path(bundle.path, name)
                if read_receipt(path) == receipt:
                    marked = msgspec.structs.replace(receipt, announced=self._settings.subject)
                    write_bytes_atomic(path, encode_receipt(marked), what="receipt")

    def _note_success(self) -> None:
        seconds = self.outage.end()
        if seconds is not None:
            log.warning(telemetry.ANNOUNCE_RESUMED, seconds=seconds)

    def _note_failure(self, error: ErgoCaptureError) -> None:
        kind, line = _kind_of(error)
        self.counts.failures[kind] += 1
        if self.outage.note(kind, error):
            level = log.warning if line == telemetry.ANNOUNCE_AWAY else log.error
            level(line, error=error.message, hint=error.hint, waiting=len(self.waiting))


def _kind_of(error: ErgoCaptureError) -> tuple[str, str]:
    if isinstance(error, AnnounceAway):
        return "away", telemetry.ANNOUNCE_AWAY
    if isinstance(error, AnnounceError):
        return "refused", telemetry.ANNOUNCE_REFUSED
    return "failed", telemetry.SHIP_FAILED
