"""A bundle beside its manifest: ``verify``, ``replay``, ``doctor`` and ``bundles prune`` believe the same of the two."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import zstandard
from tests.bundles import NOW, manifest_of, store
from tests.daemons import COMMAND, PATIENCE, command_environment, plain

from ergo_capture.bundle.manifest import encode_manifest
from ergo_capture.bundle.names import manifest_path
from ergo_capture.cli import app

Capture = pytest.CaptureFixture[str]
SAYS_OK = "ok, 2 events, 2 decisions derived again"


def told(arguments: list[str], capsys: Capture, code: int) -> str:
    """Return what a command prints; check its exit code."""
    assert app.run(arguments) == code, capsys.readouterr()
    return plain(capsys.readouterr().out)


def change(path: Path, what: str) -> None:
    """Change one byte of a bundle's text."""
    before, after = {
        "graph": (b'"graph_id":"g"', b'"graph_id":"h"'),
        "termination": (b'"Completed"', b'"completed"'),
        "time": (b'"event_time":{"secs":1,', b'"event_time":{"secs":2,'),
    }[what]
    text = path.read_bytes()
    assert before in text
    path.write_bytes(text.replace(before, after, 1))


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """Return a finished bundle with its manifest."""
    return store(tmp_path, "b")


def test_a_manifest_that_agrees_is_named(bundle: Path, capsys: Capture) -> None:
    """It is named in words and in JSON."""
    assert told(["verify", str(bundle)], capsys, 0) == f"{bundle}: {SAYS_OK}, as its manifest says\n"
    found = json.loads(told(["verify", str(bundle), "--json"], capsys, 0))
    assert found["manifest"] == {"path": str(manifest_path(bundle)), "suspect": None, "problem": None}


@pytest.mark.parametrize(
    ("what", "by_itself"), [("graph", SAYS_OK), ("time", SAYS_OK), ("termination", "unsound: read capture bundle")]
)
def test_one_changed_byte_of_a_bundle_is_found(what: str, by_itself: str, bundle: Path, capsys: Capture) -> None:
    """The bundle may derive again, but its manifest has another hash, so the bundle is not trusted."""
    change(bundle, what)
    said = told(["verify", str(bundle)], capsys, 1)
    sentence = "it is not the file that its manifest was written for: its SHA-256 differs from its manifest"
    assert said.startswith(f"{bundle}: unsound: {sentence}\n  the bundle by itself: {by_itself}")
    found = json.loads(told(["verify", str(bundle), "--json"], capsys, 1))
    assert (found["ok"], found["error"], found["manifest"]["suspect"]) == (False, sentence, "bundle")
    assert sentence in told(["replay", str(bundle), "--engine", "fixed"], capsys, 1)
    assert sentence in told(["doctor", str(bundle)], capsys, 1)


