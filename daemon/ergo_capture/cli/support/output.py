"""Output of commands: readable quantities and names, standard output, files named with ``-o``."""

from __future__ import annotations

import codecs
import io
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from ergo_capture.errors import ErgoCaptureError, ExitCode

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table

#: Bytes that are written at a time.
_CHUNK: Final = 64 << 10


def size(count: float) -> str:
    """Return a number of bytes with a binary unit, as in the configuration: ``512 B``, ``1.5 MiB``, ``64 MiB``."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if count < 1024 or unit == "TiB":
            break
        count /= 1024
    return f"{count:,.0f} B" if unit == "B" else f"{f'{count:,.1f}'.removesuffix('.0')} {unit}"


def milliseconds(seconds: float) -> str:
    """Return seconds as milliseconds: two decimals below ten, none above."""
    value = seconds * 1e3
    return f"{value:.2f} ms" if value < 10 else f"{value:,.0f} ms"


def span(seconds: float) -> str:
    """Return a time span in its two largest units: ``2h 3m``."""
    rest = int(seconds)
    parts: list[str] = []
    for unit, length in (("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1)):
        count, rest = divmod(rest, length)
        if count or (unit == "s" and not parts):
            parts.append(f"{count}{unit}")
    return " ".join(parts[:2])


def printable(text: str | Path) -> str:
    """Return a path as text that UTF-8 can hold; a file's name may be any bytes."""
    return str(text).encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def is_unicode(text: str) -> bool:
    """Return whether UTF-8 can hold a text, which it cannot for an argument of other bytes."""
    return text.isascii() or not any("\ud800" <= char <= "\udfff" for char in text)


def without_controls(text: str) -> str:
    """Return text with its control characters escaped, which a terminal would obey; lines stay lines."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() or char == "\n" else _escape(char) for char in text)


def _escape(char: str) -> str:
    """Return a character as an escape sequence, and an undecodable byte of a name as that byte."""
    return f"\\x{ord(char) - 0xDC00:02x}" if "\udc80" <= char <= "\udcff" else ascii(char)[1:-1]


def with_hint(message: str, hint: str | None) -> str:
    """Return a message, and on a line below it the hint, if there is one: for errors among a command's results."""
    return f"{message}\n  try: {hint}" if hint else message


def print_error(message: str, hint: str | None) -> None:
    """Print an error to standard error as ``Error:`` and ``Try:``."""
    click.echo(without_controls(f"Error: {message}"), err=True)
    if hint:
        click.echo(without_controls(f"Try: {hint}"), err=True)


def escape_what_cannot_be_printed() -> None:
    """Let standard output and standard error escape what their encoding does not have, in place of an exception.

    A terminal may be Latin-1 or ASCII, and a file's name may be any bytes. JSON is not affected: it is written as bytes.
    """
    codecs.register_error(_ESCAPE, _escaped)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_ESCAPE)


_ESCAPE: Final = "ergo-capture.escape"


def _escaped(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    return "".join(map(_escape, error.object[error.start : error.end])), error.end


def figures_table() -> Table:
    """Return an empty table of names and values, without a header."""
    from rich import box  # noqa: PLC0415 - rich is slow to import, and JSON needs none of it
    from rich.table import Table  # noqa: PLC0415

    table = Table(box=box.SIMPLE, show_header=False, pad_edge=False)
    table.add_column()
    # A hash that is cut is useless.
    table.add_column(overflow="fold")
    return table


def print_view(console: Console, view: RenderableType) -> None:
    """Print a table or a view; in a pipe without the blanks that fill its lines to the table's width."""
    if console.is_terminal:
        console.print(view)
        return
    with console.capture() as printed:
        console.print(view)
    console.file.write("".join(f"{line.rstrip()}\n" for line in printed.get().splitlines()))


def write_out(text: bytes) -> None:
    """Write a text to standard output.

    Raises:
        BrokenPipeError: the reader has gone.
    """
    # Write in pieces: of one large write the system takes a part and reports no error when the reader goes away.
    for start in range(0, len(text), _CHUNK):
        sys.stdout.buffer.write(text[start : start + _CHUNK])
    sys.stdout.buffer.flush()


def write_whole(destination: Path, text: bytes, what: str) -> None:
    """Write a file and its directories atomically: the whole text is there afterwards, or nothing has changed.

    Args:
        destination: the file.
        text: its content.
        what: the kind of file, for the error message: ``report``.

    Raises:
        ErgoCaptureError: it cannot be written.
    """
    from ergo_capture.storage.atomic import create_parents, write_bytes_atomic  # noqa: PLC0415 - only to write files
    from ergo_capture.storage.write_error import CaptureWriteError  # noqa: PLC0415

    check_output(destination, what)
    try:
        create_parents(destination)
        write_bytes_atomic(destination, text)
    except CaptureWriteError as error:
        # Do not use the error's message: it is about a capture bundle and a temporary file that is gone.
        reason = getattr(error.cause, "strerror", None) or error.message
        raise ErgoCaptureError(
            f"write {what} '{destination}': {reason}", op=f"write {what}", path=destination, hint=error.hint
        ) from error


def check_output(destination: Path, what: str, reads: Iterable[Path | int] = ()) -> None:
    """Raise if a command must not write to a file: one that it reads, a finished bundle, a directory or a device.

    Args:
        destination: the file, which need not exist.
        what: the kind of file, for the error message: ``report``.
        reads: the files that the command reads: paths or descriptors.

    Raises:
        ErgoCaptureError: it must not.
    """
    from ergo_capture.bundle.placement import refusal_to_replace  # noqa: PLC0415 - only to write files

    reason = refusal_to_replace(destination, reads)
    if reason is not None:
        raise ErgoCaptureError(
            f"write {what} '{destination}': {reason}",
            op=f"write {what}",
            path=destination,
            hint="name another file with -o, or - for standard output",
            exit_code=ExitCode.USAGE,
        )


def standard_output() -> int | None:
    """Return the descriptor of standard output, or None where a test or a caller has replaced it by an object."""
    try:
        return sys.stdout.fileno()
    except (OSError, ValueError):
        return None
