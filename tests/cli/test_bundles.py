"""``bundles list`` and ``bundles prune``: output, exit codes, and which bundles are left."""

from __future__ import annotations

import json
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import zstandard
from tests.bundles import DAY, small_bundle, store
from tests.daemons import COMMAND, command_environment

from ergo_capture import encode_bundle
from ergo_capture.bundle.names import manifest_path
from ergo_capture.cli.app import run


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """Return a state directory: two graphs, bundles one, five and nine days old, a snapshot, one without manifest."""
    now = datetime.now(UTC)
    for days in (1, 5, 9):
        store(tmp_path, f"a{days}", graph="a", age=days * DAY, now=now)
        store(tmp_path, f"b{days}", graph="b", age=days * DAY, now=now, compress=True)
    store(tmp_path, "live", graph="a", age=20 * DAY, now=now, ended="open")
    manifest_path(store(tmp_path, "bare", graph="b", age=20 * DAY, now=now)).unlink()
    (tmp_path / "config.toml").write_text("")
    return tmp_path


def bundles(state: Path, action: str, *options: str) -> int:
    """Run the command on a state directory."""
    return run(["bundles", action, "--config", str(state / "config.toml"), "--state-dir", str(state), *options])


def left(state: Path) -> list[str]:
    """Return the bundles that are left."""
    return sorted(path.name.partition(".")[0] for path in (state / "bundles").rglob("*.capture.json*"))


def said(capfd: pytest.CaptureFixture[str]) -> list[Any]:
    """Return standard output as JSON Lines."""
    return [json.loads(line) for line in capfd.readouterr().out.splitlines()]


