"""``ergo-capture tap``: decisions as they become durable."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click
import msgspec

from ergo_capture.cli.support.command import argument, command, config_option, flag, socket_option
from ergo_capture.cli.support.control_connection import ControlConnection, control_path
from ergo_capture.cli.support.output import standard_output
from ergo_capture.kernel.explanation import format_time
from ergo_capture.kernel.time import EventTime
from ergo_capture.protocol.control import MAX_RATE, Answer, Ended, Skipped, TappedDecision, Tapping, TapRequest
from ergo_capture.units import counted


@command(examples=("ergo-capture tap flights --rate 10", "ergo-capture tap 20261123T134500Z-1-9c4ef0aa --json"))
@argument("of", "What to follow; `ergo-capture status` lists both.", metavar="GRAPH|SESSION")
@socket_option
@config_option
@click.option(
    "--rate",
    type=click.IntRange(min=1, max=MAX_RATE),
    default=100,
    show_default=True,
    metavar="N",
    help="Decisions per second to show at most.",
)
@flag("--json", "as_json", help="Print the daemon's JSON objects, one per line.")
def tap(of: str, socket: str, config: Path | None, rate: int, *, as_json: bool) -> int:
    """Follow decisions as they become durable, until the session ends or Ctrl-C is pressed.

    Decisions beyond the rate are skipped and counted.
    """
    with ControlConnection(control_path(socket, config)) as daemon:
        daemon.ask(TapRequest(of, rate), Tapping)
        for text in daemon.lines(standard_output()):
            item = daemon.answer_in(text)
            if as_json:
                click.echo(text, nl=False)
            elif item is not None:
                click.echo(_in_words(item))
            sys.stdout.flush()
            if isinstance(item, Ended):
                return 0
    raise AssertionError("the lines end with an error")


def _in_words(item: Answer) -> str:
    """Return one item of a tap as a line of text."""
    if isinstance(item, Skipped):
        return f"skipped {item.count:,}"
    if isinstance(item, Ended):
        return f"the session has ended: {item.how}"
    assert isinstance(item, TappedDecision)
    decision = msgspec.json.decode(item.decision)
    parts = [item.session, f"{item.index:,}", format_time(item.at), item.kind.value]
    parts += [repr(decision["event_id"]), decision["decision"]]
    if decision["schedule_at"] is not None:
        parts.append(f"until {format_time(EventTime(**decision['schedule_at']))}")
    if decision["termination"] is not None:
        parts.append(_termination(decision["termination"]))
    if decision["retry_count"]:
        parts.append("after 1 retry" if decision["retry_count"] == 1 else f"after {decision['retry_count']} retries")
    if decision["effects"]:
        parts.append(counted(len(decision["effects"]), "effect"))
    return "  ".join(parts)


def _termination(termination: Any) -> str:
    if isinstance(termination, dict):
        return " ".join(f"{kind} {detail}" for kind, detail in termination.items())
    return str(termination)
