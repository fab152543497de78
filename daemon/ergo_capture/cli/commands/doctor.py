"""``ergo-capture doctor``: report damage."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import click
import msgspec

from ergo_capture.cli.progress import ReadingBar, quiet_flag
from ergo_capture.cli.support.command import UNCHECKED_PATH, argument, command, json_flag
from ergo_capture.cli.support.output import printable, without_controls
from ergo_capture.errors import ErgoCaptureError, ExitCode
from ergo_capture.repair.doctor import Diagnosis, Finding, Severity, diagnose

#: The kind of a path that could not be read.
_UNKNOWN: Final = "unknown"


@command(examples=("ergo-capture doctor /var/lib/ergo-capture", "ergo-capture doctor run.capture.json"))
@argument(
    "paths",
    "Bundles, segments, journals or state directories.",
    type=UNCHECKED_PATH,
    nargs=-1,
    required=True,
    metavar="PATH...",
)
@quiet_flag
@json_flag("path")
def doctor(paths: tuple[Path, ...], *, quiet: bool, as_json: bool) -> int:
    """Report damage, its place, and what `recover` would keep. It continues after damage, and never writes.

    Exit code 0 if nothing is damaged (there may be warnings), 1 if something is damaged or cannot be read.
    """
    worst = ExitCode.OK
    bar = ReadingBar(quiet=quiet)
    for path in paths:
        with bar.reading():
            diagnosis = _diagnosis(path)
        if not diagnosis.sound:
            worst = ExitCode.FAILED
        if as_json:
            click.echo(msgspec.json.encode(_plain(diagnosis)))
        else:
            click.echo(without_controls(printable(_in_words(diagnosis))))
    return int(worst)


def _diagnosis(path: Path) -> Diagnosis:
    try:
        return diagnose(path)
    except ErgoCaptureError as error:
        message = error.message + (f" (try: {error.hint})" if error.hint else "")
    except OSError as error:
        # Handle it here: one path that cannot be read must not hide the findings about the others.
        message = f"look at '{error.filename or path}': {error.strerror or error}"
    return Diagnosis(str(path), _UNKNOWN, [Finding(Severity.ERROR, str(path), None, message)], [])


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
    wrong = "damaged" if errors > diagnosis.unread else "cannot be read"
    verdict = "sound" if diagnosis.sound else f"{wrong}, {errors} {'error' if errors == 1 else 'errors'}"
    if diagnosis.kind == _UNKNOWN:
        return f"{diagnosis.path}: {diagnosis.findings[0].message}"
    if warnings:
        verdict += f", {warnings} {'warning' if warnings == 1 else 'warnings'}"
    lines = [f"{diagnosis.path}: {diagnosis.kind}, {verdict}"]
    for finding in diagnosis.findings:
        where = "" if finding.path == diagnosis.path else f" {finding.path}"
        offset = "" if finding.offset is None else f" at {finding.offset}"
        lines.append(f"  {finding.severity.value}{where}{offset}: {finding.message}")
    return "\n".join([*lines, *(f"  {words}" for words in diagnosis.keeps)])
