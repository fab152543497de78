"""``info`` beside a manifest with a summary: the same answer, believed only where the bundle is the manifest's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.bundle.test_running import captured, three_events

from ergo_capture.bundle.manifest import encode_manifest, read_manifest
from ergo_capture.bundle.names import manifest_path
from ergo_capture.cli import app
from ergo_capture.cli.commands import info as info_module


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """Return a composed bundle of three events."""
    path = tmp_path / "s.capture.json"
    with captured(*three_events()) as found:
        for name, text in found.published(found.job("b", 3)).items():
            path.with_name(name).write_bytes(text)
    return path


def asked(path: Path, capsys: pytest.CaptureFixture[str], *options: str) -> tuple[dict[str, Any], str]:
    """Return what ``info --json`` prints, without the manifest, and its standard error."""
    assert app.run(["info", "--json", *options, str(path)]) == 0
    out, said = capsys.readouterr()
    answer = json.loads(out)
    answer.pop("manifest")
    return answer, said


def changed(path: Path, **fields: Any) -> None:
    """Change fields of the summary in a bundle's manifest."""
    manifest = read_manifest(manifest_path(path))
    new = msgspec.structs.replace(manifest, summary={**manifest.summary, **fields})
    manifest_path(path).write_bytes(encode_manifest(new))


def test_the_answer_is_that_of_reading_the_bundle(
    bundle: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """This holds with ``--fast`` too; neither reads the bundle's records."""
    manifest = manifest_path(bundle).read_bytes()
    manifest_path(bundle).unlink()
    read, _ = asked(bundle, capsys)
    manifest_path(bundle).write_bytes(manifest)
    monkeypatch.setattr(info_module, "collect_statistics", None)
    assert asked(bundle, capsys) == (read, "")
    fast, said = asked(bundle, capsys, "--fast")
    assert fast == read
    assert "was not read" in said


def test_a_summary_of_other_bytes_is_not_believed(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The file is read instead."""
    changed(bundle, payload_bytes=77)
    assert asked(bundle, capsys)[0]["payload_bytes"] == 77
    bundle.write_bytes(bundle.read_bytes().replace(b'"e1"', b'"e7"'))
    assert asked(bundle, capsys)[0]["payload_bytes"] == 0
    # Without a look at the bytes, the size is all that can tell.
    assert asked(bundle, capsys, "--fast")[0]["payload_bytes"] == 77
    bundle.write_bytes(bundle.read_bytes() + b"\n")
    assert asked(bundle, capsys, "--fast")[0]["payload_bytes"] == 0


@pytest.mark.parametrize(
    "fields",
    [
        {"version": 2},
        {"events": "many"},
        {"kinds": None},
        {"first": -1},
        {"last": 1 << 100},
        {"kinds": {"Pump": -1}},
        {"constraints": {"deadline": 5}},
        {"constraints": {"rate_window": {"secs": -1}}},
    ],
    ids=str,
)
def test_a_summary_that_cannot_be_read_is_ignored(
    bundle: Path, capsys: pytest.CaptureFixture[str], fields: dict[str, Any]
) -> None:
    """It is optional for every reader."""
    changed(bundle, payload_bytes=77, **fields)
    assert asked(bundle, capsys)[0]["payload_bytes"] == 0
    assert app.run(["info", str(bundle)]) == 0


def test_a_bundle_that_is_not_its_manifests_is_noted(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is shown as it is; whoever trusts the numbers is told."""
    bundle.write_bytes(bundle.read_bytes() + b"\n")
    _, said = asked(bundle, capsys)
    assert said.startswith(f"note: '{bundle}': it is not the file that its manifest was written for: ")


def test_of_several_runs_those_that_cannot_be_read_are_named(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The others are summed up, and the exit code is 1."""
    empty = bundle.with_name("empty.capture.json")
    empty.touch()
    assert app.run(["info", "--json", str(empty), str(bundle)]) == 1
    out, said = capsys.readouterr()
    assert [json.loads(line)["bundle"] for line in out.splitlines()] == [str(bundle)]
    assert said.startswith(f"{empty}: read capture bundle '{empty}': it is empty\n  try: ")
