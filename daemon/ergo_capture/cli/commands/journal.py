"""``ergo-capture journal cat``: a segment of the journal, frame by frame."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import msgspec

from ergo_capture.cli.support.command import PATH, Command, Group, argument
from ergo_capture.errors import ErgoCaptureError, ExitCode
from ergo_capture.journal.frame import FrameKind, Header
from ergo_capture.journal.reader import Window
from ergo_capture.journal.segment import sequence_of
from ergo_capture.storage import RealStorage


@click.group(cls=Group)
def journal() -> None:
    """Look into the write-ahead journal."""


@journal.command(cls=Command, examples=("ergo-capture journal cat journal/0000000000000001.journal --no-bodies",))
@argument("segment", "A segment: STATE/journal/NNNNNNNNNNNNNNNN.journal.", type=PATH)
@click.option(
    "--bodies/--no-bodies",
    default=True,
    show_default=True,
    help="Print the bodies of frames, not only the headers.",
)
def cat(segment: Path, *, bodies: bool) -> int:
    """Print a segment as JSON Lines, one frame per line.

    Exit code 3 if the segment ends in bytes that are not a frame.
    """
    sequence = sequence_of(segment.name)
    if sequence is None:
        reason = "it is a directory" if segment.is_dir() else "that is not the name of a segment"
        segments = sorted(path.name for path in segment.glob("*.journal")) if segment.is_dir() else []
        raise ErgoCaptureError(
            f"read journal segment '{segment}': {reason}",
            op="read journal segment",
            path=segment,
            hint=f"name a file such as {segment / segments[0] if segments else '0000000000000001.journal'}",
        )
    file = RealStorage().open(segment)
    try:
        window, offset = Window(file), 0
        while (header := window.header(offset, sequence)) is not None:
            body = window.body(offset, header)
            line = _line(offset, header) | ({} if body is not None else {"damaged": True})
            if bodies and body is not None:
                line["body"] = _body(header, bytes(body))
            click.echo(msgspec.json.encode(line))
            offset += header.size
        rest = bytes(window.view(offset, window.size - offset)).rstrip(b"\0")
    finally:
        file.close()
    if rest:
        click.echo(f"{len(rest)} bytes from offset {offset} are not a frame", err=True)
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
