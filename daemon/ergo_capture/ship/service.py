"""The shipping service: a shipper for each target, an announcer, signals, reload, metrics."""

from __future__ import annotations

import asyncio
import signal
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final, Protocol

import anyio
import structlog
from anyio import CancelScope, to_thread
from anyio.abc import TaskStatus

from ergo_capture import telemetry
from ergo_capture.bundle.catalogue import Catalogue, StoredBundle
from ergo_capture.config import Config
from ergo_capture.errors import ErgoCaptureError
from ergo_capture.ship.announcing import AnnounceCounts, Announcer
from ergo_capture.ship.metrics import exposition, write_textfile
from ergo_capture.ship.shipper import Counts, Shipper

log = structlog.get_logger()

#: Seconds that uploads have to end after SIGTERM; then their threads are abandoned.
_GRACE_SECONDS: Final = 3.0
#: Seconds before the metrics are written for the first time.
_FIRST_SECONDS: Final = 1.0


class ServiceManager(Protocol):
    """The interface of ``SystemdNotifier`` that the service uses."""

    def ready(self, status: str) -> None:
        """Report that start-up or a reload is complete."""

    def status(self, text: str) -> None:
        """Set the line that ``systemctl status`` shows."""

    def stopping(self) -> None:
        """Report that the shutdown has begun."""

    def reloading(self) -> None:
        """Report that a reload has begun."""


def host_name(config: Config) -> str:
    """Return the name of this host in the store."""
    return config.ship.host or socket.gethostname()


def lister_of(config: Config) -> Callable[[], list[StoredBundle]]:
    """Return a function that lists the bundles of a state directory; any thread may call it.

    The shippers and the announcer share it: each list of their own would keep every manifest once more.
    """
    catalogue, lock = Catalogue(Path(config.state.directory) / "bundles"), threading.Lock()

    def read() -> list[StoredBundle]:
        with lock:
            return catalogue.read()

    return read


def shippers_of(
    config: Config,
    listed: Callable[[], list[StoredBundle]],
    counts: dict[str, Counts] | None = None,
    on_bytes: Callable[[int], object] = lambda _count: None,
) -> list[Shipper]:
    """Return a shipper for each configured target.

    Args:
        config: the configuration.
        listed: lists the bundles.
        counts: the counts from before a reload, by target.
        on_bytes: as for ``Sender``.
    """
    host = host_name(config)
    return [
        Shipper(name, target, config.ship, listed, host, (counts or {}).get(name), on_bytes)
        for name, target in config.ship.targets.items()
    ]


def announcer_of(
    config: Config, listed: Callable[[], list[StoredBundle]], counts: AnnounceCounts | None = None
) -> Announcer | None:
    """Return the announcer of a state directory; None if no server is configured.

    Args:
        config: the configuration.
        listed: lists the bundles.
        counts: the counts from before a reload.
    """
    if not config.ship.announce.servers:
        return None
    return Announcer(config.ship, listed, host_name(config), counts)


