"""The daemon's log: names of its events, and the set-up of structlog.

Names are ``subject.verb``. Names and keys are stable, because users search for them. The manual explains each.

If standard error goes to systemd's journal, each line begins with its priority, ``<N>``. Events that clients can cause
without limit are rate-limited: if a name is logged more than ``burst`` times within ``window`` seconds, the rest is
counted, and the count is logged after the window.

The daemon writes its lines from a thread (``write_in_background``), so that a slow reader cannot stall it.
"""

from __future__ import annotations

import atexit
import io
import json
import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, NoReturn, TextIO

import structlog
from structlog.typing import EventDict, Processor

from ergo_capture.log_output import Dropped, LogOutput, LogStream

DAEMON_READY: Final = "daemon.ready"
DAEMON_STOPPING: Final = "daemon.stopping"
DAEMON_STOPPED: Final = "daemon.stopped"
DAEMON_ABANDONED: Final = "daemon.abandoned"
DAEMON_PAUSED: Final = "daemon.paused"
DRAIN_WAITING: Final = "drain.waiting"
DRAIN_UNFINISHED: Final = "drain.unfinished"
JOURNAL_RECOVERING: Final = "journal.recovering"
JOURNAL_RECOVERED: Final = "journal.recovered"
JOURNAL_DAMAGED: Final = "journal.damaged"
JOURNAL_FAILED: Final = "journal.failed"
JOURNAL_LOST: Final = "journal.lost"
JOURNAL_SAVED: Final = "journal.saved"
JOURNAL_UNSAVED: Final = "journal.unsaved"
JOURNAL_FULL: Final = "journal.full"
JOURNAL_RESUMED: Final = "journal.resumed"
WRITER_STALLED: Final = "writer.stalled"
WRITER_RESUMED: Final = "writer.resumed"
DISK_UNWRITABLE: Final = "disk.unwritable"
DISK_WRITABLE: Final = "disk.writable"
TEMPORARY_SWEPT: Final = "temporary.swept"
TEMPORARIES_KEPT: Final = "temporaries.kept"
SEGMENT_KEPT: Final = "segment.kept"
SESSION_OPENED: Final = "session.opened"
SESSION_RESUMED: Final = "session.resumed"
SESSION_LOST: Final = "session.lost"
SESSION_FINISHED: Final = "session.finished"
SESSION_FAILED: Final = "session.failed"
SESSION_QUARANTINED: Final = "session.quarantined"
QUARANTINE_KEPT: Final = "quarantine.kept"
BUNDLE_PUBLISHED: Final = "bundle.published"
BUNDLE_DIVERTED: Final = "bundle.diverted"
BUNDLE_DELAYED: Final = "bundle.delayed"
BUNDLE_PRUNED: Final = "bundle.pruned"
BUNDLE_UNSOUND: Final = "bundle.unsound"
RETENTION_HELD: Final = "retention.held"
RETENTION_SUSPECT: Final = "retention.suspect"
RETENTION_FAILED: Final = "retention.failed"
RETENTION_SHORT: Final = "retention.short"
RETENTION_GAVE_UP: Final = "retention.gave_up"
SHIP_READY: Final = "ship.ready"
SHIP_STOPPED: Final = "ship.stopped"
SHIP_SENT: Final = "ship.sent"
SHIP_AWAY: Final = "ship.away"
SHIP_RESUMED: Final = "ship.resumed"
SHIP_REFUSED: Final = "ship.refused"
SHIP_DIFFERS: Final = "ship.differs"
SHIP_UNSOUND: Final = "ship.unsound"
SHIP_FAILED: Final = "ship.failed"
ANNOUNCE_AWAY: Final = "announce.away"
ANNOUNCE_RESUMED: Final = "announce.resumed"
ANNOUNCE_REFUSED: Final = "announce.refused"
SOCKET_REBOUND: Final = "socket.rebound"
SOCKET_LOST: Final = "socket.lost"
CLIENT_FAILED: Final = "client.failed"
CLIENT_GONE: Final = "client.gone"
CLIENT_REFUSED: Final = "client.refused"
CLIENT_UNACCEPTED: Final = "client.unaccepted"
EVENT_REFUSED: Final = "event.refused"
SESSION_INTERRUPTED: Final = "session.interrupted"
ENGINE_READY: Final = "engine.ready"
ENGINE_AWAY: Final = "engine.away"
ENGINE_SAID: Final = "engine.said"
ENGINE_FAILED: Final = "engine.failed"
EGRESS_AWAY: Final = "egress.away"
EGRESS_CHANGED: Final = "egress.changed"
EGRESS_SAID: Final = "egress.said"
EGRESS_FAILED: Final = "egress.failed"
WORKER_BROKEN: Final = "worker.broken"
BUNDLE_VERIFIED: Final = "bundle.verified"
BUNDLE_REFUTED: Final = "bundle.refuted"
COMPOSE_REPEATED: Final = "compose.repeated"
COMPOSE_SUSPENDED: Final = "compose.suspended"
SNAPSHOT_FAILED: Final = "snapshot.failed"
CONFIG_RELOADED: Final = "config.reloaded"
CONFIG_REFUSED: Final = "config.refused"
METRICS_FAILED: Final = "metrics.failed"
SIGNAL_IGNORED: Final = "signal.ignored"
CONTROL_ASKED: Final = "control.asked"
LOG_SUPPRESSED: Final = "log.suppressed"
LOG_DROPPED: Final = "log.dropped"

