"""The options with which commands select events.

Owns: their types and texts, ``selection_of``.
Not here: selecting (``bundle/selection.py``).
"""

from __future__ import annotations

from decimal import Decimal, InvalidOperation
from typing import Annotated

import typer

from ergo_capture.bundle.selection import Selection
from ergo_capture.kernel.time import EventTime

Kinds = Annotated[
    list[str] | None, typer.Option("--kind", metavar="KIND", help="Pump, DataAvailable or Command; may be repeated.")
]
Decisions = Annotated[
    list[str] | None, typer.Option("--decision", metavar="DECISION", help="Invoke, Defer or Skip; may be repeated.")
]
Since = Annotated[
    str,
    typer.Option(metavar="SECONDS", help="From this event time on, in seconds."),
]
Until = Annotated[
    str,
    typer.Option(metavar="SECONDS", help="Before this event time, in seconds."),
]
Ids = Annotated[list[str] | None, typer.Option("--event-id", metavar="ID", help="Only this event; may be repeated.")]
FromId = Annotated[str, typer.Option(metavar="ID", help="From this event on, by its place.")]
ToId = Annotated[str, typer.Option(metavar="ID", help="Up to and with this event.")]


def selection_of(
    *,
    kinds: list[str] | None = None,
    decisions: list[str] | None = None,
    since: str = "",
    until: str = "",
    ids: list[str] | None = None,
    from_id: str = "",
    to_id: str = "",
) -> Selection:
    """What the options say.

    Raises:
        typer.BadParameter: one of them cannot be.
    """
    return Selection(
        kinds=_known(kinds, ("Pump", "DataAvailable", "Command"), "--kind"),
        decisions=_known(decisions, ("Invoke", "Defer", "Skip"), "--decision"),
        since=_time(since, "--since"),
        until=_time(until, "--until"),
        ids=frozenset(ids or ()),
        from_id=from_id or None,
        to_id=to_id or None,
    )


def _known(words: list[str] | None, known: tuple[str, ...], option: str) -> frozenset[str]:
    for word in words or ():
        if word not in known:
            raise typer.BadParameter(f"{option} is one of {', '.join(known)}, not {word!r}")
    return frozenset(words or ())


def _time(text: str, option: str) -> EventTime | None:
    if not text:
        return None
    try:
        nanos = int(Decimal(text) * 1_000_000_000)
        return EventTime.from_nanos(nanos) if nanos >= 0 else EventTime(0, 0)
    except (InvalidOperation, ValueError, OverflowError):
        raise typer.BadParameter(f"{option} is a number of seconds, not {text!r}") from None
