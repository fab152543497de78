"""``ergo-capture simulate`` with a host case: what `ergo run` would have written, and how it would have ended."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.adapter.cases import graph_id, needs, rows

from ergo_capture.cli import app

#: Runs whose driver did nothing but print its lines and exit.
ROWS = [row for name in ("ingress", "fixtures") for row in rows(name) if row.get("driver_steps") is None]
#: The end of the reference's sentence has the position that its reader adds.
WORDED_OTHERWISE = {"unknown-kind"}


def case_file(row: dict[str, Any], folder: Path) -> Path:
    """Write a line of the conformance data as a case."""
    capture = json.loads(row["capture"]) if row["capture"] else {}
    fields = {name: row[name] for name in ("adapter_yaml", "engine_outcomes", "constraints", "max_events")}
    fields |= {
        "graph_id": capture.get("graph_id", graph_id(row)),
        "runtime_provenance": capture.get("runtime_provenance", "rpv1:unknown"),
        "nodes": needs(row),
    }
    fields |= {"fixture": row["fixture"]} if "fixture" in row else {"driver_lines": row["driver_lines"] or []}
    file = folder / "case.json"
    file.write_text(json.dumps(fields), encoding="utf-8")
    return file


def minimal(folder: Path, **fields: Any) -> str:
    """Write a case of one event without an adapter."""
    fixture = '{"kind":"event","event":{"type":"Command","id":"a"}}\n'
    base = {"graph_id": "g", "fixture": fixture, "engine_outcomes": [{"event_id": "a", "termination": "Completed"}]}
    file = folder / "case.json"
    file.write_text(json.dumps(base | fields), encoding="utf-8")
    return str(file)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["name"])
def test_a_case_ends_as_with_the_reference(
    row: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The capture to the byte, the exit code, and the sentence on standard output or standard error."""
    output = tmp_path / "out.json"
    style = ["--style", "pretty"] if row["pretty"] else []
    assert app.run(["simulate", str(case_file(row, tmp_path)), "-o", str(output), *style]) == row["exit_code"]
    written = output.read_bytes().decode() if output.exists() else None
    assert written == row["capture"]
    said = capsys.readouterr()
    assert said.out.split("\n")[0] == row["stdout"].split("\n")[0]
    if row["name"] not in WORDED_OTHERWISE:
        assert said.err == row["stderr"]


def test_json_names_the_status_and_the_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line, with the path of the bundle."""
    output = tmp_path / "out.json"
    assert app.run(["simulate", minimal(tmp_path), "-o", str(output), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said.items() >= {"status": "completed", "reason": None, "refusal": None, "events": 1, "invoked": 1}.items()
    assert said["bundle"] == str(output)


def test_json_names_the_reason_of_an_interruption(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The capture is written, and the exit code is 0, as the reference's."""
    output = tmp_path / "out.json"
    assert app.run(["simulate", minimal(tmp_path, max_events=1), "-o", str(output), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["status"], said["reason"]) == ("interrupted", "host_stop_requested")
    assert output.exists()


def test_json_names_the_refusal_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 1, the reference's code and words, and no bundle."""
    output = tmp_path / "out.json"
    assert app.run(["simulate", minimal(tmp_path, fixture=""), "-o", str(output), "--json"]) == 1
    said = json.loads(capsys.readouterr().out)
    assert (said["status"], said["reason"], said["bundle"]) == ("refused", "driver.input_invalid", None)
    assert said["refusal"]["detail"] == "fixture input 'events.jsonl' contained no episodes"
    assert not output.exists()


def test_json_says_how_a_scenario_ended_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A scenario has no driver that could end otherwise."""
    scenario, output = tmp_path / "s.json", tmp_path / "out.json"
    scenario.write_text('{"graph_id":"g","events":[{"event_id":"e","kind":"Command"}]}')
    assert app.run(["simulate", str(scenario), "-o", str(output), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["status"], said["events"], said["bundle"]) == ("completed", 1, str(output))


def test_json_needs_a_file_for_the_bundle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Standard output takes one of them."""
    assert app.run(["simulate", minimal(tmp_path), "--json"]) == 2
    assert "name a file with -o" in capsys.readouterr().err


def test_a_bundle_on_standard_output_leaves_the_summary_to_standard_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The bundle can then be piped."""
    assert app.run(["simulate", minimal(tmp_path)]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["graph_id"] == "g"
    assert said.err == "status=completed episodes=1 events=1 invoked=1 deferred=0\n"


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"engine_outcomes": []}, "engine_outcomes has none for a run of 'a': there are no more"),
        ({"adapter_yml": ""}, "adapter_yml"),
        ({"driver_lines": []}, "exactly one of"),
    ],
)
def test_an_error_in_a_case_names_its_file(
    fields: dict[str, Any], complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The message shows what a case looks like."""
    file = minimal(tmp_path, **fields)
    assert app.run(["simulate", file]) == 1
    said = capsys.readouterr().err
    assert f"Error: simulate case '{file}': " in said
    assert complaint in said
    assert "Try: a case is" in said


def test_a_missing_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Adapters need packages that the base installation leaves out."""
    monkeypatch.setitem(sys.modules, "yaml", None)
    assert app.run(["simulate", minimal(tmp_path, adapter_yaml="kind: adapter\n")]) == 78
    assert "pip install 'ergo-capture[adapter]'" in capsys.readouterr().err
