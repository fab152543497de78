"""``ergo-capture doctor``.

Owns: its arguments and output.
Not here: what is looked at, and what is an error (``repair/doctor.py``).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import msgspec
import typer

from ergo_capture.cli.verify import printable
from ergo_capture.errors import ErgoCaptureError, ExitCode
from ergo_capture.repair.doctor import Diagnosis, Finding, Severity, diagnose

#: The kind of what could not be looked at.
UNKNOWN: Final = "unknown"

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def doctor(
    paths: Annotated[
        list[Path],
        typer.Argument(metavar="PATH", readable=False, help="Bundles, segments, journals or state directories."),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a path, one a line.")] = False,
) -> int:
    """Say what is wrong, where, and what `recover` would keep; reads on past damage, and never writes.

    Exit 0 where nothing is damaged (there may be warnings), 1 where something is, or cannot be read.
    """
    worst = ExitCode.OK
    for path in paths:
        diagnosis = _diagnosis(path)
        if not diagnosis.sound:
            worst = ExitCode.FAILED
        if as_json:
            typer.echo(printable(msgspec.json.encode(_plain(diagnosis)).decode()))
        else:
            typer.echo(printable(_in_words(diagnosis)))
    return int(worst)


def _diagnosis(path: Path) -> Diagnosis:
    try:
        return diagnose(path)
    except ErgoCaptureError as error:
        message = error.message + (f" (try: {error.hint})" if error.hint else "")
    except OSError as error:
        # Why here: one path that the system does not give costs nothing of what is said of the others.
        message = f"look at '{error.filename or path}': {error.strerror or error}"
    return Diagnosis(str(path), UNKNOWN, [Finding(Severity.ERROR, str(path), None, message)], [])


def _plain(diagnosis: Diagnosis) -> dict[str, object]:
    return {
        "path": printable(diagnosis.path),
        "kind": diagnosis.kind,
        "sound": diagnosis.sound,
        "findings": [
            {
                "severity": finding.severity.value,
                "path": printable(finding.path),
                "offset": finding.offset,
                "message": printable(finding.message),
            }
            for finding in diagnosis.findings
        ],
        "keeps": [printable(words) for words in diagnosis.keeps],
    }


def _in_words(diagnosis: Diagnosis) -> str:
    count = dict.fromkeys(Severity, 0)
    for finding in diagnosis.findings:
        count[finding.severity] += 1
    errors, warnings = count[Severity.ERROR], count[Severity.WARNING]
    verdict = "sound" if diagnosis.sound else f"damaged, {errors} {'error' if errors == 1 else 'errors'}"
    if diagnosis.kind == UNKNOWN:
        return f"{diagnosis.path}: {diagnosis.findings[0].message}"
    if warnings:
        verdict += f", {warnings} {'warning' if warnings == 1 else 'warnings'}"
    lines = [f"{diagnosis.path}: {diagnosis.kind}, {verdict}"]
    for finding in diagnosis.findings:
        where = "" if finding.path == diagnosis.path else f" {finding.path}"
        offset = "" if finding.offset is None else f" at {finding.offset}"
        lines.append(f"  {finding.severity.value}{where}{offset}: {finding.message}")
    return "\n".join([*lines, *(f"  {words}" for words in diagnosis.keeps)])
