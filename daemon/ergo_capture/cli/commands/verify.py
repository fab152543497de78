"""``ergo-capture verify``: check bundles."""

from __future__ import annotations

from typing import Any

import click
import msgspec

from ergo_capture.cli.support.bundle_files import bundles_in
from ergo_capture.cli.support.command import NAME, argument, command, json_flag
from ergo_capture.cli.support.verification import check
from ergo_capture.errors import ExitCode
from ergo_capture.units import counted


@command(
    examples=(
        "ergo-capture verify run.capture.json",
        "ergo-capture verify /var/lib/ergo-capture/bundles --json",
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
@json_flag("bundle")
def verify(bundles: tuple[str, ...], *, as_json: bool) -> int:
    """Check format, hashes and ids, and derive every decision again from the recorded outcomes.

    Exit code 0 if every bundle is sound, 4 if a decision diverges, 1 if a bundle is unsound or cannot be read.
    """
    worst = ExitCode.OK
    for path in bundles_in(bundles):
        result = check(path)
        outcome: ExitCode = result.pop("exit")
        if worst is not ExitCode.FAILED and outcome is not ExitCode.OK:
            worst = outcome
        click.echo(msgspec.json.encode(result) if as_json else _in_words(result))
    return int(worst)


def _in_words(result: dict[str, Any]) -> str:
    notes = "".join(f"\n  note: {note}" for note in result.get("notes", ()))
    name = result["bundle"]
    if "error" in result:
        hint = f"\n  try: {result['hint']}" if result["hint"] else ""
        return f"{name}: unsound: {result['error']}{hint}"
    if "divergence" in result:
        found = result["divergence"]
        captured, replayed = (msgspec.json.encode(found[side]).decode() for side in ("captured", "replayed"))
        return (
            f"{name}: diverged at decision {found['index']}, event {found['event_id']!r}, field {found['field']}\n"
            f"  captured: {captured}\n"
            f"  replayed: {replayed}{notes}"
        )
    counts = f"{counted(result['events'], 'event')}, {counted(result['decisions'], 'decision')}"
    return f"{name}: ok, {counts} derived again{notes}"
