"""The daemon put together: what starts in which order, and what stops in which.

Owns: the composition root, start-up, shutdown.
Not here: what any of the parts does; each is in the file of its name.

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
from collections import Counter
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from pathlib import Path

import anyio
import structlog
from anyio.abc import TaskGroup, TaskStatus, UNIXSocketStream

from ergo_capture import telemetry
from ergo_capture.capture.atomic import sweep_temporaries
from ergo_capture.config import Config, control_beside
from ergo_capture.errors import ErgoCaptureError, ExitCode
from ergo_capture.journal.body import Peer, Publication, SessionDescription
from ergo_capture.journal.journal import Journal
from ergo_capture.journal.recovery import Recovery, recover
from ergo_capture.server.budget import Budget, Holding
from ergo_capture.server.composition import (
    admission_of,
    graphs_of,
    limits_of,
    retention_of,
    rotation_of,
    session_limits_of,
)
from ergo_capture.server.connection import Connection
from ergo_capture.server.control import ControlSocket
from ergo_capture.server.listener import Listener, bind, unlink_if_ours
from ergo_capture.server.meter import CommitMeter
from ergo_capture.server.metrics import Textfile
from ergo_capture.server.protocol import Code, Open, ProtocolError
from ergo_capture.server.publisher import BundlePublisher
from ergo_capture.server.recovery_progress import RecoveryProgress
from ergo_capture.server.registry import SessionRegistry
from ergo_capture.server.reload import Reloaded, Reloader
from ergo_capture.server.retention import Pruner, Retention
from ergo_capture.server.session import Session
from ergo_capture.server.snapshots import Snapshots
from ergo_capture.server.status import Running, shutdown_waits_for, take_status
from ergo_capture.server.systemd import Notifier
from ergo_capture.server.watchdog import Watchdog
from ergo_capture.server.writer import Writer
from ergo_capture.storage import RealStorage, Storage
from ergo_capture.version import PROGRAM

log = structlog.get_logger()

#: Seconds for the last commit of all, once every session is drained.
_LAST_COMMIT_SECONDS = 10.0
#: Seconds between two words on what a shutdown waits for, how many sessions are named, and how much longer
#: each asks the service manager to wait.
TELL_SECONDS = 5.0
_MOST_TOLD = 5
_EXTEND_SECONDS = 30.0


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
        self.limits = limits_of(config)
        self.server_name = PROGRAM
        self.state = Path(config.state.directory)
        self.journal_directory = self.state / "journal"
        self.socket_path = Path(config.socket.path)
        self.control_path = Path(config.control.path or control_beside(self.socket_path))
        self.connections: dict[Connection, None] = {}
        #: ``starting``, ``serving`` or ``stopping``; and what it is at, while it starts.
        self.phase = "starting"
        self.began = time.monotonic()
        #: What was counted: clients let in, sessions ``opened`` and ``resumed``.
        self.totals: Counter[str] = Counter()
        #: The parts, once the journal is recovered.
        self.running: Running | None = None
        self.reloader = Reloader(self, reread or (lambda: config))
        #: Refusals by code.
        self.refusals: Counter[str] = Counter()
        self.ready = anyio.Event()
        #: Whether the shutdown left something undone that it should have done.
        self._unfinished = False
        self._start_failure: ErgoCaptureError | None = None
        self._graphs = graphs_of(config)
        self.admission = admission_of(config)
        #: Memory for begun lines and unread answers.
        self.held = Budget(int(config.limits.held_bytes), int(config.limits.held_bytes))
        self.retention = Retention(
            Pruner(self.state, self.storage), retention_of(config), config.retention.interval.seconds
        )
        self._notifier = Notifier.from_environment()
        self._progress = RecoveryProgress(self._notifier)
        self._stop = anyio.Event()
        self._journal: Journal
        self._writer: Writer
        self._publisher: BundlePublisher
        self.registry: SessionRegistry

    # --- what a connection asks for ---

    async def open_session(self, request: Open, peer: Peer | None, owner: Connection) -> tuple[Session, bool]:
        """A new session, or the one asked for (``connection.Reception``)."""
        session, resumed = await self.registry.open(request, peer, owner)
        self.totals["resumed" if resumed else "opened"] += 1
        log.info(
            telemetry.SESSION_RESUMED if resumed else telemetry.SESSION_OPENED,
            session=session.description.session,
            graph=session.description.graph,
            client=owner.client,
            uid=None if peer is None else peer.uid,
        )
        return session, resumed

    def release_session(self, session: Session) -> None:
        """The session has lost its connection (``connection.Reception``)."""
        self.registry.linger(session)

    async def room(self) -> None:
        """Wait until the writer's queue has room (``connection.Reception``)."""
        await self._writer.room()

    def count(self, code: Code) -> None:
        """Count a refusal (``connection.Reception``)."""
        self.refusals[code.value] += 1

    def hold(self, peer: Peer | None) -> Holding:
        """A count of the memory that a connection holds (``connection.Reception``)."""
        return self.held.holding(peer)

    def relieve(self) -> None:
        """Where connections hold too much together, let the one go that holds most (``connection.Reception``)."""
        if self.held.exceeded:
            greediest = max(self.connections, key=lambda connection: connection.holding.bytes)
            greediest.drop(
                ProtocolError(
                    Code.LIMIT,
                    f"{greediest.holding.bytes} bytes of a begun line and of unread answers are held for one client",
                    "end lines, read what the daemon sends, or raise limits.held_bytes",
                )
            )

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
        return ExitCode.FAILED if self._unfinished or self._writer.failure is not None else ExitCode.OK

    async def _run(self, tasks: TaskGroup, stack: AsyncExitStack) -> None:
        self._prepare_state()
        lock = self.storage.lock(self.state / "lock")
        stack.callback(lock.release)
        control = ControlSocket(self, self._control_socket(stack))
        tasks.start_soon(control.run)
        self._notifier.status("reading the journal")
        self._sweep()
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
            self.state,
            self.journal_directory,
            style=self.config.bundle.style,
            compress=self.config.bundle.compress,
            on_published=self._on_published,
        )
        listening = self._listening_socket(stack)
        await self._serve(tasks, listening, recovery)

    def stop(self) -> None:
        """Begin the shutdown; a second call changes nothing."""
        self._stop.set()

    def _prepare_state(self) -> None:
        for directory in (self.state, self.journal_directory, self.state / "bundles"):
            self.storage.mkdir(directory)

    def _sweep(self) -> None:
        bundles = self.state / "bundles"
        for directory in (bundles, *(path for path in bundles.iterdir() if path.is_dir())):
            for path in sweep_temporaries(directory):
                log.info(telemetry.TEMPORARY_SWEPT, path=str(path))

    def _open_journal(self) -> tuple[Journal, Recovery]:
        journal, scan = Journal.open(
            self.journal_directory,
            self.storage,
            segment_bytes=self.config.journal.segment_bytes,
            program=PROGRAM,
        )
        try:
            return journal, recover(self.journal_directory, scan, self.storage, on_progress=self._progress)
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
        for session_id, reason in recovery.quarantined.items():
            log.error(
                telemetry.SESSION_QUARANTINED,
                session=session_id,
                reason=reason,
                hint="run `ergo-capture doctor` on the journal; `ergo-capture recover` salvages what is whole",
            )

    def _listening_socket(self, stack: AsyncExitStack) -> socket.socket:
        inherited = self._notifier.take_socket("capture")
        if inherited is not None:
            return inherited
        options = self.config.socket
        listening = bind(self.socket_path, mode=options.mode, group=options.group, backlog=options.backlog)
        stack.callback(listening.close)
        stack.callback(unlink_if_ours, self.socket_path, listening)
        return listening

    def _control_socket(self, stack: AsyncExitStack) -> socket.socket:
        inherited = self._notifier.take_socket("control")
        if inherited is not None:
            return inherited
        listening = bind(self.control_path, mode=0o600)
        stack.callback(listening.close)
        stack.callback(unlink_if_ours, self.control_path, listening)
        return listening

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
        tasks.start_soon(self._write)
        try:
            self.registry.start_engines()
            self.registry.take_recovered(recovery)
            await self.registry.retire_segments()
            listener = Listener(
                listening,
                self._serve_client,
                admission=self.admission,
                on_refused=self.on_refused,
                on_trouble=self.on_trouble,
            )
            tasks.start_soon(listener.run)
            tasks.start_soon(self.registry.retire_forever)
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
            log.info(telemetry.DAEMON_READY, socket=str(self.socket_path), state=str(self.state), program=PROGRAM)
            await self._stop.wait()
            await self._shut_down(listener)
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
            f"{len(self.connections)} clients, {len(sessions)} sessions; "
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

    async def _serve_client(self, stream: UNIXSocketStream, peer: Peer | None) -> None:
        self.totals["clients"] += 1
        connection = Connection(stream, peer, self)
        self.connections[connection] = None
        try:
            await connection.serve()
        except Exception:
            # Why here: a mistake of ours that one client brings out must not cost the others anything.
            log.exception(telemetry.CLIENT_FAILED, client=connection.client)
        finally:
            del self.connections[connection]
            error = connection.fatal
            misbehaved = error is not None and error.code is not Code.SHUTTING_DOWN
            (log.warning if misbehaved else log.info)(
                telemetry.CLIENT_GONE,
                client=connection.client,
                uid=None if peer is None else peer.uid,
                pid=None if peer is None else peer.pid,
                events=connection.receipts.received,
                bad_frames=connection.bad_frames,
                code=None if error is None else error.code.value,
                reason=None if error is None else error.message,
            )

    def on_refused(self, peer: Peer | None, error: ProtocolError) -> None:
        """Count and log whom a listener turned away."""
        self.count(error.code)
        log.warning(
            telemetry.CLIENT_REFUSED,
            uid=None if peer is None else peer.uid,
            pid=None if peer is None else peer.pid,
            code=error.code.value,
            reason=error.message,
            hint=error.hint,
        )

    def on_trouble(self, error: BaseException) -> None:
        """Log why a listener is given no more connections."""
        log.error(
            telemetry.CLIENT_UNACCEPTED,
            error=str(error),
            hint="raise LimitNOFILE, or lower limits.max_clients",
        )

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

    # --- the end ---

    async def _shut_down(self, listener: Listener) -> None:
        self.phase = "stopping"
        self._notifier.stopping()
        self.registry.stop()
        listener.stop()
        drain = self.config.shutdown.drain.seconds
        with anyio.move_on_after(drain or None) as deadline:
            if self._writer.failure is None:
                async with anyio.create_task_group() as telling:
                    telling.start_soon(self._tell_what_is_waited_for)
                    await self._drain()
                    telling.cancel_scope.cancel()
        for connection in list(self.connections):
            connection.shut_down()
        with anyio.move_on_after(1):
            await listener.idle.wait()
        self._writer.close()
        if deadline.cancelled_caught:
            self._unfinished = True
            log.error(telemetry.DRAIN_UNFINISHED, seconds=drain, sessions=len(self.registry.sessions))
        if self._writer.failure is None:
            with anyio.move_on_after(_LAST_COMMIT_SECONDS) as patience:
                await self._writer.until_ended()
            if patience.cancelled_caught:
                # The disk is full, and decisions wait for it: the next start takes them again.
                self._writer.abandon()
                self._unfinished = True
            else:
                await anyio.to_thread.run_sync(self._journal.seal)
        telemetry.say_suppressed(all_of_it=True)
        log.info(telemetry.DAEMON_STOPPED)

    async def _tell_what_is_waited_for(self) -> None:
        while True:
            await anyio.sleep(TELL_SECONDS)
            waits = shutdown_waits_for(self.registry.sessions.values())
            log.info(telemetry.DRAIN_WAITING, sessions=len(waits), waits_for=waits[:_MOST_TOLD])
            self._notifier.status(f"stopping, waits for {waits[0] if waits else 'the last bundle'}")
            # Why: shutdown.drain says how long it may take, and not the unit's TimeoutStopSec.
            self._notifier.extend_timeout(_EXTEND_SECONDS)

    async def _drain(self) -> None:
        """Read no more; decide, commit and publish everything that was accepted."""
        for connection in self.connections:
            connection.stop_reading()
        for session in list(self.registry.sessions.values()):
            if session.failure is not None:
                continue
            if session.ended is not None:
                await session.finished.wait()
            elif session.intake.admitted:
                try:
                    await session.flush(ended="interrupted")
                except ErgoCaptureError as error:
                    # Why no end: the journal holds the session, and the others want to be drained.
                    self._unfinished = True
                    name = session.description.session
                    log.error(telemetry.SNAPSHOT_FAILED, session=name, error=error.message, hint=error.hint)  # noqa: TRY400

    def __repr__(self) -> str:
        return f"<Service {self.state}, {len(self.connections)} connections>"
