"""``ergo-capture journal cat``.

Owns: its arguments and output.
Not here: the format (``journal/frame.py``, ``journal/payloads.py``, ``journal/decision_rows.py``).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from ergo_capture.errors import ErgoCaptureError, ExitCode
from ergo_capture.journal.frame import FrameKind, Header
from ergo_capture.journal.reader import Window
from ergo_capture.journal.segment import sequence_of
from ergo_capture.storage import RealStorage

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    help="Look into the write-ahead journal.",
)


@app.callback()
def journal() -> None:
    """Look into the write-ahead journal."""


@app.command()
def cat(
    segment: Annotated[
        Path, typer.Argument(metavar="SEGMENT", help="A segment: STATE/journal/NNNNNNNNNNNNNNNN.journal.")
    ],
    bodies: Annotated[bool, typer.Option(help="Print what the frames hold, not only their headers.")] = True,
) -> int:
    """Print a segment as JSON Lines, one frame a line.

    Exit 3 where it ends in something that is not a frame.
    """
    sequence = sequence_of(segment.name)
    if sequence is None:
        raise ErgoCaptureError(
            f"read journal segment '{segment}': that is not the name of a segment",
            op="read journal segment",
            path=segment,
            hint="name a file such as 0000000000000001.journal",
        )
    file = RealStorage().open(segment)
    try:
        window, offset = Window(file), 0
        while (header := window.header(offset, sequence)) is not None:
            body = window.body(offset, header)
            line = _line(offset, header) | ({} if body is not None else {"damaged": True})
            if bodies and body is not None:
                line["body"] = _body(header, bytes(body))
            typer.echo(msgspec.json.encode(line))
            offset += header.size
        rest = bytes(window.view(offset, window.size - offset)).rstrip(b"\0")
    finally:
        file.close()
    if rest:
        typer.echo(f"{len(rest)} bytes from offset {offset} are not a frame", err=True)
        return int(ExitCode.DATA_LOSS)
    return int(ExitCode.OK)


def _line(offset: int, header: Header) -> dict[str, Any]:
    kinds = {kind.value: kind.name.lower() for kind in FrameKind}
    return {
        "offset": offset,
        "kind": kinds.get(header.kind, header.kind),
        "batch": header.batch,
        "index": header.index,
        "frames": header.frames,
        "session": header.session,
        "first": header.first,
        "count": header.count,
        "bytes": header.length,
    }


def _body(header: Header, body: bytes) -> Any:
    if header.kind == FrameKind.EVENTS:
        return [msgspec.Raw(line) for line in body.split(b"\n") if line]
    return msgspec.Raw(body)
