"""Check the stream of announcements: that it exists, takes every graph's subject, and drops repetitions."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from typing import Any, Final, NamedTuple

from ergo_capture.config.shipping import AnnounceConfig
from ergo_capture.errors import ErgoCaptureError
from ergo_capture.ship.announcement import subject_of
from ergo_capture.ship.jetstream import AnnounceError, connected

#: Seconds within which the stream should drop repetitions: an announcement is repeated after a pause of 5 minutes.
_WINDOW_SECONDS: Final = 600.0


class StreamFinding(NamedTuple):
    """One finding."""

    text: str
    hint: str | None = None
    #: Whether announcing is impossible because of it.
    is_failure: bool = False


async def probe_stream(settings: AnnounceConfig, graphs: Iterable[str]) -> AsyncIterator[StreamFinding]:
    """Yield findings, good and bad. Nothing is published.

    Args:
        settings: the settings of announcements.
        graphs: the names of the configured graphs.
    """
    met = set()
    try:
        async with connected(settings) as publisher:
            yield StreamFinding(f"connected to {publisher.server}")
            for graph in graphs:
                subject = subject_of(settings.subject, graph)
                try:
                    name, stream = await publisher.describe_stream(subject)
                except AnnounceError as error:
                    yield StreamFinding(error.message, error.hint, is_failure=True)
                    continue
                yield StreamFinding(f"stream {name} takes {subject}")
                if name not in met:
                    met.add(name)
                    for finding in _findings(name, stream):
                        yield finding
    except ErgoCaptureError as error:
        yield StreamFinding(error.message, error.hint, is_failure=True)


def _findings(name: str, stream: Any) -> Iterable[StreamFinding]:
    if stream.no_ack:
        yield StreamFinding(
            f"stream {name} sends no acknowledgements, and announcements wait for them",
            "create it without --no-ack",
            is_failure=True,
        )
    if stream.sealed:
        yield StreamFinding(f"stream {name} is sealed and takes nothing", "create another one", is_failure=True)
    window = stream.duplicate_window or 0.0
    text = f"it drops repetitions within {window:g} s"
    if window < _WINDOW_SECONDS:
        yield StreamFinding(
            f"{text}: after a longer pause the same announcement may be in it twice",
            f"`nats stream edit {name} --dupe-window=1h`, or have readers compare manifest_sha256",
        )
    else:
        yield StreamFinding(text)
    if stream.storage == "memory":
        yield StreamFinding("it is kept in memory: announcements are lost when its server stops", "use --storage=file")
