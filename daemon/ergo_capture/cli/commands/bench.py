"""``ergo-capture bench``: durable events per second on this host."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import click
import msgspec

from ergo_capture.cli.support.command import PATH, FiniteRange, command, json_flag
from ergo_capture.cli.support.output import print_view
from ergo_capture.cli.support.temporary_daemon import temporary_daemon
from ergo_capture.client.load import Figures, Load, floor

#: Window, and the number of events that takes about a second on a small machine.
_ROWS: Final = ((1, 1_500), (64, 30_000), (1024, 200_000))
#: Bytes of a line besides its payload, and of a frame's header; roughly.
_LINE_BYTES: Final = 105
_HEADER_BYTES: Final = 64


@command(examples=("ergo-capture bench --directory /var/lib",))
@click.option(
    "--directory",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    metavar="DIR",
    help="A directory on the disk to measure; by default the directory for temporary files.",
)
@click.option(
    "--socket",
    type=PATH,
    metavar="PATH",
    help="Measure the running daemon on this socket, instead of a temporary one. The bundles stay there.",
)
@click.option(
    "--payload",
    type=click.IntRange(min=12, max=1 << 20),
    default=256,
    show_default=True,
    metavar="BYTES",
    help="Bytes of each payload.",
)
@click.option(
    "--scale",
    type=FiniteRange(min=0.001, max=100),
    default=1.0,
    show_default=True,
    metavar="FACTOR",
    help="Multiple of the usual number of events.",
)
@json_flag("row")
def bench(directory: Path | None, socket: Path | None, payload: int, scale: float, *, as_json: bool) -> None:
    """Measure durable events per second and their latency, and compare them with the disk.

    The floor is the best that the disk can do: writes of as many bytes as a window of events has, each followed by
    fdatasync.
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
            click.echo(msgspec.json.encode(row))
    else:
        _show(rows, payload)


@contextmanager
def _target(directory: Path | None, socket: Path | None) -> Iterator[tuple[Path, Path]]:
    """Yield the socket to load, and a directory on the same disk to measure the floor in."""
    with tempfile.TemporaryDirectory(prefix="ergo-capture-bench-", dir=directory) as name:
        place = Path(name)
        if socket is not None:
            yield socket, place
            return
        with temporary_daemon(place) as own:
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
    from rich import box  # noqa: PLC0415 - JSON needs no rich
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
    print_view(console, table)
    console.print("floor: one bare write and fdatasync of a window's bytes after the other, on the same disk")
