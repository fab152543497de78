"""``ergo-capture extract``.

Owns: its arguments, and a run's events as a scenario.
Not here: selecting (``bundle/selection.py``), scenarios (``kernel/scenario.py``).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from ergo_capture.bundle.reader.stream import RecordStream
from ergo_capture.bundle.selection import Selection, select
from ergo_capture.cli.captures import ConfigOption, StateOption, capture_named
from ergo_capture.cli.output import write_out, write_whole
from ergo_capture.cli.selecting import FromId, Ids, Kinds, Since, ToId, Until, selection_of
from ergo_capture.errors import ErgoCaptureError
from ergo_capture.kernel.explanation import plain
from ergo_capture.kernel.outcomes import Decision
from ergo_capture.kernel.records import EpisodeInvocationRecord, ExternalEventRecord
from ergo_capture.units import counted

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def extract(
    capture: Annotated[str, typer.Argument(metavar="CAPTURE", help="A bundle file, or a session's id.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="The scenario file; - or nothing for standard output."),
    ] = None,
    kind: Kinds = None,
    since: Since = "",
    until: Until = "",
    event_id: Ids = None,
    from_id: FromId = "",
    to_id: ToId = "",
    state_dir: StateOption = "",
    config: ConfigOption = None,
) -> None:
    """Write a range of a run's events as a scenario that `simulate` runs.

    Episodes end in it as they ended then; what is decided depends on the events that are left.
    """
    wanted = selection_of(kinds=kind, since=since, until=until, ids=event_id, from_id=from_id, to_id=to_id)
    with capture_named(capture, state_dir, config).open() as stream:
        scenario = scenario_of(stream, wanted)
    if not scenario["events"]:
        raise ErgoCaptureError(
            f"extract from '{capture}': no event is meant",
            op="extract",
            path=capture,
            hint="`ergo-capture info` says which times there are, `ergo-capture cat` which ids",
        )
    text = msgspec.json.format(msgspec.json.encode(scenario), indent=2) + b"\n"
    if output is None or str(output) == "-":
        write_out(text)
        return
    write_whole(output, text, "scenario")
    typer.echo(counted(len(scenario["events"]), "event"), err=True)


def scenario_of(stream: RecordStream, wanted: Selection) -> dict[str, Any]:
    """The events that are meant as a scenario, with the outcomes of their episodes."""
    events: list[dict[str, Any]] = []
    schedule: dict[str, list[Any]] = {}
    #: Which event a deferred episode is of.
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
        "constraints": plain(stream.config),
        "adapter_provenance": stream.adapter_provenance,
        "runtime_provenance": stream.runtime_provenance,
        "default": "Completed",
        # Why only so late: an id that is there twice may have completed the first time and failed the second.
        "schedule": {event_id: ends for event_id, ends in schedule.items() if set(map(str, ends)) - {"Completed"}},
        "events": events,
    }


def _event(event: ExternalEventRecord) -> dict[str, Any]:
    return {
        "event_id": event.event_id,
        "kind": event.kind.value,
        "at": plain(event.event_time),
        "payload_utf8": event.payload.decode() or None,
    }


def _outcomes(record: EpisodeInvocationRecord) -> list[Any]:
    """How the attempts ended: the last one is known, those before it were failures that are tried again."""
    termination = record.termination
    if termination is None:
        return []
    before = termination.to_builtins() if termination.retryable else "TimedOut"
    return [before] * record.retry_count + [termination.to_builtins()]
