"""``ergo-capture demo``.

Owns: a daemon in a temporary place, a sample of real flights through its socket, and a table of what came of it.
Not here: anything that it shows; it uses the commands that everybody uses.
"""

from __future__ import annotations

import asyncio
import gzip
import shlex
import shutil
import sys
import tempfile
import time
from collections import Counter
from importlib import resources
from pathlib import Path
from typing import Annotated

import typer

from ergo_capture.bundle.format import read_capture_bundle
from ergo_capture.cli.own_daemon import own_daemon
from ergo_capture.cli.verify import check
from ergo_capture.client import CaptureClient, Published
from ergo_capture.errors import ExitCode
from ergo_capture.kernel.records import CaptureBundle

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

_CONFIG = """\
[graphs.default]
max_per_window = 20
rate_window = "10m"
"""


@app.command()
def demo(
    directory: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Where to keep what is made; by default a temporary directory that stays."),
    ] = None,
) -> int:
    """Start a daemon, stream real flights to it under a rate limit, close, verify, and show what was captured."""
    place = Path(tempfile.mkdtemp(prefix="ergo-capture-demo-")) if directory is None else directory
    place.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    with own_daemon(place, _CONFIG) as socket:
        published = asyncio.run(_stream(socket))
    verdict = check(Path(published.bundle))
    _show(read_capture_bundle(published.bundle), published, verdict["ok"], time.monotonic() - started)
    return int(verdict["exit"] if verdict.get("exit") else ExitCode.OK)


async def _stream(socket: Path) -> Published:
    sample = resources.files("ergo_capture") / "data" / "flights.jsonl.gz"
    lines = gzip.decompress(sample.read_bytes()).splitlines(keepends=True)
    async with CaptureClient(socket, name="ergo-capture demo") as client:
        await client.open("default", labels={"demo": "flights"})
        for number, line in enumerate(lines):
            await client.send_line(line, str(number))
        return await client.close()


def _show(bundle: CaptureBundle, published: Published, ok: bool, seconds: float) -> None:
    from rich import box  # noqa: PLC0415 - only for the table
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    kinds = Counter(record.kind.value for record in bundle.events)
    decisions = Counter(record.decision.value for record in bundle.decisions)
    ran_later = sum(
        record.decision.value == "Invoke" and event.kind.value == "Pump"
        for record, event in zip(bundle.decisions, bundle.events, strict=True)
    )
    span = bundle.events[-1].event_time.secs - bundle.events[0].event_time.secs
    table = Table(box=box.SIMPLE, show_header=False, pad_edge=False)
    table.add_row("events", f"{len(bundle.events):,}", ", ".join(f"{n:,} {kind}" for kind, n in sorted(kinds.items())))
    table.add_row("event time", f"{span / 86400:.1f} days", "departures from New York, January 2013")
    table.add_row("limit", "20 / 10 min", "max_per_window = 20, rate_window = 10m")
    table.add_row("invoked", f"{decisions['Invoke']:,}", f"{ran_later} of them deferred first, then taken by a Pump")
    table.add_row("deferred", f"{decisions['Defer']:,}", "decisions to wait, or with nothing due")
    table.add_row("verified", "yes" if ok else "NO", "every decision derived again, every hash right")
    table.add_row("took", f"{seconds:.1f} s", "daemon start and stop included")
    console = Console(highlight=False, soft_wrap=True)
    console.print(table)
    console.print(f"bundle    {published.bundle}")
    console.print(f"manifest  {published.manifest}")
    program, bundle_file = _this_program(), shlex.quote(published.bundle)
    console.print(f"look      {program} report {bundle_file}", markup=False)
    console.print(f"try       {program} verify {bundle_file}", markup=False)


def _this_program() -> str:
    """How to call us again. Why not by name: in an environment that is not activated, the shell does not know it."""
    called = Path(sys.argv[0])
    if called.name != "ergo-capture":
        return f"{shlex.quote(sys.executable)} -m ergo_capture"
    known = shutil.which("ergo-capture")
    return "ergo-capture" if known and called.exists() and called.samefile(known) else shlex.quote(str(called))
