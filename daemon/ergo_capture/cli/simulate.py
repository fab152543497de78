"""``ergo-capture simulate``.

Owns: its arguments and output.
Not here: scenarios (``kernel/scenario.py``), bundles (``capture/``).
"""

from __future__ import annotations

import errno
import sys
from pathlib import Path
from typing import Annotated

import typer

from ergo_capture.bundle.format import CaptureJsonStyle, encode_bundle, write_capture_bundle
from ergo_capture.bundle.recorder import CapturingSession
from ergo_capture.cli.output import refuse_directory, write_out
from ergo_capture.errors import ErgoCaptureError
from ergo_capture.kernel.ports import MemoryDecisionLog
from ergo_capture.kernel.records import CaptureBundle
from ergo_capture.kernel.scenario import Scenario, read_scenario

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def simulate(
    scenario: Annotated[str, typer.Argument(metavar="SCENARIO", help="Scenario file (JSON); - for standard input.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Bundle file; - or nothing for standard output."),
    ] = None,
    style: Annotated[CaptureJsonStyle, typer.Option(help="Layout of the bundle.")] = CaptureJsonStyle.Compact,
) -> int:
    """Run a written scenario through the supervisor and write its bundle, without a daemon."""
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
        write_out(encode_bundle(bundle, style))
    else:
        write_capture_bundle(output, bundle, style)
    return 0


def run_scenario(scenario: Scenario) -> CaptureBundle:
    """The bundle that the scenario leads to.

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
