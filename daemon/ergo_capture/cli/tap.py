"""``ergo-capture tap``: decisions, live.

Owns: its arguments, a decision as one line for people.
Not here: which are shown and which are skipped (``server/session/tap.py``).
"""

from __future__ import annotations

import sys
from typing import Annotated, Any

import msgspec
import typer

from ergo_capture.cli.operator import ConfigOption, OperatorLine, SocketOption, control_path
from ergo_capture.cli.output import standard_output
from ergo_capture.protocol.control import MAX_RATE, Answer, Ended, Skipped, TappedDecision, Tapping, TapRequest
from ergo_capture.units import counted

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def tap(
    of: Annotated[str, typer.Argument(metavar="GRAPH|SESSION", help="What to follow; see `ergo-capture status`.")],
    socket: SocketOption = "",
    config: ConfigOption = None,
    rate: Annotated[int, typer.Option(min=1, max=MAX_RATE, metavar="N", help="Most decisions a second to show.")] = 100,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object a line, as the daemon says it.")
    ] = False,
) -> int:
    """Follow decisions as they become durable, until Ctrl-C or the session's end.

    Shows at most so many a second, and says how many it skipped.
    """
    with OperatorLine(control_path(socket, config)) as line:
        line.ask(TapRequest(of, rate), Tapping)
        for text in line.lines(standard_output()):
            item = line.answer_in(text)
            if as_json:
                sys.stdout.write(text.decode())
            elif item is not None:
                typer.echo(in_words(item))
            sys.stdout.flush()
            if isinstance(item, Ended):
                return 0
    raise AssertionError("a line ends by an error")


def in_words(item: Answer) -> str:
    """Return one line of a tap for people."""
    if isinstance(item, Skipped):
        return f"skipped {item.count:,}"
    if isinstance(item, Ended):
        return f"the session has ended: {item.how}"
    assert isinstance(item, TappedDecision)
    decision = msgspec.json.decode(item.decision)
    parts = [item.session, f"{item.index:,}", _time({"secs": item.at.secs, "nanos": item.at.nanos}), item.kind.value]
    parts.append(repr(decision["event_id"]))
    parts.append(decision["decision"])
    if decision["schedule_at"] is not None:
        parts.append(f"until {_time(decision['schedule_at'])}")
    if decision["termination"] is not None:
        parts.append(_termination(decision["termination"]))
    if decision["retry_count"]:
        parts.append("after 1 retry" if decision["retry_count"] == 1 else f"after {decision['retry_count']} retries")
    if decision["effects"]:
        parts.append(counted(len(decision["effects"]), "effect"))
    return "  ".join(parts)


def _time(time: dict[str, int]) -> str:
    return f"{time['secs']}.{time['nanos']:09d}".rstrip("0").rstrip(".") + " s"


def _termination(termination: Any) -> str:
    if isinstance(termination, dict):
        return " ".join(f"{kind} {detail}" for kind, detail in termination.items())
    return str(termination)
