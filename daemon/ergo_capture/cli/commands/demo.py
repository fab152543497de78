"""``ergo-capture demo``: a sample of real flights through a temporary daemon.

It uses what every user has: the client, a configuration and a bundle.
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

import click

from ergo_capture.bundle.format import read_capture_bundle
from ergo_capture.bundle.reader.opening import list_files
from ergo_capture.cli.support.command import PATH, command
from ergo_capture.cli.support.output import figures_table, print_view, size
from ergo_capture.cli.support.temporary_daemon import temporary_daemon
from ergo_capture.cli.support.verification import check
from ergo_capture.client import CaptureClient, Published
from ergo_capture.errors import ExitCode
from ergo_capture.kernel.records import CaptureBundle

_CONFIG = """\
[journal]
segment_bytes = "4MiB"

[graphs.default]
max_per_window = 20
rate_window = "10m"
"""


@command(examples=("ergo-capture demo --directory /tmp/demo",))
@click.option(
    "--directory",
    type=PATH,
    metavar="DIR",
    help="Where to keep the files; by default a temporary directory that is not deleted.",
)
def demo(directory: Path | None) -> int:
    """Stream real flights to a daemon under a rate limit, verify the bundle, and show the result."""
    place = Path(tempfile.mkdtemp(prefix="ergo-capture-demo-")) if directory is None else directory
    place.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    with temporary_daemon(place, _CONFIG) as socket:
        published = asyncio.run(_stream(socket))
    verdict = check(Path(published.bundle))
    _show(read_capture_bundle(published.bundle), published, verdict["ok"], time.monotonic() - started, place)
    return int(verdict["exit"] if verdict.get("exit") else ExitCode.OK)


async def _stream(socket: Path) -> Published:
    sample = resources.files("ergo_capture") / "data" / "flights.jsonl.gz"
    lines = gzip.decompress(sample.read_bytes()).splitlines(keepends=True)
    async with CaptureClient(socket, name="ergo-capture demo") as client:
        await client.open("default", labels={"demo": "flights"})
        for number, line in enumerate(lines):
            await client.send_line(line, str(number))
        return await client.close()


def _show(bundle: CaptureBundle, published: Published, ok: bool, seconds: float, place: Path) -> None:
    from rich.console import Console  # noqa: PLC0415 - the help needs no rich

    kinds = Counter(record.kind.value for record in bundle.events)
    decisions = Counter(record.decision.value for record in bundle.decisions)
    ran_later = sum(
        record.decision.value == "Invoke" and event.kind.value == "Pump"
        for record, event in zip(bundle.decisions, bundle.events, strict=True)
    )
    # As `info` and `report` count: a Pump that finds nothing due, or puts an episode back, defers none.
    deferred = sum(
        record.decision.value == "Defer" and record.schedule_at is not None and event.kind.value != "Pump"
        for record, event in zip(bundle.decisions, bundle.events, strict=True)
    )
    span = bundle.events[-1].event_time.secs - bundle.events[0].event_time.secs
    table = figures_table()
    table.add_row("events", f"{len(bundle.events):,}", ", ".join(f"{n:,} {kind}" for kind, n in sorted(kinds.items())))
    table.add_row("event time", f"{span / 86400:.1f} days", "departures from New York, January 2013")
    table.add_row("limit", "20 / 10 min", "max_per_window = 20, rate_window = 10m")
    table.add_row("invoked", f"{decisions['Invoke']:,}", f"{ran_later} of them deferred first, then run by a Pump")
    table.add_row("deferred", f"{deferred:,}", "episodes that had to wait for their time")
    table.add_row("verified", "yes" if ok else "NO", "every decision derived again, every hash right")
    table.add_row("took", f"{seconds:.1f} s", "daemon start and stop included")
    console = Console(highlight=False, soft_wrap=True)
    print_view(console, table)
    console.print(f"bundle    {published.bundle}")
    console.print(f"manifest  {published.manifest}")
    program, bundle_file = _this_program(), shlex.quote(published.bundle)
    console.print(f"look      {program} report {bundle_file}", markup=False)
    console.print(f"try       {program} verify {bundle_file}", markup=False)
    kept = sum(path.stat().st_size for path in list_files(place / "state"))
    console.print(f"kept      {size(kept)} in {shlex.quote(str(place))}; nothing deletes it", markup=False)


def _this_program() -> str:
    """Return the command that runs this program again: its name only if the shell would find this one."""
    called = Path(sys.argv[0])
    if called.name != "ergo-capture":
        return f"{shlex.quote(sys.executable)} -m ergo_capture"
    known = shutil.which("ergo-capture")
    return "ergo-capture" if known and called.exists() and called.samefile(known) else shlex.quote(str(called))
