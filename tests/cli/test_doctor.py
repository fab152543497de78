"""``ergo-capture doctor``: finds each kind of damage, names the place, and never writes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.bundles import NOW, manifest_of, store
from tests.cli.test_recover import DAMAGES, TEXT, contents, damaged_body
from tests.daemons import command
from tests.journal.captures import write_sessions
from tests.journal.journals import last_segment
from tests.shared import shared

from ergo_capture.bundle.manifest import encode_manifest
from ergo_capture.bundle.names import TOMBSTONES, index_path, manifest_path, seal_path, verified_path
from ergo_capture.bundle.receipt import Receipt, encode_receipt, receipt_path
from ergo_capture.cli import app
from ergo_capture.errors import ExitCode

REAL = shared("real") / "ergo-cli"


def diagnosis(path: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, Any]:
    """Return the exit code and what ``--json`` printed; check that nothing was written."""
    before = contents(path)
    times = {name: Path(name).stat().st_mtime_ns for name in before}
    capsys.readouterr()
    code = app.run(["doctor", "--json", str(path)])
    assert contents(path) == before
    assert {name: Path(name).stat().st_mtime_ns for name in before} == times
    return code, json.loads(capsys.readouterr().out)


def of(severity: str, said: Any) -> list[Any]:
    """Return the findings of one severity."""
    return [finding for finding in said["findings"] if finding["severity"] == severity]


# --- bundles ---


def test_a_sound_bundle_has_no_findings(capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 0, and its counts."""
    code, said = diagnosis(REAL / "cap_hello.json", capsys)
    assert (code, said["kind"], said["sound"], said["findings"]) == (0, "bundle", True, [])
    assert said["keeps"] == ["sound: 3 events with their decisions"]


def test_a_truncated_bundle_is_reported_with_what_would_be_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The offset of the damage, the provenances that are gone, and counts."""
    path = tmp_path / "cut.capture.json"
    path.write_bytes(TEXT[:-4000])
    code, said = diagnosis(path, capsys)
    assert (code, said["sound"]) == (1, False)
    errors = of("error", said)
    assert any(finding["offset"] is not None and finding["offset"] > len(TEXT) - 4500 for finding in errors)
    assert [finding["message"] for finding in errors][-2:] == [
        "its adapter_provenance is gone",
        "its runtime_provenance is gone",
    ]
    (words,) = said["keeps"]
    assert words.startswith("recover would leave you with: 46 events with their decisions kept, 14 events set aside")


def test_doctor_reads_on_past_damage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Three bad events are three errors, each with its offset."""
    path = tmp_path / "bent.capture.json"
    places = [place for place in range(len(TEXT)) if TEXT.startswith(b'"kind":"', place)][5:50:20]
    text = bytearray(TEXT)
    for place in places:
        text[place + 8 : place + 9] = b"?"
    path.write_bytes(text)
    code, said = diagnosis(path, capsys)
    assert code == 1
    offsets = [finding["offset"] for finding in of("error", said) if finding["offset"] is not None]
    assert [place for place in places for offset in offsets if 0 < place - offset < 300] == places


