"""The options with which commands select events."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from decimal import Decimal, InvalidOperation
from typing import Final

import click

from ergo_capture.bundle.reader.selection import Selection
from ergo_capture.kernel.time import EventTime

#: The bound on event times, in seconds.
_LATEST: Final = Decimal(1 << 64)

_KINDS: Final = ("Pump", "DataAvailable", "Command")
_DECISIONS: Final = ("Invoke", "Defer", "Skip")


def completing(*words: str) -> Callable[[click.Context, click.Parameter, str], list[str]]:
    """Return what tells a shell which of the words fit what was typed."""
    return lambda _context, _parameter, begun: [word for word in words if word.startswith(begun)]


kind_option: Final = click.option(
    "--kind",
    multiple=True,
    metavar="KIND",
    help="Pump, DataAvailable or Command; may be repeated.",
    shell_complete=completing(*_KINDS),
)
decision_option: Final = click.option(
    "--decision",
    multiple=True,
    metavar="DECISION",
    help="Invoke, Defer or Skip; may be repeated.",
    shell_complete=completing(*_DECISIONS),
)
since_option: Final = click.option(
    "--since", default="", metavar="SECONDS", help="From this event time on, in seconds."
)
until_option: Final = click.option("--until", default="", metavar="SECONDS", help="Before this event time, in seconds.")
event_id_option: Final = click.option(
    "--event-id", multiple=True, metavar="ID", help="Only this event; may be repeated."
)
from_id_option: Final = click.option(
    "--from-id", default="", metavar="ID", help="From this event on, in the order of arrival."
)
to_id_option: Final = click.option("--to-id", default="", metavar="ID", help="Up to and including this event.")


def selection_from(
    *,
    kinds: Iterable[str] = (),
    decisions: Iterable[str] = (),
    since: str = "",
    until: str = "",
    ids: Iterable[str] = (),
    from_id: str = "",
    to_id: str = "",
) -> Selection:
    """Return the selection that the options describe.

    Raises:
        click.BadParameter: the value of an option is not allowed.
    """
    return Selection(
        kinds=_known(kinds, _KINDS, "--kind"),
        decisions=_known(decisions, _DECISIONS, "--decision"),
        since=_time(since, "--since"),
        until=_time(until, "--until"),
        ids=frozenset(ids),
        from_id=from_id or None,
        to_id=to_id or None,
    )


def _known(words: Iterable[str], known: tuple[str, ...], option: str) -> frozenset[str]:
    chosen = frozenset(words)
    for word in sorted(chosen - {*known}):
        raise click.BadParameter(f"{option} is one of {', '.join(known)}, not {word!r}")
    return chosen


def _time(text: str, option: str) -> EventTime | None:
    if not text:
        return None
    try:
        seconds = Decimal(text)
        # Compare first: a number with a large exponent has as many digits as an integer.
        if not seconds < _LATEST:
            raise ValueError(text)
        return EventTime.from_nanos(int(seconds * 1_000_000_000)) if seconds > 0 else EventTime(0, 0)
    except (InvalidOperation, ValueError, OverflowError):
        raise click.BadParameter(f"{option} is a number of seconds below 2^64, not {text!r}") from None
