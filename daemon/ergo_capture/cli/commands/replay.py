"""``ergo-capture replay``: run the episodes of bundles again with an engine."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
import msgspec

from ergo_capture import telemetry
from ergo_capture.bundle.reader.stream import RecordStream
from ergo_capture.cli.processes import in_order
from ergo_capture.cli.support.bundle_files import manifest_beside
from ergo_capture.cli.support.captures import Capture, files_and_sessions
from ergo_capture.cli.support.command import (
    NAME,
    argument,
    command,
    config_option,
    flag,
    json_flag,
    state_option,
    timeout_option,
)
from ergo_capture.cli.support.driver_stream import part_of, semantic_kinds
from ergo_capture.cli.support.output import figures_table, print_view, printable, with_hint, without_controls
from ergo_capture.cli.support.verification import (
    NOT_MERGED,
    AdapterCheck,
    adapter_divergence,
    adapter_in_words,
    adapter_option,
    adapter_problem,
    adapter_report,
    check_run,
    compare,
    fates,
    no_manifest_flag,
    refusal,
)
from ergo_capture.engine.port import SessionPart
from ergo_capture.engine.replaying import EngineFailed, ReplayOptions, Strictness, Watcher
from ergo_capture.engine.spec import FORMS, engine_from, replay_with
from ergo_capture.errors import ErgoCaptureError, ExitCode
from ergo_capture.kernel.explanation import explain
from ergo_capture.kernel.records import NO_ADAPTER_PROVENANCE
from ergo_capture.kernel.replay import check_provenance
from ergo_capture.units import counted

if TYPE_CHECKING:
    from rich.progress import Progress

_SAME: Final = "same"
_DIVERGED: Final = "diverged"
_FAILED: Final = "failed"
#: Seconds between two updates of a bar.
_UPDATE_SECONDS: Final = 0.1


@command(
    examples=(
        'ergo-capture replay run.capture.json --engine "process:engine --flag"',
        "ergo-capture replay bundles/ --engine scripted:outcomes.json --jobs 4 -k",
        'ergo-capture replay run.capture.json --engine "process:engine" --adapter adapter.yaml',
    )
)
@argument(
    "bundles",
    "Bundle files, directories of bundles, patterns, or the ids of sessions.",
    type=NAME,
    nargs=-1,
    required=True,
    metavar="BUNDLE...",
)
@click.option(
    "--engine",
    default="",
    metavar="SPEC",
    help=f"The engine that runs the episodes: {FORMS}. Without it, nothing runs, and the decisions are derived as by `verify`.",
)
@timeout_option
@click.option(
    "--pipeline",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    metavar="N",
    help="Episodes that may be under way at once, where the adapter has no writable keys.",
)
@adapter_option
@flag("--all-divergences", help="Continue after the first decision that differs, and name all.")
@flag("--strict", help="Require unique ids and the provenances that the next two options name.")
@click.option(
    "--adapter-provenance",
    default="",
    metavar="TEXT",
    help="With --strict: the expected provenance of the adapter; by default that of --adapter, or none.",
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
@no_manifest_flag
@state_option
@config_option
@json_flag("bundle")
def replay(
    *,
    bundles: tuple[str, ...],
    engine: str,
    timeout: float,
    pipeline: int,
    adapter: Path | None,
    all_divergences: bool,
    strict: bool,
    adapter_provenance: str,
    runtime_provenance: str,
    keep_going: bool,
    jobs: int,
    no_manifest: bool,
    state_dir: str,
    config: Path | None,
    as_json: bool,
) -> int:
    """Run the episodes of bundles again with an engine, and explain the first decision that differs.

    It is an error if the engine ends, hangs or gives an invalid answer, unless it did so in the captured run. With the
    graph's adapter, payloads, effects and the values of the context store are checked too, as by `verify`.

    Exit code 0 if all decisions are the same, 4 if one differs, 1 if a bundle is unsound or cannot be replayed.
    """
    _check(engine or "fixed")
    _log_to_standard_error()
    adapter_check = None if adapter is None else AdapterCheck(adapter)
    if not adapter_provenance:
        adapter_provenance = NO_ADAPTER_PROVENANCE if adapter_check is None else adapter_check.adapter.provenance
    options = ReplayOptions(
        strict=Strictness(adapter_provenance, runtime_provenance or None) if strict else None,
        timeout=timeout,
        all_divergences=all_divergences,
        pipeline=pipeline,
    )
    runs = files_and_sessions(bundles, state_dir, config)
    began = time.monotonic()
    results: list[dict[str, Any]] = []
    with _progress(runs) as progress:
        one = partial(replay_one, engine=engine, options=options, with_manifest=not no_manifest, adapter=adapter_check)
        for result in _results(runs, one, jobs, progress):
            results.append(result)
            progress.bundle_done()
            with progress.hidden():
                click.echo(msgspec.json.encode(result) if as_json else without_controls(_in_words(result)))
            if result["outcome"] != _SAME and not keep_going:
                break
    if not as_json and len(runs) > 1:
        _summary(results, len(runs), time.monotonic() - began)
    outcomes = {result["outcome"] for result in results}
    return int(ExitCode.FAILED if _FAILED in outcomes else ExitCode.DIVERGED if _DIVERGED in outcomes else ExitCode.OK)


#: Says of a replay without an engine what was done instead.
NO_ENGINE: Final = "no engine ran: decisions were derived again, as by `verify`; --engine runs the episodes"


def _check(spec: str) -> None:
    """Raise a usage error for a wrong SPEC; the original error speaks of a configuration and exits with 78."""
    try:
        engine_from(spec, "")
    except ErgoCaptureError as error:
        hint = f"write one of: {FORMS}"
        raise ErgoCaptureError(error.message, op=error.op, hint=hint, exit_code=ExitCode.USAGE) from error


def _log_to_standard_error() -> None:
    """Send log lines of engines to standard error; by default structlog prints them among the results.

    Warnings are left out: the result states that an engine is away.
    """
    telemetry.configure("error", "console")


def replay_one(
    run: Capture,
    engine: str,
    options: ReplayOptions,
    watcher: Watcher | None = None,
    *,
    with_manifest: bool = True,
    adapter: AdapterCheck | None = None,
) -> dict[str, Any]:
    """Replay one run and return the result as JSON types.

    Args:
        run: the run.
        engine: the engine that runs the episodes; empty to verify only.
        options: the options of the replay.
        watcher: receives the progress.
        with_manifest: whether a bundle is compared with the manifest beside it first.
        adapter: also checks it against its adapter; None for no such check.
    """
    result: dict[str, Any] = {"bundle": printable(run.name)}
    if run.decided_by:
        result["decided_by"] = run.decided_by
    if not engine and options.strict is None:
        checked = result | _as_replayed(check_run(run, with_manifest=with_manifest, adapter=adapter))
        if checked["outcome"] == _SAME:
            checked["notes"] = [*checked.get("notes", ()), NO_ENGINE]
        return checked
    adapted = None
    try:
        compared = compare(run) if with_manifest else None
        if compared is not None and compared.problem is not None:
            return result | {"outcome": _FAILED} | refusal(compared)
        # Open the run before the loop runs: reading a pipe waits, and only outside of the loop does Ctrl-C end that.
        guess = engine in ("", "fixed") and adapter is None and options.strict is None
        with run.open_any(guess=guess) as stream:
            if adapter is not None and options.strict is None:
                check_provenance(stream, adapter.adapter.provenance, stream.runtime_provenance)
            pipeline, notes = _allowed_pipeline(options.pipeline, stream, adapter)
            options = msgspec.structs.replace(
                options,
                only_decided=run.is_open,
                pipeline=pipeline,
                of=SessionPart(run.session, part_of(run)[0]),
                kinds=semantic_kinds(run),
            )
            replayed = asyncio.run(replay_with(engine or "fixed", stream, options, watcher or _Notices(run)))
            if adapter is not None:
                adapted = adapter.check(run, stream, with_manifest=with_manifest)
    except EngineFailed as error:
        place = {"index": error.index, "event_id": error.event_id}
        return result | _failure(error) | {"decision": place}
    except ErgoCaptureError as error:
        return result | _failure(error)
    notes += [*replayed.notes, *(fates(run) if with_manifest else ())]
    if adapter is not None and adapted is None:
        notes.append(NOT_MERGED)
    result |= {"graph": replayed.graph_id, "decisions": replayed.decisions, "notes": notes}
    explanations, diverged = list(replayed.explanations), replayed.diverged
    if adapted is not None:
        result["adapter"] = adapter_report(adapted)
        if (found := adapter_divergence(adapted)) is None:
            if problem := adapter_problem(adapted):
                del problem["ok"], problem["exit"]
                return result | {"outcome": _FAILED} | problem
        elif not explanations or found.index <= explanations[0].index:
            # Report the payload's divergence: the decision's follows from it.
            same = bool(explanations) and found.index == explanations[0].index
            explanations, diverged = [explain(found, []), *explanations], diverged + (not same)
    if not explanations:
        return result | {"outcome": _SAME}
    first, *others = map(msgspec.to_builtins, explanations)
    more = {"diverged": diverged, "other_divergences": others} if options.all_divergences else {}
    return result | {"outcome": _DIVERGED, "divergence": first} | more


def _failure(error: ErgoCaptureError) -> dict[str, Any]:
    """Return the result of a replay that failed, with the last lines of the engine's standard error if it wrote any."""
    result = {"outcome": _FAILED, "error": printable(error.message), "hint": error.hint}
    return result | ({"said": error.__notes__} if hasattr(error, "__notes__") else {})


