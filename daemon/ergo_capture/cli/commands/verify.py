"""``ergo-capture verify``: check bundles."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import click
import msgspec

from ergo_capture.cli.processes import are_worth_processes, in_order, jobs_option, sizes_of
from ergo_capture.cli.progress import ReadingBar, quiet_flag
from ergo_capture.cli.support.captures import files_and_sessions
from ergo_capture.cli.support.command import (
    NAME,
    argument,
    command,
    config_option,
    flag,
    json_flag,
    seal_option,
    state_option,
)
from ergo_capture.cli.support.output import with_hint, without_controls
from ergo_capture.cli.support.verification import (
    AdapterCheck,
    adapter_in_words,
    adapter_option,
    check_run,
    in_words,
    no_manifest_flag,
)
from ergo_capture.errors import ExitCode


@command(
    examples=(
        "ergo-capture verify run.capture.json",
        "ergo-capture verify /var/lib/ergo-capture/bundles --json",
        "ergo-capture verify run.capture.json --adapter adapter.yaml",
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
@adapter_option
@seal_option("check the seals of the bundles, and for a directory of bundles also their chain.")
@jobs_option
@no_manifest_flag
@quiet_flag
@flag("--verbose", "-v", help="Also print the details that the notes sum up.")
@state_option
@config_option
@json_flag("bundle")
def verify(
    bundles: tuple[str, ...],
    *,
    adapter: Path | None,
    seal: str | None,
    jobs: int,
    no_manifest: bool,
    quiet: bool,
    verbose: bool,
    state_dir: str,
    config: Path | None,
    as_json: bool,
) -> int:
    """Check format, hashes and ids, and derive every decision again from the recorded outcomes.

    A bundle with a manifest beside it is first compared with its size and SHA-256. For an open session, the
    decided events are checked.

    With the graph's adapter, the context store is rebuilt from the effects, and each payload must be the one that the
    host derives. The manifest proves which values came from the store; without it, the output says what was checked.

    Exit code 0 if every bundle is sound, 4 if a decision diverges, 1 if a bundle is unsound or cannot be read.
    """
    worst = ExitCode.OK
    adapter_check = None if adapter is None else AdapterCheck(adapter)
    runs = files_and_sessions(bundles, state_dir, config)
    sizes: list[int] = []
    if adapter is None and are_worth_processes(runs, jobs):
        sizes = sizes_of(runs)
        results: Iterator[dict[str, Any]] = in_order(
            partial(check_run, with_manifest=not no_manifest), runs, jobs, op="verify"
        )
    else:
        # With an adapter, check one after the other: the store at the end of a part is where the next one begins.
        one = partial(check_run, with_manifest=not no_manifest, adapter=adapter_check, jobs=jobs)
        results = map(one, runs)
    bar, total, done = ReadingBar(quiet=quiet), sum(sizes), accumulate(sizes, initial=0)
    for number in range(len(runs)):
        bar.of = f"{number + 1} of {len(runs)}: " if len(runs) > 1 else ""
        with bar.reading():
            if sizes:
                # Only the worker processes know how much they have read: count whole bundles.
                bar.begin("verifying", total)
                bar.advance(next(done))
            result = next(results)
        outcome: ExitCode = result.pop("exit")
        if worst is not ExitCode.FAILED and outcome is not ExitCode.OK:
            worst = outcome
        click.echo(msgspec.json.encode(result) if as_json else without_controls(_in_words(result, verbose=verbose)))
    if seal is not None:
        from ergo_capture.cli.seals import check_seals  # noqa: PLC0415 - needs what is not always installed

        if not check_seals(bundles, runs, seal, as_json=as_json):
            worst = ExitCode.FAILED
    return int(worst)


def _in_words(result: dict[str, Any], *, verbose: bool) -> str:
    lines = [f"{result['bundle']}: {in_words(result)}"]
    if "by_itself" in result:
        lines.append(f"  the bundle by itself: {result['by_itself']}")
    elif "divergence" in result:
        found = result["divergence"]
        lines += [f"  {side}: {msgspec.json.encode(found[side]).decode()}" for side in ("captured", "replayed")]
    if (report := result.get("adapter")) is not None and report["problem"] is None:
        lines.append(f"  {adapter_in_words(report)}")
    lines[-1] = with_hint(lines[-1], result.get("hint"))
    lines += [f"  note: {note}" for note in result.get("notes", ())]
    lines += [f"    {detail}" for detail in result.get("details", ()) if verbose]
    return "\n".join(lines)