@pytest.mark.parametrize(
    "arguments",
    [
        ["cat", "B"],
        ["tail", "B"],
        ["diff", "B", "OTHER"],
        ["extract", "B"],
        ["feed", "B"],
        ["intents", "B"],
        ["info", "B"],
        ["info", "--fast", "B"],
    ],
    ids=" ".join,
)
def test_a_command_that_shows_a_bundle_of_another_size_notes_it_once(
    arguments: list[str], bundle: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The command goes on, and the file is not read for the note."""
    other, size = store(tmp_path, "other"), bundle.stat().st_size
    bundle.write_bytes(bundle.read_bytes() + b"\n")
    names = {"B": str(bundle), "OTHER": str(other)}
    assert app.run([names.get(word, word) for word in arguments]) == 0
    note = (
        f"note: '{bundle}': it is not the file that its manifest was written for: it has {size + 1} bytes, and {size}"
    )
    assert [line for line in capfd.readouterr().err.splitlines() if "its manifest" in line] == [
        f"{note} by its manifest"
    ]


@pytest.mark.parametrize("was_compressed", [False, True])
def test_the_size_of_a_bundle_that_was_compressed_or_decompressed_since_is_not_noted(
    was_compressed: bool, tmp_path: Path, capsys: Capture
) -> None:
    """A compressed file may have any size, and the manifest has that of the text."""
    bundle = store(tmp_path, "b", compress=was_compressed)
    data = bundle.read_bytes()
    bundle.write_bytes(zstandard.decompress(data, 1 << 20) if was_compressed else zstandard.compress(data))
    assert app.run(["cat", str(bundle)]) == 0
    assert capsys.readouterr().err == ""


def test_another_size_is_named(bundle: Path, capsys: Capture) -> None:
    """It is the first thing that is compared."""
    size = bundle.stat().st_size
    bundle.write_bytes(bundle.read_bytes() + b"\n")
    assert f": it has {size + 1} bytes, and {size} by its manifest\n" in told(["verify", str(bundle)], capsys, 1)


GARBAGE = [
    ("", "it is empty"),
    ("{", "Input data was truncated"),
    ("[]", "Expected `object`, got `array`"),
    ("\0\1", "JSON is malformed"),
    ('{"format":"ergo-capture-manifest.v9"}', "Object missing required field"),
]


@pytest.mark.parametrize(("text", "reason"), GARBAGE, ids=["empty", "cut", "array", "binary", "newer"])
def test_a_manifest_that_is_none_is_not_believed(text: str, reason: str, bundle: Path, capsys: Capture) -> None:
    """The bundle by itself is sound; what the manifest says of the session is lost."""
    manifest = manifest_path(bundle)
    manifest.write_text(text)
    said = told(["verify", str(bundle)], capsys, 1)
    assert said.startswith(f"{bundle}: unsound: the manifest beside it, '{manifest}', is not trusted: {reason}")
    assert f"\n  the bundle by itself: {SAYS_OK}\n" in said
    assert "is not trusted" in told(["replay", str(bundle)], capsys, 1)
    assert f"'{manifest}', is not trusted" in told(["doctor", str(bundle)], capsys, 1)


def test_another_bundles_manifest_is_not_believed(tmp_path: Path, bundle: Path, capsys: Capture) -> None:
    """It is named."""
    other = store(tmp_path, "other", text=bundle.read_bytes().replace(b'"e1"', b'"f1"'))
    manifest_path(bundle).write_bytes(manifest_path(other).read_bytes())
    said = told(["verify", str(bundle)], capsys, 1)
    assert "is not trusted: it is that of another bundle, 'other.capture.json'" in said


def test_another_bundle_in_its_place_is_not_believed(tmp_path: Path, bundle: Path, capsys: Capture) -> None:
    """Verify, doctor and prune agree; prune keeps it."""
    other = store(tmp_path, "other", text=bundle.read_bytes().replace(b'"e1"', b'"f1"'))
    bundle.write_bytes(other.read_bytes())
    sentence = "its SHA-256 differs from its manifest"
    assert sentence in told(["verify", str(bundle)], capsys, 1)
    assert sentence in told(["doctor", str(bundle)], capsys, 1)
    store(tmp_path, "newest")
    found = told(["bundles", "prune", "--state-dir", str(tmp_path), "--max-bundles", "1", "--json"], capsys, 3)
    assert sentence in next(line for line in found.splitlines() if "/b.capture.json" in line)
    assert bundle.exists()


def test_a_bundle_that_was_moved_with_its_manifest_is_proved(tmp_path: Path, bundle: Path, capsys: Capture) -> None:
    """It may have another name: the hash decides."""
    moved = tmp_path / "moved.capture.json"
    bundle.rename(moved)
    manifest_path(bundle).rename(manifest_path(moved))
    assert told(["verify", str(moved)], capsys, 0) == f"{moved}: {SAYS_OK}, as its manifest says\n"


def test_a_bundle_that_was_compressed_since_is_proved(bundle: Path, capsys: Capture) -> None:
    """Its text is the one that the manifest describes."""
    zipped = bundle.with_name(bundle.name + ".zst")
    zipped.write_bytes(zstandard.ZstdCompressor().compress(bundle.read_bytes()))
    bundle.unlink()
    assert "as its manifest says" in told(["verify", str(zipped)], capsys, 0)


@pytest.mark.parametrize("arguments", [["verify"], ["replay"], ["replay", "--engine", "fixed"]], ids=" ".join)
def test_the_manifest_can_be_left_out(arguments: list[str], bundle: Path, capsys: Capture) -> None:
    """With --no-manifest, the bundle is judged by itself."""
    manifest_path(bundle).write_text("")
    assert told([*arguments, str(bundle), "--no-manifest"], capsys, 0).startswith(f"{bundle}: ")


def test_a_piped_bundle_has_no_manifest(tmp_path: Path, bundle: Path) -> None:
    """A pipe of a bundle's name is read once, though a manifest is beside it."""
    text, manifest = bundle.read_bytes(), manifest_path(bundle)
    assert manifest.exists()
    bundle.unlink()
    subprocess.run(["mkfifo", bundle], check=True)
    with subprocess.Popen(
        [*COMMAND, "verify", str(bundle)], env=command_environment(), stdout=subprocess.PIPE, text=True
    ) as verify:
        bundle.write_bytes(text)
        said, _ = verify.communicate(timeout=PATIENCE)
    assert said == f"{bundle}: {SAYS_OK}\n"


@pytest.mark.parametrize("what", ["bundle", "manifest"])
def test_the_report_says_what_is_not_believed(what: str, bundle: Path, capsys: Capture) -> None:
    """It is drawn all the same, without what such a manifest says."""
    if what == "bundle":
        change(bundle, "time")
    else:
        fields: dict[str, Any] = {"bundle": "other.capture.json", "sha256": "0" * 64, "labels": {"from": "elsewhere"}}
        text = bundle.read_bytes()
        manifest_path(bundle).write_bytes(encode_manifest(manifest_of(bundle, text, "g", NOW, **fields)))
    assert app.run(["report", str(bundle), "-o", "-"]) == 0
    assert "note: " in capsys.readouterr().err
