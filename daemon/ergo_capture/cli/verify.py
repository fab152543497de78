"""``ergo-capture verify``.

Owns: its arguments and output.
Not here: what is checked (``bundle/verify.py``).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from ergo_capture.bundle.verify import verify_bundle
from ergo_capture.cli.bundle_files import bundles_in
from ergo_capture.errors import ErgoCaptureError, ExitCode
from ergo_capture.kernel.explanation import plain
from ergo_capture.kernel.replay import Divergence
from ergo_capture.units import counted

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def verify(
    bundles: Annotated[
        list[str], typer.Argument(metavar="BUNDLE", help="Bundle files, directories of them, or patterns.")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a bundle, one a line.")] = False,
) -> int:
    """Check format, hashes and ids, and derive every decision again from the recorded outcomes.

    Exit 0 where all is well, 4 where a decision diverges, 1 where a bundle is unsound or cannot be read.
    """
    worst = ExitCode.OK
    for path in bundles_in(bundles):
        result = check(path)
        outcome: ExitCode = result.pop("exit")
        if worst is not ExitCode.FAILED and outcome is not ExitCode.OK:
            worst = outcome
        typer.echo(msgspec.json.encode(result) if as_json else _in_words(result))
    return int(worst)


def check(path: Path) -> dict[str, Any]:
    """What can be said about a bundle: counts, and the first thing that is wrong with it."""
    result: dict[str, Any] = {"bundle": printable(str(path)), "ok": False}
    try:
        verdict = verify_bundle(path)
        result |= {"graph": verdict.graph_id, "events": verdict.events, "decisions": verdict.decisions}
        if verdict.complaint is not None:
            raise verdict.complaint
    except ErgoCaptureError as error:
        return result | {"error": printable(error.message), "hint": error.hint, "exit": ExitCode.FAILED}
    result["notes"] = list(verdict.notes)
    if verdict.divergence is None:
        return result | {"ok": True, "exit": ExitCode.OK}
    return result | {"divergence": describe(verdict.divergence), "exit": ExitCode.DIVERGED}


def printable(text: str) -> str:
    """Why: a file's name may be bytes that no text can hold."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def describe(divergence: Divergence) -> dict[str, Any]:
    """A divergence as JSON types."""
    return {
        "index": divergence.index,
        "event_id": divergence.event_id,
        "field": divergence.field,
        "captured": plain(divergence.captured),
        "replayed": plain(divergence.replayed),
    }


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
