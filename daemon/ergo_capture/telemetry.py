"""What the daemon logs, and how.

Names are ``subject.verb`` and stable, as are the keys: they are searched for. What each line means stands in the
README.

Where systemd's journal listens, each line begins with ``<N>``, its priority. What clients can bring about as often
as they like is folded: of a name that is logged more than ``burst`` times within ``window`` seconds the rest is
counted, and said once the window is over.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, TextIO

import structlog
from structlog.typing import EventDict, Processor

DAEMON_READY: Final = "daemon.ready"
DAEMON_STOPPING: Final = "daemon.stopping"
DAEMON_STOPPED: Final = "daemon.stopped"
DAEMON_ABANDONED: Final = "daemon.abandoned"
DRAIN_WAITING: Final = "drain.waiting"
DRAIN_UNFINISHED: Final = "drain.unfinished"
JOURNAL_RECOVERING: Final = "journal.recovering"
JOURNAL_RECOVERED: Final = "journal.recovered"
JOURNAL_FAILED: Final = "journal.failed"
JOURNAL_FULL: Final = "journal.full"
JOURNAL_RESUMED: Final = "journal.resumed"
WRITER_STALLED: Final = "writer.stalled"
WRITER_RESUMED: Final = "writer.resumed"
TEMPORARY_SWEPT: Final = "temporary.swept"
TEMPORARIES_KEPT: Final = "temporaries.kept"
SEGMENT_KEPT: Final = "segment.kept"
SESSION_OPENED: Final = "session.opened"
SESSION_RESUMED: Final = "session.resumed"
SESSION_FINISHED: Final = "session.finished"
SESSION_FAILED: Final = "session.failed"
SESSION_QUARANTINED: Final = "session.quarantined"
BUNDLE_PUBLISHED: Final = "bundle.published"
BUNDLE_DELAYED: Final = "bundle.delayed"
BUNDLE_PRUNED: Final = "bundle.pruned"
BUNDLE_UNSOUND: Final = "bundle.unsound"
RETENTION_FAILED: Final = "retention.failed"
RETENTION_SHORT: Final = "retention.short"
CLIENT_FAILED: Final = "client.failed"
CLIENT_GONE: Final = "client.gone"
CLIENT_REFUSED: Final = "client.refused"
CLIENT_UNACCEPTED: Final = "client.unaccepted"
ENGINE_READY: Final = "engine.ready"
ENGINE_AWAY: Final = "engine.away"
ENGINE_SAID: Final = "engine.said"
ENGINE_FAILED: Final = "engine.failed"
WORKER_BROKEN: Final = "worker.broken"
SNAPSHOT_FAILED: Final = "snapshot.failed"
CONFIG_RELOADED: Final = "config.reloaded"
CONFIG_REFUSED: Final = "config.refused"
METRICS_FAILED: Final = "metrics.failed"
CONTROL_ASKED: Final = "control.asked"
LOG_SUPPRESSED: Final = "log.suppressed"

#: Said however often. Why: each of these lines is evidence of something else, and no client can provoke a storm of
#: them that is not one of sessions or bundles too.
NEVER_FOLDED: Final = frozenset({BUNDLE_PUBLISHED, SESSION_QUARANTINED, SESSION_FAILED, LOG_SUPPRESSED})

#: Priorities of syslog, as systemd's journal reads them.
PRIORITIES: Final = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}


def configure(level: str = "info", style: str = "auto", *, burst: int = 0, window: float = 10.0) -> None:
    """Set up structlog to write to standard error.

    Args:
        level: the least important lines shown.
        style: ``console`` for people, ``json``, ``journald`` (JSON with priorities), or ``auto``: journald where it
            listens, console on a terminal, else JSON.
        burst: lines of one name within a window before the rest is folded; zero for no folding.
        window: seconds.
    """
    global _storms  # noqa: PLW0603 - structlog's configuration is the process's too
    if style == "auto":
        style = "journald" if journald_listens() else "console" if sys.stderr.isatty() else "json"
    _storms = Storms(burst, window)
    processors: list[Processor] = [
        _storms,
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
        logger_factory=lambda *_arguments: _Output(sys.stderr),
        cache_logger_on_first_use=False,
    )
    set_level(level)


def _coloured() -> bool:
    """Whether a person looks at it who has not asked for no colours (https://no-color.org)."""
    return sys.stderr.isatty() and not os.environ.get("NO_COLOR")


def set_level(level: str) -> None:
    """Show lines from this level on, from now on: ``debug``, ``info``, ``warning`` or ``error``."""
    # Why this is all: loggers are bound anew for each line, so there is none that remembers another level.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())))


def journald_listens() -> bool:
    """Whether standard error goes to systemd's journal: it says which file it gave us, and that may not be it."""
    device, _, inode = os.environ.get("JOURNAL_STREAM", "").partition(":")
    try:
        status = os.fstat(2)
    except OSError:
        return False
    return (device, inode) == (str(status.st_dev), str(status.st_ino))


# --- storms -------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Window:
    began: float
    said: int = 1
    suppressed: int = 0


class Storms:
    """Lets through so many lines of a name in each window, and counts the rest (a processor of structlog).

    Args:
        burst: lines of one name that are said in one window; zero for all.
        window: seconds.
        clock: seconds that only go forward.
    """

    def __init__(self, burst: int, window: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.burst = burst
        self.window = window
        self._clock = clock
        self._windows: dict[str, _Window] = {}
        self._lock = threading.Lock()

    def __call__(self, _logger: Any, _method: str, event: EventDict) -> EventDict:
        """The line, with how many were left out before it; or none."""
        name = str(event["event"])
        if not self.burst or name in NEVER_FOLDED:
            return event
        with self._lock:
            window, now = self._windows.get(name), self._clock()
            if window is None or now - window.began >= self.window:
                self._windows[name] = _Window(now)
                if window is not None and window.suppressed:
                    event["suppressed"] = window.suppressed
                return event
            window.said += 1
            if window.said <= self.burst:
                return event
            window.suppressed += 1
        raise structlog.DropEvent

    def take_suppressed(self, *, all_of_it: bool) -> dict[str, int]:
        """How many lines of each name were left out in windows that are over, or in all; they are forgotten then."""
        with self._lock:
            now = self._clock()
            over = [name for name, it in self._windows.items() if all_of_it or now - it.began >= self.window]
            counts = {name: self._windows.pop(name).suppressed for name in over}
        return {name: count for name, count in counts.items() if count}

    def __repr__(self) -> str:
        return f"<Storms above {self.burst} lines in {self.window:g} s, {len(self._windows)} windows>"


_storms = Storms(0, 10.0)


def say_suppressed(*, all_of_it: bool = False) -> None:
    """Say how many lines were left out; the service calls this now and then, and with ``all_of_it`` at the end."""
    for name, count in _storms.take_suppressed(all_of_it=all_of_it).items():
        structlog.get_logger().warning(LOG_SUPPRESSED, of=name, suppressed=count)


# --- lines --------------------------------------------------------------------------------------------------------


def _as_json(_logger: Any, _method: str, event: EventDict) -> str:
    # Why only ASCII: whatever a client calls itself, it cannot write a line or a colour of its own into the log.
    return json.dumps(event, default=repr)


def _with_priority(logger: Any, method: str, event: EventDict) -> str:
    return f"<{PRIORITIES[event['level']]}>{_as_json(logger, method, event)}"


def _printable(_logger: Any, _method: str, event: EventDict) -> EventDict:
    """Control characters as escapes. Why: what a client says ends up on the operator's terminal."""
    return {key: _escaped(value) if isinstance(value, str) else value for key, value in event.items()}


def _escaped(text: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class _Output:
    """Standard error, for structlog. Where nobody reads it any more lines are lost, and the daemon goes on."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def msg(self, message: str) -> None:
        """Write a line."""
        with suppress(OSError):
            self._file.write(message + "\n")
            self._file.flush()

    log = debug = info = warning = error = critical = exception = msg
