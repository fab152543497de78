"""The daemon put together: what starts in which order, and what stops in which.

Start-up: lock the state directory -> sweep temporaries -> scan the journal, recover its sessions -> bind the
socket -> ready. Shutdown: stop accepting and reading -> decide and commit everything accepted -> publish
every open session as it is -> seal the journal -> unlock. A session that is open when the daemon stops stays
open in the journal: its client may resume it after the next start, within ``session.linger``.
"""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from pathlib import Path

import anyio
import structlog
from anyio.abc import TaskGroup, TaskStatus

from ergo_capture import telemetry
from ergo_capture.config import Config, control_beside
from ergo_capture.errors import ErgoCaptureError, ExitCode
from ergo_capture.journal.payloads import Publication, SessionDescription
from ergo_capture.journal.recovery import Recovery, recover
from ergo_capture.journal.wal import Journal
from ergo_capture.server.commit.meter import CommitMeter
from ergo_capture.server.commit.writer import Writer
from ergo_capture.server.factories import (
    admission_of,
    graphs_of,
    limits_of,
    retention_of,
    rotation_of,
    session_limits_of,
)
from ergo_capture.server.net.clients import Clients
from ergo_capture.server.net.listener import Listener, bound_socket
from ergo_capture.server.ops.control import ControlSocket
from ergo_capture.server.ops.metrics import Textfile
from ergo_capture.server.ops.recovery_progress import RecoveryProgress
from ergo_capture.server.ops.reload import Reloaded, Reloader
from ergo_capture.server.ops.retention import Pruner, Retention
from ergo_capture.server.ops.state_directory import StateDirectory
from ergo_capture.server.ops.status import Running, take_status
from ergo_capture.server.ops.systemd import Notifier
from ergo_capture.server.ops.watchdog import Watchdog
from ergo_capture.server.publisher import BundlePublisher
from ergo_capture.server.session.registry import SessionRegistry
from ergo_capture.server.session.snapshots import Snapshots
from ergo_capture.server.shutdown import Shutdown
from ergo_capture.storage import RealStorage, Storage
from ergo_capture.version import PROGRAM

log = structlog.get_logger()


