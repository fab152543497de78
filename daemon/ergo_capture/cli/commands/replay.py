"""``ergo-capture replay``: run the episodes of bundles again with an engine."""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import anyio
import click
import msgspec

from ergo_capture import safe_path, telemetry
from ergo_capture.bundle.reader.stream import open_bundle
from ergo_capture.cli.support.bundle_files import bundles_in, manifest_beside
from ergo_capture.cli.support.command import NAME, argument, command, flag, json_flag
from ergo_capture.cli.support.output import figures_table, printable
from ergo_capture.cli.support.verification import check
from ergo_capture.engine.replaying import Replayed, Strictness, replay_stream
from ergo_capture.engine.spec import FORMS, engine_from
from ergo_capture.errors import ErgoCaptureError, ExitCode
from ergo_capture.units import counted

if TYPE_CHECKING:
    from rich.progress import Progress

_SAME: Final = "same"
_DIVERGED: Final = "diverged"
_FAILED: Final = "failed"


@command(
    examples=(
        'ergo-capture replay run.capture.json --engine "process:engine --flag"',
        "ergo-capture replay bundles/ --engine scripted:outcomes.json --jobs 4 -k",
    )
)
@argument(
    "bundles",
    "Bundle files, directories of bundles, or patterns.",
    type=NAME,
    nargs=-1,
    required=True,
    metavar="BUNDLE...",
)
@click.option("--engine", default="", metavar="SPEC", help=f"What runs the episodes: {FORMS}. Without it, as `verify`.")
@flag("--strict", help="Expect unique ids and these provenances.")
@click.option(
    "--adapter-provenance",
    default="none",
    show_default=True,
    metavar="TEXT",
    help="With --strict: the expected provenance of the adapter.",
)
@click.option(
    "--runtime-provenance",
    default="",
    metavar="TEXT",
    help="With --strict: the expected provenance of the engine; by default its own.",
)
@flag("--keep-going", "-k", help="Continue after a bundle that differs.")
@click.option(
    "--jobs",
    "-j",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    metavar="N",
    help="Bundles to replay at once, each in its own process.",
)
@json_flag("bundle")
def replay(
    *,
    bundles: tuple[str, ...],
    engine: str,
    strict: bool,
    adapter_provenance: str,
    runtime_provenance: str,
    keep_going: bool,
    jobs: int,
    as_json: bool,
) -> int:
    """Run the episodes of bundles again with an engine, and explain the first decision that differs.

    Exit code 0 if all are the same, 4 if one diverges, 1 if one is unsound or cannot be replayed.
    """
    _check(engine or "fixed")
    _log_to_standard_error()
    expected = Strictness(adapter_provenance, runtime_provenance or None) if strict else None
    paths = bundles_in(bundles)
    began = time.monotonic()
    results: list[dict[str, Any]] = []
    with _progress(paths) as progress:
        one = partial(replay_one, engine=engine, strict=expected)
        for result in _results(paths, one, jobs, progress):
            results.append(result)
            progress.bundle_done()
            click.echo(msgspec.json.encode(result) if as_json else _in_words(result))
            if result["outcome"] != _SAME and not keep_going:
                break
    if not as_json and len(paths) > 1:
        _summary(results, len(paths), time.monotonic() - began)
    outcomes = {result["outcome"] for result in results}
    return int(ExitCode.FAILED if _FAILED in outcomes else ExitCode.DIVERGED if _DIVERGED in outcomes else ExitCode.OK)


def _check(spec: str) -> None:
    """Raise a usage error for a wrong SPEC; the original error speaks of a configuration and exits with 78."""
    try:
        engine_from(spec, "")
    except ErgoCaptureError as error:
        hint = f"write one of: {FORMS}"
        raise ErgoCaptureError(error.message, op=error.op, hint=hint, exit_code=ExitCode.USAGE) from error


def _log_to_standard_error() -> None:
    """Send what engines log to standard error; by default structlog prints it among the results."""
    telemetry.configure("warning", "console")


def replay_one(
    path: Path, engine: str, strict: Strictness | None, on_progress: Callable[[int], None] = lambda _decisions: None
) -> dict[str, Any]:
    """Replay one bundle and return the result as JSON types.

    Args:
        path: the bundle.
        engine: what runs the episodes; empty to verify only.
        strict: what is expected of the bundle, if anything.
        on_progress: called with the number of decisions replayed so far.
    """
    result: dict[str, Any] = {"bundle": printable(str(path))}
    if not engine and strict is None:
        return result | _as_replayed(check(path))
    try:
        replayed = asyncio.run(_replay(path, engine or "fixed", strict, on_progress))
    except ErgoCaptureError as error:
        return result | {"outcome": _FAILED, "error": printable(error.message), "hint": error.hint}
    result |= {"graph": replayed.graph_id, "decisions": replayed.decisions}
    if replayed.explanation is None:
        return result | {"outcome": _SAME}
    return result | {"outcome": _DIVERGED, "divergence": msgspec.to_builtins(replayed.explanation)}


