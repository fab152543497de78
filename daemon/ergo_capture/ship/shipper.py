"""Ship to one target: find the bundles that are due, send them, wait, and repeat; back off while the store fails.

obstore's own attempts end within seconds. Longer failures are tried again here, for ever, and nothing is dropped: a
bundle that is not shipped has no receipt.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import anyio
import structlog
from anyio import CapacityLimiter, to_thread

from ergo_capture import telemetry
from ergo_capture.bundle.catalogue import StoredBundle
from ergo_capture.bundle.receipt import Receipts, place_of
from ergo_capture.config.shipping import ShipConfig, TargetConfig
from ergo_capture.errors import ErgoCaptureError
from ergo_capture.objects.opening import open_store
from ergo_capture.objects.port import StoreError, StoreRefused
from ergo_capture.ship.plan import Plan, make_plan
from ergo_capture.ship.rounds import Outage, first_back_off, run_rounds
from ergo_capture.ship.sending import Changed, Differs, Sender, Sent, Stopped, Unsound
from ergo_capture.storage.write_error import CaptureWriteError

log = structlog.get_logger()

#: A bundle's path, and the signatures of its files.
_Version = tuple[Path, tuple[tuple[int, int, int], ...]]


@dataclass
class Counts:
    """The counts of a target since the start."""

    sent: int = 0
    sent_bytes: int = 0
    #: By reason: ``away``, ``refused``, ``differs``, ``unsound``, ``changed``, ``failed``.
    failures: Counter[str] = field(default_factory=Counter)


class Shipper:
    """Ships to one target.

    Args:
        name: the target's name.
        target: its settings.
        ship: the settings of all targets.
        listed: lists the bundles of the state directory, the oldest first.
        host: the name of this host in the store.
        counts: the counts from before a reload.
        on_bytes: as for ``Sender``.
    """

    def __init__(
        self,
        name: str,
        target: TargetConfig,
        ship: ShipConfig,
        listed: Callable[[], list[StoredBundle]],
        host: str,
        counts: Counts | None = None,
        on_bytes: Callable[[int], object] = lambda _count: None,
    ) -> None:
        self.name = name
        self.target = target
        self.counts = counts or Counts()
        #: The result of the last look; what was sent since is not due any more.
        self.plan = Plan()
        #: The outage of the store, to which nothing is sent meanwhile.
        self.outage = Outage(ship.back_off_limit.seconds)
        self._host = host
        self._on_bytes = on_bytes
        self._interval = ship.interval.seconds
        self._concurrency = ship.concurrency
        self._limit = ship.back_off_limit.seconds
        #: The back-off between rounds in which this host's own disk failed.
        self._own_back_off = first_back_off(self._limit)
        #: Whether a receipt could not be written in this round; no other is tried then.
        self._is_disk_short = False
        self._listed = listed
        self._receipts = Receipts({name: place_of(target)})
        #: Bundles that are not sent until they change.
        self._unsound: set[_Version] = set()
        #: Failed attempts of bundles that are not sent yet.
        self._attempts: Counter[_Version] = Counter()
        #: Bundles for which a failure of this host was logged.
        self._troubled: set[_Version] = set()
        self._sender: Sender | None = None
        self._stopped = asyncio.Event()
        #: Limits the threads of this target, so that those that hang on a store do not delay other targets.
        self._threads = CapacityLimiter(ship.concurrency + 1)

    @property
    def unsound(self) -> int:
        """The number of bundles that are not sent because they differ from their manifests."""
        return len(self._unsound)

    async def run(self) -> None:
        """Ship until ``stop``."""
        await run_rounds(self.look, self.send_due, self._delay, interval=self._interval, stopped=self._stopped)

    def stop(self) -> None:
        """Begin no further upload, and abort uploads at their next block."""
        self._stopped.set()
        if self._sender is not None:
            self._sender.stop()

    async def look(self) -> Plan:
        """Find the bundles that are due. A directory that cannot be read counts as empty, and is logged."""
        try:
            self.plan = await to_thread.run_sync(self._look, limiter=self._threads, abandon_on_cancel=True)
        except ErgoCaptureError as error:
            self.plan = Plan()
            self._log(telemetry.SHIP_FAILED, error)
        return self.plan

    def _look(self) -> Plan:
        bundles = self._listed()
        self._receipts.forget_gone(bundles)
        there = set(map(_version, bundles))
        self._unsound &= there
        self._troubled &= there
        for gone in self._attempts.keys() - there:
            del self._attempts[gone]
        plan = make_plan(bundles, lambda bundle: bool(self._receipts.holders(bundle)))
        for bundle in plan.unsound:
            if _version(bundle) not in self._unsound:
                self._note_unsound(bundle, bundle.problem or "")
        due = [bundle for bundle in plan.due.values() if _version(bundle) not in self._unsound]
        # A bundle that a store never takes must not delay the others.
        due.sort(key=lambda bundle: self._attempts[_version(bundle)])
        return Plan({bundle.path: bundle for bundle in due}, plan.shipped, plan.unsound)

    async def send_due(self) -> None:
        """Send the bundles that the last look found, until the store fails."""
        self._is_disk_short = False
        queue = deque(self.plan.due.values())
        if not queue or self._stopped.is_set():
            # A store that failed is tried again when there is something to send.
            return
        try:
            # Open the store for each round: credentials may have been replaced.
            self._sender = await to_thread.run_sync(self._open, limiter=self._threads, abandon_on_cancel=True)
        except ErgoCaptureError as error:
            self._note_failure(error if isinstance(error, StoreError) else StoreRefused(error.message, hint=error.hint))
            return
        if self._stopped.is_set():
            return
        if self.outage.error is not None:
            # Send one bundle alone, to see whether the store works again.
            await self._send(queue.popleft())
        async with anyio.create_task_group() as tasks:
            for _ in range(min(self._concurrency, len(queue))):
                tasks.start_soon(self._work, queue)

    def _open(self) -> Sender:
        store = open_store(self.target)
        return Sender(store, self.name, place_of(self.target), self._host, self.target.verify, self._on_bytes)

    async def _work(self, queue: deque[StoredBundle]) -> None:
        while queue and self.outage.error is None and not self._is_disk_short and not self._stopped.is_set():
            await self._send(queue.popleft())

    async def _send(self, bundle: StoredBundle) -> None:
        assert self._sender is not None
        sender, began = self._sender, time.monotonic()
        try:
            sent = await to_thread.run_sync(
                lambda: sender.send(bundle, is_repeated=self._attempts[_version(bundle)] > 0),
                limiter=self._threads,
                # A store that hangs must not delay the end; without a receipt the bundle is sent again.
                abandon_on_cancel=True,
            )
        except Stopped:
            return
        except Changed:
            self.counts.failures["changed"] += 1
        except Unsound as error:
            self.counts.failures["unsound"] += 1
            self._note_unsound(bundle, error.message)
        except StoreError as error:
            self._attempts[_version(bundle)] += 1
            self._note_failure(error, bundle)
        except ErgoCaptureError as error:
            # The bundle cannot be read, or there is no space for the receipt.
            self._attempts[_version(bundle)] += 1
            self.counts.failures["failed"] += 1
            self._is_disk_short = self._is_disk_short or isinstance(error, CaptureWriteError)
            if _version(bundle) not in self._troubled:
                self._troubled.add(_version(bundle))
                self._log(telemetry.SHIP_FAILED, error, bundle=str(bundle.path))
        except Exception:
            # A defect with one bundle must not stop the others.
            self._attempts[_version(bundle)] += 1
            self.counts.failures["failed"] += 1
            if _version(bundle) not in self._troubled:
                self._troubled.add(_version(bundle))
                log.exception(telemetry.SHIP_FAILED, target=self.name, bundle=str(bundle.path))
        else:
            self._note_sent(bundle, sent, time.monotonic() - began)

    def _note_sent(self, bundle: StoredBundle, sent: Sent, seconds: float) -> None:
        self.counts.sent += 1
        self.counts.sent_bytes += sent.receipt.bytes
        self._attempts.pop(_version(bundle), None)
        self.plan.due.pop(bundle.path, None)
        log.info(
            telemetry.SHIP_SENT,
            target=self.name,
            bundle=str(bundle.path),
            key=sent.receipt.key,
            bytes=sent.receipt.bytes,
            seconds=round(seconds, 3),
            verified=sent.receipt.verified,
            was_there=sent.was_there,
        )
        self._note_answer()

    def _note_answer(self) -> None:
        """Note that the store works; log it if it failed before."""
        seconds = self.outage.end()
        if seconds is not None:
            log.warning(telemetry.SHIP_RESUMED, target=self.name, seconds=seconds)

    def _note_failure(self, error: StoreError, bundle: StoredBundle | None = None) -> None:
        kind, line = _kind_of(error)
        self.counts.failures[kind] += 1
        # Log each object that differs, but a store that is away only once until it works again.
        if self.outage.note(kind, error) or isinstance(error, Differs):
            self._log(line, error, **({} if bundle is None else {"bundle": str(bundle.path)}))

    def _log(self, line: str, error: ErgoCaptureError, **more: str) -> None:
        level = log.warning if line == telemetry.SHIP_AWAY else log.error
        level(line, target=self.name, error=error.message, hint=error.hint, **more)

    def _note_unsound(self, bundle: StoredBundle, reason: str) -> None:
        self._unsound.add(_version(bundle))
        log.error(
            telemetry.SHIP_UNSOUND,
            target=self.name,
            bundle=str(bundle.path),
            reason=reason,
            hint="it is not sent: check it with `ergo-capture verify`, then move it away",
        )

    def _delay(self, pause: float) -> float:
        """Return the seconds until the next round; ``pause`` is the time after a round without a failure."""
        if isinstance(self.outage.error, StoreRefused):
            # It stays refused until an operator changes something.
            return self._limit
        if self.outage.error is not None:
            return self.outage.next_delay()
        if self._is_disk_short:
            # Without receipts, every bundle is verified again at each attempt.
            return max(pause, self._own_back_off.next_delay())
        self._own_back_off.reset()
        return pause

    def oldest_seconds(self) -> float:
        """Return the age of the oldest bundle that is not shipped."""
        return self.plan.oldest_seconds(datetime.now(UTC))


def _version(bundle: StoredBundle) -> _Version:
    """Return the version of a bundle, to tell it from an earlier one with its name."""
    return bundle.path, bundle.seen


def _kind_of(error: StoreError) -> tuple[str, str]:
    if isinstance(error, StoreRefused):
        return "refused", telemetry.SHIP_REFUSED
    if isinstance(error, Differs):
        return "differs", telemetry.SHIP_DIFFERS
    return "away", telemetry.SHIP_AWAY
