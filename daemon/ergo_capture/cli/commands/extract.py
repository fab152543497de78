"""``ergo-capture extract``: a range of a run's events as a scenario."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import msgspec

from ergo_capture.bundle.reader.stream import RecordStream
from ergo_capture.bundle.selection import Selection, select
from ergo_capture.cli.support.captures import capture_named
from ergo_capture.cli.support.command import NAME, PATH, argument, command, config_option, state_option
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
from ergo_capture.units import counted


@command(examples=("ergo-capture extract run.capture.json --from-id e7 --to-id e9 | ergo-capture simulate -",))
@argument("capture", "A bundle file, or a session's id.", type=NAME)
@click.option("--output", "-o", type=PATH, metavar="FILE", help="Scenario file; - (the default) for standard output.")
@kind_option
@since_option
@until_option
@event_id_option
@from_id_option
@to_id_option
@state_option
@config_option
def extract(
    *,
    capture: str,
    output: Path | None,
    kind: tuple[str, ...],
    since: str,
    until: str,
    event_id: tuple[str, ...],
    from_id: str,
    to_id: str,
    state_dir: str,
    config: Path | None,
) -> None:
    """Write a range of a run's events as a scenario that `simulate` runs.

    Each episode ends in the scenario as it did in the run. Decisions depend on the events that are left.
    """
    wanted = selection_from(kinds=kind, since=since, until=until, ids=event_id, from_id=from_id, to_id=to_id)
    run = capture_named(capture, state_dir, config)
    if output is not None and str(output) != "-":
        check_output(output, "scenario", run.files)
    with run.open() as stream:
        scenario = _scenario_of(stream, wanted)
    if not scenario["events"]:
        raise ErgoCaptureError(
            f"extract from '{capture}': no event is selected",
            op="extract",
            path=capture,
            hint="`ergo-capture info` shows the range of times, `ergo-capture cat` the ids",
        )
    text = msgspec.json.format(msgspec.json.encode(scenario), indent=2) + b"\n"
    if output is None or str(output) == "-":
        write_out(text)
        return
    write_whole(output, text, "scenario")
    click.echo(counted(len(scenario["events"]), "event"), err=True)


def _scenario_of(stream: RecordStream, wanted: Selection) -> dict[str, Any]:
    """Return the selected events as a scenario, with the outcomes of their episodes."""
    events: list[dict[str, Any]] = []
    schedule: dict[str, list[Any]] = {}
    #: The event of each deferred episode.
    origins: dict[int, str] = {}
    for _, event, record in select(stream, wanted):
        events.append(_event(event))
        if record is None:
            continue
        if record.decision is Decision.Defer:
            if record.schedule_at is not None:
                origins.setdefault(record.episode_id, event.event_id)
            continue
        schedule.setdefault(origins.get(record.episode_id, event.event_id), []).extend(_outcomes(record))
    return {
        "graph_id": stream.graph_id,
        "constraints": to_builtins(stream.config),
        "adapter_provenance": stream.adapter_provenance,
        "runtime_provenance": stream.runtime_provenance,
        "default": "Completed",
        # Leave out ids only now: an id that occurs twice may have completed the first time and failed the second.
        "schedule": {event_id: ends for event_id, ends in schedule.items() if set(map(str, ends)) - {"Completed"}},
        "events": events,
    }


def _event(event: ExternalEventRecord) -> dict[str, Any]:
    return {
        "event_id": event.event_id,
        "kind": event.kind.value,
        "at": to_builtins(event.event_time),
        "payload_utf8": event.payload.decode() or None,
    }


def _outcomes(record: EpisodeInvocationRecord) -> list[Any]:
    """Return how the attempts ended: the last one as recorded, those before it as failures that are retried."""
    termination = record.termination
    if termination is None:
        return []
    before = termination.to_builtins() if termination.retryable else "TimedOut"
    return [before] * record.retry_count + [termination.to_builtins()]
