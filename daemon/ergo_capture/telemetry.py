"""What the daemon logs, and how.

Owns: the names of log events and the set-up of structlog.
Not here: when something is logged; that is beside what happens.

Names are ``subject.verb`` and stable, as are the keys: they are searched for.
"""

from __future__ import annotations

import logging
import sys
from typing import Any, Final

import structlog

DAEMON_READY: Final = "daemon.ready"
DAEMON_STOPPING: Final = "daemon.stopping"
DAEMON_STOPPED: Final = "daemon.stopped"
DAEMON_ABANDONED: Final = "daemon.abandoned"
DRAIN_WAITING: Final = "drain.waiting"
DRAIN_UNFINISHED: Final = "drain.unfinished"
JOURNAL_RECOVERED: Final = "journal.recovered"
JOURNAL_FAILED: Final = "journal.failed"
JOURNAL_FULL: Final = "journal.full"
JOURNAL_RESUMED: Final = "journal.resumed"
TEMPORARY_SWEPT: Final = "temporary.swept"
SESSION_OPENED: Final = "session.opened"
SESSION_RESUMED: Final = "session.resumed"
SESSION_FINISHED: Final = "session.finished"
SESSION_FAILED: Final = "session.failed"
SESSION_QUARANTINED: Final = "session.quarantined"
BUNDLE_PUBLISHED: Final = "bundle.published"
CLIENT_FAILED: Final = "client.failed"
CLIENT_GONE: Final = "client.gone"
CLIENT_REFUSED: Final = "client.refused"
CLIENT_UNACCEPTED: Final = "client.unaccepted"
WORKER_BROKEN: Final = "worker.broken"
SNAPSHOT_FAILED: Final = "snapshot.failed"


def configure(level: str = "info", style: str = "auto") -> None:
    """Set up structlog to write to standard error: for people on a terminal, else JSON, one object a line."""
    console = style == "console" or (style == "auto" and sys.stderr.isatty())
    renderer: Any = structlog.dev.ConsoleRenderer() if console else structlog.processors.JSONRenderer()
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info if not console else _keep,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )


def _keep(_logger: Any, _method: str, event: Any) -> Any:
    return event
