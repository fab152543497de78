"""Bundles of another format version: every reader names the version, and only what shows them goes on."""

from __future__ import annotations

from pathlib import Path
from shutil import copy
from typing import Any

import pytest
from tests.cli import runs
from tests.cli.readers import OTHER, READERS, SHOWING

from ergo_capture.cli import app


def of_version_4(data: Any) -> None:
    """Change the format version."""
    data["capture_version"] = "v4"


@pytest.fixture
def newer(tmp_path: Path) -> Path:
    """Return a bundle of version v4 that is otherwise as those of v3."""
    return runs.bundle(tmp_path / "a.capture.json", of_version_4)


@pytest.fixture
def unreadable(newer: Path) -> Path:
    """Return a bundle of version v4 with an event that has another field than v3."""
    newer.write_text(newer.read_text().replace('"payload_hash":', '"payload_sum":', 1))
    return newer


@pytest.mark.parametrize(
    "arguments", [*([name, *READERS[name]] for name in SHOWING), ["report"], ["report", "-o", "-"]], ids=" ".join
)
def test_a_bundle_of_another_version_is_shown_with_a_note(
    arguments: list[str], newer: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The note goes to standard error: standard output is for programs."""
    monkeypatch.chdir(newer.parent)
    copy(newer, OTHER)
    assert app.run([arguments[0], newer.name, *arguments[1:]]) == 0
    assert "note: 'a.capture.json' is of capture version 'v4', and this release reads 'v3'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        *([name, *words] for name, words in READERS.items() if name not in SHOWING),
        ["extract"],
        ["recover", "-o", "saved.json"],
        ["doctor"],
    ],
    ids=" ".join,
)
def test_a_bundle_of_another_version_is_refused_where_it_would_be_used(
    arguments: list[str], newer: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is written: a scenario made of it would become a bundle of version v3."""
    monkeypatch.chdir(newer.parent)
    assert app.run([arguments[0], newer.name, *arguments[1:]]) == 1, (
        "one that only shows it is in SHOWING of tests/cli/readers.py"
    )
    captured = capsys.readouterr()
    assert "version 'v4'" in captured.out + captured.err
    assert [*newer.parent.iterdir()] == [newer]


@pytest.mark.parametrize("name", READERS)
def test_a_record_that_cannot_be_read_is_reported_with_the_version(
    name: str, unreadable: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The version is the likely reason for it."""
    monkeypatch.chdir(unreadable.parent)
    copy(unreadable, OTHER)
    assert app.run([name, unreadable.name, *READERS[name]]) == 1
    captured = capsys.readouterr()
    assert "version 'v4'" in captured.out + captured.err


@pytest.mark.parametrize("cut", [False, True])
def test_a_head_that_cannot_be_read_is_reported_with_the_version(
    newer: Path, cut: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """The file may also end inside a list."""
    text = (
        newer.read_text().replace('"config":{', '"config":{"max_cost":"1", ').replace('"graph_id":"g"', '"graph":"g"')
    )
    newer.write_text(text[: len(text) // 2] if cut else text)
    assert app.run(["verify", str(newer)]) == 1
    assert "it is of capture version 'v4', and this release reads 'v3': " in capsys.readouterr().out
