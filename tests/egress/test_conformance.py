"""The reference's egress runs, with real processes as channels."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.from_thread import BlockingPortal
from tests.adapter.cases import Clock, VirtualDriver, case_of, rows
from tests.egress.channels import puppet

from ergo_capture import encode_bundle
from ergo_capture.adapter.egress import EgressConfig, parse_egress_config
from ergo_capture.adapter.host import failed
from ergo_capture.adapter.ingress import Observation
from ergo_capture.adapter.simulate import simulate
from ergo_capture.egress.channel import EgressLifecycleError
from ergo_capture.egress.channel_set import ChannelSet
from ergo_capture.kernel.effects import IntentRecord
from ergo_capture.kernel.records import CapturedIntentAck

#: The reference waits for 5 s.
GRACE = 1.0
ROWS = [row for row in rows("egress") if row.get("transcript") and any(row["transcript"].values())]
PREFIX = "egress lifecycle failure"


class RealChannels:
    """The channels of a simulated run as processes, driven from the simulation's thread."""

    def __init__(self, config: EgressConfig, portal: BlockingPortal) -> None:
        self._portal = portal
        self._set = ChannelSet(config, grace=GRACE)

    def start(self) -> None:
        """Start the channels."""
        try:
            self._portal.call(self._set.start)
        except EgressLifecycleError as error:
            raise failed("egress.start_failed", f"start egress channels: {PREFIX}: {error}") from error

    def dispatch(self, intent: IntentRecord) -> CapturedIntentAck:
        """Dispatch an intent, and return its ack."""
        return self._portal.call(self._set.dispatch, intent)

    def finish(self, *, host_stop: bool) -> None:
        """End the channels."""
        try:
            self._portal.call(lambda: self._set.finish(host_stop=host_stop))
        except EgressLifecycleError as error:
            raise failed("host.step_failed", f"{PREFIX}: {error}") from error

    def kill(self) -> None:
        """Kill the channels that a failed run has left."""
        self._portal.call(self._set.kill)


def paced(driver: VirtualDriver, clock: Clock) -> Iterator[Observation]:
    """Yield the driver's lines at their times, because the channels are real processes."""
    now = 0
    for observation in driver:
        time.sleep((clock.now - now) / 1000)
        now = clock.now
        yield observation


async def played(row: dict[str, Any], place: Path) -> tuple[str | None, str, dict[str, list[str]]]:
    """Run a row on our host; return the capture, the printed line, and the lines that each channel read."""
    case = case_of(row)
    assert case.egress_toml is not None
    config = parse_egress_config(case.egress_toml)
    commands = {}
    for name in config.channels:
        commands[name] = puppet(place, name, row["egress_script_behaviour"][name])
    steps = row["feed_steps"] or [{"line": line} for line in row["feed"]]
    clock = Clock()
    driver = paced(VirtualDriver(steps, clock), clock)
    async with BlockingPortal() as portal:
        channels = RealChannels(EgressConfig(config.default_ack_timeout, commands, config.routes), portal)
        outcome = await anyio.to_thread.run_sync(lambda: simulate(case, observations=driver, channels=channels))
        await anyio.to_thread.run_sync(channels.kill)
    capture = None if outcome.bundle is None else encode_bundle(outcome.bundle).decode()
    heard = {}
    for name in config.channels:
        path = place / f"{name}.heard"
        heard[name] = path.read_text().splitlines() if path.exists() else []
    return capture, outcome.summary, heard


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["name"])
async def test_channels_are_driven_as_the_reference_does(row: dict[str, Any], tmp_path: Path) -> None:
    """The capture's bytes, the printed line and each line that a channel read are equal."""
    capture, summary, heard = await played(row, tmp_path)
    assert capture == row["capture"]
    if capture is None:
        assert summary == row["stderr"].strip().replace("(5000ms)", f"({round(GRACE * 1000)}ms)")
    else:
        assert summary == row["stdout"].split("\n")[0]
    for name, lines in heard.items():
        assert lines == [line for way, line in row["transcript"][name] or [] if way == "to" and line is not None]
