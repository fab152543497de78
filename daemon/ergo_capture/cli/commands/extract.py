"""``ergo-capture extract``: a range of a run's events as a scenario, a driver's stream or a fixture."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any, Final

import click
import msgspec

from ergo_capture.bundle.reader.selection import Selected, select
from ergo_capture.bundle.reader.stream import RecordStream
from ergo_capture.cli.progress import ReadingBar, quiet_flag
from ergo_capture.cli.support.captures import Capture, capture_named
from ergo_capture.cli.support.command import NAME, PATH, argument, command, config_option, state_option
from ergo_capture.cli.support.driver_stream import note_without_kind, require_payload, semantic_kinds
from ergo_capture.cli.support.output import check_output, write_out, write_whole
from ergo_capture.cli.support.selection import (
    event_id_option,
    from_id_option,
    kind_option,
    selection_from,
    since_option,
    to_id_option,
    until_option,
)
from ergo_capture.errors import ErgoCaptureError
from ergo_capture.kernel.explanation import to_builtins
from ergo_capture.kernel.outcomes import Decision
from ergo_capture.kernel.records import EpisodeInvocationRecord, ExternalEventRecord
from ergo_capture.kernel.time import ZERO
from ergo_capture.protocol.driver import END_LINE, HELLO_LINE, driver_event_line
from ergo_capture.units import counted

_SCENARIO: Final = "scenario"
_DRIVER: Final = "driver"
_FIXTURE: Final = "fixture"
#: A damaged bundle may say any number of 64 bits.
_MOST_RETRIES: Final = 100_000


@command(
    examples=(
        "ergo-capture extract run.capture.json --from-id e7 --to-id e9 | ergo-capture simulate -",
        "ergo-capture extract run.capture.json --as fixture -o events.jsonl",
    )
)
@argument("capture", "A bundle file, or a session's id.", type=NAME)
@click.option("--output", "-o", type=PATH, metavar="FILE", help="File; - (the default) for standard output.")
@click.option(
    "--as",
    "form",
    type=click.Choice([_SCENARIO, _DRIVER, _FIXTURE]),
    default=_SCENARIO,
    show_default=True,
    help="A scenario for `simulate`, an `ergo-driver.v0` stream or a fixture for `ergo run`.",
)
@kind_option
@since_option
@until_option
@event_id_option
@from_id_option
@to_id_option
@state_option
@config_option
@quiet_flag
def extract(
    *,
    capture: str,
    output: Path | None,
    form: str,
    kind: tuple[str, ...],
    since: str,
    until: str,
    event_id: tuple[str, ...],
    from_id: str,
    to_id: str,
    state_dir: str,
    config: Path | None,
    quiet: bool,
) -> None:
    """Write a range of a run's events as a scenario for `simulate`, a driver's stream or a fixture.

    Each episode ends in the scenario as it did in the run. Decisions depend on the events that were selected. A stream
    and a fixture hold semantic kinds, from the journal or the manifest beside the bundle; a fixture holds no times.
    """
    wanted = selection_from(kinds=kind, since=since, until=until, ids=event_id, from_id=from_id, to_id=to_id)
    run = capture_named(capture, state_dir, config)
    if output is not None and str(output) != "-":
        check_output(output, form, run.files)
    bar = ReadingBar(quiet=quiet)
    with ExitStack() as stack:
        with bar.reading():
            stream = stack.enter_context(run.open(by_index=wanted.is_partial))
        with bar.reading():
            selected = list(select(stream, wanted))
        for _, event, record in selected:
            require_payload(event, "extract from", capture)
            if form == _SCENARIO and record is not None and record.retry_count > _MOST_RETRIES:
                raise ErgoCaptureError(
                    f"extract from '{capture}': event {event.event_id!r} was retried {record.retry_count:,} times, and "
                    "a scenario lists every attempt",
                    op="extract",
                    path=capture,
                    hint="`ergo-capture verify` says whether the bundle is sound; if it is, select other events",
                )
        text = _scenario(stream, selected) if form == _SCENARIO else _lines(run, selected, form)
    if not selected:
        raise ErgoCaptureError(
            f"extract from '{capture}': no event is selected",
            op="extract",
            path=capture,
            hint="`ergo-capture info` shows the range of times, `ergo-capture cat` the ids",
        )
    if output is None or str(output) == "-":
        write_out(text)
        return
    write_whole(output, text, form)
    click.echo(counted(len(selected), "event"), err=True)


def _lines(run: Capture, selected: list[Selected], form: str) -> bytes:
    """Return events as a driver's stream or a fixture."""
    named = list(_with_kinds(run, selected))
    note_without_kind(sum(kind is None for _, kind in named), len(named))
    if form == _DRIVER:
        return b"".join([HELLO_LINE, *(driver_event_line(event, kind) for event, kind in named), END_LINE])
    timed = sum(event.event_time != ZERO for event, _ in named)
    if timed:
        click.echo(f"{counted(timed, 'event')} written without the time: in a fixture every event is at 0 s", err=True)
    return b"".join([b'{"kind":"episode_start"}\n', *(_fixture_line(event, kind) for event, kind in named)])


def _with_kinds(run: Capture, selected: list[Selected]) -> Iterator[tuple[ExternalEventRecord, str | None]]:
    kinds, taken = semantic_kinds(run), 0
    for index, event, _ in selected:
        yield event, next(islice(kinds, index - taken, None), None)
        taken = index + 1


def _fixture_line(event: ExternalEventRecord, kind: str | None) -> bytes:
    fields: dict[str, Any] = {"type": event.kind.value, "id": event.event_id}
    if kind is not None:
        fields["semantic_kind"] = kind
    if event.payload:
        fields["payload"] = msgspec.Raw(event.payload.replace(b"\n", b" "))
    return msgspec.json.encode({"kind": "event", "event": fields}) + b"\n"


def _scenario(stream: RecordStream, selected: list[Selected]) -> bytes:
    """Return events as a scenario, with the outcomes of their episodes."""
    events: list[dict[str, Any]] = []
    schedule: dict[str, list[Any]] = {}
    #: The event of each deferred episode.
    origins: dict[int, str] = {}
    for _, event, record in selected:
        events.append(_event(event))
        if record is None:
            continue
        if record.decision is Decision.Defer:
            if record.schedule_at is not None:
                origins.setdefault(record.episode_id, event.event_id)
            continue
        schedule.setdefault(origins.get(record.episode_id, event.event_id), []).extend(_outcomes(record))
    scenario = {
        "graph_id": stream.graph_id,
        "constraints": to_builtins(stream.config),
        "adapter_provenance": stream.adapter_provenance,
        "runtime_provenance": stream.runtime_provenance,
        "default": "Completed",
        # Leave out ids at the end: an id that occurs twice may have completed the first time and failed the second.
        "schedule": {event_id: ends for event_id, ends in schedule.items() if set(map(str, ends)) - {"Completed"}},
        "events": events,
    }
    return msgspec.json.format(msgspec.json.encode(scenario), indent=2) + b"\n"


def _event(event: ExternalEventRecord) -> dict[str, Any]:
    return {
        "event_id": event.event_id,
        "kind": event.kind.value,
        "at": to_builtins(event.event_time),
        "payload_utf8": event.payload.decode() or None,
    }


def _outcomes(record: EpisodeInvocationRecord) -> list[Any]:
    """Return the outcomes of the attempts: the last one as recorded, those before it as failures that are retried."""
    termination = record.termination
    if termination is None:
        return []
    before = termination.to_builtins() if termination.retryable else "TimedOut"
    return [before] * record.retry_count + [termination.to_builtins()]