@pytest.mark.parametrize("name", ["tamper_decision", "tamper_effect_value", "tamper_payload", "tamper_version"])
def test_tampering_is_an_error(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each changed copy of a real capture."""
    code, said = diagnosis(REAL / f"{name}.json", capsys)
    assert code == ExitCode.FAILED
    (_once,) = of("error", said)
    assert said["keeps"]


def test_a_bundle_that_differs_from_its_manifest_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is sound, but not what was published; where the manifest is none, that is the error."""
    path = tmp_path / "b.capture.json"
    path.write_bytes(TEXT)
    manifest = tmp_path / "b.manifest.json"
    manifest.write_bytes(encode_manifest(manifest_of(path, TEXT, "g", NOW)))
    assert diagnosis(path, capsys)[0] == 0
    for fields, reason in (
        ({"sha256": "0" * 64}, "its SHA-256 differs from its manifest"),
        ({"bytes": 7}, f"it has {len(TEXT)} bytes, and 7 by its manifest"),
    ):
        manifest.write_bytes(encode_manifest(manifest_of(path, TEXT, "g", NOW, **fields)))
        code, said = diagnosis(path, capsys)
        assert (code, [finding["message"] for finding in of("error", said)]) == (
            1,
            [f"it is not the file that its manifest was written for: {reason}"],
        )
    for text in ("{", "[" * 100_000, "[]", "{}", " " * (1 << 20) + "{}"):
        manifest.write_text(text)
        code, said = diagnosis(path, capsys)
        (error,) = of("error", said)
        assert (code, error["path"]) == (1, str(manifest))


# --- journals ---


def test_a_sound_journal_has_no_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each session with its counts; that it was not closed in order is a note."""
    write_sessions(tmp_path / "journal", close=False)
    code, said = diagnosis(tmp_path / "journal", capsys)
    assert (code, said["kind"], of("error", said), of("warning", said)) == (0, "journal", [], [])
    assert "not closed in order" in of("note", said)[0]["message"]
    assert said["keeps"][0] == (
        "session s1 of graph g (open): recover would leave you with: 60 events with their decisions kept"
    )
    assert said["keeps"][-1].endswith("parts of sessions: 0 published, 2 not yet")


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_p6_every_kind_of_damage_is_an_error_with_its_place(
    damage: Callable[[Path], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """P6: the segment, the offset, and the affected sessions."""
    journal = tmp_path / "journal"
    write_sessions(journal)
    damage(journal)
    code, said = diagnosis(journal, capsys)
    assert (code, said["sound"]) == (1, False)
    errors = of("error", said)
    assert any(error["offset"] is not None and error["path"].endswith(".journal") for error in errors)
    assert any(error["message"].startswith(("session s", "session number")) for error in errors)
    assert any("kept" in words for words in said["keeps"])


def test_a_torn_end_is_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing in it was acknowledged: exit code 0, with the offset and the number of bytes."""
    journal = tmp_path / "journal"
    write_sessions(journal, close=False)
    segment = max(journal.iterdir())
    size = segment.stat().st_size
    with segment.open("ab") as file:
        file.write(b"half a batch" * 20)
    code, said = diagnosis(journal, capsys)
    assert (code, of("error", said)) == (0, [])
    (warning,) = of("warning", said)
    assert (warning["path"], warning["offset"]) == (str(segment), size)
    assert warning["message"].startswith("torn: 240 bytes of a batch that was never synced")


def test_a_single_segment_can_be_diagnosed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Only its own content counts."""
    journal = tmp_path / "journal"
    write_sessions(journal)
    damaged_body(journal)
    code, said = diagnosis(last_segment(journal, 1), capsys)
    assert said["kind"] == "segment"
    assert (code, of("error", said)) == (0, [])
    code, said = diagnosis(last_segment(journal, 2), capsys)
    assert code == 1
    assert of("error", said)[0]["path"] == str(last_segment(journal, 2))


def test_foreign_and_leftover_files_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A foreign file is a warning; what an earlier start cut off is a note."""
    journal = tmp_path / "journal"
    write_sessions(journal)
    for name in ("notes.txt", "0000000000000001.journal.torn", "0000000000000009.journal.new"):
        (journal / name).write_text("x")
    code, said = diagnosis(journal, capsys)
    assert code == 0
    assert [Path(finding["path"]).name for finding in of("warning", said)] == ["notes.txt"]
    assert {Path(finding["path"]).suffix for finding in of("note", said)} >= {".torn", ".new"}


# --- state directories and other paths ---


def test_a_state_directory_is_diagnosed_completely(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Journal, bundles, manifests and leftovers; one line only for what is wrong."""
    state = tmp_path / "state"
    write_sessions(state / "journal")
    graph = state / "bundles" / "g"
    graph.mkdir(parents=True)
    (graph / "good.capture.json").write_bytes(TEXT)
    manifest = manifest_of(graph / "good.capture.json", TEXT, "g", NOW)
    (graph / "good.manifest.json").write_bytes(encode_manifest(manifest))
    code, said = diagnosis(state, capsys)
    assert (code, said["kind"], of("warning", said)) == (0, "state directory", [])
    assert said["keeps"][-1] == "1 published bundle; recover leaves bundles where they are"
    (graph / "bad.capture.json").write_bytes(TEXT[:9000])
    (graph / "lonely.manifest.json").write_text("{}")
    (graph / "good.capture.json.7.0.tmp").write_text("x")
    code, said = diagnosis(state, capsys)
    assert code == 1
    assert {Path(finding["path"]).name for finding in of("error", said)} == {
        "bad.capture.json",
        "lonely.manifest.json",
    }
    assert {Path(finding["path"]).name for finding in of("warning", said)} == {
        "bad.capture.json",
        "good.capture.json.7.0.tmp",
    }
    assert any(words.startswith(str(graph / "bad.capture.json")) for words in said["keeps"])


def test_linked_directories_of_bundles_are_examined(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A graph's directory on a larger disk; one whose disk is gone is a warning."""
    state, elsewhere = tmp_path / "state", tmp_path / "disk"
    write_sessions(state / "journal")
    (state / "bundles").mkdir()
    elsewhere.mkdir()
    (elsewhere / "cut.capture.json").write_bytes(TEXT[:9000])
    (state / "bundles" / "g").symlink_to(elsewhere)
    (state / "bundles" / "gone").symlink_to(tmp_path / "unmounted")
    code, said = diagnosis(state, capsys)
    assert (code, {finding["path"] for finding in of("error", said)}) == (
        1,
        {str(state / "bundles" / "g" / "cut.capture.json")},
    )
    assert ("a link to a missing target: is its disk mounted?", "gone") in [
        (finding["message"], Path(finding["path"]).name) for finding in of("warning", said)
    ]


def test_other_entries_with_the_name_of_a_bundle_are_skipped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Directories of graphs, pipes, and temporary files."""
    state = tmp_path / "state"
    write_sessions(state / "journal")
    graph = state / "bundles" / "graph.capture.json"
    graph.mkdir(parents=True)
    (graph / "s.capture.json.7.0.tmp").write_text("x")
    assert app.run(["info", str(state)]) == ExitCode.OK
    (graph / "good.capture.json").write_bytes(TEXT)
    os.mkfifo(graph / "pipe.capture.json")
    assert app.run(["info", str(state)]) == ExitCode.OK
    assert app.run(["verify", str(state / "bundles")]) == ExitCode.OK
    capsys.readouterr()
    assert app.run(["doctor", "--json", str(state)]) == ExitCode.OK
    said = json.loads(capsys.readouterr().out)
    assert [(Path(finding["path"]).name, finding["message"]) for finding in of("warning", said)][1:] == [
        ("pipe.capture.json", "neither a file nor a directory; left alone"),
        ("s.capture.json.7.0.tmp", "a temporary that was never finished; a start removes it"),
    ]


def test_an_unknown_path_is_an_error_and_the_others_are_diagnosed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 1, with what to name instead."""
    good = REAL / "cap_hello.json"
    assert app.run(["doctor", str(tmp_path), str(tmp_path / "none"), str(good)]) == ExitCode.FAILED
    lines = capsys.readouterr().out.splitlines()
    assert "that is neither a state directory nor a journal (try: name a state directory" in lines[0]
    assert lines[1].startswith(f"{tmp_path / 'none'}: read capture bundle")
    assert lines[-2:] == [f"{good}: bundle, sound", "  sound: 3 events with their decisions"]


def test_an_empty_journal_is_sound(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A daemon that never had a client leaves one."""
    (tmp_path / "journal").mkdir()
    assert diagnosis(tmp_path / "journal", capsys)[0] == 0
    assert diagnosis(tmp_path, capsys)[0] == 0


def test_text_output_has_severity_place_and_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line for the verdict, one per finding, one for what would be kept."""
    write_sessions(tmp_path / "journal")
    damaged_body(tmp_path / "journal")
    assert app.run(["doctor", str(tmp_path / "journal")]) == ExitCode.FAILED
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{tmp_path}/journal: journal, damaged, 2 errors"
    assert lines[1].startswith(f"  error {last_segment(tmp_path / 'journal', 2)} at ")
    assert "concerns session number" in lines[1]
    assert "recover would leave you with" in lines[-2]


def test_doctor_works_on_read_only_files(tmp_path: Path) -> None:
    """The directories may be read-only too."""
    write_sessions(tmp_path / "journal")
    for path in (*(tmp_path / "journal").iterdir(), tmp_path / "journal"):
        path.chmod(0o500 if path.is_dir() else 0o400)
    try:
        done = command("doctor", str(tmp_path / "journal"))
    finally:
        (tmp_path / "journal").chmod(0o700)
    assert (done.returncode, done.stderr) == (0, "")


def test_receipts_are_known_and_one_without_its_bundle_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They lie beside bundles and are the shipper's."""
    kept, gone = store(tmp_path, "kept", compress=True), store(tmp_path, "gone")
    for bundle in (kept, gone):
        receipt_path(bundle, "archive").write_bytes(b"{}")
    gone.unlink()
    manifest_path(gone).unlink()
    _, said = diagnosis(tmp_path, capsys)
    notes = [(Path(note["path"]).name, note["message"]) for note in of("note", said)]
    assert notes == [("gone.shipped.archive.json", "a receipt, and its bundle is missing; it proves nothing")]


def test_every_file_of_ergo_capture_is_known(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An index, a seal, a verification, the tombstones; without its bundle, a side file is named."""
    kept, gone = store(tmp_path, "kept"), store(tmp_path, "gone")
    for path in (index_path(kept), seal_path(kept), verified_path(kept), tmp_path / "bundles" / TOMBSTONES):
        path.write_bytes(b"{}")
    seal_path(gone).write_bytes(b"{}")
    gone.unlink()
    manifest_path(gone).rename(manifest_path(gone).with_name("gone.manifest.json.pruning"))
    code, said = diagnosis(tmp_path, capsys)
    assert (code, [(Path(note["path"]).name, note["message"]) for note in of("note", said)]) == (
        0,
        [
            ("gone.manifest.json.pruning", "its bundle is being deleted; the next look of retention finishes it"),
            ("gone.seal.json", "a side file, and its bundle is missing; it proves nothing"),
        ],
    )


def test_a_finished_bundle_that_is_missing_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A snapshot is not, as its journal has it; one that a store holds can be fetched."""
    for name, ended in (("lost", "complete"), ("growing", "open"), ("shipped", "complete")):
        store(tmp_path, name, ended=ended).unlink()
    shipped = tmp_path / "bundles" / "g" / "shipped.capture.json"
    receipt = Receipt(
        target="archive", url="file:///a", key="k", bytes=1, file_sha256="", manifest_key="m", manifest_sha256="",
        verified="read", shipped_at="2026-11-23T12:00:00Z",
    )  # fmt: skip
    receipt_path(shipped, "archive").write_bytes(encode_receipt(receipt))
    code, said = diagnosis(tmp_path, capsys)
    found = [
        (Path(each["path"]).name, each["severity"]) for each in said["findings"] if "its bundle" in each["message"]
    ]
    assert (code, found) == (
        ExitCode.FAILED,
        [
            ("growing.manifest.json", "warning"),
            ("lost.manifest.json", "error"),
            ("shipped.manifest.json", "warning"),
        ],
    )
    assert "in archive: `ergo-capture bundles fetch shipped` brings it back" in said["findings"][-1]["message"]


def test_a_directory_of_bundles_is_examined(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Bundles may have been moved there."""
    bundle = store(tmp_path, "moved")
    bundle.write_bytes(bundle.read_bytes()[:-200])
    code, said = diagnosis(bundle.parent, capsys)
    assert (code, said["kind"]) == (ExitCode.FAILED, "bundles")
    assert {finding["path"] for finding in of("error", said)} == {str(bundle)}


def test_a_journal_that_cannot_be_read_is_not_called_damaged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is of a newer version, or permissions are missing."""
    write_sessions(tmp_path / "journal")
    (tmp_path / "journal" / "0000000000000009.journal").mkdir()
    assert app.run(["doctor", str(tmp_path)]) == ExitCode.FAILED
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{tmp_path}: state directory, cannot be read, 1 error"
    assert "(try: " in lines[1]
