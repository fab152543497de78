"""``ergo-capture feed``: a capture as a driver's stream, from which ``ergo run`` can be run again."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import click

from ergo_capture.cli.support.captures import Capture
from ergo_capture.cli.support.command import NAME, argument, command, config_option, state_option
from ergo_capture.cli.support.driver_stream import note_without_kind, parts_of_session, require_payload, semantic_kinds
from ergo_capture.errors import ErgoCaptureError
from ergo_capture.kernel.records import ExternalEventRecord
from ergo_capture.protocol.driver import END_LINE, HELLO_LINE, driver_event_line

#: How many times, and after how many seconds, a session is searched again that a daemon has just published.
_ATTEMPTS: Final = 10
_RETRY_SECONDS: Final = 0.1


@command(
    examples=(
        "ergo run graph.yaml --adapter adapter.yaml --driver-cmd ergo-capture --driver-arg feed --driver-arg SESSION",
        "ergo-capture feed run.capture.json --from e7",
    )
)
@argument("capture", "A bundle file, or a session's id.", type=NAME)
@click.option("--from", "from_id", default="", metavar="ID", help="Begin with the event of that id.")
@state_option
@config_option
def feed(capture: str, from_id: str, state_dir: str, config: Path | None) -> None:
    """Print a capture as an `ergo-driver.v0` stream: hello, its events, end.

    It prints all parts of a session, and accepted events that are not decided. After a crash of `ergo run`, run it
    again with this stream. A bundle alone does not hold semantic kinds: they come from the journal, or from the
    manifest beside the bundle.
    """
    # Print it at once: the host waits five seconds for it, and finding a session may take as long.
    _write(HELLO_LINE, flush=True)
    total = unknown = 0
    begun = not from_id
    for event, kind in _events(lambda: parts_of_session(capture, state_dir, config)):
        begun = begun or event.event_id == from_id
        if not begun:
            continue
        require_payload(event, "feed", capture)
        total += 1
        unknown += kind is None
        _write(driver_event_line(event, kind))
    if from_id and not total:
        raise ErgoCaptureError(
            f"feed '{capture}': there is no event {from_id!r}",
            op="feed",
            path=capture,
            hint="`ergo-capture cat` prints the ids there are",
        )
    note_without_kind(unknown, total)
    _write(END_LINE, flush=True)


def _write(line: bytes, *, flush: bool = False) -> None:
    sys.stdout.buffer.write(line)
    if flush:
        sys.stdout.buffer.flush()


def _events(find: Callable[[], list[Capture]]) -> Iterator[tuple[ExternalEventRecord, str | None]]:
    """Yield the events of the runs that ``find`` returns, each with its semantic kind.

    A running daemon publishes parts and deletes their segments. Then the runs are searched again, and events that were
    yielded already are left out.
    """
    given = attempts = 0
    while True:
        place = 0
        try:
            for capture in find():
                with capture.open() as stream:
                    for event, kind in zip(stream.events(), semantic_kinds(capture), strict=False):
                        place += 1
                        if place > given:
                            given, attempts = place, 0
                            yield event, kind
        except ErgoCaptureError as error:
            attempts += 1
            if not isinstance(error.__cause__, FileNotFoundError) or attempts > _ATTEMPTS:
                raise
            time.sleep(_RETRY_SECONDS)
        else:
            return