def test_list_takes_the_state_directory_as_an_argument(state: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """`info` and `doctor` take it so too."""
    assert run(["bundles", "list", str(state)]) == 0
    listed = capfd.readouterr()
    assert bundles(state, "list") == 0
    assert capfd.readouterr() == listed


def test_list_shows_bundles_oldest_first(state: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A header, then one line per bundle with the path last; the total goes to standard error."""
    assert bundles(state, "list") == 0
    out, err = capfd.readouterr()
    head, *lines = out.splitlines()
    assert head.split() == ["ENDED", "(UTC)", "HOW", "GRAPH", "EVENTS", "SIZE", "BUNDLE"]
    assert [Path(line.split()[-1]).name.partition(".")[0] for line in lines] == [
        "bare", "a9", "b9", "a5", "b5", "a1", "b1", "live",
    ]  # fmt: skip
    assert "no manifest" in lines[0]
    assert "complete" in lines[1]
    assert "session goes on" in lines[-1]
    assert len({line.index("/") for line in lines}) == 1
    assert err.startswith("8 bundles, ")


def test_list_of_one_graph_as_json(state: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """One object per line, with the whole manifest."""
    assert bundles(state, "list", "--graph", "a", "--json") == 0
    found = said(capfd)
    assert [(one["state"], one["manifest"]["session"]) for one in found] == [
        ("finished", "a9"),
        ("finished", "a5"),
        ("finished", "a1"),
        ("session goes on", "live"),
    ]
    assert {one["graph"] for one in found} == {"a"}


def test_list_of_a_missing_state_directory_is_an_error(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """An empty one lists nothing; a missing one is an error with a hint."""
    (tmp_path / "config.toml").write_text("")
    assert bundles(tmp_path, "list") == 1
    assert "Try: name the state directory" in capfd.readouterr().err
    (tmp_path / "bundles").mkdir()
    assert bundles(tmp_path, "list") == 0
    assert capfd.readouterr() == ("", "0 bundles, 0 B\n")


def test_prune_obeys_options(state: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """One line per bundle with the bound that it is beyond, and the total."""
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


def test_prune_obeys_the_configuration(state: Path) -> None:
    """Each graph has its own bounds; an option replaces all of them."""
    (state / "config.toml").write_text('[retention]\nmax_age = "7d"\n[graphs.b]\nretention = { max_age = "3d" }\n')
    assert bundles(state, "prune") == 0
    assert left(state) == ["a1", "a5", "b1", "bare", "live"]
    assert bundles(state, "prune", "--max-age", "12h") == 0
    assert left(state) == ["a1", "b1", "bare", "live"]


def test_a_dry_run_deletes_nothing(state: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """It prints what would be deleted, as text and as JSON."""
    before = left(state)
    assert bundles(state, "prune", "--max-age", "7d", "--dry-run") == 0
    out, err = capfd.readouterr()
    assert [line.startswith("would prune /") for line in out.splitlines()] == [True, True]
    assert err.startswith("would prune 2 bundles")
    assert bundles(state, "prune", "--max-age", "7d", "--dry-run", "--json") == 0
    assert [(one["pruned"], one["reason"]) for one in said(capfd)] == [(False, "max_age")] * 2
    assert left(state) == before


def test_prune_keeps_a_bundle_that_differs_from_its_manifest(state: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Exit code 3; the others are deleted."""
    bad = state / "bundles" / "a" / "a9.capture.json"
    bad.write_bytes(bad.read_bytes().replace(b"e0", b"e9", 1))
    assert bundles(state, "prune", "--max-age", "7d") == 3
    out, err = capfd.readouterr()
    assert [line.split()[0] for line in out.splitlines()] == ["kept", "pruned"]
    assert "ergo-capture verify" in err
    assert bad.exists()


@pytest.mark.parametrize("age", ["7d", "365d"])
def test_prune_names_a_bundle_of_another_size_than_its_manifest_says(
    state: Path, capfd: pytest.CaptureFixture[str], age: str
) -> None:
    """Kept, with the reason, and exit code 3, whatever the bound."""
    cut = state / "bundles" / "a" / "a9.capture.json"
    cut.write_bytes(cut.read_bytes()[:100])
    assert bundles(state, "prune", "--max-age", age) == 3
    out, err = capfd.readouterr()
    (line,) = [line for line in out.splitlines() if line.startswith("kept ")]
    assert str(cut) in line
    assert "100 bytes, and " in line
    assert "ergo-capture verify" in err
    assert cut.exists()


def test_verify_doctor_and_prune_agree_on_a_bundle_and_its_manifest(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A pair that was renamed or compressed together is proved; a bundle beside another's manifest is not."""
    (tmp_path / "config.toml").write_text("")
    for at, name in enumerate(("other", "renamed", "packed", "newest")):
        text = encode_bundle(small_bundle(events=2 + at))
        store(tmp_path, name, now=datetime.now(UTC), age=(9 - at) * DAY, text=text, events=2 + at, decisions=2 + at)
    folder = tmp_path / "bundles" / "g"
    for suffix in (".capture.json", ".manifest.json"):
        (folder / f"renamed{suffix}").rename(folder / f"again{suffix}")
    packed = folder / "packed.capture.json"
    (folder / "packed.capture.json.zst").write_bytes(zstandard.compress(packed.read_bytes()))
    packed.unlink()
    (folder / "other.manifest.json").write_bytes((folder / "newest.manifest.json").read_bytes())
    sound = ["again.capture.json", "newest.capture.json", "packed.capture.json.zst"]
    for command in (["verify"], ["doctor"]):
        assert [name for name in sound if run([*command, str(folder / name)])] == []
        assert run([*command, str(folder / "other.capture.json")]) == 1
    capfd.readouterr()
    assert bundles(tmp_path, "prune", "--max-bundles", "1") == 3
    said = [line.split(":")[0].split("/")[-1].split(" ")[0] for line in capfd.readouterr().out.splitlines()]
    assert sorted(said) == ["again.capture.json", "other.capture.json", "packed.capture.json.zst"]
    assert sorted(path.name for path in folder.glob("*.capture.json*")) == ["newest.capture.json", "other.capture.json"]


def test_list_shows_the_numbers_and_prune_doubts_a_time_in_the_future(
    state: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The number decides what is newest."""
    now = datetime.now(UTC)
    store(state, "c-ahead", graph="c", age=-3000 * DAY, now=now, sequence=1)
    store(state, "c-right", graph="c", age=DAY, now=now, sequence=2)
    assert bundles(state, "list", "--graph", "c", "--json") == 0
    assert [one["manifest"]["sequence"] for one in said(capfd)] == [1, 2]
    assert bundles(state, "prune", "--graph", "c", "--max-age", "30d") == 0
    assert "c-ahead" in capfd.readouterr().err
    assert bundles(state, "prune", "--graph", "c", "--max-bundles", "1") == 0
    assert [name for name in left(state) if name.startswith("c")] == ["c-right"]


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
def test_missing_or_invalid_bounds_are_wrong_usage(
    state: Path, capfd: pytest.CaptureFixture[str], options: list[str]
) -> None:
    """Exit code 2, and nothing is deleted."""
    before = left(state)
    assert bundles(state, "prune", *options) == 2
    assert capfd.readouterr().err
    assert left(state) == before


def test_closed_standard_output_prints_no_traceback(state: Path) -> None:
    """Whether it is closed from the start or by the reader."""
    arguments = [*COMMAND, "bundles", "list", "--state-dir", str(state)]
    closed = subprocess.run(
        ["sh", "-c", '"$@" >&-', "sh", *arguments],
        env=command_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (closed.returncode, closed.stderr.count("Traceback")) == (0, 0)
