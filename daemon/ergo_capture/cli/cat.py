"""``ergo-capture cat``.

Owns: its arguments and output.
Not here: selecting (``bundle/selection.py``), following (``journal/tail.py``), segments (``journal.py``), the
last events only (``tail.py``), what a line looks like (``record_lines.py``).
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from ergo_capture.bundle.selection import NoSuchEvent, Selection, select
from ergo_capture.cli.captures import WHAT, ConfigOption, StateOption, captures_in, journal_and_session
from ergo_capture.cli.output import standard_output
from ergo_capture.cli.record_lines import as_json as json_line
from ergo_capture.cli.record_lines import for_people
from ergo_capture.cli.selecting import Decisions, FromId, Ids, Kinds, Since, ToId, Until, selection_of
from ergo_capture.journal.tail import follow
from ergo_capture.storage import RealStorage
from ergo_capture.storage.watch import DirectoryWatch

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def cat(
    captures: Annotated[list[str], typer.Argument(metavar="CAPTURE", help=WHAT)],
    kind: Kinds = None,
    decision: Decisions = None,
    since: Since = "",
    until: Until = "",
    event_id: Ids = None,
    from_id: FromId = "",
    to_id: ToId = "",
    following: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on with what is decided from now on; a session or a journal.")
    ] = False,
    only_new: Annotated[bool, typer.Option("--new", help="With --follow: leave out what is there already.")] = False,
    state_dir: StateOption = "",
    config: ConfigOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object an event, one a line.")] = False,
) -> None:
    """Print events with their decisions, one a line.

    Of several runs, each line says which session it is of. With --follow until the session is over, or Ctrl-C; an event is shown when it is decided.
    """
    wanted = selection_of(
        kinds=kind, decisions=decision, since=since, until=until, ids=event_id, from_id=from_id, to_id=to_id
    )
    if following:
        if len(captures) != 1:
            raise typer.BadParameter("--follow wants one session, journal or state directory")
        _follow(captures[0], wanted, state_dir, config, only_new=only_new, as_json=as_json)
        return
    if only_new:
        raise typer.BadParameter("--new goes with --follow")
    found = captures_in(captures, state_dir, config)
    without = 0
    for capture in found:
        # Why only of several: one is known by its name, and ids of events are unique within it only.
        named = capture.session if len(found) > 1 else None
        with capture.open() as stream:
            try:
                for index, event, record in select(stream, wanted):
                    typer.echo((json_line if as_json else for_people)(index, event, record, named))
            except NoSuchEvent:
                # Why not at once: of several captures, one has the event.
                without += 1
                if without == len(found):
                    raise


def _follow(
    name: str, wanted: Selection, state_dir: str, config: ConfigOption, *, only_new: bool, as_json: bool
) -> None:
    journal, session = journal_and_session(name, state_dir, config)
    begun = wanted.from_id is None
    with DirectoryWatch(journal, standard_output()) as watch:
        for item in follow(journal, RealStorage(), watch.wait, of=session, latest=0 if only_new else None):
            event, record = item.event, item.decision
            begun = begun or event.event_id == wanted.from_id
            if begun and wanted.matches(event, record):
                named = item.session if as_json or not session else None
                typer.echo((json_line if as_json else for_people)(item.index, event, record, named))
                # Why: whoever follows through a pipe wants to see it now.
                sys.stdout.flush()
            if begun and event.event_id == wanted.to_id:
                return
