"""``ergo-capture cat``.

Owns: its arguments and output.
Not here: selecting (``capture/selection.py``), segments of the journal (``journal.py``), a running session (``tap.py``).
"""

from __future__ import annotations

from typing import Annotated

import msgspec
import typer

from ergo_capture.capture.selection import select
from ergo_capture.capture.stream import open_bundle
from ergo_capture.cli.bundle_files import bundles_in
from ergo_capture.cli.selecting import Decisions, FromId, Ids, Kinds, Since, ToId, Until, selection_of
from ergo_capture.kernel.explanation import in_a_line, in_seconds, plain
from ergo_capture.kernel.records import EpisodeInvocationRecord, ExternalEventRecord

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

_SHOWN = 60


@app.command()
def cat(
    bundles: Annotated[list[str], typer.Argument(help="Bundle files, directories of them, or patterns.")],
    kind: Kinds = None,
    decision: Decisions = None,
    since: Since = "",
    until: Until = "",
    event_id: Ids = None,
    from_id: FromId = "",
    to_id: ToId = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object an event, one a line.")] = False,
) -> None:
    """Print events with their decisions, one a line."""
    wanted = selection_of(
        kinds=kind, decisions=decision, since=since, until=until, ids=event_id, from_id=from_id, to_id=to_id
    )
    for path in bundles_in(bundles):
        with open_bundle(path) as stream:
            for index, event, record in select(stream, wanted):
                typer.echo(_json(index, event, record) if as_json else _line(index, event, record))


def _line(index: int, event: ExternalEventRecord, record: EpisodeInvocationRecord | None) -> str:
    payload = event.payload.decode()
    shown = payload if len(payload) <= _SHOWN else payload[: _SHOWN - 3] + "..."
    decided = "not decided" if record is None else in_a_line(record).partition("  ")[2]
    return (
        f"{index}  {in_seconds(event.event_time)}  {event.kind.value}  {event.event_id!r}  {decided}  {shown}".rstrip()
    )


def _json(index: int, event: ExternalEventRecord, record: EpisodeInvocationRecord | None) -> bytes:
    return msgspec.json.encode(
        {
            "index": index,
            "event_id": event.event_id,
            "kind": event.kind.value,
            "at": plain(event.event_time),
            "payload": msgspec.Raw(event.payload or b"null"),
            "decision": None if record is None else plain(record),
        }
    )
