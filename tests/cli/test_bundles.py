"""``bundles list`` and ``bundles prune``: what they print, what they exit with, what is left."""

from __future__ import annotations

import json
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from tests.bundles import DAY, store
from tests.daemons import COMMAND, command_environment

from ergo_capture.bundle.names import manifest_path
from ergo_capture.cli.app import run


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """Two graphs, of bundles one, five and nine days old, a snapshot, and one without manifest."""
    now = datetime.now(UTC)
    for days in (1, 5, 9):
        store(tmp_path, f"a{days}", graph="a", age=days * DAY, now=now)
        store(tmp_path, f"b{days}", graph="b", age=days * DAY, now=now, compress=True)
    store(tmp_path, "live", graph="a", age=20 * DAY, now=now, ended="open")
    manifest_path(store(tmp_path, "bare", graph="b", age=20 * DAY, now=now)).unlink()
    (tmp_path / "config.toml").write_text("")
    return tmp_path


def bundles(state: Path, action: str, *options: str) -> int:
    """Run the command on that state directory."""
    return run(["bundles", action, "--config", str(state / "config.toml"), "--state-dir", str(state), *options])


def left(state: Path) -> list[str]:
    """The bundles that are there."""
    return sorted(path.name.partition(".")[0] for path in (state / "bundles").rglob("*.capture.json*"))


def said(capfd: pytest.CaptureFixture[str]) -> list[Any]:
    """Standard output as JSON Lines."""
    return [json.loads(line) for line in capfd.readouterr().out.splitlines()]


def test_bundles_are_listed_from_the_oldest_with_how_they_ended(state: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A header, a line each with the path last, so that it can be cut out; the sum goes to standard error."""
    assert bundles(state, "list") == 0
    out, err = capfd.readouterr()
    head, *lines = out.splitlines()
    assert head.split() == ["ENDED", "(UTC)", "HOW", "GRAPH", "EVENTS", "SIZE", "BUNDLE"]
    assert [Path(line.split()[-1]).name.partition(".")[0] for line in lines] == [
        "bare", "live", "a9", "b9", "a5", "b5", "a1", "b1",
    ]  # fmt: skip
    assert "no manifest" in lines[0]
    assert "session goes on" in lines[1]
    assert "complete" in lines[2]
    assert len({line.index("/") for line in lines}) == 1
    assert err.startswith("8 bundles, ")


def test_one_graph_can_be_listed_as_json(state: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """One object a line, with the whole manifest."""
    assert bundles(state, "list", "--graph", "a", "--json") == 0
    found = said(capfd)
    assert [(one["state"], one["manifest"]["session"]) for one in found] == [
        ("session goes on", "live"),
        ("finished", "a9"),
        ("finished", "a5"),
        ("finished", "a1"),
    ]
    assert {one["graph"] for one in found} == {"a"}


def test_an_empty_state_has_no_bundles_and_a_missing_one_is_an_error(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Nothing on standard output; a sentence and a hint where nothing is."""
    (tmp_path / "config.toml").write_text("")
    assert bundles(tmp_path, "list") == 1
    assert "Try: name the state directory" in capfd.readouterr().err
    (tmp_path / "bundles").mkdir()
    assert bundles(tmp_path, "list") == 0
    assert capfd.readouterr() == ("", "0 bundles, 0 B\n")


def test_prune_deletes_by_the_options(state: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A line for each with the bound that says so, and the sum."""
    assert bundles(state, "prune", "--max-age", "7d") == 0
    out, err = capfd.readouterr()
    assert [line.rpartition(": ")[2] for line in out.splitlines()] == ["max_age", "max_age"]
    assert all(line.startswith("pruned /") for line in out.splitlines())
    assert err.startswith("pruned 2 bundles, ")
    assert left(state) == ["a1", "a5", "b1", "b5", "bare", "live"]
    assert bundles(state, "prune", "--max-bundles", "1", "--graph", "b") == 0
    assert left(state) == ["a1", "a5", "b1", "bare", "live"]
    assert bundles(state, "prune", "--max-bytes", "1") == 0
    assert left(state) == ["a1", "b1", "bare", "live"]
    assert bundles(state, "prune", "--keep-free", "1000TiB") == 0
    assert left(state) == ["a1", "b1", "bare", "live"]
    assert len(list(state.rglob("*.manifest.json"))) == 3


def test_prune_deletes_by_the_configuration(state: Path) -> None:
    """Each graph by its own bounds; an option stands above all of them."""
    (state / "config.toml").write_text('[retention]\nmax_age = "7d"\n[graphs.b]\nretention = { max_age = "3d" }\n')
    assert bundles(state, "prune") == 0
    assert left(state) == ["a1", "a5", "b1", "bare", "live"]
    assert bundles(state, "prune", "--max-age", "12h") == 0
    assert left(state) == ["bare", "live"]


def test_a_dry_run_deletes_nothing(state: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """And says what would go, in both forms."""
    before = left(state)
    assert bundles(state, "prune", "--max-age", "7d", "--dry-run") == 0
    out, err = capfd.readouterr()
    assert [line.startswith("would prune /") for line in out.splitlines()] == [True, True]
    assert err.startswith("would prune 2 bundles")
    assert bundles(state, "prune", "--max-age", "7d", "--dry-run", "--json") == 0
    assert [(one["pruned"], one["reason"]) for one in said(capfd)] == [(False, "max_age")] * 2
    assert left(state) == before


def test_what_is_not_what_its_manifest_says_is_kept_with_exit_3(state: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The others go all the same."""
    bad = state / "bundles" / "a" / "a9.capture.json"
    bad.write_bytes(bad.read_bytes().replace(b"e0", b"e9", 1))
    assert bundles(state, "prune", "--max-age", "7d") == 3
    out, err = capfd.readouterr()
    assert [line.split()[0] for line in out.splitlines()] == ["kept", "pruned"]
    assert "ergo-capture verify" in err
    assert bad.exists()


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--max-age", "5"],
        ["--max-bytes", "5 bananas"],
        ["--keep-free", "-1"],
        ["--max-bundles", "-1"],
        ["--max-bundles", "few"],
        ["--max-age", "0s"],
    ],
    ids=" ".join,
)
def test_bounds_that_say_nothing_or_nonsense_are_wrong_usage(
    state: Path, capfd: pytest.CaptureFixture[str], options: list[str]
) -> None:
    """Exit 2, and nothing is deleted."""
    before = left(state)
    assert bundles(state, "prune", *options) == 2
    assert capfd.readouterr().err
    assert left(state) == before


def test_a_closed_standard_output_is_no_traceback(state: Path) -> None:
    """Closed from the start, or by a reader that has seen enough."""
    arguments = [*COMMAND, "bundles", "list", "--state-dir", str(state)]
    closed = subprocess.run(
        ["sh", "-c", '"$@" >&-', "sh", *arguments],
        env=command_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (closed.returncode, closed.stderr.count("Traceback")) == (0, 0)
