"""``ergo-capture replay``.

Owns: its arguments, running bundles side by side, output.
Not here: replaying (``engine/replaying.py``), what a divergence means (``kernel/explanation.py``).
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Final

import anyio
import msgspec
import typer

from ergo_capture.capture.stream import open_bundle
from ergo_capture.cli.bundle_files import bundles_in
from ergo_capture.cli.verify import check, printable
from ergo_capture.engine.replaying import Strictness, replay_bundle
from ergo_capture.engine.spec import FORMS, engine_from
from ergo_capture.errors import ErgoCaptureError, ExitCode

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

_SAME: Final = "same"
_DIVERGED: Final = "diverged"
_FAILED: Final = "failed"


@app.command()
def replay(
    bundles: Annotated[list[str], typer.Argument(help="Bundle files, directories of them, or patterns.")],
    engine: Annotated[str, typer.Option(help=f"What runs the episodes: {FORMS}. Without it this is verify.")] = "",
    strict: Annotated[bool, typer.Option("--strict", help="Expect unique ids and these provenances.")] = False,
    adapter_provenance: Annotated[str, typer.Option(help="With --strict: what the adapter must have been.")] = "none",
    runtime_provenance: Annotated[
        str, typer.Option(help="With --strict: what the engine must have been; by default what it says of itself.")
    ] = "",
    keep_going: Annotated[bool, typer.Option("--keep-going", "-k", help="Go on after a bundle that differs.")] = False,
    jobs: Annotated[int, typer.Option("--jobs", "-j", min=1, help="Bundles at once, each in a process.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a bundle, one a line.")] = False,
) -> int:
    """Run the episodes of bundles again with an engine, and explain the first decision that differs.

    Exit 0 where all are the same, 4 where one diverges, 1 where one is unsound or cannot be replayed.
    """
    engine_from(engine or "fixed", "")
    expected = Strictness(adapter_provenance, runtime_provenance or None) if strict else None
    paths = bundles_in(bundles)
    began = time.monotonic()
    results: list[dict[str, Any]] = []
    with _progress(len(paths)) as step:
        for result in _results(paths, partial(replay_one, engine=engine, strict=expected), jobs):
            results.append(result)
            step()
            typer.echo(msgspec.json.encode(result) if as_json else _in_words(result))
            if result["outcome"] != _SAME and not keep_going:
                break
    if not as_json and len(paths) > 1:
        _summary(results, len(paths), time.monotonic() - began)
    outcomes = {result["outcome"] for result in results}
    return int(ExitCode.FAILED if _FAILED in outcomes else ExitCode.DIVERGED if _DIVERGED in outcomes else ExitCode.OK)


def replay_one(path: Path, engine: str, strict: Strictness | None) -> dict[str, Any]:
    """What became of one bundle, as JSON types."""
    result: dict[str, Any] = {"bundle": printable(str(path))}
    if not engine and strict is None:
        return result | _as_replayed(check(path))
    try:
        replayed = asyncio.run(_replay(path, engine or "fixed", strict))
    except ErgoCaptureError as error:
        return result | {"outcome": _FAILED, "error": printable(error.message), "hint": error.hint}
    result |= {"graph": replayed.graph_id, "decisions": replayed.decisions}
    if replayed.explanation is None:
        return result | {"outcome": _SAME}
    return result | {"outcome": _DIVERGED, "divergence": msgspec.to_builtins(replayed.explanation)}


async def _replay(path: Path, spec: str, strict: Strictness | None) -> Any:
    with open_bundle(path) as stream:
        graph = stream.graph_id
    engine = engine_from(spec, graph)
    async with anyio.create_task_group() as tasks:
        engine.start(tasks)
        try:
            return await replay_bundle(path, engine, strict=strict)
        except ErgoCaptureError as error:
            # Why carried: raised in here it would come out wrapped in a group.
            failure = error
        finally:
            tasks.cancel_scope.cancel()
    raise failure


def _as_replayed(verified: dict[str, Any]) -> dict[str, Any]:
    """What ``verify`` says, in the shape of a replay."""
    exit_code = verified.pop("exit")
    outcome = {ExitCode.OK: _SAME, ExitCode.DIVERGED: _DIVERGED}.get(exit_code, _FAILED)
    return {name: value for name, value in verified.items() if name not in ("bundle", "ok")} | {"outcome": outcome}


def _results(paths: list[Path], one: Callable[[Path], dict[str, Any]], jobs: int) -> Iterator[dict[str, Any]]:
    """A result for each path, in order."""
    if jobs == 1 or len(paths) == 1:
        yield from map(one, paths)
        return
    with ProcessPoolExecutor(jobs) as pool:
        try:
            yield from pool.map(one, paths, chunksize=max(1, min(16, len(paths) // (4 * jobs))))
        finally:
            pool.shutdown(cancel_futures=True)


@contextmanager
def _progress(total: int) -> Iterator[Callable[[], None]]:
    """A bar on a terminal, where there is more than one bundle to wait for."""
    if total == 1 or not sys.stderr.isatty():
        yield lambda: None
        return
    from rich.console import Console  # noqa: PLC0415 - only on a terminal
    from rich.progress import Progress  # noqa: PLC0415

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("bundles", total=total)
        yield lambda: bar.advance(task)


def _in_words(result: dict[str, Any]) -> str:
    name = result["bundle"]
    if result["outcome"] == _FAILED:
        hint = f"\n  try: {result['hint']}" if result.get("hint") else ""
        return f"{name}: failed: {result['error']}{hint}"
    notes = "".join(f"\n  note: {note}" for note in result.get("notes", ()))
    if result["outcome"] == _SAME:
        return f"{name}: same, {result['decisions']} decisions{notes}"
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
    from rich import box  # noqa: PLC0415 - only for the table
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    table = Table(box=box.SIMPLE, show_header=False, pad_edge=False)
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
