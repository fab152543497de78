"""``ergo-capture send``: events from a file or a pipe to the daemon.

Owns: its arguments, progress, the summary.
Not here: reading the input (``event_lines.py``), the connection (``client/session.py``).
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec
import typer

from ergo_capture.cli.event_lines import EventLines
from ergo_capture.client import CaptureClient, Published, Reject
from ergo_capture.errors import ExitCode
from ergo_capture.protocol.capture import unwrap_event
from ergo_capture.units import counted

if TYPE_CHECKING:
    from rich.progress import Progress

#: Characters of a line that is shown because it has no id.
_SHOWN: Final = 60

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def send(
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="JSON Lines of events, .gz too; - for standard input.")
    ] = "-",
    graph: Annotated[str, typer.Option(metavar="GRAPH", help="Graph to open a session of.")] = "default",
    session: Annotated[
        str, typer.Option(metavar="SESSION", help="Session to take up again, in place of a new one.")
    ] = "",
    label: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="Kept in the manifest; may be repeated.")
    ] = None,
    socket: Annotated[
        str, typer.Option(metavar="PATH", help="The daemon's socket; by default the configured one.")
    ] = "",
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The daemon's configuration file; by default the usual one.")
    ] = None,
    window: Annotated[int, typer.Option(min=1, metavar="N", help="Events that may be unacknowledged at once.")] = 4096,
    give_up_after: Annotated[
        float, typer.Option(min=0, metavar="SECONDS", help="How long to go on trying when the daemon is away.")
    ] = 60.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one line of JSON at the end.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")] = False,
) -> int:
    """Stream events to the daemon, close the session, and say where the bundle is.

    Goes on by itself when the daemon is restarted. Exit 3 where events were rejected.
    """
    labels = dict(_label(text) for text in label or [])
    if not socket:
        from ergo_capture.config import load  # noqa: PLC0415 - only where nothing was said

        socket = load(config).socket.path
    started = time.monotonic()
    source = EventLines(file)
    progress = _Progress(source, shown=not quiet and not as_json and sys.stderr.isatty())
    client = CaptureClient(
        socket,
        name="ergo-capture send",
        window=window,
        give_up_after=give_up_after,
        on_reject=progress.reject,
        on_reconnect=progress.reconnect,
    )
    try:
        published = asyncio.run(_stream(client, source, graph, session or None, labels, progress))
    except KeyboardInterrupt:
        progress.interrupted(client)
        raise
    finally:
        progress.finish()
    summary = _summary(client, published, progress, time.monotonic() - started)
    if as_json:
        typer.echo(msgspec.json.encode(summary))
    else:
        counts = f"{counted(published.events, 'event')}, {counted(published.decisions, 'decision')}"
        typer.echo(f"{counts} in {summary['seconds']:.2f} s")
        if client.rejected:
            typer.echo(f"{counted(client.rejected, 'event')} rejected", err=True)
        if client.reconnects:
            typer.echo(f"took the session up again {counted(client.reconnects, 'time')}", err=True)
        typer.echo(published.bundle)
    return int(ExitCode.DATA_LOSS if client.rejected else ExitCode.OK)


async def _stream(
    client: CaptureClient,
    source: EventLines,
    graph: str,
    session: str | None,
    labels: dict[str, str],
    progress: _Progress,
) -> Published:
    waits = "`ergo-capture status` says what it waits for"
    async with source, AsyncExitStack() as stack:
        progress.begin()
        with progress.saying_so(f"no daemon at '{client.path}' yet; one that is just starting is waited for", after=1):
            await stack.enter_async_context(client)
        with progress.saying_so(f"the daemon has not opened the session yet; {waits}"):
            await client.open(graph, session=session, labels=labels)
        async for batch in source.batches():
            for line, event_id in batch:
                await client.send_line(line, event_id)
            progress.show(client)
        with progress.saying_so(f"the daemon has not published the bundle yet; {waits}"):
            return await client.close()


def _label(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise typer.BadParameter(f"--label {text!r} is not KEY=VALUE")
    return key, value


def _summary(client: CaptureClient, published: Published, progress: _Progress, seconds: float) -> dict[str, Any]:
    return {
        "session": published.session,
        "bundle": published.bundle,
        "manifest": published.manifest,
        "sha256": published.sha256,
        "events": published.events,
        "decisions": published.decisions,
        "accepted": client.accepted,
        "rejected": client.rejected,
        "rejections": progress.codes,
        "reconnects": client.reconnects,
        "seconds": round(seconds, 3),
    }


def _name_of(reject: Reject) -> str:
    """The event's id, or what its line begins with; escaped, as a terminal obeys control characters."""
    if reject.event_id is not None:
        return repr(reject.event_id)
    line = unwrap_event(reject.line).decode(errors="replace")
    return f"the line {line if len(line) <= _SHOWN else line[:_SHOWN] + '...'!r}"


class _Progress:
    """What a person sees while it goes: a bar or a count on one line, rejections and reconnections on their own."""

    #: Rejections that are shown one by one; more are only counted.
    MOST_SHOWN = 10
    #: Seconds of waiting after which that is said.
    SILENCE = 5.0

    def __init__(self, source: EventLines, *, shown: bool) -> None:
        self.codes: dict[str, int] = {}
        self._said = 0
        self._source = source
        self._shown = shown
        self._bar: Progress | None = None

    def begin(self) -> None:
        """The input is open, and its size known if it has one."""
        if self._shown:
            self._bar = _bar(known=self._source.size is not None)
            self._task = self._bar.add_task("", total=self._source.size, durable=0)
            self._bar.start()

    def show(self, client: CaptureClient) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=self._source.taken, durable=client.accepted)

    def reject(self, reject: Reject) -> None:
        self.codes[reject.code] = self.codes.get(reject.code, 0) + 1
        self._said += 1
        if self._said <= self.MOST_SHOWN:
            self._line(f"rejected {_name_of(reject)}: {reject.code}: {reject.message}")
        elif self._said == self.MOST_SHOWN + 1:
            self._line("more were rejected; see the count at the end")

    def reconnect(self, times: int) -> None:
        self._line(f"the daemon is back; the session goes on (reconnected {counted(times, 'time')})")

    @contextmanager
    def saying_so(self, sentence: str, after: float = SILENCE) -> Iterator[None]:
        """Say what is waited for where it takes long. Why: a daemon whose disk is full waits too, and says nothing."""
        later = asyncio.get_running_loop().call_later(after, self._line, sentence)
        try:
            yield
        finally:
            later.cancel()

    def interrupted(self, client: CaptureClient) -> None:
        if client.session is not None:
            durable = counted(client.accepted, "event")
            self._line(f"interrupted: {durable} durable in session {client.session}; --session takes it up again")

    def finish(self) -> None:
        if self._bar is not None:
            self._bar.stop()

    def _line(self, text: str) -> None:
        if self._bar is None:
            sys.stderr.write(text + "\n")
            sys.stderr.flush()
        else:
            self._bar.console.print(text, markup=False, highlight=False)


def _bar(*, known: bool) -> Progress:
    """A bar where the input's size is known, else a spinner; gone when it is done."""
    from rich.console import Console  # noqa: PLC0415 - only on a terminal
    from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn  # noqa: PLC0415

    durable = TextColumn("{task.fields[durable]:,} events durable")
    columns = (
        [BarColumn(), TaskProgressColumn(), durable, TimeRemainingColumn()] if known else [SpinnerColumn(), durable]
    )
    return Progress(*columns, console=Console(stderr=True), transient=True)
