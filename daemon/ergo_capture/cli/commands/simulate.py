"""``ergo-capture simulate``: a scenario file into a bundle, without a daemon."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
import msgspec

from ergo_capture.bundle.format import CaptureJsonStyle, encode_bundle, write_capture_bundle
from ergo_capture.bundle.recorder import CapturingSession
from ergo_capture.cli.support.command import NAME, PATH, argument, command, flag
from ergo_capture.cli.support.input_text import read_input
from ergo_capture.cli.support.output import check_output, write_out
from ergo_capture.errors import ErgoCaptureError, ExitCode
from ergo_capture.kernel.outcomes import Decision
from ergo_capture.kernel.ports import MemoryDecisionLog
from ergo_capture.kernel.records import CaptureBundle
from ergo_capture.kernel.scenario import Scenario, read_scenario

if TYPE_CHECKING:
    from ergo_capture.adapter.simulate import Outcome

#: A file with one of these fields at its top is a host case, not a scenario.
_HOST_FIELDS: Final = frozenset({"driver_lines", "fixture", "engine_outcomes", "adapter_yaml"})


@command(
    examples=(
        "ergo-capture simulate scenario.json -o run.capture.json",
        "ergo-capture simulate case.json -o run.capture.json --json",
    )
)
@argument("scenario", "Scenario or host case (JSON); - for standard input.", type=NAME)
@click.option("--output", "-o", type=PATH, metavar="FILE", help="Bundle file; - (the default) for standard output.")
@click.option(
    "--style",
    type=click.Choice([style.value for style in CaptureJsonStyle]),
    default=CaptureJsonStyle.Compact.value,
    show_default=True,
    help="Layout of the bundle.",
)
@flag("--json", "as_json", help="Say in one line of JSON how the run ended; needs -o.")
def simulate(scenario: str, output: Path | None, style: str, *, as_json: bool) -> int:
    """Run a scenario file through the supervisor and write its bundle, without a daemon.

    A host case holds a driver's lines or a fixture, an adapter and the outcomes of the engine: it is run as by
    `ergo run`. A run that the reference refuses writes no bundle and ends with exit code 1.
    """
    to_stdout = output is None or str(output) == "-"
    if as_json and to_stdout:
        raise click.UsageError("--json and the bundle both go to standard output: name a file with -o")
    if output is not None and not to_stdout:
        check_output(output, "bundle", [0 if scenario == "-" else Path(scenario)])
    text = _read(scenario)
    if _is_case(text):
        outcome = _run_case(text, scenario)
        ended, bundle = _ended(outcome), outcome.bundle
    else:
        outcome, bundle = None, run_scenario(_read_scenario(text, scenario))
        ended = {"status": "completed", "reason": None} | _counts(bundle)
    if bundle is not None:
        if output is None or to_stdout:
            write_out(encode_bundle(bundle, CaptureJsonStyle(style)))
        else:
            write_capture_bundle(output, bundle, CaptureJsonStyle(style))
    if as_json:
        click.echo(msgspec.json.encode(ended | {"bundle": None if bundle is None else str(output)}))
    elif outcome is not None:
        # Print the reference's words: for a run with a capture on standard output, for a refusal on standard error.
        click.echo(outcome.summary, err=to_stdout or bundle is None)
    return int(ExitCode.FAILED if bundle is None else ExitCode.OK)


def run_scenario(scenario: Scenario) -> CaptureBundle:
    """Return the bundle of a scenario's run.

    Raises:
        ExternalEventPayloadError: an event's payload is refused.
    """
    session = CapturingSession(
        scenario.graph_id,
        scenario.constraints,
        MemoryDecisionLog(),
        scenario.runtime(),
        scenario.runtime_provenance,
        scenario.adapter_provenance,
    )
    for event in scenario.events:
        session.on_event(event.to_event())
    return session.into_bundle()


def _read_scenario(text: bytes, name: str) -> Scenario:
    try:
        return read_scenario(text)
    except ErgoCaptureError as error:
        error.path = name
        error.message = f"read scenario '{name}': {error.message.removeprefix('read scenario: ')}"
        raise


def _is_case(text: bytes) -> bool:
    try:
        return not _HOST_FIELDS.isdisjoint(msgspec.json.decode(text, type=dict[str, msgspec.Raw]))
    except (ValueError, RecursionError):
        # ``read_scenario`` reports the error.
        return False


def _run_case(text: bytes, name: str) -> Outcome:
    from ergo_capture.adapter.simulate import CaseError, read_case, simulate  # noqa: PLC0415 - only for host cases

    try:
        outcome = simulate(read_case(text))
    except CaseError as error:
        error.path = name
        error.message = f"simulate case '{name}': {error.message.removeprefix('read case: ')}"
        raise
    for warning in outcome.warnings:
        click.echo(f"warning: {warning}", err=True)
    return outcome


def _ended(outcome: Outcome) -> dict[str, Any]:
    """Return the end of a host's run, with the names of the reference's summary and errors."""
    fields: dict[str, Any] = msgspec.to_builtins(msgspec.structs.replace(outcome, bundle=None, refusal=None))
    del fields["bundle"]
    return fields | {"refusal": None if outcome.refusal is None else msgspec.to_builtins(outcome.refusal)}


def _counts(bundle: CaptureBundle) -> dict[str, int]:
    decided = [record.decision for record in bundle.decisions]
    invoked, deferred = decided.count(Decision.Invoke), decided.count(Decision.Defer)
    return {"events": len(bundle.events), "invoked": invoked, "deferred": deferred}


def _read(name: str) -> bytes:
    try:
        return read_input(name)
    except OSError as error:
        raise ErgoCaptureError(
            f"read scenario '{name}': {error.strerror or error}",
            op="read scenario",
            path=name,
            hint="name a scenario file, or - for standard input",
        ) from error