class ShipService:
    """Ships until SIGTERM or SIGINT. At SIGHUP it reads the configuration again, and tries every store at once.

    Args:
        config: the configuration.
        reread: reads the configuration file again and returns its content.
        manager: is notified when the service is ready.
    """

    def __init__(self, config: Config, reread: Callable[[], Config], manager: ServiceManager) -> None:
        self.config = config
        listed = lister_of(config)
        self.shippers = shippers_of(config, listed)
        self.announcer = announcer_of(config, listed)
        #: Whether threads were left behind that hang on a store: the process ends without waiting for them.
        self.left_behind = False
        self._reread = reread
        self._manager = manager
        #: The configuration that a reload has read and that is not in force yet; None for none.
        self._next: Config | None = None
        #: Set when the shippers have to end, for a stop or a reload.
        self._change = asyncio.Event()
        self._stopping = False
        self._metrics_failed = False

    async def run(self) -> None:
        """Ship until a signal comes."""
        async with anyio.create_task_group() as tasks:
            await tasks.start(self._watch_signals)
            tasks.start_soon(self._tell)
            log.info(
                telemetry.SHIP_READY,
                targets=[shipper.name for shipper in self.shippers],
                state=self.config.state.directory,
            )
            self._manager.ready(self._summary())
            while not self._stopping:
                await self._ship()
                self._take_over()
            tasks.cancel_scope.cancel()
        self._remove_textfile()
        telemetry.log_suppressed(final=True)
        log.info(telemetry.SHIP_STOPPED)

    async def _ship(self) -> None:
        """Ship with the configuration in force, until a stop or a reload."""
        with CancelScope() as scope:
            async with anyio.create_task_group() as tasks:
                for shipper in self.shippers:
                    tasks.start_soon(shipper.run)
                if self.announcer is not None:
                    tasks.start_soon(self.announcer.run)
                await self._change.wait()
                for shipper in self.shippers:
                    shipper.stop()
                if self.announcer is not None:
                    self.announcer.stop()
                scope.deadline = anyio.current_time() + _GRACE_SECONDS
        self.left_behind = self.left_behind or scope.cancelled_caught
        self._change.clear()

    def _take_over(self) -> None:
        """Use the configuration that a reload read."""
        config, self._next = self._next, None
        if config is None:
            return
        self._remove_textfile()
        self.config = config
        listed = lister_of(config)
        self.shippers = shippers_of(config, listed, {shipper.name: shipper.counts for shipper in self.shippers})
        self.announcer = announcer_of(config, listed, None if self.announcer is None else self.announcer.counts)
        telemetry.set_level(config.log.level)
        log.info(telemetry.CONFIG_RELOADED, targets=[shipper.name for shipper in self.shippers])
        self._manager.ready(self._summary())

    async def _watch_signals(self, *, task_status: TaskStatus[None]) -> None:
        with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
            task_status.started()
            async for number in signals:
                if number == signal.SIGHUP:
                    await self._reload()
                else:
                    self._stopping = True
                    self._manager.stopping()
                    self._change.set()

    async def _reload(self) -> None:
        self._manager.reloading()
        try:
            self._next = await to_thread.run_sync(self._reread)
        except ErgoCaptureError as error:
            log.error(telemetry.CONFIG_REFUSED, error=error.message, hint=error.hint)  # noqa: TRY400 - one sentence
            self._manager.ready(self._summary())
        else:
            self._change.set()

    # --- status and metrics ---

    def _summary(self) -> str:
        """Return one line on the targets, for ``systemctl status``."""
        found: list[tuple[str, int, str, ErgoCaptureError | None]]
        found = [(shipper.name, len(shipper.plan.due), "ship", shipper.outage.error) for shipper in self.shippers]
        if self.announcer is not None:
            found.append(("stream", len(self.announcer.waiting), "announce", self.announcer.outage.error))
        return "; ".join(
            f"{name}: {count} to {what}" + ("" if failure is None else f", {failure.message}")
            for name, count, what, failure in found
        )

    async def _tell(self) -> None:
        # Wait for the first look, before which nothing is known.
        await anyio.sleep(_FIRST_SECONDS)
        while True:
            telemetry.log_suppressed()
            self._manager.status(self._summary())
            if self.config.ship.textfile:
                text = exposition(Path(self.config.state.directory), self.shippers, self.announcer)
                try:
                    await to_thread.run_sync(write_textfile, Path(self.config.ship.textfile), text)
                except ErgoCaptureError as error:
                    if not self._metrics_failed:
                        log.error(  # noqa: TRY400 - one sentence
                            telemetry.METRICS_FAILED,
                            path=self.config.ship.textfile,
                            error=error.message,
                            hint=f"{error.hint}; see `ergo-capture help metrics`",
                        )
                    self._metrics_failed = True
                else:
                    self._metrics_failed = False
            await anyio.sleep(self.config.metrics.interval.seconds)

    def _remove_textfile(self) -> None:
        """Remove the file, because its values would be out of date."""
        if self.config.ship.textfile:
            with suppress(OSError):
                Path(self.config.ship.textfile).unlink()
