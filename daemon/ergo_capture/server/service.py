"""The composition root: it starts and stops the components of the daemon in order.

Start-up: lock the state directory, delete temporary files, scan the journal and recover its sessions, bind the socket,
report ready. Shutdown: stop accepting and reading, decide and commit everything accepted, publish every open session as
it is, end the journal with a SEAL frame, unlock. A session that is open when the daemon stops stays open in the
journal: its client may resume it after the next start, within ``session.linger``.
"""

from __future__ import annotations

import asyncio
import signal
import socket
import time
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Final

import anyio
import structlog
from anyio.abc import TaskGroup, TaskStatus

from ergo_capture import telemetry
from ergo_capture.config import Config
from ergo_capture.errors import ErgoCaptureError, ExitCode
from ergo_capture.journal.errors import JournalLost
from ergo_capture.journal.payloads import Publication, SessionDescription
from ergo_capture.journal.recovery import Recovery, recover
from ergo_capture.journal.segment import segment_path
from ergo_capture.journal.wal import Journal
from ergo_capture.pauses import clock
from ergo_capture.seal.keeper import SealKeeper
from ergo_capture.seal.keys import read_key
from ergo_capture.server.commit.writer import Writer
from ergo_capture.server.components import Components, Phase, Running
from ergo_capture.server.factories import access_list, graphs_of, retention_rules
from ergo_capture.server.net.clients import Clients
from ergo_capture.server.net.listener import BoundSocket, Listener
from ergo_capture.server.ops.checks import Checks
from ergo_capture.server.ops.control import ControlSocket
from ergo_capture.server.ops.metrics import Textfile
from ergo_capture.server.ops.pruner import Pruner
from ergo_capture.server.ops.reload import Reloaded, Reloader
from ergo_capture.server.ops.retention import Retention
from ergo_capture.server.ops.state_directory import StateDirectory
from ergo_capture.server.ops.status import take_status
from ergo_capture.server.ops.systemd import SystemdNotifier
from ergo_capture.server.ops.watchdog import RecoveryProgress, Watchdog
from ergo_capture.server.publisher import BundlePublisher
from ergo_capture.server.session.parts import RotationRule
from ergo_capture.server.session.registry import SessionRegistry
from ergo_capture.server.session.snapshots import Snapshots
from ergo_capture.server.shadow import ShadowVerifier
from ergo_capture.server.shutdown import Shutdown
from ergo_capture.storage import RealStorage, Storage
from ergo_capture.version import PROGRAM

log = structlog.get_logger()

_STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)
#: Signals that are ignored: by default they would end the process without a message.
_UNUSED_SIGNALS: Final = (signal.SIGUSR1, signal.SIGUSR2)
#: Seconds after the beginning of the stop in which a signal counts as a repetition: ``timeout``, shells and service
#: managers signal the process and its group, or pass on a signal that the terminal has sent already.
_REPEAT_SECONDS: Final = 1.0