def _allowed_pipeline(asked: int, stream: RecordStream, adapter: AdapterCheck | None) -> tuple[int, list[str]]:
    """Return how many episodes may be under way at once, and notes if that is fewer than were asked for."""
    if asked == 1 or stream.adapter_provenance == NO_ADAPTER_PROVENANCE:
        return asked, []
    if adapter is None:
        return 1, ["episodes ran one after the other: without --adapter it is unknown whether effects write the store"]
    if writable := adapter.adapter.writable:
        return 1, [f"episodes ran one after the other: effects write {', '.join(writable)}"]
    return asked, []


def _as_replayed(verified: dict[str, Any]) -> dict[str, Any]:
    """Return the result of a verification in the form of a replay's."""
    exit_code = verified.pop("exit")
    outcome = {ExitCode.OK: _SAME, ExitCode.DIVERGED: _DIVERGED}.get(exit_code, _FAILED)
    return {name: value for name, value in verified.items() if name not in ("bundle", "ok")} | {"outcome": outcome}


def _results(
    runs: list[Capture], one: Callable[..., dict[str, Any]], jobs: int, progress: _Progress
) -> Iterator[dict[str, Any]]:
    """Yield a result for each run, in order."""
    if jobs == 1 or len(runs) == 1:
        for run in runs:
            yield one(run, watcher=progress.watcher(run))
        return
    yield from in_order(one, runs, jobs, op="replay", prepare=_log_to_standard_error)


