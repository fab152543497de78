"""``ergo-capture cat`` and ``tail``: events with their decisions, one a line."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

import click
import msgspec

from ergo_capture.bundle.reader.selection import NoSuchEvent, Selection, select, select_last
from ergo_capture.cli.support.captures import ANY_CAPTURE, capture_named, captures_in, journal_and_session
from ergo_capture.cli.support.command import NAME, argument, command, config_option, flag, json_flag, state_option
from ergo_capture.cli.support.driver_stream import semantic_kinds
from ergo_capture.cli.support.output import printable, standard_output, without_controls
from ergo_capture.cli.support.selection import (
    decision_option,
    event_id_option,
    from_id_option,
    kind_option,
    selection_from,
    since_option,
    to_id_option,
    until_option,
)
from ergo_capture.cli.support.verification import fates
from ergo_capture.kernel.events import ExternalEventKind
from ergo_capture.kernel.explanation import describe_without_id, escaped, format_time, to_builtins
from ergo_capture.kernel.records import EpisodeInvocationRecord, ExternalEventRecord

if TYPE_CHECKING:
    from ergo_capture.journal.tail import Followed

_KINDS: Final = {kind: kind.value for kind in ExternalEventKind}
#: How many lines are printed together: one call for each took as long as reading its event.
_TOGETHER: Final = 256
#: How many characters of a payload are shown.
_SHOWN: Final = 60

_follow_flag: Final = flag(
    "--follow", "-f", "following", help="Continue with events that are decided from now on; for a session or a journal."
)


@command(
    examples=(
        "ergo-capture cat run.capture.json --decision Defer --since 3600 --until 7200",
        "ergo-capture cat 20261123T134500Z-1-9c4ef0aa --follow --json",
    )
)
@argument("captures", ANY_CAPTURE, type=NAME, nargs=-1, required=True, metavar="CAPTURE...")
@kind_option
@decision_option
@since_option
@until_option
@event_id_option
@from_id_option
@to_id_option
@_follow_flag
@flag("--new", "only_new", help="With --follow: leave out events that are decided already.")
@state_option
@config_option
@json_flag("event")
def cat(
    *,
    captures: tuple[str, ...],
    kind: tuple[str, ...],
    decision: tuple[str, ...],
    since: str,
    until: str,
    event_id: tuple[str, ...],
    from_id: str,
    to_id: str,
    following: bool,
    only_new: bool,
    state_dir: str,
    config: Path | None,
    as_json: bool,
) -> None:
    """Print events with their decisions, one per line.

    If there are several runs, each line begins with its session. With --follow an event is printed when it is decided,
    until the session ends or Ctrl-C is pressed. Events that were refused or left over are in no run: a note counts them.
    """
    wanted = selection_from(
        kinds=kind, decisions=decision, since=since, until=until, ids=event_id, from_id=from_id, to_id=to_id
    )
    if following:
        if len(captures) != 1:
            raise click.BadParameter("--follow needs one session, journal or state directory")
        journal, session = journal_and_session(captures[0], state_dir, config)
        _follow_from(journal, session, wanted, only_new=only_new, as_json=as_json)
        return
    if only_new:
        raise click.BadParameter("--new needs --follow")
    found = captures_in(captures, state_dir, config)
    without = 0
    for capture in found:
        # The ids of events are unique only within a run.
        name = capture.session if len(found) > 1 else None
        semantic = semantic_kinds(capture) if as_json else iter(())
        following_index = 0
        with capture.open(only_to_show=True, by_index=wanted.is_partial) as stream, _Together() as lines:
            try:
                for index, event, record in select(stream, wanted):
                    if as_json:
                        meaning = next(islice(semantic, index - following_index, None), None)
                        following_index = index + 1
                        lines.add(_json_line(index, event, record, name, meaning))
                    else:
                        lines.add(_text_line(index, event, record, name))
            except NoSuchEvent:
                # The event that --from-id or --to-id names may be in another capture.
                without += 1
                if without == len(found):
                    raise
        for note in fates(capture):
            click.echo(f"note: {printable(note)}", err=True)


class _Together:
    """Prints lines, some hundreds at a time, and the rest at the end of the block, also after an error."""

    def __init__(self) -> None:
        self._lines: list[Any] = []

    def add(self, line: str | bytes) -> None:
        """Print a line soon; all of them are text, or all are bytes."""
        self._lines.append(line)
        if len(self._lines) >= _TOGETHER:
            self._flush()

    def _flush(self) -> None:
        if self._lines:
            newline: Any = "\n" if isinstance(self._lines[0], str) else b"\n"
            click.echo(newline.join(self._lines))
            self._lines.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # If printing itself failed, the reader has gone.
        if kind is None or not issubclass(kind, OSError):
            self._flush()


def _follow_from(journal: Path, session: str, wanted: Selection, *, only_new: bool, as_json: bool) -> None:
    line_of = _json_line if as_json else _text_line
    begun = wanted.from_id is None
    for item in _follow(journal, session, lambda _item: True, 0 if only_new else None):
        event, record = item.event, item.decision
        begun = begun or event.event_id == wanted.from_id
        if begun and wanted.matches(event, record):
            _print_now(line_of, item, item.session if as_json or not session else None)
        if begun and event.event_id == wanted.to_id:
            return


def _follow(journal: Path, session: str, wanted: Callable[[Followed], bool], latest: int | None) -> Iterator[Followed]:
    """Yield events as they are decided, as ``journal.tail.follow`` does, until nobody reads standard output any more."""
    from ergo_capture.journal.tail import follow  # noqa: PLC0415 - bundles need no journal
    from ergo_capture.storage import RealStorage  # noqa: PLC0415
    from ergo_capture.storage.watch import DirectoryWatch  # noqa: PLC0415

    with DirectoryWatch(journal, standard_output()) as watch:
        yield from follow(journal, RealStorage(), watch.wait, of=session, wanted=wanted, latest=latest)


@command(examples=("ergo-capture tail -n 20 run.capture.json", "ergo-capture tail -f /var/lib/ergo-capture"))
@argument("capture", "A bundle, a session's id, a journal or a state directory.", type=NAME)
@click.option(
    "--lines",
    "-n",
    type=click.IntRange(min=0),
    default=10,
    show_default=True,
    metavar="N",
    help="Number of events.",
)
@_follow_flag
@kind_option
@decision_option
@since_option
@until_option
@event_id_option
@state_option
@config_option
@json_flag("event")
def tail(
    *,
    capture: str,
    lines: int,
    following: bool,
    kind: tuple[str, ...],
    decision: tuple[str, ...],
    since: str,
    until: str,
    event_id: tuple[str, ...],
    state_dir: str,
    config: Path | None,
    as_json: bool,
) -> None:
    """Print the last events with their decisions, one per line.

    With --follow an event is printed when it is decided, until the session ends or Ctrl-C is pressed.
    """
    wanted = selection_from(kinds=kind, decisions=decision, since=since, until=until, ids=event_id)
    line_of = _json_line if as_json else _text_line
    if not following:
        with capture_named(capture, state_dir, config).open(only_to_show=True, by_index=True) as stream:
            for index, event, record in select_last(stream, wanted, lines):
                click.echo(line_of(index, event, record, None))
        return

    def is_wanted(item: Followed) -> bool:
        return wanted.matches(item.event, item.decision)

    journal, session = journal_and_session(capture, state_dir, config)
    for item in _follow(journal, session, is_wanted, lines):
        _print_now(line_of, item, item.session if as_json or not session else None)


def _print_now(line_of: Callable[..., str | bytes], item: Followed, session: str | None) -> None:
    """Print a followed event at once, even into a pipe."""
    click.echo(line_of(item.index, item.event, item.decision, session))
    sys.stdout.flush()


def _text_line(
    index: int, event: ExternalEventRecord, record: EpisodeInvocationRecord | None, session: str | None
) -> str:
    """Return an event and its decision as a line of text; it begins with the session if one is given."""
    payload = without_controls(event.payload_text)
    shown = payload if len(payload) <= _SHOWN else payload[: _SHOWN - 3] + "..."
    decided = "not decided" if record is None else describe_without_id(record)
    line = f"{index}  {format_time(event.event_time)}  {_KINDS[event.kind]}  {event.event_id!r}  {decided}  {shown}"
    return (line if session is None else f"{escaped(session)}  {line}").rstrip()


def _json_line(
    index: int,
    event: ExternalEventRecord,
    record: EpisodeInvocationRecord | None,
    session: str | None,
    semantic_kind: str | None = None,
) -> bytes:
    """Return the same as a JSON object; it has the session and the semantic kind as items if they are given."""
    item: dict[str, Any] = {
        "index": index,
        "event_id": event.event_id,
        "kind": event.kind.value,
        "at": to_builtins(event.event_time),
        "payload": _json_of(event),
        "decision": None if record is None else to_builtins(record),
    }
    if semantic_kind is not None:
        item["semantic_kind"] = semantic_kind
    return msgspec.json.encode(item if session is None else {"session": session} | item)


_raw_json: Final = msgspec.json.Decoder(msgspec.Raw)


def _json_of(event: ExternalEventRecord) -> msgspec.Raw | str | None:
    """Return an event's payload as JSON, and one that is not JSON as a string."""
    if not event.payload:
        return None
    try:
        event.payload.decode()
        return _raw_json.decode(event.payload)
    except ValueError:
        return event.payload_text
