"""``ergo-capture send``: events from a file or a pipe to the daemon.

Owns: reading the input, progress, the summary.
Not here: the connection (``client.py``).

The input is JSON Lines: bare events, ``event`` or ``events`` frames, or a whole ``ergo-driver.v0`` stream;
gzip is recognised by itself. Lines are sent as they are: nothing is parsed but what it takes to count.
"""

from __future__ import annotations

import asyncio
import gzip
import io
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import msgspec
import typer

from ergo_capture.client import CaptureClient, Published, Reject
from ergo_capture.errors import ErgoCaptureError, ExitCode

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


class _Id(msgspec.Struct):
    event_id: str = ""


class _Line(msgspec.Struct):
    type: str = ""
    event: msgspec.Raw = msgspec.Raw(b"")
    events: list[msgspec.Raw] = []
    event_id: str = ""


_line = msgspec.json.Decoder(_Line)
_id = msgspec.json.Decoder(_Id)


@app.command()
def send(
    file: Annotated[str, typer.Argument(help="JSON Lines of events, .gz too; - for standard input.")] = "-",
    graph: Annotated[str, typer.Option(help="Graph to open a session of.")] = "default",
    session: Annotated[str, typer.Option(help="Session to take up again, in place of a new one.")] = "",
    label: Annotated[list[str] | None, typer.Option(help="KEY=VALUE, kept in the manifest; may be repeated.")] = None,
    socket: Annotated[str, typer.Option(help="The daemon's socket; by default the configured one.")] = "",
    window: Annotated[int, typer.Option(min=1, help="Events that may be unacknowledged at once.")] = 4096,
    give_up_after: Annotated[
        float, typer.Option(min=0, help="Seconds to go on trying when the daemon is away.")
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

        socket = load().socket.path
    progress = _Progress(shown=not quiet and not as_json and sys.stderr.isatty())
    client = CaptureClient(
        socket,
        name="ergo-capture send",
        window=window,
        give_up_after=give_up_after,
        on_reject=progress.reject,
        on_reconnect=progress.reconnect,
    )
    started = time.monotonic()
    with _open(file) as source:
        published = asyncio.run(_stream(client, source, graph, session or None, labels, progress))
    progress.finish()
    summary = _summary(client, published, progress, time.monotonic() - started)
    if as_json:
        typer.echo(msgspec.json.encode(summary))
    else:
        typer.echo(f"{published.events} events, {published.decisions} decisions in {summary['seconds']:.2f} s")
        if client.rejected:
            typer.echo(f"{client.rejected} events were rejected", err=True)
        if client.reconnects:
            typer.echo(f"took the session up again {client.reconnects} times", err=True)
        typer.echo(published.bundle)
    return int(ExitCode.DATA_LOSS if client.rejected else ExitCode.OK)


async def _stream(
    client: CaptureClient,
    source: BinaryIO,
    graph: str,
    session: str | None,
    labels: dict[str, str],
    progress: _Progress,
) -> Published:
    async with client:
        await client.open(graph, session=session, labels=labels)
        lines = _lines(source)
        while True:
            # Why in a thread: a pipe may have nothing for us for hours, and acknowledgements still arrive.
            batch = await asyncio.to_thread(_some, lines)
            if not batch:
                break
            for line, event_id in batch:
                await client.send_line(line, event_id)
            progress.show(client)
        return await client.close()


def _some(lines: Iterator[tuple[bytes, str] | None]) -> list[tuple[bytes, str]]:
    """What can be read without waiting long: up to a thousand lines, at least one unless it is the end."""
    batch: list[tuple[bytes, str]] = []
    for line in lines:
        if line is None:
            if batch:
                return batch
            continue
        batch.append(line)
        if len(batch) == 1000:
            return batch
    return batch


def _lines(source: BinaryIO) -> Iterator[tuple[bytes, str] | None]:
    """Event lines with their ids; None where the next one may have to be waited for."""
    while chunk := source.read1(1 << 16) if isinstance(source, io.BufferedReader) else source.read(1 << 16):
        if not chunk.endswith(b"\n"):
            chunk += source.readline()
        for line in chunk.split(b"\n"):
            if line.strip():
                yield from _events_of(line)
        yield None


def _events_of(line: bytes) -> Iterator[tuple[bytes, str]]:
    try:
        frame = _line.decode(line)
        if frame.type == "event":
            yield line.strip() + b"\n", _id.decode(frame.event).event_id
        elif frame.type == "events":
            for event in frame.events:
                yield _wrap(event), _id.decode(event).event_id
        elif frame.event_id:
            yield _wrap(line.strip()), frame.event_id
        # hello, open, end and close are the stream's own framing; this command does its own.
    except (ValueError, RecursionError):
        # Why sent all the same: what is wrong with it is the daemon's to say.
        yield line.strip() + b"\n", ""


def _wrap(event: bytes | msgspec.Raw) -> bytes:
    return b'{"type":"event","event":' + bytes(event) + b"}\n"


def _open(file: str) -> BinaryIO:
    try:
        source: BinaryIO = sys.stdin.buffer if file == "-" else Path(file).open("rb")  # noqa: SIM115 - the caller closes
        if isinstance(source, io.BufferedReader) and source.peek(2)[:2] == b"\x1f\x8b":
            unzipped: Any = gzip.GzipFile(fileobj=source)
            return io.BufferedReader(unzipped)
    except OSError as error:
        raise ErgoCaptureError(
            f"read events from '{file}': {error.strerror}",
            op="read events",
            path=file,
            hint="name a file that you may read, or - for standard input",
        ) from error
    return source


def _label(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise typer.BadParameter(f"{text!r} is not KEY=VALUE")
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


class _Progress:
    """What a person sees while it goes: a count on one line, rejections and reconnections on lines of their own."""

    #: Rejections that are shown one by one; more are only counted.
    MOST_SHOWN = 10

    def __init__(self, *, shown: bool) -> None:
        self.codes: dict[str, int] = {}
        self._shown = shown
        self._last = 0.0
        self._said = 0

    def show(self, client: CaptureClient) -> None:
        now = time.monotonic()
        if self._shown and now - self._last >= 0.1:
            self._last = now
            sys.stderr.write(f"\r{client.accepted} events durable\x1b[K")
            sys.stderr.flush()

    def reject(self, reject: Reject) -> None:
        self.codes[reject.code] = self.codes.get(reject.code, 0) + 1
        self._said += 1
        if self._said <= self.MOST_SHOWN:
            self._line(f"rejected {reject.event_id!r}: {reject.code}: {reject.message}")
        elif self._said == self.MOST_SHOWN + 1:
            self._line("more were rejected; see the count at the end")

    def reconnect(self, times: int) -> None:
        self._line(f"the daemon is back; the session goes on (reconnected {times} times)")

    def finish(self) -> None:
        if self._shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()

    def _line(self, text: str) -> None:
        sys.stderr.write(("\r\x1b[K" if self._shown else "") + text + "\n")
        sys.stderr.flush()
