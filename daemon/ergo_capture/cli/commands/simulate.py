"""``ergo-capture simulate``: a scenario file into a bundle, without a daemon."""

from __future__ import annotations

import errno
import sys
from pathlib import Path

import click

from ergo_capture.bundle.format import CaptureJsonStyle, encode_bundle, write_capture_bundle
from ergo_capture.bundle.recorder import CapturingSession
from ergo_capture.cli.support.command import NAME, PATH, argument, command
from ergo_capture.cli.support.output import refuse_directory, write_out
from ergo_capture.errors import ErgoCaptureError
from ergo_capture.kernel.ports import MemoryDecisionLog
from ergo_capture.kernel.records import CaptureBundle
from ergo_capture.kernel.scenario import Scenario, read_scenario


@command(examples=("ergo-capture simulate scenario.json -o run.capture.json",))
@argument("scenario", "Scenario file (JSON); - for standard input.", type=NAME)
@click.option("--output", "-o", type=PATH, metavar="FILE", help="Bundle file; - (the default) for standard output.")
@click.option(
    "--style",
    type=click.Choice([style.value for style in CaptureJsonStyle]),
    default=CaptureJsonStyle.Compact.value,
    show_default=True,
    help="Layout of the bundle.",
)
def simulate(scenario: str, output: Path | None, style: str) -> None:
    """Run a scenario file through the supervisor and write its bundle, without a daemon."""
    if output is not None:
        refuse_directory(output, "bundle")
    text = _read(scenario)
    try:
        parsed = read_scenario(text)
    except ErgoCaptureError as error:
        error.path = scenario
        error.message = f"read scenario '{scenario}': {error.message.removeprefix('read scenario: ')}"
        raise
    bundle = run_scenario(parsed)
    if output is None or str(output) == "-":
        write_out(encode_bundle(bundle, CaptureJsonStyle(style)))
    else:
        write_capture_bundle(output, bundle, CaptureJsonStyle(style))


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


def _read(name: str) -> bytes:
    try:
        if name == "-":
            if sys.stdin is None:
                raise OSError(errno.EBADF, "standard input is closed")
            return sys.stdin.buffer.read()
        return Path(name).read_bytes()
    except OSError as error:
        raise ErgoCaptureError(
            f"read scenario '{name}': {error.strerror}",
            op="read scenario",
            path=name,
            hint="name a scenario file, or - for standard input",
        ) from error
