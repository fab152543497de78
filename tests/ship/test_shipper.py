"""A shipper in the test's event loop: what it sends, what it leaves, and when it tries again."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest
import structlog
from structlog.testing import capture_logs
from tests.bundles import store
from tests.ship.rig import (
    assert_receipts_are_true,
    assert_shipped,
    directory_target,
    fill,
    held,
    listed,
    running,
    shipper_to,
    until,
)

from ergo_capture.bundle.manifest import encode_manifest, read_manifest
from ergo_capture.bundle.names import manifest_path
from ergo_capture.bundle.receipt import receipt_path
from ergo_capture.objects.directory import DirectoryStore
from ergo_capture.objects.opening import open_store
from ergo_capture.objects.port import ObjectStore, StoreAway
from ergo_capture.ship import shipper as module


@pytest.fixture
def lines() -> Iterator[list[Any]]:
    """Return the lines of the log."""
    structlog.reset_defaults()
    with capture_logs() as found:
        yield found


def named(lines: list[Any], name: str) -> list[Any]:
    """Return the lines of one name."""
    return [line for line in lines if line["event"] == name]


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[type[DirectoryStore]]:
    """Return a list whose only item is the kind of store that the shipper opens."""
    kinds: list[type[DirectoryStore]] = [DirectoryStore]

    def open_one(target: Any) -> ObjectStore:
        store = open_store(target)
        assert isinstance(store, DirectoryStore)
        return kinds[0](store.root)

    monkeypatch.setattr(module, "open_store", open_one)
    return kinds


async def test_everything_finished_is_shipped_once(tmp_path: Path, lines: list[Any]) -> None:
    """This includes bundles published while it runs, but never a snapshot, and nothing twice."""
    target = directory_target(tmp_path / "store")
    fill(tmp_path, 5)
    store(tmp_path, "open", ended="open")
    async with running(shipper_to(target, tmp_path)) as shipper:
        await until(lambda: shipper.counts.sent == 5)
        fill(tmp_path, 3, begin=5)
        await until(lambda: shipper.counts.sent == 8)
        await shipper.look()
        assert not shipper.plan.due
    assert len(held(tmp_path, target)) == 8
    assert assert_receipts_are_true(tmp_path, open_store(target)) == 8
    sent = named(lines, "ship.sent")
    assert len({line["key"] for line in sent}) == len(sent) == 8


async def test_the_oldest_are_sent_first(tmp_path: Path, lines: list[Any]) -> None:
    """The order is that of their numbers: no clock matters."""
    fill(tmp_path, 6)
    async with running(shipper_to(directory_target(tmp_path / "store"), tmp_path, concurrency=1)) as shipper:
        await until(lambda: shipper.counts.sent == 6)
    order = [Path(line["bundle"]).name.partition(".")[0] for line in named(lines, "ship.sent")]
    assert order == [f"S{number}" for number in range(6)]


async def test_a_bundle_that_is_published_again_is_shipped_again(tmp_path: Path) -> None:
    """Its manifest is another, so the receipt proves nothing."""
    target, (path,) = directory_target(tmp_path / "store"), fill(tmp_path, 1)
    async with running(shipper_to(target, tmp_path)) as shipper:
        await until(lambda: shipper.counts.sent == 1)
        changed = msgspec.structs.replace(read_manifest(manifest_path(path)), sequence=9)
        manifest_path(path).write_bytes(encode_manifest(changed))
        await until(lambda: shipper.counts.sent == 2)
    assert_shipped(tmp_path, target, open_store(target))


async def test_a_receipt_that_is_deleted_has_its_bundle_shipped_again(tmp_path: Path) -> None:
    """In this way a person says that a store lost it."""
    target, (path,) = directory_target(tmp_path / "store"), fill(tmp_path, 1)
    async with running(shipper_to(target, tmp_path)) as shipper:
        await until(lambda: shipper.counts.sent == 1)
        receipt_path(path, "archive").unlink()
        await until(lambda: shipper.counts.sent == 2)


async def test_a_target_that_is_elsewhere_gets_everything(tmp_path: Path) -> None:
    """A receipt names the store."""
    fill(tmp_path, 3)
    for place in ("one", "two"):
        target = directory_target(tmp_path / place)
        async with running(shipper_to(target, tmp_path)) as shipper:
            await until(lambda shipper=shipper: shipper.counts.sent == 3)
        assert_shipped(tmp_path, target, open_store(target))


async def test_a_bundle_that_is_not_sound_is_named_once_and_the_others_are_sent(
    tmp_path: Path, lines: list[Any]
) -> None:
    """Its size is checked at the look, its hash when it is sent."""
    paths = fill(tmp_path, 6)
    paths[0].write_bytes(paths[0].read_bytes() + b" ")
    text = paths[2].read_bytes()
    paths[2].write_bytes(b"X" + text[1:])
    target = directory_target(tmp_path / "store")
    async with running(shipper_to(target, tmp_path)) as shipper:
        await until(lambda: shipper.counts.sent == 4)
        assert shipper.unsound == 2
        unsound = named(lines, "ship.unsound")
        assert sorted(line["bundle"] for line in unsound) == [str(paths[0]), str(paths[2])]
        paths[2].write_bytes(text)
        await until(lambda: shipper.counts.sent == 5)
        assert shipper.unsound == 1
    assert len(held(tmp_path, target)) == 5


async def test_a_store_that_comes_back_gets_everything(tmp_path: Path, lines: list[Any]) -> None:
    """It is refused while its directory is not there; one line tells of the beginning, one of the end."""
    fill(tmp_path, 4)
    target = directory_target(tmp_path / "store")
    (tmp_path / "store").rmdir()
    async with running(shipper_to(target, tmp_path)) as shipper:
        await until(lambda: shipper.counts.failures["refused"] >= 2)
        assert len(named(lines, "ship.refused")) == 1
        (tmp_path / "store").mkdir()
        await until(lambda: shipper.counts.sent == 4)
    assert len(named(lines, "ship.resumed")) == 1
    assert_shipped(tmp_path, target, open_store(target))


async def test_a_store_that_is_away_is_asked_with_one_bundle_at_a_time(
    tmp_path: Path, lines: list[Any], opened: list[type[DirectoryStore]]
) -> None:
    """There are pauses, and each time it is another bundle: one that is never taken must not hold up the others."""
    asked: list[str] = []

    class Away(DirectoryStore):
        def put(self, key: str, blocks: Iterable[bytes], size: int) -> None:
            del blocks, size
            asked.append(key)
            raise StoreAway("write object: no answer")

    opened[0] = Away
    fill(tmp_path, 8)
    target = directory_target(tmp_path / "store")
    async with running(shipper_to(target, tmp_path, concurrency=2)) as shipper:
        await until(lambda: shipper.counts.failures["away"] >= 5)
        # Two at once before the first failure was known; later ones are alone.
        assert len(set(asked[:5])) == 5
        opened[0] = DirectoryStore
        await until(lambda: shipper.counts.sent == 8)
    assert [line["event"] for line in lines if line["event"].startswith(("ship.away", "ship.resumed"))] == [
        "ship.away",
        "ship.resumed",
    ]
    assert_shipped(tmp_path, target, open_store(target))


async def test_one_bundle_that_a_store_never_takes_does_not_keep_the_others(
    tmp_path: Path, opened: list[type[DirectoryStore]]
) -> None:
    """It goes after them."""
    paths = fill(tmp_path, 6)
    poison = len(paths[0].read_bytes())

    class Picky(DirectoryStore):
        def put(self, key: str, blocks: Iterable[bytes], size: int) -> None:
            if size == poison and key.startswith("objects"):
                raise StoreAway("write object: no answer")
            super().put(key, blocks, size)

    opened[0] = Picky
    refused = sum(path.stat().st_size == poison for path in paths)
    async with running(shipper_to(directory_target(tmp_path / "store"), tmp_path, concurrency=1)) as shipper:
        await until(lambda: shipper.counts.sent == 6 - refused)
        assert len(shipper.plan.due) == refused


async def test_a_defect_that_one_bundle_brings_out_does_not_keep_the_others(
    tmp_path: Path, lines: list[Any], opened: list[type[DirectoryStore]]
) -> None:
    """It is logged once, with its traceback."""

    class Broken(DirectoryStore):
        def put(self, key: str, blocks: Iterable[bytes], size: int) -> None:
            if "/S0." in key:
                raise TypeError("a defect")
            super().put(key, blocks, size)

    opened[0] = Broken
    fill(tmp_path, 4)
    async with running(shipper_to(directory_target(tmp_path / "store"), tmp_path, concurrency=1)) as shipper:
        await until(lambda: shipper.counts.sent == 3 and shipper.counts.failures["failed"] >= 2)
    assert len(named(lines, "ship.failed")) == 1


async def test_a_store_that_gives_back_something_else_is_told_each_time_and_tried_again(
    tmp_path: Path, lines: list[Any], opened: list[type[DirectoryStore]]
) -> None:
    """Each object that differs is a fact of its own."""

    class Rotten(DirectoryStore):
        def get(self, key: str) -> Iterator[bytes]:
            for block in super().get(key):
                yield block[:-1] + b"X"

    opened[0] = Rotten
    fill(tmp_path, 1)
    target = directory_target(tmp_path / "store")
    async with running(shipper_to(target, tmp_path)) as shipper:
        await until(lambda: shipper.counts.failures["differs"] >= 2)
        assert len(named(lines, "ship.differs")) >= 2
        assert held(tmp_path, target) == []
        opened[0] = DirectoryStore
        await until(lambda: shipper.counts.sent == 1)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Return a directory on a disk of 1 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m,nr_inodes=1k", "none", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("cannot mount a small disk")
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)


async def test_a_full_disk_is_told_once_and_what_is_in_the_store_is_not_sent_again(
    tmp_path: Path, small_disk: Path, lines: list[Any], opened: list[type[DirectoryStore]]
) -> None:
    """The receipts find no room; the attempts become rare."""
    written: list[str] = []

    class Recorded(DirectoryStore):
        def put(self, key: str, blocks: Iterable[bytes], size: int) -> None:
            super().put(key, blocks, size)
            written.append(key)

    opened[0] = Recorded
    target, filler = directory_target(tmp_path / "store"), small_disk / "filler"
    fill(small_disk, 3)
    with suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    async with running(shipper_to(target, small_disk, concurrency=1)) as shipper:
        await until(lambda: shipper.counts.failures["failed"] >= 3)
        assert shipper.outage.error is None
        filler.unlink()
        await until(lambda: shipper.counts.sent == 3)
    assert_shipped(small_disk, target, open_store(target))
    assert len({line["bundle"] for line in named(lines, "ship.failed")}) == len(named(lines, "ship.failed"))
    objects = [key for key in written if key.startswith("objects")]
    assert len(objects) == len(set(objects)) == 3


async def test_a_directory_of_bundles_that_is_not_there_is_told_and_looked_for_again(
    tmp_path: Path, lines: list[Any]
) -> None:
    """The daemon may not have started yet."""
    target = directory_target(tmp_path / "store")
    async with running(shipper_to(target, tmp_path / "state")) as shipper:
        await until(lambda: named(lines, "ship.failed"))
        fill(tmp_path / "state", 1)
        await until(lambda: shipper.counts.sent == 1)


async def test_a_look_at_many_shipped_bundles_reads_none_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If nothing has changed, neither manifests nor receipts are read."""
    fill(tmp_path, 20)
    shipper = shipper_to(directory_target(tmp_path / "store"), tmp_path)
    await shipper.look()
    await shipper.send_due()
    assert len((await shipper.look()).shipped) == 20

    def refuse(*_arguments: Any) -> None:
        raise AssertionError

    monkeypatch.setattr("ergo_capture.bundle.receipt.read_receipt", refuse)
    monkeypatch.setattr("ergo_capture.bundle.catalogue.read_manifest", refuse)
    assert len((await shipper.look()).shipped) == 20


async def test_a_sent_bundle_leaves_the_plan_as_it_is_for_the_others(tmp_path: Path) -> None:
    """The plan is not made again for each bundle: with many of them that would take most of the time."""
    fill(tmp_path, 20)
    shipper = shipper_to(directory_target(tmp_path / "store"), tmp_path)
    plan = await shipper.look()
    due = plan.due
    assert len(due) == 20
    await shipper.send_due()
    assert shipper.plan is plan
    assert shipper.plan.due is due
    assert not due


async def test_stopping_ends_the_pause(tmp_path: Path) -> None:
    """The length of the back-off does not matter."""
    target = directory_target(tmp_path / "store")
    (tmp_path / "store").rmdir()
    fill(tmp_path, 1)
    began = time.monotonic()
    async with running(shipper_to(target, tmp_path)) as shipper:
        await until(lambda: shipper.outage.error is not None)
    assert time.monotonic() - began < 30
    assert len(listed(tmp_path)) == 1
