"""Seals go where their manifests go: into the store, and into the check of all hosts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.fleet.stores import directory_store
from tests.ship.rig import directory_target, fill, held, listed, sender_to

from ergo_capture.bundle.names import SEAL_SUFFIX, manifest_path, seal_path
from ergo_capture.cli.app import run
from ergo_capture.objects.directory import DirectoryStore
from ergo_capture.seal.keeper import SealKeeper
from ergo_capture.seal.keys import SealKey, generate_key
from ergo_capture.ship.fetching import fetch


@pytest.fixture
def key() -> SealKey:
    """Return a key."""
    return generate_key()


@pytest.fixture
def state(tmp_path: Path, key: SealKey) -> Path:
    """Return a state directory of six sealed bundles."""
    bundles = fill(tmp_path / "state", 6)
    keeper = SealKeeper(tmp_path / "state" / "bundles", key)
    for bundle in bundles:
        keeper.seal(manifest_path(bundle))
    return tmp_path / "state"


def ship(state: Path, root: Path) -> None:
    """Ship what has no valid receipt."""
    target = directory_target(root)
    there = held(state, target)
    sender = sender_to(root)
    for bundle in listed(state):
        if bundle not in there:
            sender.send(bundle)


def fleet(root: Path, *options: str) -> int:
    """Index a store, and verify all of it with a key."""
    config = root.parent / "config.toml"
    config.write_text("")
    where = ["--config", str(config), "--store", root.as_uri()]
    assert run(["fleet", "index", "--all", *where]) == 0
    return run(["fleet", "verify", "--jobs", "1", *where, *options])


def test_a_seal_is_shipped_and_fetched_with_its_manifest(state: Path, tmp_path: Path) -> None:
    """Byte for byte."""
    root = directory_store(tmp_path / "store").root
    ship(state, root)
    store = DirectoryStore(root)
    for info in store.list("manifests"):
        path = fetch(store, info.key, tmp_path / "fetched")
        (original,) = state.rglob(path.name)
        assert seal_path(path).read_bytes() == seal_path(original).read_bytes()
        assert manifest_path(path).exists()


def test_a_bundle_that_is_sealed_after_it_was_shipped_is_shipped_again(
    state: Path, tmp_path: Path, key: SealKey
) -> None:
    """Its receipt says which seal the store has."""
    target = directory_target(directory_store(tmp_path / "store").root)
    last = max(listed(state), key=lambda bundle: bundle.manifest.sequence or 0 if bundle.manifest else 0)
    seal = seal_path(last.path).read_bytes()
    seal_path(last.path).unlink()
    ship(state, tmp_path / "store")
    assert len(held(state, target)) == 6
    seal_path(last.path).write_bytes(seal)
    assert len(held(state, target)) == 5
    ship(state, tmp_path / "store")
    assert len(held(state, target)) == 6
    # A file that is not a seal does not cause endless shipping.
    seal_path(last.path).write_bytes(b"\0")
    ship(state, tmp_path / "store")
    assert len(held(state, target)) == 6


def test_the_chain_of_each_host_is_checked_in_the_store(
    state: Path, tmp_path: Path, key: SealKey, capfd: pytest.CaptureFixture[str]
) -> None:
    """One that was left out, and one that was changed with its key."""
    root = directory_store(tmp_path / "store").root
    ship(state, root)
    assert fleet(root, "--seal", key.public) == 0
    assert "seals: ok, 6 sealed, 0 pruned in order, number 1 to 6" in capfd.readouterr().out
    by_number = {
        json.loads(path.read_text())["manifest"]["sequence"]: path for path in root.rglob("manifests/*/*/*.json")
    }
    by_number[3].rename(tmp_path / "left-out")
    assert fleet(root, "--seal", key.public) == 1
    assert "missing" in capfd.readouterr().out
    assert fleet(root) == 0
    (tmp_path / "left-out").rename(by_number[3])
    fields = json.loads(by_number[4].read_text())
    fields["manifest"]["labels"] = {"who": "somebody"}
    import hashlib

    import msgspec

    text = msgspec.json.format(msgspec.json.encode(fields["manifest"]), indent=2) + b"\n"
    stem = by_number[4].name.split(".")[0]
    by_number[4].with_name(f"{stem}.{hashlib.sha256(text).hexdigest()[:16]}.json").write_text(json.dumps(fields))
    by_number[4].unlink()
    assert fleet(root, "--seal", key.public) == 1
    out = capfd.readouterr().out
    assert "its manifest is not the one that was sealed" in out
    assert "1 unsound" in out


def test_a_host_whose_seals_were_all_taken_away_fails(
    state: Path, tmp_path: Path, key: SealKey, capfd: pytest.CaptureFixture[str]
) -> None:
    """Nothing proves that it never had any."""
    root = directory_store(tmp_path / "store").root
    for seal in state.rglob(f"*{SEAL_SUFFIX}"):
        seal.unlink()
    ship(state, root)
    assert fleet(root, "--seal", key.public) == 1
    assert "no bundle is sealed" in capfd.readouterr().out


def test_audit_checks_the_chain_in_the_store(
    state: Path, tmp_path: Path, key: SealKey, capfd: pytest.CaptureFixture[str]
) -> None:
    """Exit code 3 where one is missing that has no receipt here any more."""
    root = directory_store(tmp_path / "store").root
    config = tmp_path / "config.toml"
    config.write_text(f'ship.host = "alpha"\n[ship.targets.archive]\nurl = "{root.as_uri()}"\n')
    where = ["--config", str(config), "--state-dir", str(state)]
    assert run(["ship", "once", *where]) == 0
    assert run(["ship", "audit", *where, "--seal", key.public]) == 0
    assert "seals: ok, 6 sealed" in capfd.readouterr().out
    assert run(["ship", "audit", *where, "--seal", generate_key().public]) == 3
    assert "untrusted" in capfd.readouterr().out
