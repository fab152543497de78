"""Commands that write files: never over what they read, whatever name it goes by, and never over what is finished."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from tests.bundles import small_bundle, store
from tests.cli.test_recover import contents
from tests.daemons import COMMAND, command_environment
from tests.journal.captures import write_sessions

from ergo_capture import encode_bundle
from ergo_capture.bundle.names import manifest_path
from ergo_capture.cli.app import run
from ergo_capture.errors import ExitCode

SCENARIO = '{"graph_id": "g", "events": [{"event_id": "a", "kind": "Command", "at": {"secs": 1, "nanos": 0}}]}'
TEXT = encode_bundle(small_bundle())


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a directory: a bundle, its links ``latest``, ``hard`` and ``through/``, and a scenario."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "b.json").write_bytes(TEXT)
    (tmp_path / "s.json").write_text(SCENARIO)
    (tmp_path / "latest").symlink_to("b.json")
    os.link("b.json", "hard")
    (tmp_path / "through").symlink_to(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "arguments",
    [
        ["extract", "b.json", "-o", "b.json"],
        ["extract", "b.json", "-o", "hard"],
        ["extract", "b.json", "-o", "latest"],
        ["extract", "latest", "-o", "b.json"],
        ["extract", "through/b.json", "-o", "b.json"],
        ["report", "latest", "-o", "hard"],
        ["report", "b.json", "-o", "./b.json"],
        ["simulate", "s.json", "-o", "s.json"],
        ["simulate", "s.json", "-o", "through/s.json"],
        ["recover", "latest", "-o", "b.json", "--force"],
    ],
    ids=" ".join,
)
def test_no_command_writes_over_what_it_reads(
    place: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 2, the reason, and every file is as it was."""
    before = contents(place)
    assert run(arguments) == ExitCode.USAGE
    said = capsys.readouterr().err
    assert "it is the file that is read" in said or "is the source itself" in said
    assert contents(place) == before


def test_simulate_does_not_write_over_its_standard_input(place: Path) -> None:
    """Which has no name at all."""
    with (place / "s.json").open("rb") as scenario:
        arguments = [*COMMAND, "simulate", "-", "-o", str(place / "s.json")]
        done = subprocess.run(arguments, stdin=scenario, env=command_environment(), capture_output=True, check=False)
    assert (done.returncode, (place / "s.json").read_text()) == (ExitCode.USAGE, SCENARIO)


@pytest.mark.parametrize("command", ["extract b.json", "simulate s.json", "report b.json", "recover b.json --force"])
def test_no_command_writes_over_what_is_finished(place: Path, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A finished bundle, its manifest, a segment of a journal, a device."""
    finished = store(place / "st", "x")
    write_sessions(place / "st" / "journal")
    segment = min((place / "st" / "journal").iterdir())
    os.mkfifo("pipe")
    before = contents(place / "st")
    for output in (finished, manifest_path(finished), segment, place / "pipe"):
        assert run([*command.split(), "-o", str(output)]) == ExitCode.USAGE
        assert capsys.readouterr().err
    assert contents(place / "st") == before
    assert (place / "pipe").is_fifo()


def test_recovered_parts_are_written_beside_finished_bundles(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """This also holds with ``--force``. A second run finds its own bundles and does not write them again."""
    write_sessions(place / "old" / "journal")
    target = place / "target"
    assert run(["recover", "old", "-o", str(target)]) == ExitCode.OK
    bundles = sorted(target.rglob("*.capture.json"))
    before = contents(target)
    assert run(["recover", "old", "-o", str(target), "--force"]) == ExitCode.OK
    assert contents(target) == before
    for bundle in bundles:
        store(place / "other", bundle.name.removesuffix(".capture.json"), graph=bundle.parent.name)
    before = contents(place / "other")
    for _ in range(2):
        capsys.readouterr()
        assert run(["recover", "old", "-o", str(place / "other" / "bundles"), "--force"]) == ExitCode.OK
        for bundle in bundles:
            beside = place / "other" / "bundles" / bundle.parent.name / bundle.name.replace(".", "~1~2.", 1)
            assert beside.read_bytes() == bundle.read_bytes()
            assert str(beside) in capsys.readouterr().out or len(bundles) > 1
    after = contents(place / "other")
    assert {name: after[name] for name in before} == before
    assert len(after) == len(before) + 2 * len(bundles)
