"""``ergo-capture simulate``: a scenario file gives the reference's bundle."""

from __future__ import annotations

import io
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from tests.daemons import COMMAND, command_environment
from tests.shared import conformance

from ergo_capture.cli import app
from ergo_capture.cli.commands.simulate import run_scenario
from ergo_capture.errors import ErgoCaptureError
from ergo_capture.kernel.scenario import read_scenario

SCENARIOS = conformance("scenarios.jsonl")
RICH: dict[str, Any] = max(
    SCENARIOS, key=lambda line: line["scenario"]["constraints"]["max_retries"] * 100_000 + len(line["bundle_compact"])
)


@pytest.fixture
def scenario(tmp_path: Path) -> Path:
    """Return a conformance scenario as a file."""
    file = tmp_path / "scenario.json"
    file.write_text(json.dumps(RICH), encoding="utf-8")
    return file


@pytest.mark.parametrize("style", ["compact", "pretty"])
def test_every_scenario_gives_the_references_bytes(
    style: str, tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    """P11: standard output is what the reference wrote for the scenario, byte for byte, in both styles."""
    for line in SCENARIOS:
        if f"bundle_{style}" not in line:
            continue
        file = tmp_path / "scenario.json"
        file.write_text(json.dumps(line["scenario"]), encoding="utf-8")
        assert app.run(["simulate", str(file), "--style", style]) == 0
        assert capsysbinary.readouterr().out == line[f"bundle_{style}"].encode(), line["name"]


def test_output_to_a_file_leaves_standard_output_empty(
    scenario: Path, tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    """``-o FILE`` writes the same bytes atomically, and creates the directories."""
    output = tmp_path / "deep" / "er" / "run.capture.json"
    assert app.run(["simulate", str(scenario), "-o", str(output)]) == 0
    assert capsysbinary.readouterr().out == b""
    assert output.read_bytes() == RICH["bundle_compact"].encode()
    assert [path.name for path in output.parent.iterdir()] == [output.name]


def test_a_bundle_that_cannot_be_written_is_an_error(
    scenario: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A destination below a file is refused with the stage of the write and a hint."""
    (tmp_path / "file").write_text("")
    assert app.run(["simulate", str(scenario), "-o", str(tmp_path / "file" / "x.json")]) == 1
    assert capsys.readouterr().err.startswith("Error: create capture output directory: ")


def test_a_dash_reads_standard_input(
    monkeypatch: pytest.MonkeyPatch, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    """A scenario can come through a pipe."""
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(json.dumps(RICH["scenario"]).encode())))
    assert app.run(["simulate", "-"]) == 0
    assert capsysbinary.readouterr().out == RICH["bundle_compact"].encode()


@pytest.mark.parametrize("seed", ["0", "1", "random"])
def test_output_does_not_depend_on_the_hash_seed(scenario: Path, seed: str) -> None:
    """P11: every process writes the same bytes."""
    ended = subprocess.run(
        [*COMMAND, "simulate", str(scenario)],
        stdout=subprocess.PIPE,
        env={**command_environment(), "PYTHONHASHSEED": seed},
        timeout=60,
        check=True,
    )
    assert ended.stdout == RICH["bundle_compact"].encode()


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (b"", "truncated"),
        (b"[]", "array"),
        (b"\xff", "invalid"),
        (b"{}", "graph_id"),
        (b'{"graph_id":"g","events":[],"grph":1}', "`grph`"),
        (b'{"graph_id":"g","events":[{"event_id":"e","kind":"Nap"}]}', "$.events[0].kind"),
        (b'{"graph_id":"g","events":[{"event_id":"e","kind":"Pump","at":{"secs":-1}}]}', "$.events[0].at.secs"),
        (b'{"graph_id":"g","events":[],"constraints":{"max_in_flight":18446744073709551616}}', "max_in_flight"),
        (b'{"graph_id":"g","events":[],"default":"Exploded"}', "Exploded"),
        (b'{"graph_id":"g","events":[],"schedule":{"e":["Exploded"]}}', "Exploded"),
        (b'{"graph_id":"g","events":[]}\n{"graph_id":"h","events":[]}', "trailing characters"),
        (b'{"scenario":' * 100_000, "recursion"),
    ],
)
def test_an_invalid_scenario_is_refused(text: bytes, named: str) -> None:
    """The message names the field or the reason, and there is a hint."""
    with pytest.raises(ErgoCaptureError, match="read scenario: ") as caught:
        read_scenario(text)
    assert named in caught.value.message
    assert caught.value.hint


def test_an_error_in_a_scenario_names_its_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The message says what is wrong, and what a scenario looks like."""
    (tmp_path / "s.json").write_text("[]")
    assert app.run(["simulate", str(tmp_path / "s.json")]) == 1
    said = capsys.readouterr().err
    assert f"read scenario '{tmp_path / 's.json'}': Expected `object`" in said
    assert "a scenario is" in said


def test_an_invalid_payload_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 1, and nothing on standard output."""
    file = tmp_path / "scenario.json"
    file.write_text('{"graph_id":"g","events":[{"event_id":"e","kind":"Command","payload_utf8":"[]"}]}')
    assert app.run(["simulate", str(file)]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert "payload must be a JSON object, got array" in said.err


def test_a_scenario_needs_only_a_graph_and_events() -> None:
    """Everything else has the daemon's defaults."""
    bundle = run_scenario(read_scenario(b'{"graph_id":"g","events":[{"event_id":"e","kind":"Tick"}]}'))
    assert (bundle.adapter_provenance, bundle.runtime_provenance) == ("none", "rpv1:none")
    assert len(bundle.decisions) == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no full device here")
def test_a_full_disk_behind_standard_output_is_an_error(scenario: Path) -> None:
    """An incomplete bundle never ends in exit code 0."""
    with Path("/dev/full").open("wb") as full:
        ended = subprocess.run(
            [*COMMAND, "simulate", str(scenario)],
            stdout=full,
            stderr=subprocess.PIPE,
            env=command_environment(),
            timeout=60,
            check=False,
        )
    assert ended.returncode != 0
    assert b"No space left" in ended.stderr


def test_a_misspelt_constraint_is_refused() -> None:
    """A limit that is silently ignored would be noticed much later."""
    with pytest.raises(ErgoCaptureError, match="max_per_windw"):
        read_scenario(b'{"graph_id":"g","events":[],"constraints":{"max_per_windw":3}}')