class Service:
    """The daemon between its start and its stop.

    Args:
        config: as loaded.
        storage: the filesystem; the real one outside tests.
        reread: loads the configuration again, for a reload; by default it is always the same.
    """

    def __init__(
        self, config: Config, storage: Storage | None = None, reread: Callable[[], Config] | None = None
    ) -> None:
        #: In force; a reload replaces it.
        self.config = config
        self.storage = storage or RealStorage()
        self.state = StateDirectory(Path(config.state.directory), self.storage)
        self.socket_path = Path(config.socket.path)
        self.control_path = Path(config.control.path or control_beside(self.socket_path))
        self.clients = Clients(limits_of(config), admission_of(config), int(config.limits.held_bytes))
        #: ``starting``, ``serving`` or ``stopping``; and what it is at, while it starts.
        self.phase = "starting"
        self.began = time.monotonic()
        #: The parts, once the journal is recovered.
        self.running: Running | None = None
        self.reloader = Reloader(self, reread or (lambda: config))
        self.ready = anyio.Event()
        self._shutdown: Shutdown | None = None
        self._start_failure: ErgoCaptureError | None = None
        self._graphs = graphs_of(config)
        self.retention = Retention(
            Pruner(self.state.path, self.storage), retention_of(config), config.retention.interval.seconds
        )
        self._notifier = Notifier.from_environment()
        self._progress = RecoveryProgress(self._notifier)
        self._stop = anyio.Event()
        self._journal: Journal
        self._writer: Writer
        self._publisher: BundlePublisher
        self.registry: SessionRegistry

    # --- life ---

    async def run(self) -> ExitCode:
        """Serve until ``stop``; the exit code says whether anything was left undone.

        Raises:
            ErgoCaptureError: start-up failed; nothing was bound.
        """
        # Why the stack outside: nothing is closed or unlocked while a task, or a thread for one, is still at it.
        async with AsyncExitStack() as stack, anyio.create_task_group() as tasks:
            # Why first: a signal that comes while the journal is read must not kill what is being mended.
            await tasks.start(self._watch_signals, tasks)
            try:
                await self._run(tasks, stack)
            except ErgoCaptureError as error:
                # Why not raised through the group: it would come out wrapped in a group of its own.
                self._start_failure = error
            tasks.cancel_scope.cancel()
        if self._start_failure is not None:
            raise self._start_failure
        return ExitCode.FAILED if self.unfinished or self._writer.failure is not None else ExitCode.OK

    async def _run(self, tasks: TaskGroup, stack: AsyncExitStack) -> None:
        self.state.prepare()
        lock = self.state.lock()
        stack.callback(lock.release)
        inherited = self._notifier.take_sockets()
        private = inherited.get("control")
        if private is None:
            private = stack.enter_context(bound_socket(self.control_path, mode=0o600))
        control = ControlSocket(self, private)
        tasks.start_soon(control.run)
        self._notifier.status("reading the journal")
        self.state.sweep()
        self._journal, recovery = await anyio.to_thread.run_sync(self._open_journal)
        stack.callback(self._journal.close)
        self._report(recovery)
        journal = self.config.journal
        self._writer = Writer(
            self._journal,
            decision_delay=journal.decision_delay.seconds,
            queue_bytes=journal.queue_bytes,
            queue_frames=journal.queue_frames,
        )
        self._publisher = BundlePublisher(
            self.state.path,
            self.state.journal,
            style=self.config.bundle.style,
            compress=self.config.bundle.compress,
            on_published=self._on_published,
        )
        listening = inherited.get("capture")
        if listening is None:
            options = self.config.socket
            ours = bound_socket(self.socket_path, mode=options.mode, group=options.group, backlog=options.backlog)
            listening = stack.enter_context(ours)
        await self._serve(tasks, listening, recovery)

    @property
    def unfinished(self) -> bool:
        """Whether the shutdown left something undone that it should have done."""
        return self._shutdown is not None and self._shutdown.unfinished

    def stop(self) -> None:
        """Begin the shutdown; a second call changes nothing."""
        self._stop.set()

    def _open_journal(self) -> tuple[Journal, Recovery]:
        journal, scan = Journal.open(
            self.state.journal,
            self.storage,
            segment_bytes=self.config.journal.segment_bytes,
            program=PROGRAM,
        )
        try:
            return journal, recover(self.state.journal, scan, self.storage, on_progress=self._progress)
        except BaseException:
            journal.close()
            raise

    def _report(self, recovery: Recovery) -> None:
        log.info(
            telemetry.JOURNAL_RECOVERED,
            sessions=len(recovery.sessions),
            events=recovery.events,
            torn_bytes=recovery.torn_bytes,
            sealed=recovery.sealed,
            quarantined=len(recovery.quarantined),
        )

    def _report_quarantined(self) -> None:
        for session_id, reason in self.registry.quarantined.items():
            log.error(
                telemetry.SESSION_QUARANTINED,
                session=session_id,
                reason=reason,
                hint="run `ergo-capture doctor` on the journal; `ergo-capture recover` salvages what is whole",
            )

    async def _serve(self, tasks: TaskGroup, listening: socket.socket, recovery: Recovery) -> None:
        self.registry = SessionRegistry(
            self._graphs,
            self._writer,
            self._journal,
            self._publisher,
            tasks,
            rotation=rotation_of(self.config),
            linger=self.config.session.linger.seconds,
            in_doubt=self.config.session.in_doubt,
            limits=session_limits_of(self.config),
            next_number=recovery.next_session,
        )
        meter = CommitMeter()
        self._writer.on_commit = meter.note
        self.running = Running(self._journal, self._writer, self._publisher, self.registry, meter)
        self.clients.begin(self.registry, self._writer)
        tasks.start_soon(self._write)
        try:
            self.registry.tend_engines()
            self.registry.take_recovered(recovery)
            self._report_quarantined()
            await self.registry.retirement.retire()
            listener = Listener(
                listening,
                self.clients.serve,
                admission=self.clients.admission,
                on_refused=self.clients.refused,
                on_trouble=self.clients.unaccepted,
            )
            tasks.start_soon(listener.run)
            tasks.start_soon(self.registry.retirement.run)
            tasks.start_soon(Watchdog(self._notifier, self._writer, self._in_a_line).run)
            tasks.start_soon(self._say_suppressed)
            tasks.start_soon(self.retention.run)
            if self.config.snapshot.interval:
                snapshots = Snapshots(self.registry.sessions, self.config.snapshot.interval.seconds)
                tasks.start_soon(snapshots.run)
            if self.config.metrics.textfile:
                metrics = self.config.metrics
                textfile = Textfile(Path(metrics.textfile), metrics.interval.seconds, lambda: take_status(self))
                tasks.start_soon(textfile.run)
            self.phase = "serving"
            self.ready.set()
            self._notifier.ready(self._in_a_line())
            log.info(telemetry.DAEMON_READY, socket=str(self.socket_path), state=str(self.state.path), program=PROGRAM)
            await self._stop.wait()
            self.phase = "stopping"
            self._shutdown = Shutdown(
                self.clients, listener, self.running, self._notifier, self.config.shutdown.drain.seconds
            )
            await self._shutdown.run()
            telemetry.say_suppressed(all_of_it=True)
            log.info(telemetry.DAEMON_STOPPED)
        finally:
            # Why also here, and whatever fails above: the writer ends by this and by nothing else.
            self._writer.close()

    @property
    def doing(self) -> str:
        """What the daemon is at while it starts; empty afterwards."""
        return self._progress.text if self.phase == "starting" else ""

    def _in_a_line(self) -> str:
        sessions = self.registry.sessions.values()
        accepting = sum(session.intake.admitted - session.accepted for session in sessions)
        deciding = sum(session.accepted - session.decided for session in sessions)
        return (
            f"{len(self.clients.connections)} clients, {len(sessions)} sessions; "
            f"{accepting} events not yet durable, {deciding} not yet decided"
        )

    async def _write(self) -> None:
        # Why shielded: the writer is never cancelled; it ends by its queue being closed.
        with anyio.CancelScope(shield=True):
            await self._writer.run()
        if self._writer.failure is not None:
            error = self._writer.failure
            log.critical(telemetry.JOURNAL_FAILED, error=error.message, path=error.path, hint=error.hint)
            self.stop()

    async def _say_suppressed(self) -> None:
        while True:
            await anyio.sleep(self.config.log.window.seconds or 1.0)
            telemetry.say_suppressed()

    async def _reload(self) -> None:
        """SIGHUP; one that comes while the daemon starts waits until it serves."""
        await self.ready.wait()
        with suppress(ErgoCaptureError):
            # Why suppressed: it is logged, and a signal has nobody to answer to.
            await self.reload()

    async def reload(self) -> Reloaded:
        """Read the configuration again, and tell the service manager of it.

        Raises:
            ErgoCaptureError: it cannot be used, and nothing has changed.
        """
        if self.phase == "serving":
            self._notifier.reloading()
        try:
            return await self.reloader.reload()
        finally:
            if self.phase == "serving":
                self._notifier.ready(self._in_a_line())

    async def _watch_signals(self, tasks: TaskGroup, *, task_status: TaskStatus[None]) -> None:
        with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
            task_status.started()
            async for number in signals:
                if number == signal.SIGHUP:
                    tasks.start_soon(self._reload)
                    continue
                if self._stop.is_set():
                    log.warning(telemetry.DAEMON_ABANDONED, signal=signal.Signals(number).name)
                    # Why so abruptly: the second signal is for a daemon that does not get done, and what was
                    # acknowledged is safe whatever happens now.
                    os._exit(int(ExitCode.FAILED))
                log.info(telemetry.DAEMON_STOPPING, signal=signal.Signals(number).name)
                self.stop()

    def _on_published(self, session: SessionDescription, publication: Publication) -> None:
        log.info(
            telemetry.BUNDLE_PUBLISHED,
            session=session.session,
            graph=session.graph,
            bundle=publication.bundle,
            sha256=publication.sha256,
        )
        self.retention.look()

    def __repr__(self) -> str:
        return f"<Service {self.state.path}, {len(self.clients.connections)} connections>"
