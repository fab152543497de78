"""``ergo-capture bench``.

Owns: its arguments, which loads are run, and the table.
Not here: the loads themselves (``load.py``), comparisons with other programs (``tests/bench``).
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
import typer

from ergo_capture.cli.own_daemon import own_daemon
from ergo_capture.client.load import Figures, Load, floor

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

#: Window, and events for one second's worth or so on a small machine.
_ROWS: Final = ((1, 1_500), (64, 30_000), (1024, 200_000))
#: About the bytes of a line besides its payload, and of a frame's header.
_LINE_BYTES: Final = 105
_HEADER_BYTES: Final = 64


@app.command()
def bench(
    directory: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            file_okay=False,
            metavar="DIR",
            help="A directory on the disk to measure; by default the temporary one.",
        ),
    ] = None,
    socket: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH", help="A running daemon's socket, in place of a daemon of its own. Leaves bundles there."
        ),
    ] = None,
    payload: Annotated[int, typer.Option(min=12, max=1 << 20, metavar="BYTES", help="Bytes of each payload.")] = 256,
    scale: Annotated[
        float, typer.Option(min=0.001, max=100, metavar="FACTOR", help="How many times the usual number of events.")
    ] = 1.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a row, one a line.")] = False,
) -> None:
    """Measure durable events a second and how long each waits, beside what the disk can do at best.

    The floor is one bare write and fdatasync after the other, of as many bytes as the window holds.
    """
    rows = []
    with _target(directory, socket) as (path, place):
        for window, events in _ROWS:
            size = _HEADER_BYTES + window * (payload + _LINE_BYTES)
            least = floor(place, size, writes=max(20, int(100 * scale)))
            with Load(path, window=window, payload_bytes=payload) as load:
                load.run(max(window, int(events * scale / 10)))
                figures = load.run(max(window, int(events * scale)))
                load.finish()
            rows.append(_row(window, figures, least))
    if as_json:
        for row in rows:
            typer.echo(msgspec.json.encode(row))
    else:
        _show(rows, payload)


@contextmanager
def _target(directory: Path | None, socket: Path | None) -> Iterator[tuple[Path, Path]]:
    """The socket to load, and a directory on the disk to compare with."""
    with tempfile.TemporaryDirectory(prefix="ergo-capture-bench-", dir=directory) as name:
        place = Path(name)
        if socket is not None:
            yield socket, place
            return
        with own_daemon(place) as own:
            yield own, place


def _row(window: int, figures: Figures, least: Figures) -> dict[str, Any]:
    return {
        "window": window,
        "events_per_second": round(figures.rate),
        "p50_ms": round(figures.p50 * 1e3, 3),
        "p99_ms": round(figures.p99 * 1e3, 3),
        "floor_p50_ms": round(least.p50 * 1e3, 3),
        "floor_events_per_second": round(window * least.rate),
    }


def _show(rows: list[dict[str, Any]], payload: int) -> None:
    from rich import box  # noqa: PLC0415 - only for the table
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    table = Table(box=box.SIMPLE, title=f"durable ingest, one client, {payload}-byte payloads", title_justify="left")
    for name in ("window", "durable events/s", "ack p50", "ack p99", "floor p50", "floor events/s"):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(
            f"{row['window']:,}",
            f"{row['events_per_second']:,}",
            f"{row['p50_ms']:.2f} ms",
            f"{row['p99_ms']:.2f} ms",
            f"{row['floor_p50_ms']:.2f} ms",
            f"{row['floor_events_per_second']:,}",
        )
    console = Console(highlight=False)
    console.print(table)
    console.print("floor: one bare write and fdatasync of a window's bytes after the other, on the same disk")
