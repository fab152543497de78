"""``ergo-capture tail``.

Owns: its arguments, and keeping the last events.
Not here: selecting (``bundle/selection.py``), following (``journal/tail.py``), all of the events (``cat.py``).
"""

from __future__ import annotations

import sys
from collections import deque
from typing import Annotated

import typer

from ergo_capture.bundle.selection import select
from ergo_capture.cli.captures import ConfigOption, StateOption, capture_named, journal_and_session
from ergo_capture.cli.output import standard_output
from ergo_capture.cli.record_lines import as_json as json_line
from ergo_capture.cli.record_lines import for_people
from ergo_capture.cli.selecting import Decisions, Ids, Kinds, Since, Until, selection_of
from ergo_capture.journal.tail import Followed, follow
from ergo_capture.storage import RealStorage
from ergo_capture.storage.watch import DirectoryWatch

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def tail(
    capture: Annotated[
        str, typer.Argument(metavar="CAPTURE", help="A bundle, a session's id, a journal or a state directory.")
    ],
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, metavar="N", help="How many events.")] = 10,
    following: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on with what is decided from now on; a session or a journal.")
    ] = False,
    kind: Kinds = None,
    decision: Decisions = None,
    since: Since = "",
    until: Until = "",
    event_id: Ids = None,
    state_dir: StateOption = "",
    config: ConfigOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object an event, one a line.")] = False,
) -> None:
    """Print the last events with their decisions, one a line.

    With --follow until the session is over, or Ctrl-C; an event is shown when it is decided.
    """
    wanted = selection_of(kinds=kind, decisions=decision, since=since, until=until, ids=event_id)
    line_of = json_line if as_json else for_people
    if not following:
        with capture_named(capture, state_dir, config).open() as stream:
            for index, event, record in deque(select(stream, wanted), min(lines, sys.maxsize)):
                typer.echo(line_of(index, event, record))
        return

    def is_wanted(item: Followed) -> bool:
        return wanted.matches(item.event, item.decision)

    journal, session = journal_and_session(capture, state_dir, config)
    with DirectoryWatch(journal, standard_output()) as watch:
        for item in follow(journal, RealStorage(), watch.wait, of=session, wanted=is_wanted, latest=lines):
            # Why the session also in JSON where only one is followed: so does `cat --follow`.
            named = item.session if as_json or not session else None
            typer.echo(line_of(item.index, item.event, item.decision, named))
            # Why: whoever follows through a pipe wants to see it now.
            sys.stdout.flush()
