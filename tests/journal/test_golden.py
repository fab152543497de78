"""Journals and bundles of earlier versions are read with the same results, and encoded to the same bytes."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tests.golden import GOLDEN, JOURNALS, Life, found_in, make_bundles, said_of
from tests.journal.journals import frames_of

from ergo_capture import Constraints, encode_bundle, read_capture_bundle
from ergo_capture.bundle.format import CaptureJsonStyle
from ergo_capture.journal import scan, verdict
from ergo_capture.journal.wal import Journal
from ergo_capture.storage import RealStorage

NAMES = sorted(path.name for path in (GOLDEN / "journals").iterdir())
#: The journals that a program of format version 1 has to refuse: for it their last frame is of a later version.
FOR_VERSION_1 = {"newer"}


def expected(name: str) -> dict[str, Any]:
    """Return the results for a journal from the time when it was made."""
    found: dict[str, Any] = json.loads((GOLDEN / "journals" / name / "expected.json").read_text(encoding="utf-8"))
    del found["about"]
    return found


def files(folder: Path) -> dict[str, bytes]:
    """Return the content of every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def journal(tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a copy of a golden journal; one made for a program of format version 1 is read as by that program."""
    if request.param in FOR_VERSION_1:
        read_as_version_1(monkeypatch)
    return Path(shutil.copytree(GOLDEN / "journals" / request.param / "journal", tmp_path / "journal"))


def read_as_version_1(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse the versions that ergo-capture 0.1.0 refuses."""
    for module in (scan, verdict):
        monkeypatch.setattr(module, "FORMAT_VERSION", 1)


def test_there_are_at_least_ten_golden_journals_and_bundles() -> None:
    """Otherwise a lost folder would go unnoticed."""
    assert len(NAMES) >= 10
    assert set(JOURNALS) <= set(NAMES)
    assert len(list((GOLDEN / "bundles").rglob("*.capture.json*"))) >= 10


@pytest.mark.parametrize(("journal", "name"), [(name, name) for name in NAMES], indirect=["journal"])
def test_a_golden_journal_leads_to_the_same_report_and_bundles(journal: Path, name: str) -> None:
    """Sessions, watermarks, torn ends, damage and bundles are equal, bundles to the byte."""
    assert found_in(journal) == expected(name)


@pytest.mark.parametrize(("journal", "name"), [(name, name) for name in NAMES], indirect=["journal"])
def test_a_second_start_finds_the_same_and_changes_nothing(journal: Path, name: str) -> None:
    """P5: a repaired journal stays as it is; a journal that is refused is not changed at all."""
    before = files(journal)
    first = found_in(journal)
    between = files(journal)
    if "refused" in first:
        assert between == before
    second = found_in(journal)
    assert files(journal) == between
    assert second == first | ({} if "refused" in first else {"torn_bytes": 0})


@pytest.mark.parametrize("name", sorted(set(JOURNALS) - FOR_VERSION_1))
def test_the_script_still_writes_the_golden_journals(tmp_path: Path, name: str) -> None:
    """A start that reads the journals that it writes finds the same."""
    JOURNALS[name](tmp_path)
    assert found_in(tmp_path) == expected(name)


@pytest.mark.parametrize("name", ["killed", "in-doubt", "rotated", "parts", "ended", "sealed"])
def test_the_journals_of_0_1_0_are_of_format_version_1(name: str) -> None:
    """Open, rotated and closed sessions; what they lead to is tested above."""
    paths = sorted((GOLDEN / "journals" / name / "journal").glob("*.journal"))
    assert paths
    assert {header.version for path in paths for header, _ in frames_of(path)} == {1}


def test_a_journal_of_0_1_0_is_continued_in_a_segment_of_version_2(tmp_path: Path) -> None:
    """The old segments keep their content."""
    directory = Path(shutil.copytree(GOLDEN / "journals" / "killed" / "journal", tmp_path / "journal"))
    before = files(directory)
    with_one_more = Life(7, Constraints())
    journal, _ = Journal.open(directory, RealStorage(), segment_bytes=4096)
    journal.commit([with_one_more.opened()])
    journal.close()
    old, new = sorted(directory.glob("*.journal"))
    assert old.read_bytes().rstrip(b"\0") == before[old.name].rstrip(b"\0")
    assert [header.version for header, _ in frames_of(new)] == [2, 2]


def test_0_1_0_refuses_format_version_2_with_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It names the segment and both versions, and changes nothing."""
    JOURNALS["killed"](tmp_path)
    before = files(tmp_path)
    read_as_version_1(monkeypatch)
    assert found_in(tmp_path) == {
        "refused": "read journal segment 'JOURNAL/0000000000000001.journal': its format version is 2, and this "
        "program reads up to 1",
        "hint": "start the newer ergo-capture that wrote it",
    }
    assert files(tmp_path) == before


def test_golden_bundles_get_the_same_verdicts() -> None:
    """The verdicts are those of ``verify`` and of the catalogue."""
    said = json.loads((GOLDEN / "bundles" / "expected.json").read_text(encoding="utf-8"))
    assert said_of(GOLDEN / "bundles" / "golden") == said


def test_bundles_composed_today_are_the_golden_ones(tmp_path: Path) -> None:
    """Bundles and manifests are equal byte for byte, except for what depends on the compressor."""
    folder = tmp_path / "golden"
    folder.mkdir()
    make_bundles(folder)
    now, then = files(folder), files(GOLDEN / "bundles" / "golden")
    assert set(now) == set(then)
    for name in now:
        if name.endswith((".json",)) and not name.startswith(("packed.manifest", "cut-packed")):
            text = now[name]
            if name.endswith(".manifest.json"):
                text = _with_the_fields_of(then[name], text)
            assert _without_program(text) == _without_program(then[name]), name
    assert read_capture_bundle(folder / "packed.capture.json.zst") == read_capture_bundle(
        GOLDEN / "bundles" / "golden" / "packed.capture.json.zst"
    )


def _with_the_fields_of(then: bytes, now: bytes) -> bytes:
    """Return a new manifest without the fields that an old one lacks."""
    fields = {name: value for name, value in json.loads(now).items() if name in json.loads(then)}
    return json.dumps(fields, indent=2, ensure_ascii=False).encode() + b"\n"


def _without_program(text: bytes) -> bytes:
    """Return a manifest without the line that names its program."""
    return b"\n".join(line for line in text.split(b"\n") if not line.strip().startswith(b'"program"'))


@pytest.mark.parametrize("style", CaptureJsonStyle)
def test_a_golden_bundle_is_encoded_to_the_same_bytes(style: CaptureJsonStyle) -> None:
    """It is read and encoded again, in either style."""
    folder = GOLDEN / "bundles" / "golden"
    bundle = read_capture_bundle(folder / "packed.capture.json.zst")
    name = "complete" if style is CaptureJsonStyle.Compact else "pretty"
    assert encode_bundle(bundle, style) == (folder / f"{name}.capture.json").read_bytes()
    manifest = json.loads((folder / f"{name}.manifest.json").read_bytes())
    assert manifest["sha256"] == hashlib.sha256(encode_bundle(bundle, style)).hexdigest()
