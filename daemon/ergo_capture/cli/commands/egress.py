"""``ergo-capture egress``: an egress channel for ``ergo run`` that sends no intent twice once it is acknowledged."""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ergo_capture.cli.support.command import PATH, argument, command
from ergo_capture.signals import PASSED_ON, end_as
from ergo_capture.units import Duration, Size, counted

if TYPE_CHECKING:
    from ergo_capture.egress.wrapper import EgressWrapper


@command(
    examples=(
        "ergo-capture egress --outbox orders.outbox -- ./place_orders",
        "in egress.toml: command = ['ergo-capture', 'egress', '--', './place_orders']",
    )
)
@argument("channel", "The user's channel and its arguments, after --.", nargs=-1, metavar="COMMAND...", required=True)
@click.option(
    "--outbox",
    "path",
    type=PATH,
    default="egress.outbox",
    show_default=True,
    metavar="FILE",
    help="The file of intents and acks; one for each channel.",
)
@click.option(
    "--keep",
    default="30d",
    show_default=True,
    metavar="DURATION",
    help="How long an intent is kept after its ack; without one it is kept for ever.",
)
@click.option(
    "--max-bytes",
    default="64MiB",
    show_default=True,
    metavar="SIZE",
    help="Bytes of the file at which no further intent is taken.",
)
def egress(*, channel: tuple[str, ...], path: Path, keep: str, max_bytes: str) -> int:
    """Start an egress channel, and make each intent and each ack durable before passing it on, unchanged.

    Use it as the `command` of a channel in the egress configuration of `ergo run`. An intent whose ack is in the outbox
    is not sent again: it is answered from there, so that a run can be repeated after a crash. It ends as the channel
    does, with the same exit code or signal.
    """
    from ergo_capture.egress.outbox import Outbox  # noqa: PLC0415 - help needs no storage
    from ergo_capture.egress.wrapper import EgressWrapper  # noqa: PLC0415 - nor subprocesses

    try:
        seconds, bound = int(Duration.parse(keep).seconds), Size.parse(max_bytes)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    outbox = Outbox(path.absolute(), keep=seconds, most_bytes=bound, now=int(time.time()))
    try:
        waiting = outbox.unacknowledged
        _say(
            f"outbox {outbox.path}: {counted(outbox.asked, 'intent')}, {len(waiting)} without an ack; at most {bound}, "
            f"kept for {keep} after their acks"
        )
        wrapper = EgressWrapper(channel, outbox)
        for number in PASSED_ON:
            signal.signal(number, lambda number, _frame: _pass_on(wrapper, number))
        code = wrapper.run()
        waiting = outbox.unacknowledged
        _say(
            f"outbox {outbox.path}: {counted(outbox.asked, 'intent')}, {len(waiting)} without an ack, "
            f"{wrapper.answered} answered from it"
        )
    finally:
        outbox.close()
    return end_as(code, host_gone=wrapper.host_gone)


def _pass_on(wrapper: EgressWrapper, number: int) -> None:
    if not wrapper.send_signal(number):
        # The channel has ended, and its last line still waits for the host: end now.
        end_as(-number, host_gone=False)


def _say(sentence: str) -> None:
    try:
        sys.stderr.write(f"ergo-capture egress: {sentence}\n")
        sys.stderr.flush()
    except (OSError, ValueError, AttributeError):
        # Standard error is not read or is closed: continue, because only the outbox matters.
        return
