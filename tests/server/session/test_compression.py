"""Bundles are compressed where that is configured, and nothing else changes."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import zstandard
from tests.daemons import event, running_daemon

from ergo_capture import encode_bundle, read_capture_bundle
from ergo_capture.bundle.catalogue import Catalogue, difference_from_manifest
from ergo_capture.cli.app import run

ZSTD = '[bundle]\ncompress = "zstd"\n'


async def published(text: str, state: Path, **options: Any) -> dict[str, Any]:
    """Return the ``closed`` message of a session of a hundred events."""
    async with running_daemon(text, state=state) as daemon, daemon.session(**options) as wire:
        await wire.say(*(event(f"e{n}", n, payload={"n": n}) for n in range(100)), {"type": "close"})
        return await wire.until("closed")


@pytest.mark.parametrize("style", ["compact", "pretty"])
async def test_a_compressed_bundle_holds_the_same_text(tmp_path: Path, style: str) -> None:
    """Byte for byte; the manifest has the sizes and digests of the text and of the file."""
    closed = await published(ZSTD + f'style = "{style}"\n', tmp_path / "z")
    plain = await published(f'[bundle]\nstyle = "{style}"\n', tmp_path / "p")
    path, text = Path(closed["bundle"]), Path(plain["bundle"]).read_bytes()
    assert path.name.endswith(".capture.json.zst")
    assert [file.name for file in path.parent.iterdir() if file != path] == [Path(closed["manifest"]).name]
    data = path.read_bytes()
    # It is several frames, one behind the other.
    assert zstandard.ZstdDecompressor().stream_reader(data, read_across_frames=True).read() == text
    assert closed["sha256"] == plain["sha256"] == hashlib.sha256(text).hexdigest()
    manifest = json.loads(Path(closed["manifest"]).read_bytes())
    assert manifest["bundle"] == path.name
    assert (manifest["bytes"], manifest["sha256"]) == (len(text), closed["sha256"])
    assert manifest["compression"] == "zstd"
    assert (manifest["file_bytes"], manifest["file_sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
    (stored,) = Catalogue(tmp_path / "z" / "bundles").read()
    assert difference_from_manifest(stored) is None
    assert run(["verify", str(path)]) == 0


async def test_the_manifest_of_a_plain_bundle_has_no_compression_fields(tmp_path: Path) -> None:
    """Readers of manifests need not know them."""
    closed = await published("", tmp_path)
    manifest = json.loads(Path(closed["manifest"]).read_bytes())
    assert not {"compression", "file_bytes", "file_sha256"} & set(manifest)


@pytest.mark.parametrize(("before", "after"), [("", ZSTD), (ZSTD, "")])
async def test_the_last_bundle_replaces_a_snapshot_of_the_other_form(tmp_path: Path, before: str, after: str) -> None:
    """The configuration is changed while a session is open; one bundle is left."""
    async with running_daemon(before, state=tmp_path) as daemon, daemon.session() as wire:
        session = wire.opened["session"]
        await wire.say(event("a"), {"type": "flush"})
        snapshot = Path((await wire.until("flushed"))["bundle"])
        assert snapshot.exists()
    async with running_daemon(after, state=tmp_path) as daemon, daemon.session(session=session) as wire:
        await wire.say(event("b"), {"type": "close"})
        bundle = Path((await wire.until("closed"))["bundle"])
    assert bundle != snapshot
    assert sorted(path.name for path in bundle.parent.iterdir()) == sorted(
        [bundle.name, bundle.name.partition(".")[0] + ".manifest.json"]
    )
    assert [record.event_id for record in read_capture_bundle(bundle).events] == ["a", "b"]


async def test_a_large_session_is_compressed_in_the_worker_process(tmp_path: Path) -> None:
    """It has more events than are composed in a thread."""
    async with running_daemon(ZSTD + "[graphs.default]\n", state=tmp_path) as daemon, daemon.session() as wire:
        for block in range(25):
            events = [event(f"e{block}-{n}", 1, payload={"n": n})["event"] for n in range(100)]
            await wire.say({"type": "events", "events": events})
        await wire.say({"type": "close"})
        closed = await wire.until("closed")
    bundle = read_capture_bundle(closed["bundle"])
    assert len(bundle.events) == len(bundle.decisions) == 2500
    assert hashlib.sha256(encode_bundle(bundle)).hexdigest() == closed["sha256"]
