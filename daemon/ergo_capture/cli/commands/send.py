"""``ergo-capture send``: events from a file or a pipe to the daemon."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ergo_capture.cli.support.command import (
    NAME,
    PATH,
    FiniteRange,
    argument,
    command,
    flag,
    graph_option,
    label_option,
    labels_from,
    session_option,
    window_option,
)
from ergo_capture.errors import ExitCode
from ergo_capture.units import counted

if TYPE_CHECKING:
    from ergo_capture.client import Published


@command(
    examples=(
        "ergo-capture send events.jsonl --socket /tmp/capture.sock",
        "python3 live_feed.py | ergo-capture send - --graph flights --label run=17",
    )
)
@argument(
    "file", "JSON Lines of events, plain, .gz or .zst; - (the default) for standard input.", type=NAME, default="-"
)
@graph_option
@session_option
@label_option
@click.option(
    "--socket", type=NAME, default="", metavar="PATH", help="The daemon's socket; by default the configured one."
)
@click.option("--config", type=PATH, metavar="FILE", help="The daemon's configuration file; by default the usual one.")
@window_option
@click.option(
    "--give-up-after",
    type=FiniteRange(min=0),
    default=60.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to keep trying when the daemon is away.",
)
@flag("--resume-after-loss", help="Continue if the daemon has lost events that it had acknowledged.")
@flag("--json", "as_json", help="Print one line of JSON at the end.")
@flag("--quiet", "-q", help="Show no progress.")
def send(
    *,
    file: str,
    graph: str,
    session: str,
    labels: tuple[str, ...],
    socket: str,
    config: Path | None,
    window: int,
    give_up_after: float,
    resume_after_loss: bool,
    as_json: bool,
    quiet: bool,
) -> int:
    """Stream events to the daemon, close the session, and print the path of the bundle; several if it was rotated.

    The input is events, frames, an `ergo-driver.v0` stream or a fixture of the reference. A stream without `end` leaves
    an interrupted session; a stream of which no event is accepted leaves no bundle. If the daemon is restarted, `send`
    continues without loss.

    Exit code 3 if events were rejected, refused when their turn came, or left over after an interruption of the run, or
    if acknowledged events are lost. Events that a resumed session held already do not count.
    """
    chosen = labels_from(labels)
    if not socket:
        from ergo_capture.config import load  # noqa: PLC0415 - slow to import

        socket = load(config, client=True).socket.path
    from ergo_capture.cli.support.sender import Sender  # noqa: PLC0415 - help needs no asyncio

    started = time.monotonic()
    shown = not quiet and not as_json and sys.stderr.isatty()
    sender = Sender(
        socket,
        file,
        window=window,
        give_up_after=give_up_after,
        resume_after_loss=resume_after_loss,
        progress=shown,
    )
    published = sender.run(graph, session or None, chosen)
    seconds, client = time.monotonic() - started, sender.client
    lost = client.lost
    if as_json:
        _print_json(
            {
                "session": published.session,
                "ended": "interrupted" if sender.interruption or client.is_interrupted else "complete",
                "reason": sender.interruption or published.reason or None,
                "bundle": published.bundle or None,
                "bundles": _bundles(published),
                "manifest": published.manifest or None,
                "sha256": published.sha256 or None,
                "events": published.events,
                "decisions": published.decisions,
                "accepted": client.accepted,
                "rejected": sender.rejected,
                "rejections": sender.progress.codes,
                "refused": published.refused,
                "left_over": published.left_over,
                "terminations": published.terminations,
                "already_captured": client.already_captured,
                "lost": None if lost is None else {"acknowledged": lost.acknowledged, "held": lost.held},
                "reconnects": client.reconnects,
                "seconds": round(seconds, 3),
            }
        )
    else:
        counts = f"{counted(published.events, 'event')}, {counted(published.decisions, 'decision')}"
        click.echo(f"{counts}{_ended(published.terminations)} in {seconds:.2f} s")
        if reason := sender.interruption or published.reason:
            said = "" if client.left_over is None else f": {client.left_over.message}"
            click.echo(f"interrupted: {reason}{said}", err=True)
        if published.refused:
            click.echo(f"{counted(published.refused, 'event')} refused", err=True)
        if client.left_over is not None:
            behind = f"from {client.left_over.event_id!r} on, in the .rest.jsonl beside the bundle"
            click.echo(f"{counted(published.left_over, 'event')} left over, {behind}", err=True)
        if sender.rejected:
            click.echo(f"{counted(sender.rejected, 'event')} rejected", err=True)
        if client.already_captured:
            click.echo(f"{counted(client.already_captured, 'event')} already captured", err=True)
        if lost is not None:
            from ergo_capture.protocol.capture import describe_loss  # noqa: PLC0415 - help needs none

            click.echo(describe_loss(published.session, lost), err=True)
        if client.reconnects:
            click.echo(f"resumed the session {counted(client.reconnects, 'time')}", err=True)
        if bundles := _bundles(published):
            click.echo("\n".join(bundles))
        else:
            click.echo("no bundle: no event was accepted", err=True)
    missing = sender.rejected or lost or published.refused or published.left_over
    return int(ExitCode.DATA_LOSS if missing else ExitCode.OK)


def _ended(terminations: dict[str, int]) -> str:
    """Return how many episodes did not complete, as the end of a list; empty if all did."""
    kinds = {"Failed": "failed", "TimedOut": "timed out", "Aborted": "aborted"}
    counts = {
        words: sum(count for ended, count in terminations.items() if ended.partition("(")[0] == name)
        for name, words in kinds.items()
    }
    return "".join(f", {count:,} {words}" for words, count in counts.items() if count)


def _bundles(published: Published) -> tuple[str, ...]:
    """Return the paths of the session's bundles; empty if no event was accepted."""
    return published.bundles or ((published.bundle,) if published.bundle else ())


def _print_json(summary: dict[str, Any]) -> None:
    import msgspec  # noqa: PLC0415 - help needs none

    click.echo(msgspec.json.encode(summary))
