"""``ergo-capture verify`` of large bundles: bounded memory, and the same verdict wherever the fault is."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from tests.bundle.test_stream import rich_bundle

from ergo_capture.bundle.format import CaptureJsonStyle, encode_bundle
from ergo_capture.bundle.proving.effects import MAX_NOTES
from ergo_capture.bundle.reader import elements, outline
from ergo_capture.bundle.verify import verify_bundle
from ergo_capture.cli.support.verification import check
from ergo_capture.errors import ExitCode
from ergo_capture.kernel import uniqueness
from ergo_capture.kernel.uniqueness import SeenIds

RICH = encode_bundle(rich_bundle(60))


def written(tmp_path: Path, bundle: Any) -> Path:
    """Write a bundle file with a text or a JSON value, and return its path."""
    path = tmp_path / "b.capture.json"
    path.write_bytes(bundle if isinstance(bundle, bytes) else json.dumps(bundle).encode())
    return path


def test_memory_does_not_grow_with_the_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten times as many events cost only the hashes of their ids, 27 bytes each."""
    for module in (elements, outline):
        monkeypatch.setattr(module, "_BLOCK", 1 << 15)

    def peak(count: int) -> int:
        bundle = rich_bundle(count, payload=300, limited=False)
        path = written(tmp_path, encode_bundle(bundle))
        del bundle
        tracemalloc.start()
        assert verify_bundle(path).ok
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return used

    assert peak(3000) < 1.1 * peak(300) + 27 * 3000


def test_every_kind_of_record_is_derived_again(tmp_path: Path) -> None:
    """Deferrals, retries, failures, effects, acks and interruptions, in both styles and with blocks of any size."""
    for style in CaptureJsonStyle:
        result = check(written(tmp_path, encode_bundle(rich_bundle(60), style)))
        assert (result["ok"], result["events"], result["decisions"]) == (True, 60, 60)


@pytest.mark.parametrize("block", [1, 700])
def test_the_verdict_does_not_depend_on_the_block_size(
    block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A block may end anywhere."""
    monkeypatch.setattr(elements, "_BLOCK", block)
    monkeypatch.setattr(outline, "_BLOCK", block)
    assert check(written(tmp_path, RICH))["ok"]


def test_the_worst_fault_is_reported_wherever_it_is(tmp_path: Path) -> None:
    """Unreadable text before a wrong hash, that before a repeated id, that before a divergence."""
    bundle = json.loads(RICH)
    bundle["decisions"][0]["episode_id"] = 99
    assert check(written(tmp_path, bundle))["exit"] == ExitCode.DIVERGED
    bundle["events"][5]["event_id"] = bundle["events"][4]["event_id"]
    assert "duplicate event_id '2026-01-02 : 4'" in check(written(tmp_path, bundle))["error"]
    bundle["events"][50]["payload_hash"] = "0" * 64
    assert check(written(tmp_path, bundle))["error"] == "payload hash mismatch for event '2026-01-02 : 50'"
    bundle["decisions"][59]["decision"] = "Maybe"
    assert "unknown variant `Maybe`" in check(written(tmp_path, bundle))["error"]


def test_ids_with_the_same_hash_are_distinguished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal hashes are followed by a comparison of the ids."""
    monkeypatch.setattr(uniqueness, "hash", len, raising=False)
    assert check(written(tmp_path, RICH))["ok"]
    bundle = json.loads(RICH)
    bundle["events"][40]["event_id"] = bundle["events"][30]["event_id"]
    assert "duplicate event_id '2026-01-02 : 30'" in check(written(tmp_path, bundle))["error"]


def test_no_id_is_forgotten_while_the_table_grows() -> None:
    """Many more ids than the table is created for."""
    ids = SeenIds()
    names = [f"event-{number}" for number in range(20_000)]
    assert not any(ids.add(name) for name in names)
    assert all(ids.add(name) for name in names)
    assert len(ids) == len(names)


def test_misread_numbers_beyond_the_first_hundred_are_counted(tmp_path: Path) -> None:
    """The output is bounded for a bundle full of numbers that the reference misreads."""
    bundle = json.loads(encode_bundle(rich_bundle(1200, limited=False)).replace(b"-2.0", b"9.773333333333333"))
    for record in bundle["decisions"]:
        for effect in record["effects"]:
            effect["effect_hash"] = "0" * 64
    verdict = verify_bundle(written(tmp_path, bundle))
    assert len(verdict.notes) == 1
    assert len(verdict.details) == MAX_NOTES + 1
    assert verdict.details[-1].endswith("more such numbers")


def test_progress_is_reported_to_the_caller(tmp_path: Path) -> None:
    """The number of events read, from time to time and at the end."""
    seen: list[int] = []
    verify_bundle(written(tmp_path, RICH), on_progress=seen.append)
    assert seen[-1] == 60
    assert seen == sorted(seen)
