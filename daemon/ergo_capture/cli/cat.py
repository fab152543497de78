"""``ergo-capture cat``.

Owns: its arguments and output.
Not here: selecting (``capture/selection.py``), following (``journal/following.py``), segments (``journal.py``).
"""

from __future__ import annotations

import sys
from typing import Annotated, Final

import msgspec
import typer

from ergo_capture.capture.selection import NoSuchEvent, Selection, select
from ergo_capture.cli.captures import WHAT, ConfigOption, StateOption, captures_in, journal_and_session
from ergo_capture.cli.selecting import Decisions, FromId, Ids, Kinds, Since, ToId, Until, selection_of
from ergo_capture.journal.following import follow
from ergo_capture.journal.watch import DirectoryWatch
from ergo_capture.kernel.explanation import in_a_line, in_seconds, plain
from ergo_capture.kernel.records import EpisodeInvocationRecord, ExternalEventRecord
from ergo_capture.storage import RealStorage

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

#: Characters of a payload that are shown.
_SHOWN: Final = 60


@app.command()
def cat(
    captures: Annotated[list[str], typer.Argument(help=WHAT)],
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

    With --follow until the session is over, or Ctrl-C; an event is shown when it is decided.
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
        with capture.open() as stream:
            try:
                for index, event, record in select(stream, wanted):
                    typer.echo(_json(index, event, record) if as_json else _line(index, event, record))
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
    with DirectoryWatch(journal, _standard_output()) as watch:
        for item in follow(journal, RealStorage(), watch.wait, of=session, only_new=only_new):
            event, record = item.event, item.decision
            begun = begun or event.event_id == wanted.from_id
            if begun and wanted.wants(event, record):
                whose = None if session else item.session
                if as_json:
                    typer.echo(_json(item.index, event, record, item.session))
                else:
                    typer.echo(("" if whose is None else f"{whose}  ") + _line(item.index, event, record))
                # Why: whoever follows through a pipe wants to see it now.
                sys.stdout.flush()
            if begun and event.event_id == wanted.to_id:
                return


def _standard_output() -> int | None:
    """Its descriptor, if there is one: whoever runs us may have put something else in its place."""
    try:
        return sys.stdout.fileno()
    except (OSError, ValueError):
        return None


def _line(index: int, event: ExternalEventRecord, record: EpisodeInvocationRecord | None) -> str:
    payload = event.payload.decode()
    shown = payload if len(payload) <= _SHOWN else payload[: _SHOWN - 3] + "..."
    decided = "not decided" if record is None else in_a_line(record).partition("  ")[2]
    return (
        f"{index}  {in_seconds(event.event_time)}  {event.kind.value}  {event.event_id!r}  {decided}  {shown}".rstrip()
    )


def _json(
    index: int, event: ExternalEventRecord, record: EpisodeInvocationRecord | None, session: str | None = None
) -> bytes:
    item = {
        "index": index,
        "event_id": event.event_id,
        "kind": event.kind.value,
        "at": plain(event.event_time),
        "payload": msgspec.Raw(event.payload or b"null"),
        "decision": None if record is None else plain(record),
    }
    return msgspec.json.encode(item if session is None else {"session": session} | item)
