"""``ergo-capture ingress``: an ingress channel for ``ergo run`` that makes events durable before the host sees them."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ergo_capture.cli.support.command import (
    PATH,
    argument,
    command,
    graph_option,
    label_option,
    labels_from,
    session_option,
    window_option,
)
from ergo_capture.errors import ExitCode
from ergo_capture.protocol.capture import DRIVER_PROTOCOL
from ergo_capture.signals import PASSED_ON, end_as
from ergo_capture.units import counted

if TYPE_CHECKING:
    from ergo_capture.client.ingress import Ingress


@command(
    examples=(
        "ergo-capture ingress -- python3 live_feed.py",
        "ergo-capture ingress --feed 'python3 prices.py' --feed 'python3 orders.py'",
        "ergo run graph.yaml --driver-cmd ergo-capture --driver-arg ingress --driver-arg -- --driver-arg ./live_feed",
    )
)
@argument("channel", "The user's channel and its arguments, after --.", nargs=-1, metavar="COMMAND...")
@click.option(
    "--feed",
    "feeds",
    multiple=True,
    metavar="COMMAND",
    help="A channel with its arguments; may be repeated, and the events of all are merged.",
)
@graph_option
@session_option
@label_option
@click.option("--socket", default="", metavar="PATH", help="The daemon's socket; by default the configured one.")
@click.option("--config", type=PATH, metavar="FILE", help="The daemon's configuration file; by default the usual one.")
@window_option
def ingress(
    *,
    channel: tuple[str, ...],
    feeds: tuple[str, ...],
    graph: str,
    session: str,
    labels: tuple[str, ...],
    socket: str,
    config: Path | None,
    window: int,
) -> int:
    """Start an ingress channel, make its events durable in the daemon, and only then pass their lines on, unchanged.

    Use it as `ergo run --driver-cmd ergo-capture --driver-arg ingress ...`. While the daemon is away, lines wait. An
    event that the daemon rejects is not passed on, and the exit code is 3. Otherwise it ends as the channel does, with
    the same exit code or signal.
    """
    commands = [shlex.split(feed) for feed in feeds] + ([list(channel)] if channel else [])
    if not commands or not all(commands):
        raise click.UsageError("name the channel after --, or channels with --feed")
    chosen = labels_from(labels)
    if not socket:
        from ergo_capture.config import load  # noqa: PLC0415 - slow to import

        socket = load(config).socket.path
    from ergo_capture.client.ingress import Channel, Ingress  # noqa: PLC0415 - help needs no asyncio

    channels: list[Channel] = []
    try:
        for words in commands:
            channels.append(Channel(words))  # noqa: PERF401 - those before one that cannot be started are ended
        run = Ingress(socket, channels, graph=graph, session=session or None, labels=chosen, window=window, report=_say)
        return _run(run)
    finally:
        for started in channels:
            started.close()


def _run(run: Ingress) -> int:
    import asyncio  # noqa: PLC0415 - help needs no asyncio

    aborted: list[int] = []

    async def until_ended() -> list[int]:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None

        def pass_on(number: int) -> None:
            if not run.send_signal(number):
                # The channels have ended, and their lines still wait for the daemon or the host: end now.
                aborted.append(number)
                task.cancel()

        for number in PASSED_ON:
            loop.add_signal_handler(number, pass_on, number)
        return await run.run()

    try:
        codes = asyncio.run(until_ended())
    except asyncio.CancelledError:
        codes = [-number for number in aborted]
    _say_where(run)
    code = end_as(next((code for code in codes if code), 0), host_gone=run.host_gone)
    return code or int(ExitCode.DATA_LOSS if run.rejected else ExitCode.OK)


def _say_where(run: Ingress) -> None:
    if run.uncaptured:
        lines = counted(run.uncaptured, "line")
        _say(f"{lines} handed on and not captured: events stand between hello and end of {DRIVER_PROTOCOL}")
    if run.session is None:
        return
    lost = f", {counted(run.rejected, 'event')} rejected" if run.rejected else ""
    where = "its bundle is not published yet" if run.published is None else run.published.bundle or "it has no bundle"
    _say(f"session {run.session}: {counted(run.accepted, 'event')} durable{lost}; {where}")


def _say(sentence: str) -> None:
    try:
        sys.stderr.write(f"ergo-capture ingress: {sentence}\n")
        sys.stderr.flush()
    except (OSError, ValueError, AttributeError):
        # Standard error is not read or is closed: continue, because only the events matter.
        return
