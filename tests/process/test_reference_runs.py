"""The reference's runs through a daemon, with an engine that does what was recorded: the same captures, byte for byte."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from tests.adapter.cases import rows
from tests.daemons import DaemonProcess, command, short_directory

from ergo_capture.adapter import AdapterError, load_adapter

#: Runs in which the daemon rejects or refuses an event and goes on, and of which the reference keeps no capture.
GOES_ON: Final = {
    "semantic-kind-unknown-after-two",
    "payload-unknown-field",
    "payload-two-unknown-fields",
    "store-value-violates-schema",
    "integer-from-store-is-float",
    "event_id-duplicate",
    "adapter-semantic-kind-unknown",
    "adapter-payload-mismatch-second",
}
OTHERWISE: Final = GOES_ON | {
    # Whether a graph fits its adapter is not seen: the graph is the engine's.
    "write-to-read-only-key",
    "write-to-undeclared-key",
    "write-type-differs",
    "source-type-differs",
    # A stream without `hello` is taken as events, and an empty line between events is left out.
    "hello-missing",
    "empty-line-after-event",
}
#: Keys for which a daemon has no setting, and drivers that do something besides printing lines.
_KNOBS: Final = ("max_duration_ms", "stop_after_ms", "driver_steps")


def _is_accepted(row: dict[str, Any]) -> bool:
    try:
        load_adapter(row["adapter_yaml"])
    except AdapterError:
        return False
    return True


ROWS = [
    row
    for name in ("ingress", "fixtures")
    for row in rows(name)
    if row["adapter_yaml"]
    and row["max_events"] is None
    and not any(row.get(knob) for knob in _KNOBS)
    and _is_accepted(row)
]
ENGINE = """\
import json
import pathlib

TABLE = json.loads(pathlib.Path(__file__).with_name("table.json").read_text())


def answer(graph_id, event_id, *others):
    return TABLE[graph_id][event_id].pop(0)
"""


def _setting(value: Any) -> str:
    return f'"{value["secs"] * 10**9 + value["nanos"]}ns"' if isinstance(value, dict) else str(value)


@pytest.fixture(scope="module")
def daemon() -> Iterator[DaemonProcess]:
    """Run one daemon with a graph for each run."""
    with short_directory() as place:
        config, table = "", {}
        for number, row in enumerate(ROWS):
            (place / f"g{number}.yaml").write_text(row["adapter_yaml"])
            provenance = json.loads(row["capture"])["runtime_provenance"] if row["capture"] else "rpv1:none"
            config += f'[graphs.g{number}]\nadapter = "{place}/g{number}.yaml"\nruntime_provenance = "{provenance}"\n'
            config += 'engine = { kind = "python", callable = "recall:answer" }\n'
            limits = {name: value for name, value in (row["constraints"] or {}).items() if value is not None}
            config += "".join(f"{name} = {_setting(value)}\n" for name, value in limits.items())
            outcomes: dict[str, list[Any]] = {}
            for outcome in row["engine_outcomes"]:
                answer = {name: value for name, value in outcome.items() if name != "event_id"}
                outcomes.setdefault(outcome["event_id"], []).append(answer)
            table[f"g{number}"] = outcomes
        (place / "table.json").write_text(json.dumps(table))
        (place / "recall.py").write_text(ENGINE)
        with DaemonProcess(place, place / "state", config=config, environment={"PYTHONPATH": str(place)}) as running:
            yield running.start()


@pytest.mark.soak
@pytest.mark.parametrize("number", range(len(ROWS)), ids=[row["name"] for row in ROWS])
def test_a_run_leaves_the_references_capture(number: int, daemon: DaemonProcess) -> None:
    """It leaves none if the reference left none; the exceptions are above."""
    row, graph = ROWS[number], f"g{number}"
    text = row["fixture"] if row.get("fixture") is not None else "".join(line + "\n" for line in row["driver_lines"])
    sent = command("send", "-", "--json", "--socket", str(daemon.socket), "--graph", graph, input=text)
    told = json.loads(sent.stdout or "{}")
    bundle = told.get("bundle")
    if row["name"] in OTHERWISE:
        assert bundle is not None
        assert (sent.returncode == 3) == (row["name"] in GOES_ON)
        return
    if row["capture"] is None:
        assert bundle is None
        return
    expected = json.loads(row["capture"])
    found = Path(bundle).read_text(encoding="utf-8")
    found = found.replace(f'"graph_id":"{graph}"', f'"graph_id":{json.dumps(expected["graph_id"])}', 1)
    if not row["pretty"]:
        assert found == row["capture"]
    assert json.loads(found) == expected
