"""``ergo-capture intents``: the intents of a run, and which of them were acknowledged."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import click
import msgspec

from ergo_capture.cli.support.captures import ANY_CAPTURE, Capture, captures_in
from ergo_capture.cli.support.command import NAME, argument, command, config_option, json_flag, state_option
from ergo_capture.cli.support.output import printable
from ergo_capture.egress.outbox import is_outbox, read_outbox
from ergo_capture.errors import ExitCode
from ergo_capture.kernel.effects import ActionEffect
from ergo_capture.kernel.explanation import escaped
from ergo_capture.kernel.records import CapturedIntentAck
from ergo_capture.units import counted


class ExpectedIntent(msgspec.Struct, frozen=True):
    """An intent that an episode has emitted."""

    #: The id of the event that its decision is recorded for; None in an outbox.
    event_id: str | None
    kind: str
    intent_id: str
    acknowledged: bool
    #: The channel that acknowledged it, and its own reference; None without an ack.
    channel: str | None = None
    egress_ref: str | None = None
    #: The interruption of the run, if the missing ack is the cause.
    interruption: str | None = None


@command(
    examples=(
        "ergo-capture intents run.capture.json",
        "ergo-capture intents 20261128T120000Z-1-5f0c9a2e --json",
    )
)
@argument("captures", ANY_CAPTURE, nargs=-1, required=True, type=NAME, metavar="CAPTURE...")
@json_flag("run")
@state_option
@config_option
def intents(captures: tuple[str, ...], state_dir: str, config: Path | None, *, as_json: bool) -> int:
    """List the intents of runs, and which of them are acknowledged.

    For a session in the journal, they include intents that are being sent. The outbox of `egress` may be named too.
    Exit code 3 if an intent is not acknowledged: it was not sent, or it is unknown whether it was carried out.
    """
    hanging = 0
    for name, session, found in _found(captures, state_dir, config):
        missing = sum(not intent.acknowledged for intent in found)
        hanging += missing
        if as_json:
            counts = {"expected": len(found), "acknowledged": len(found) - missing, "unacknowledged": missing}
            click.echo(
                msgspec.json.encode({"capture": printable(name), "session": session, **counts, "intents": found})
            )
            continue
        click.echo(f"{escaped(name)}: {counted(len(found), 'intent')}, {missing} without an ack")
        for intent in found:
            click.echo(f"  {_in_words(intent)}")
    return int(ExitCode.DATA_LOSS if hanging else ExitCode.OK)


def _found(
    names: Iterable[str], state_dir: str, config: Path | None
) -> Iterator[tuple[str, str | None, list[ExpectedIntent]]]:
    """Yield the runs that the names stand for: the name for output, the session, the intents."""
    runs = []
    for name in names:
        if not is_outbox(Path(name)):
            runs.append(name)
            continue
        yield (
            name,
            None,
            [
                ExpectedIntent(None, known.kind, known.intent_id, known.is_acknowledged, egress_ref=known.egress_ref)
                for known in read_outbox(Path(name))
            ],
        )
    for capture in captures_in(runs, state_dir, config):
        yield capture.name, capture.session, list(expected_intents(capture))


def expected_intents(capture: Capture) -> Iterator[ExpectedIntent]:
    """Yield the intents of a run, in order.

    Raises:
        ErgoCaptureError: the run cannot be read.
    """
    with capture.open() as stream:
        for record in stream.decisions():
            effects = [captured.effect for captured in record.effects]
            yield from _matched(record.event_id, effects, record.intent_acks, record.interruption)
    pending = None if capture.part is None else capture.part.outcome
    if capture.part is not None and pending is not None:
        index = pending.outcome.index - capture.part.first
        event_id = next(event.event_id for place, event in enumerate(capture.part.events()) if place == index)
        yield from _matched(event_id, pending.outcome.effects, pending.acks, None)


def _matched(
    event_id: str,
    effects: list[ActionEffect] | tuple[ActionEffect, ...],
    acks: tuple[CapturedIntentAck, ...],
    interruption: str | None,
) -> Iterator[ExpectedIntent]:
    known = {ack.intent_id: ack for ack in acks}
    for effect in effects:
        for intent in effect.intents:
            ack = known.get(intent.intent_id)
            if ack is None:
                yield ExpectedIntent(event_id, intent.kind, intent.intent_id, False, interruption=interruption)
            else:
                yield ExpectedIntent(event_id, intent.kind, intent.intent_id, True, ack.channel, ack.egress_ref)


def _in_words(intent: ExpectedIntent) -> str:
    if intent.acknowledged:
        reference = "" if intent.egress_ref is None else f" as {intent.egress_ref!r}"
        state = "acknowledged" + (f" by {intent.channel}" if intent.channel else "") + reference
    else:
        state = "NOT acknowledged" + (f": {intent.interruption}" if intent.interruption else "")
    of = "" if intent.event_id is None else f"{intent.event_id}  "
    return escaped(f"{of}{intent.kind}  {intent.intent_id}  {state}")