#: Names that are never rate-limited: each line is about another session or bundle, and a client cannot cause more lines
#: than sessions or bundles.
NEVER_SUPPRESSED: Final = frozenset(
    {
        BUNDLE_PUBLISHED,
        BUNDLE_DIVERTED,
        RETENTION_GAVE_UP,
        SHIP_SENT,
        SESSION_QUARANTINED,
        SESSION_FAILED,
        SESSION_INTERRUPTED,
        LOG_SUPPRESSED,
        LOG_DROPPED,
    }
)

#: Priorities of syslog, as systemd's journal reads them.
PRIORITIES: Final = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}


def configure(level: str = "info", style: str = "auto", *, burst: int = 0, window: float = 10.0) -> None:
    """Configure structlog to write to standard error.

    Args:
        level: the least important level that is logged.
        style: ``console`` (readable text), ``json``, ``journald`` (JSON with priorities), or ``auto``: journald if
            standard error goes there, console on a terminal, otherwise JSON.
        burst: lines of one name within a window before the rest is suppressed; zero for no limit.
        window: length of a window, in seconds.
    """
    global _storm_filter  # noqa: PLW0603 - structlog's configuration is the process's too
    if style == "auto":
        style = "journald" if journald_listens() else "console" if sys.stderr.isatty() else "json"
    _storm_filter = StormFilter(burst, window)
    processors: list[Processor] = [
        _storm_filter,
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if style == "console":
        processors += [_printable, structlog.dev.ConsoleRenderer(colors=_coloured())]
    else:
        processors += [structlog.processors.format_exc_info, _with_priority if style == "journald" else _as_json]
    structlog.configure(
        processors=processors,
        logger_factory=lambda *_arguments: _Output(sys.stderr) if _background is None else _Background(_background),
        cache_logger_on_first_use=False,
    )
    set_level(level)


def _coloured() -> bool:
    """Return whether to use colours: on a terminal, unless NO_COLOR is set (https://no-color.org)."""
    return sys.stderr.isatty() and not os.environ.get("NO_COLOR")


def set_level(level: str) -> None:
    """Log lines of this level and above from now on: ``debug``, ``info``, ``warning`` or ``error``."""
    # Loggers are bound again for each line, so none of them keeps the previous level.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())))


def journald_listens() -> bool:
    """Return whether standard error is the stream that systemd connected to its journal; it may be redirected since."""
    device, _, inode = os.environ.get("JOURNAL_STREAM", "").partition(":")
    try:
        status = os.fstat(2)
    except OSError:
        return False
    return (device, inode) == (str(status.st_dev), str(status.st_ino))


# --- storms -------------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Window:
    began: float
    logged: int = 1
    suppressed: int = 0


class StormFilter:
    """Suppresses lines of a name above a number in each window, and counts them (a processor of structlog).

    Args:
        burst: lines of one name that are logged in one window; zero for all.
        window: length of a window, in seconds.
        clock: a monotonic clock, in seconds.
    """

    def __init__(self, burst: int, window: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.burst = burst
        self.window = window
        self._clock = clock
        self._windows: dict[str, _Window] = {}
        self._lock = threading.Lock()

    def __call__(self, _logger: Any, _method: str, event: EventDict) -> EventDict:
        """Return the line, with the number of lines suppressed before it; raise ``DropEvent`` to suppress it."""
        name = str(event["event"])
        if not self.burst or name in NEVER_SUPPRESSED:
            return event
        with self._lock:
            window, now = self._windows.get(name), self._clock()
            if window is None or now - window.began >= self.window:
                self._windows[name] = _Window(now)
                if window is not None and window.suppressed:
                    event["suppressed"] = window.suppressed
                return event
            window.logged += 1
            if window.logged <= self.burst:
                return event
            window.suppressed += 1
        raise structlog.DropEvent

    def take_suppressed(self, *, final: bool) -> dict[str, int]:
        """Return and reset the number of suppressed lines by name, in past windows or (``final``) in all."""
        with self._lock:
            now = self._clock()
            over = [name for name, it in self._windows.items() if final or now - it.began >= self.window]
            counts = {name: self._windows.pop(name).suppressed for name in over}
        return {name: count for name, count in counts.items() if count}


_storm_filter = StormFilter(0, 10.0)
#: The thread's queue of lines; None if lines are written directly.
_background: LogOutput | None = None


def log_suppressed(*, final: bool = False) -> None:
    """Log how many lines were suppressed; the service calls this periodically, and with ``final`` at the end."""
    for name, count in _storm_filter.take_suppressed(final=final).items():
        structlog.get_logger().warning(LOG_SUPPRESSED, of=name, suppressed=count)


# --- lines --------------------------------------------------------------------------------------------------------


def _as_json(_logger: Any, _method: str, event: EventDict) -> str:
    # JSON in ASCII: a client's name cannot add a line or a colour to the log.
    return json.dumps(event, default=repr)


def _with_priority(logger: Any, method: str, event: EventDict) -> str:
    return f"<{PRIORITIES[event['level']]}>{_as_json(logger, method, event)}"


def _printable(_logger: Any, _method: str, event: EventDict) -> EventDict:
    """Escape control characters: a client's text ends up on the operator's terminal."""
    return {key: _escaped(value) if isinstance(value, str) else value for key, value in event.items()}


def _escaped(text: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


#: Seconds to wait for lines that are still to be written before the process exits.
_DRAIN_SECONDS: Final = 1.0


def write_in_background() -> None:
    """Write lines, and everything else that goes to ``sys.stderr``, from a thread from now on; see ``log_output``."""
    global _background  # noqa: PLW0603 - standard error is the process's
    descriptor = sys.stderr.fileno()
    _background = LogOutput(descriptor, _log_dropped)
    atexit.register(_background.drain, _DRAIN_SECONDS)
    stream: Any = LogStream(_background, descriptor)
    sys.stderr = io.TextIOWrapper(stream, encoding="utf-8", errors="backslashreplace", line_buffering=True)


def exit_at_once(code: int) -> NoReturn:
    """Exit without clean-up, except for lines that are still to be written."""
    if _background is not None:
        _background.drain(_DRAIN_SECONDS)
    os._exit(code)


def dropped_lines() -> int:
    """Return how many lines were dropped since the start because they were not read in time."""
    return 0 if _background is None else _background.total_dropped


def _log_dropped(dropped: Dropped) -> None:
    structlog.get_logger().warning(LOG_DROPPED, info=dropped.info, errors=dropped.errors)


class _Background:
    """The thread that writes to standard error, for structlog."""

    def __init__(self, output: LogOutput) -> None:
        self._output = output

    def debug(self, message: str) -> None:
        """Queue a line that may be dropped before others."""
        self._output.write(f"{message}\n".encode("utf-8", "backslashreplace"), is_error=False)

    def error(self, message: str) -> None:
        """Queue a line."""
        self._output.write(f"{message}\n".encode("utf-8", "backslashreplace"), is_error=True)

    info = debug
    msg = log = warning = critical = exception = error


class _Output:
    """Standard error, for structlog. If it is closed, lines are lost and the daemon continues."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def msg(self, message: str) -> None:
        """Write a line."""
        with suppress(OSError):
            self._file.write(message + "\n")
            self._file.flush()

    log = debug = info = warning = error = critical = exception = msg