class _Notices(Watcher):
    """Prints on standard error that the engine has not answered for a while."""

    def __init__(self, run: Capture) -> None:
        self._run = run

    def on_wait(self, index: int, event_id: str, seconds: float) -> None:
        """Print it."""
        self.tell(
            f"{printable(self._run.name)}: the engine has not answered decision {index}, event {event_id!r}, for "
            f"{seconds:g} s; --timeout limits the time"
        )

    def tell(self, notice: str) -> None:
        """Print a notice."""
        click.echo(notice, err=True)


class _Progress:
    """Progress that is not shown."""

    def bundle_done(self) -> None:
        """Count one more bundle."""

    def hidden(self) -> AbstractContextManager[None]:
        """Return a block in which something may be printed."""
        return nullcontext()

    def watcher(self, run: Capture) -> Watcher:
        """Return the watcher of a replay of the run."""
        return _Notices(run)


class _Bars(_Progress):
    """Progress bars of the bundles, and of the decisions of the current bundle."""

    def __init__(self, bars: Progress, runs: list[Capture]) -> None:
        self.bars = bars
        self._bundles = bars.add_task("bundles", total=len(runs), visible=len(runs) > 1)
        self.decisions = bars.add_task("decisions", total=None, visible=False)

    def bundle_done(self) -> None:
        self.bars.advance(self._bundles)
        self.bars.update(self.decisions, completed=0, total=None, visible=False)

    @contextmanager
    def hidden(self) -> Iterator[None]:
        self.bars.stop()
        yield
        self.bars.start()

    def watcher(self, run: Capture) -> Watcher:
        # Take the total from the manifest: a bundle has to be read whole to know it.
        manifest = None if run.bundle is None else manifest_beside(run.bundle)
        self.bars.update(self.decisions, total=None if manifest is None else manifest.decisions, visible=True)
        return _Bar(run, self)