async def _replay(path: Path, spec: str, strict: Strictness | None, on_progress: Callable[[int], None]) -> Replayed:
    with open_bundle(path) as stream:
        engine = engine_from(spec, stream.graph_id)
        async with anyio.create_task_group() as tasks:
            engine.start(tasks)
            try:
                return await replay_stream(stream, engine, strict=strict, on_progress=on_progress)
            except ErgoCaptureError as error:
                # Raise it outside: the task group would wrap it in an exception group.
                failure = error
            finally:
                tasks.cancel_scope.cancel()
    raise failure


def _as_replayed(verified: dict[str, Any]) -> dict[str, Any]:
    """Return the result of a verification in the shape of a replay's."""
    exit_code = verified.pop("exit")
    outcome = {ExitCode.OK: _SAME, ExitCode.DIVERGED: _DIVERGED}.get(exit_code, _FAILED)
    return {name: value for name, value in verified.items() if name not in ("bundle", "ok")} | {"outcome": outcome}


def _results(
    paths: list[Path], one: Callable[..., dict[str, Any]], jobs: int, progress: _Progress
) -> Iterator[dict[str, Any]]:
    """Yield a result for each path, in order."""
    if jobs == 1 or len(paths) == 1:
        for path in paths:
            yield one(path, on_progress=progress.decisions_done)
        return
    safe_path.protect_children()
    with ProcessPoolExecutor(jobs, initializer=_begin_worker) as pool:
        try:
            yield from pool.map(one, paths, chunksize=max(1, min(16, len(paths) // (4 * jobs))))
        except BrokenProcessPool as error:
            raise ErgoCaptureError(
                "replay: a process that replayed a bundle was killed",
                op="replay",
                hint="look for what killed it (memory?), or use --jobs 1 to see which bundle it was",
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _begin_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _log_to_standard_error()


class _Progress:
    """Progress that is not shown."""

    def bundle_done(self) -> None:
        """Count one more bundle."""

    def decisions_done(self, decisions: int) -> None:
        """Set the number of decisions replayed of the current bundle."""


class _Bars(_Progress):
    """Progress bars of the bundles, and of the decisions of the current bundle."""

    def __init__(self, bars: Progress, paths: list[Path]) -> None:
        self._bars = bars
        self._paths = paths
        self._done = 0
        self._bundles = bars.add_task("bundles", total=len(paths), visible=len(paths) > 1)
        self._decisions = bars.add_task("decisions", total=None, visible=False)
        self._shown = False

    def bundle_done(self) -> None:
        self._done += 1
        self._shown = False
        self._bars.update(self._bundles, completed=self._done)
        self._bars.update(self._decisions, completed=0, total=None, visible=False)

    def decisions_done(self, decisions: int) -> None:
        if not self._shown:
            manifest = manifest_beside(self._paths[self._done])
            # Take the total from the manifest: a bundle has to be read whole to know it.
            self._bars.update(self._decisions, total=None if manifest is None else manifest.decisions, visible=True)
            self._shown = True
        self._bars.update(self._decisions, completed=decisions)


@contextmanager
def _progress(paths: list[Path]) -> Iterator[_Progress]:
    """Show progress bars on a terminal."""
    if not sys.stderr.isatty():
        yield _Progress()
        return
    from rich.console import Console  # noqa: PLC0415 - only on a terminal
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn  # noqa: PLC0415

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        yield _Bars(bars, paths)


def _in_words(result: dict[str, Any]) -> str:
    name = result["bundle"]
    if result["outcome"] == _FAILED:
        hint = f"\n  try: {result['hint']}" if result.get("hint") else ""
        return f"{name}: failed: {result['error']}{hint}"
    notes = "".join(f"\n  note: {note}" for note in result.get("notes", ()))
    if result["outcome"] == _SAME:
        return f"{name}: same, {counted(result['decisions'], 'decision')}{notes}"
    found = result["divergence"]
    captured, replayed = (msgspec.json.encode(found[side]).decode() for side in ("captured", "replayed"))
    lines = [f"{name}: diverged"]
    if "sentence" in found:
        lines.append(f"  {found['sentence']}")
    lines += [f"  field     {found['field']}", f"  captured  {captured}", f"  replayed  {replayed}"]
    if found.get("before"):
        lines.append("  before it, the same on both sides:")
        lines += [f"    {line}" for line in found["before"]]
    if found.get("causes"):
        lines.append("  likely causes:")
        lines += [f"    - {cause}" for cause in found["causes"]]
    return "\n".join(lines) + notes


def _summary(results: list[dict[str, Any]], total: int, seconds: float) -> None:
    from rich.console import Console  # noqa: PLC0415 - JSON needs no rich

    table = figures_table()
    for outcome in (_SAME, _DIVERGED, _FAILED):
        count = sum(result["outcome"] == outcome for result in results)
        table.add_row(outcome, f"{count:,}")
    if len(results) < total:
        table.add_row(
            "not looked at", f"{total - len(results):,}", "after the first that differs; --keep-going looks at all"
        )
    table.add_row("decisions", f"{sum(result.get('decisions', 0) for result in results):,}")
    table.add_row("took", f"{seconds:.1f} s")
    Console(highlight=False, soft_wrap=True).print(table)