class Service:
    """The daemon, from its start to its stop.

    Args:
        config: as loaded.
        storage: the filesystem; by default the real one.
        reread: loads the configuration again, for a reload; by default returns ``config``.

    Raises:
        ErgoCaptureError: a graph or an allow-list of the configuration is invalid.
    """

    def __init__(
        self, config: Config, storage: Storage | None = None, reread: Callable[[], Config] | None = None
    ) -> None:
        # Make the path absolute: clients get the paths of bundles, and may have another working directory.
        state = StateDirectory(Path(config.state.directory).absolute(), storage or RealStorage())
        self.clients = Clients(config.limits, access_list(config))
        self.retention = Retention(
            Pruner(state.path, state.storage), retention_rules(config), config.retention.interval.seconds
        )
        seals = SealKeeper(state.path / "bundles", read_key(config.seal.key)) if config.seal.key else None
        if seals is not None:
            self.retention.bury_with(seals.bury)
        self.components = Components(
            config, state, self.clients, self.retention, SystemdNotifier.from_environment(), seals
        )
        self.reloader = Reloader(self.components, reread or (lambda: config))
        #: Set once the daemon serves.
        self.ready = asyncio.Event()
        self._graphs = graphs_of(config)
        self._stop = asyncio.Event()
        #: The sockets that this process bound, each with the function that replaces it by another one.
        self._bound: dict[BoundSocket, Callable[[socket.socket], None]] = {}
        #: The time of the first call of ``stop``, on the monotonic clock, in seconds.
        self._stop_time: float | None = None
        self._shutdown: Shutdown | None = None
        self._textfile: Textfile | None = None
        #: These exist once the journal is recovered.
        self.registry: SessionRegistry
        self.writer: Writer
        self.shadow: ShadowVerifier

    # --- life ---

    async def run(self) -> ExitCode:
        """Serve until ``stop``.

        Returns:
            ``FAILED`` if the shutdown left something undone, otherwise ``OK``.

        Raises:
            ErgoCaptureError: start-up failed; nothing was bound.
        """
        failure: ErgoCaptureError | None = None
        # The stack is the outer one: nothing is closed or unlocked while a task or its thread still uses it.
        async with AsyncExitStack() as stack, anyio.create_task_group() as tasks:
            # Watch signals first: one that comes while the journal is read must not kill a repair.
            await tasks.start(self._watch_signals, tasks)
            try:
                await self._run(tasks, stack)
            except ErgoCaptureError as error:
                # Raise it below: the task group would wrap it in an exception group.
                failure = error
            tasks.cancel_scope.cancel()
        if failure is not None:
            raise failure
        return ExitCode.FAILED if self.unfinished or self.writer.failure is not None else ExitCode.OK

    async def _run(self, tasks: TaskGroup, stack: AsyncExitStack) -> None:
        components, state, config = self.components, self.components.state, self.components.config
        state.prepare()
        lock = state.lock()
        stack.callback(lock.release)
        inherited = components.notifier.take_sockets()
        private: socket.socket | BoundSocket | None = inherited.get("control")
        if private is None:
            private = stack.enter_context(BoundSocket(components.control_path, mode=0o600))
        control = ControlSocket(components, _raw(private), reload=self.reload, stop=self.stop)
        if isinstance(private, BoundSocket):
            self._bound[private] = control.listen_on
        tasks.start_soon(control.run)
        if config.metrics.textfile:
            # Write it before the recovery: the file of a killed daemon says that it is ready.
            path, interval = Path(config.metrics.textfile), config.metrics.interval.seconds
            self._textfile = Textfile(path, interval, lambda: take_status(components))
            tasks.start_soon(self._textfile.run)
        components.notifier.status(components.progress)
        # In a thread: it lists all bundles.
        await anyio.to_thread.run_sync(state.sweep)
        journal, recovery = await anyio.to_thread.run_sync(self._open_journal)
        stack.callback(journal.close)
        journal.watch(lock)
        log.info(
            telemetry.JOURNAL_RECOVERED,
            sessions=len(recovery.sessions),
            events=recovery.events,
            torn_bytes=recovery.torn_bytes,
            sealed=recovery.sealed,
            quarantined=len(recovery.quarantined),
        )
        listening: socket.socket | BoundSocket | None = inherited.get("capture")
        if listening is None:
            options = config.socket
            bound = BoundSocket(components.socket_path, mode=options.mode, group=options.group, backlog=options.backlog)
            listening = stack.enter_context(bound)
        running = self._compose(journal, recovery, tasks)
        components.running = running
        self.clients.begin(running.registry, running.writer)
        tasks.start_soon(self._write)
        try:
            await self._serve(tasks, listening, running, recovery)
        finally:
            # Close the writer after any failure above: nothing else ends it.
            self.writer.close()

    def _open_journal(self) -> tuple[Journal, Recovery]:
        components, state = self.components, self.components.state

        def report(text: str) -> None:
            components.progress = text

        journal, scan = Journal.open(
            state.journal,
            state.storage,
            segment_bytes=components.config.journal.segment_bytes,
            program=PROGRAM,
        )
        try:
            progress = RecoveryProgress(components.notifier, report)
            return journal, recover(state.journal, scan, state.storage, on_progress=progress)
        except BaseException:
            journal.close()
            raise

    def _compose(self, journal: Journal, recovery: Recovery, tasks: TaskGroup) -> Running:
        """Create the components that need the journal."""
        config, state = self.components.config, self.components.state
        self.writer = Writer(
            journal,
            decision_delay=config.journal.decision_delay.seconds,
            queue_bytes=config.journal.queue_bytes,
            queue_frames=config.journal.queue_frames,
        )
        publisher = BundlePublisher(
            state.path,
            state.journal,
            config.bundle,
            published_sequence=recovery.published_sequence,
            seals=self.components.seals,
            on_published=self._on_published,
        )
        self.registry = SessionRegistry(
            self._graphs,
            self.writer,
            journal,
            publisher,
            tasks,
            storage=state.storage,
            bundles=state.path / "bundles",
            rotation=RotationRule(config.rotation),
            linger=config.session.linger.seconds,
            in_doubt=config.session.in_doubt,
            limits=config.limits,
            next_number=recovery.next_session,
        )
        self.writer.make_room = publisher.follower.room_to_make
        self.retention.count_as_free(publisher.follower.spare_bytes)
        tasks.start_soon(publisher.follower.run, self.registry.sessions)
        # A bundle that is to be verified keeps no more of the journal than an idle session may.
        keep_bytes = min(config.verify.keep_bytes, config.rotation.max_journal_bytes or config.verify.keep_bytes)
        request = self.registry.segment_collector.request
        self.shadow = ShadowVerifier(config.verify, keep_bytes, journal, request)
        self.registry.kept_segments = self.shadow.needed
        tasks.start_soon(self.shadow.run)
        return Running(journal, self.writer, publisher, self.registry, self.shadow)

    async def _serve(
        self, tasks: TaskGroup, listening: socket.socket | BoundSocket, running: Running, recovery: Recovery
    ) -> None:
        components, registry, notifier = self.components, running.registry, self.components.notifier
        registry.tend_engines()
        registry.restore(recovery)
        for session_id, reason in registry.quarantined.items():
            log.error(
                telemetry.SESSION_QUARANTINED,
                session=session_id,
                reason=reason,
                hint="`ergo-capture doctor` reports the damage; `ergo-capture recover --settle` salvages what is whole, "
                "and settles it",
            )
        for damage in recovery.damage:
            log.error(
                telemetry.JOURNAL_DAMAGED,
                path=str(segment_path(components.state.journal, damage.segment)),
                offset=damage.offset,
                bytes=damage.length,
                reason=damage.reason,
                hint="no session that is open is concerned; look at the disk, and copy the segment if you want to examine "
                "it: it is deleted when no session needs it",
            )
        await registry.segment_collector.collect()
        listener = Listener(
            _raw(listening),
            self.clients.serve,
            admission=self.clients.admission,
            on_refused=self.clients.log_refused,
            on_accept_failed=self.clients.log_accept_failed,
        )
        if isinstance(listening, BoundSocket):
            self._bound[listening] = listener.listen_on
        tasks.start_soon(listener.run)
        tasks.start_soon(registry.segment_collector.run)
        tasks.start_soon(registry.quarantine.run)
        tasks.start_soon(Watchdog(notifier, running.writer, self._summary).run)
        tasks.start_soon(Checks(components.state, running.journal, running.writer, self._bound).run)
        tasks.start_soon(self._log_suppressed)
        tasks.start_soon(clock.beat, lambda seconds: log.warning(telemetry.DAEMON_PAUSED, seconds=round(seconds, 1)))
        tasks.start_soon(self.retention.run)
        tasks.start_soon(running.publisher.prepare)
        if components.config.snapshot.interval:
            snapshots = Snapshots(registry.sessions, components.config.snapshot.interval.seconds)
            tasks.start_soon(snapshots.run)
        components.phase = Phase.SERVING
        if self._textfile is not None:
            # Write it now, not after the next interval: it still says that the daemon is not ready.
            tasks.start_soon(self._textfile.write)
        self.ready.set()
        notifier.ready(self._summary())
        log.info(
            telemetry.DAEMON_READY,
            socket=str(components.socket_path),
            state=str(components.state.path),
            program=PROGRAM,
        )
        await self._stop.wait()
        components.phase = Phase.STOPPING
        self._shutdown = Shutdown(components, running, listener)
        await self._shutdown.run()
        telemetry.log_suppressed(final=True)
        log.info(telemetry.DAEMON_STOPPED)

    @property
    def unfinished(self) -> bool:
        """Whether the shutdown left something for the next start to do."""
        return self._shutdown is not None and self._shutdown.unfinished

    def stop(self) -> None:
        """Begin the shutdown; a second call changes nothing."""
        self._stop_time = self._stop_time or time.monotonic()
        self._stop.set()

    async def reload(self) -> Reloaded:
        """Reload the configuration, and tell the service manager.

        Raises:
            ErgoCaptureError: the configuration cannot be used, and nothing has changed.
        """
        if self.components.phase is Phase.SERVING:
            self.components.notifier.reloading()
        try:
            return await self.reloader.reload()
        finally:
            if self.components.phase is Phase.SERVING:
                self.components.notifier.ready(self._summary())

    # --- tasks ---

    async def _write(self) -> None:
        # Shield it: the writer is never cancelled; it ends when its queue is closed.
        with anyio.CancelScope(shield=True):
            await self.writer.run()
            error = self.writer.failure
            if isinstance(error, JournalLost):
                await self._save_journal(error)
            elif error is not None:
                log.critical(telemetry.JOURNAL_FAILED, error=error.message, path=error.path, hint=error.hint)
        if error is not None:
            self.stop()

    async def _save_journal(self, lost: JournalLost) -> None:
        """Copy the segments of a journal that was removed or replaced; the daemon still has them open."""
        journal = self.components.running
        assert journal is not None
        log.critical(telemetry.JOURNAL_LOST, error=lost.message, path=lost.path, hint=lost.hint)
        try:
            saved = await anyio.to_thread.run_sync(journal.journal.save)
        except ErgoCaptureError as error:
            log.critical(
                telemetry.JOURNAL_UNSAVED,
                error=error.message,
                path=error.path,
                hint="acknowledged events that are in no bundle are lost, unless the files can be restored",
            )
            return
        log.critical(
            telemetry.JOURNAL_SAVED,
            saved=str(saved),
            segments=len(journal.journal.segments),
            hint="`ergo-capture recover` on that directory makes bundles of it; see `ergo-capture help damage`",
        )

    async def _log_suppressed(self) -> None:
        while True:
            await anyio.sleep(self.components.config.log.window.seconds or 1.0)
            telemetry.log_suppressed()

    async def _watch_signals(self, tasks: TaskGroup, *, task_status: TaskStatus[None]) -> None:
        with anyio.open_signal_receiver(*_STOP_SIGNALS, signal.SIGHUP, *_UNUSED_SIGNALS) as signals:
            task_status.started()
            async for number in signals:
                name = signal.Signals(number).name
                if number == signal.SIGHUP:
                    tasks.start_soon(self._reload_on_signal)
                elif number in _UNUSED_SIGNALS:
                    log.warning(
                        telemetry.SIGNAL_IGNORED, signal=name, hint="SIGHUP reloads the configuration, SIGTERM stops"
                    )
                elif self._stop_time is None:
                    log.info(telemetry.DAEMON_STOPPING, signal=name)
                    self.stop()
                elif time.monotonic() - self._stop_time > _REPEAT_SECONDS:
                    log.warning(telemetry.DAEMON_ABANDONED, signal=name)
                    # Exit at once: a second signal is sent if the daemon does not finish, and acknowledged events are
                    # safe.
                    telemetry.exit_at_once(int(ExitCode.FAILED))

    async def _reload_on_signal(self) -> None:
        """Reload on SIGHUP; one that comes during start-up waits until the daemon serves."""
        await self.ready.wait()
        with suppress(ErgoCaptureError):
            # The error is logged: a signal has no sender to answer.
            await self.reload()

    def _on_published(self, session: SessionDescription, publication: Publication, segment: int) -> None:
        log.info(
            telemetry.BUNDLE_PUBLISHED,
            session=session.session,
            graph=session.graph,
            bundle=publication.bundle,
            sha256=publication.sha256,
        )
        self.retention.look()
        if publication.sequence is not None:
            # Verify finished bundles only: a snapshot is replaced later.
            self.shadow.add(session, publication, segment)

    def _summary(self) -> str:
        """Return one line on the clients and sessions, for ``systemctl status``."""
        sessions = self.registry.sessions.values()
        accepting = sum(session.admission.admitted - session.accepted for session in sessions)
        deciding = sum(session.accepted - session.decided for session in sessions)
        return (
            f"{len(self.clients.connections)} clients, {len(sessions)} sessions; "
            f"{accepting} events not yet durable, {deciding} not yet decided"
        )


def _raw(listening: socket.socket | BoundSocket) -> socket.socket:
    return listening.listening if isinstance(listening, BoundSocket) else listening
