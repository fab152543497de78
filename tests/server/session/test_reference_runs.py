"""The reference's runs of drivers with an adapter, driven through the daemon by the same lines."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from tests.adapter.cases import Clock, VirtualDriver, graph_id, rows
from tests.daemons import Daemon, running_daemon, short_directory
from tests.engine import played

#: Runs that ended by themselves or with their driver, and runs that were given up for an event.
CAPTURED = [
    row
    for row in rows("ingress")
    if row["exit_code"] == 0
    and row["max_events"] is None
    and any(word in row["stdout"] for word in ("status=completed", "driver_terminated"))
    # ``send`` writes such an event as an object (tests/cli/test_send_forms.py).
    and row["name"] != "event-as-array"
]
REFUSED = [row for row in rows("ingress") if "code: host.step_failed" in row["stderr"] and row["adapter_yaml"]]


@asynccontextmanager
async def hosting(row: dict[str, Any]) -> AsyncIterator[Daemon]:
    """Run a daemon with the run's graph, adapter and limits, whose engine answers as recorded."""
    capture = json.loads(row["capture"] or "{}")
    graph = json.dumps(capture.get("graph_id", graph_id(row)))
    limits = [
        f'{name} = "{value["secs"]}s"' if isinstance(value, dict) else f"{name} = {value}"
        for name, value in (row["constraints"] or {}).items()
        if value is not None
    ]
    played.outcomes.clear()
    played.outcomes.extend(row["engine_outcomes"])
    with short_directory() as place:
        (place / "adapter.yaml").write_text(row["adapter_yaml"])
        text = "\n".join(
            (
                '[limits]\nmax_frame_bytes = "8MiB"',
                f'[bundle]\nstyle = "{"pretty" if row["pretty"] else "compact"}"',
                f'[graphs.{graph}]\nadapter = "{place}/adapter.yaml"',
                f'runtime_provenance = "{capture.get("runtime_provenance", "rpv1:unknown")}"',
                *limits,
                'engine = { kind = "python", callable = "tests.engine.played:run" }\n',
            )
        )
        async with running_daemon(text) as daemon:
            yield daemon


def events_of(row: dict[str, Any]) -> list[bytes]:
    """Return the lines of a run that are events."""
    steps = row["driver_steps"] or [{"line": line} for line in row["driver_lines"]]
    lines = [seen.line for seen in VirtualDriver(steps, Clock()) if seen.kind == "line"]
    return [line.encode() for line in lines if '"event"' in line]


@pytest.mark.parametrize("row", CAPTURED, ids=lambda row: row["name"])
async def test_a_run_leads_to_the_references_capture(row: dict[str, Any]) -> None:
    """Byte for byte."""
    async with hosting(row) as daemon, daemon.session(graph=json.loads(row["capture"])["graph_id"]) as wire:
        await wire.say(*events_of(row), {"type": "close"})
        closed = await wire.until("closed")
        assert closed["refused"] == 0
        (bundle,) = daemon.bundles()
        assert bundle.read_bytes().decode().rstrip("\n") == row["capture"].rstrip("\n")


@pytest.mark.parametrize("row", REFUSED, ids=lambda row: row["name"])
async def test_an_event_for_which_the_reference_gives_a_run_up_is_refused_alone(row: dict[str, Any]) -> None:
    """It is refused before its turn or when it comes, for the reference's reason; the session goes on."""
    async with hosting(row) as daemon, daemon.session(graph=graph_id(row)) as wire:
        await wire.say(*events_of(row), {"type": "close"})
        frames = await wire.rest()
        told = [frame for frame in frames if frame["type"] in ("reject", "refused")]
        assert frames[-1]["type"] == "closed"
        assert told
        (detail,) = (line for line in row["stderr"].splitlines() if line.startswith("detail: "))
        if told[0]["code"] != "duplicate_event_id":
            assert told[0]["message"].startswith(detail.removeprefix("detail: "))
