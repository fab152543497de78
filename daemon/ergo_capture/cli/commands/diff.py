"""``ergo-capture diff``: compare two runs."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec

from ergo_capture.bundle.diff import Difference, compare
from ergo_capture.cli.progress import ReadingBar, quiet_flag
from ergo_capture.cli.support.captures import capture_named
from ergo_capture.cli.support.command import NAME, argument, command, config_option, flag, state_option
from ergo_capture.cli.support.output import without_controls
from ergo_capture.errors import ExitCode
from ergo_capture.kernel.explanation import shortened
from ergo_capture.units import counted


@command(examples=("ergo-capture diff monday.capture.json tuesday.capture.json",))
@argument("a", "A bundle file, or a session's id.", type=NAME)
@argument("b", "Another one.", type=NAME)
@state_option
@config_option
@quiet_flag
@flag("--json", "as_json", help="Print one JSON object.")
def diff(a: str, b: str, state_dir: str, config: Path | None, *, quiet: bool, as_json: bool) -> int:
    """Compare two runs, aligned by the ids of their events.

    Exit code 0 if they hold the same events and decisions, 4 if they differ.
    """
    first, second = (capture_named(name, state_dir, config) for name in (a, b))
    bar = ReadingBar(quiet=quiet)
    with bar.reading(), first.open(only_to_show=True) as one, second.open(only_to_show=True) as other:
        found = compare(one, other)
    if as_json:
        click.echo(msgspec.json.encode({"same": found.none, **msgspec.to_builtins(found)}))
    else:
        click.echo(without_controls("\n".join(_lines(found))))
    return int(ExitCode.OK if found.none else ExitCode.DIVERGED)


def _lines(found: Difference) -> list[str]:
    if found.none:
        return [f"the same, {counted(found.common, 'event')}"]
    lines = [
        f"{counted(found.common, 'event')} in both, {found.changed:,} of them changed, {found.moved:,} in another order",
        f"{counted(found.only_a, 'event')} only in the first, {found.only_b:,} only in the second",
    ]
    if found.first is not None:
        lines.append(f"first difference: {found.first.sentence}")
        if found.first.before:
            lines += ["  before it, the same on both sides:", *(f"    {line}" for line in found.first.before)]
    for change in (*found.head, *found.first_changed):
        where = f"event {change.event_id!r}, {change.field}" if change.event_id else change.field
        lines += [where, f"  - {shortened(change.a)}", f"  + {shortened(change.b)}"]
    for title, ids, count in (
        ("only in the first", found.first_only_a, found.only_a),
        ("only in the second", found.first_only_b, found.only_b),
        ("in another order", found.first_moved, found.moved),
    ):
        if ids:
            more = f" and {count - len(ids)} more" if count > len(ids) else ""
            lines.append(f"{title}: {', '.join(map(repr, ids))}{more}")
    return lines