class _Bar(_Notices):
    """Shows the progress of one replay in a bar."""

    def __init__(self, run: Capture, shown: _Bars) -> None:
        super().__init__(run)
        self._shown = shown
        self._updated = 0.0

    def on_progress(self, decisions: int) -> None:
        """Update the bar, at most ten times a second."""
        if (now := time.monotonic()) - self._updated >= _UPDATE_SECONDS:
            self._updated = now
            self._shown.bars.update(self._shown.decisions, completed=decisions)

    def tell(self, notice: str) -> None:
        """Print a notice above the bar."""
        self._shown.bars.console.print(notice, markup=False, highlight=False)


@contextmanager
def _progress(runs: list[Capture]) -> Iterator[_Progress]:
    """Show progress bars on a terminal."""
    if not sys.stderr.isatty():
        yield _Progress()
        return
    from rich.console import Console  # noqa: PLC0415 - only on a terminal
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn  # noqa: PLC0415

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        yield _Bars(bars, runs)


def _in_words(result: dict[str, Any]) -> str:
    name = result["bundle"]
    if result["outcome"] == _FAILED:
        ends = "".join(f"\n    {line}" for line in result.get("said", ()))
        ends = ends and f"\n  its standard error ends with:{ends}"
        return with_hint(f"{name}: failed: {result['error']}{ends}", result.get("hint"))
    said = list(result.get("notes", ()))
    if "decided_by" in result:
        said.append(f"decided by: {result['decided_by']}; the decisions of the run itself are in its own capture")
    notes = "".join(f"\n  note: {note}" for note in said)
    if (report := result.get("adapter")) is not None and report["problem"] is None:
        notes = f"\n  {adapter_in_words(report)}{notes}"
    if result["outcome"] == _SAME:
        return f"{name}: same, {counted(result['decisions'], 'decision')}{notes}"
    found = result["divergence"]
    captured, replayed = (msgspec.json.encode(found[side]).decode() for side in ("captured", "replayed"))
    count = f" at {counted(result['diverged'], 'decision')} of {result['decisions']:,}" if "diverged" in result else ""
    lines = [f"{name}: diverged{count}"]
    if "sentence" in found:
        lines.append(f"  {found['sentence']}")
    lines += [f"  field     {found['field']}", f"  captured  {captured}", f"  replayed  {replayed}"]
    if found.get("engine"):
        lines.append(f"  engine    at the capture {found['engine']}")
    if found.get("before"):
        lines.append("  before it, the same on both sides:")
        lines += [f"    {line}" for line in found["before"]]
    if found.get("causes"):
        lines.append("  likely causes:")
        lines += [f"    - {cause}" for cause in found["causes"]]
    if others := result.get("other_divergences"):
        lines.append("  further on:")
        lines += [f"    {other['sentence']}" + _engine_then(other) for other in others]
        if (left := result["diverged"] - 1 - len(others)) > 0:
            lines.append(f"    and {left:,} more")
    return "\n".join(lines) + notes


def _engine_then(found: dict[str, Any]) -> str:
    return f" (the engine at the capture: {found['engine']})" if found.get("engine") else ""


def _summary(results: list[dict[str, Any]], total: int, seconds: float) -> None:
    from rich.console import Console  # noqa: PLC0415 - JSON needs no rich

    table = figures_table()
    for outcome in (_SAME, _DIVERGED, _FAILED):
        count = sum(result["outcome"] == outcome for result in results)
        table.add_row(outcome, f"{count:,}")
    if len(results) < total:
        table.add_row(
            "not replayed", f"{total - len(results):,}", "after the first that differs; --keep-going replays all"
        )
    table.add_row("decisions", f"{sum(result.get('decisions', 0) for result in results):,}")
    table.add_row("took", f"{seconds:.1f} s")
    print_view(Console(highlight=False, soft_wrap=True), table)
