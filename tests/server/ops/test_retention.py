"""The bundles that retention selects are deleted, and nothing else is."""

from __future__ import annotations

import errno
import json
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import anyio
import pytest
import structlog
from tests.bundles import DAY, NOW, store
from tests.daemons import PATIENCE, configured, event, running_daemon
from tests.doubles.faulty_storage import FaultyStorage

from ergo_capture.bundle.catalogue import Catalogue, StoredBundle, difference_from_manifest
from ergo_capture.bundle.names import index_path, manifest_path, rest_path
from ergo_capture.bundle.reader.opening import list_files
from ergo_capture.bundle.receipt import receipt_path
from ergo_capture.bundle.retention import Bounds, RetentionRules
from ergo_capture.config import parse
from ergo_capture.errors import ErgoCaptureError
from ergo_capture.repair.doctor import diagnose
from ergo_capture.server import publisher as publisher_module
from ergo_capture.server.factories import retention_rules
from ergo_capture.server.ops.pruner import Pruner
from ergo_capture.server.ops.reload import Reloader
from ergo_capture.server.ops.retention import ClockWatch, Retention
from ergo_capture.server.session.parts import utc_now
from ergo_capture.storage import RealStorage, StorageError, directory_lock

OLD = RetentionRules(Bounds(max_age=DAY))
ONE = RetentionRules(Bounds(max_bundles=1))
WEEK = 7 * DAY


def prune(state: Path, rules: RetentionRules = OLD, **options: Any) -> list[tuple[str, str | None]]:
    """Prune; return the names of the bundles, each with the reason for which it was kept."""
    steps = Pruner(state, RealStorage()).prune(rules, now=NOW, **options)
    return [(step.choice.bundle.path.name.partition(".")[0], step.kept) for step in steps]


def newest(state: Path, graph: str = "g", **options: Any) -> None:
    """Store a young bundle: the newest of a graph is never deleted."""
    store(state, "newest", graph=graph, age=timedelta(0), **options)


def names(state: Path) -> list[str]:
    """Return the names of all files below the bundles' directory, but for those of ``newest``."""
    files = [path.name for path in (state / "bundles").rglob("*") if path.is_file() or path.is_symlink()]
    return sorted(name for name in files if not name.startswith("newest."))


def test_a_bundle_and_its_manifest_are_deleted_together(tmp_path: Path) -> None:
    """Others are left as they are."""
    store(tmp_path, "old", age=WEEK)
    store(tmp_path, "packed", age=WEEK, compress=True)
    store(tmp_path, "new", age=DAY / 2)
    assert prune(tmp_path) == [("old", None), ("packed", None)]
    assert names(tmp_path) == ["new.capture.json", "new.manifest.json"]
    assert prune(tmp_path) == []


def test_events_that_were_left_over_go_with_their_bundle(tmp_path: Path) -> None:
    """Those of another bundle stay."""
    rest_path(store(tmp_path, "old", age=WEEK)).write_bytes(b"{}\n")
    packed = store(tmp_path, "packed", age=WEEK, compress=True)
    rest_path(packed).write_bytes(b"{}\n")
    index_path(packed).write_bytes(b"{}\n")
    rest_path(store(tmp_path, "new", age=DAY / 2)).write_bytes(b"{}\n")
    newest(tmp_path)
    prune(tmp_path)
    assert names(tmp_path) == ["new.capture.json", "new.manifest.json", "new.rest.jsonl"]


def test_unfinished_and_changed_bundles_are_kept(tmp_path: Path) -> None:
    """A snapshot, a bundle without a manifest, and, named with the reason, what is not as its manifest says."""
    store(tmp_path, "snapshot", age=WEEK, ended="open")
    manifest_path(store(tmp_path, "bare", age=WEEK)).unlink()
    changed = store(tmp_path, "changed", age=WEEK)
    changed.write_bytes(changed.read_bytes().replace(b"e0", b"e9", 1))
    cut = store(tmp_path, "cut", age=WEEK)
    os.truncate(cut, 10)
    linked = store(tmp_path, "linked", age=WEEK)
    linked.rename(tmp_path / "elsewhere")
    linked.symlink_to(tmp_path / "elsewhere")
    manifest_path(store(tmp_path, "garbled", age=WEEK)).write_bytes(b"{")
    store(tmp_path, "timeless", age=WEEK, ended_at="yesterday")
    newest(tmp_path)
    before = names(tmp_path)
    assert sorted(prune(tmp_path)) == [
        ("changed", "its SHA-256 differs from its manifest"),
        ("cut", f"10 bytes, and {changed.stat().st_size} by its manifest"),
        ("garbled", "manifest unreadable"),
        ("linked", "not a plain file"),
        ("timeless", "manifest says no time of its end"),
    ]
    assert names(tmp_path) == before
    assert (tmp_path / "elsewhere").exists()


def test_another_bundle_is_deleted_in_place_of_an_unsound_one(tmp_path: Path) -> None:
    """The bound holds for sound bundles; the unsound one is read and reported once."""
    for number in range(4):
        store(tmp_path, f"b{number}", age=(9 - number) * DAY)
    bad = tmp_path / "bundles" / "g" / "b0.capture.json"
    bad.write_bytes(bad.read_bytes().replace(b"e0", b"e9", 1))
    pruner = Pruner(tmp_path, RealStorage())
    rules = RetentionRules(Bounds(max_bundles=2))
    steps = [(s.choice.bundle.path.name[:2], s.kept is None) for s in pruner.prune(rules, now=NOW)]
    assert steps == [("b0", False), ("b1", True)]
    assert list(pruner.prune(rules, now=NOW)) == []


def test_many_unsound_bundles_do_not_cost_a_list_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are all found in the same list; a second one shows whether others have to be deleted in their place."""
    for number in range(8):
        path = store(tmp_path, f"b{number}", age=(20 - number) * DAY)
        if number % 2 == 0:
            path.write_bytes(path.read_bytes().replace(b"e0", b"e9", 1))
    newest(tmp_path)
    pruner = Pruner(tmp_path, RealStorage())
    read, listed = pruner.catalogue.read, 0

    def count() -> list[StoredBundle]:
        nonlocal listed
        listed += 1
        return read()

    monkeypatch.setattr(pruner.catalogue, "read", count)
    steps = [(s.choice.bundle.path.name[:2], s.kept is None) for s in pruner.prune(OLD, now=NOW)]
    assert steps == [(f"b{number}", number % 2 == 1) for number in range(8)]
    assert listed == 2


def test_a_dry_run_reports_the_same_and_deletes_nothing(tmp_path: Path) -> None:
    """This includes unsound bundles."""
    store(tmp_path, "old", age=WEEK)
    bad = store(tmp_path, "bad", age=WEEK)
    bad.write_bytes(bad.read_bytes().replace(b"e0", b"e9", 1))
    newest(tmp_path)
    before = names(tmp_path)
    said = prune(tmp_path, dry_run=True)
    assert names(tmp_path) == before
    assert said == prune(tmp_path)
    assert [name for name, kept in said if kept is None] == ["old"]


def test_only_the_named_graph_is_pruned(tmp_path: Path) -> None:
    """No other graph is affected."""
    for graph, name in (("a", "one"), ("b", "two")):
        store(tmp_path, name, graph=graph, age=WEEK)
        newest(tmp_path, graph)
    assert prune(tmp_path, graph="b") == [("two", None)]


CALLS = ["rename", "sync_dir", "remove", "remove"]


@pytest.mark.parametrize("call", range(len(CALLS)))
@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES])
def test_a_crash_between_any_two_steps_is_finished_by_the_next_round(tmp_path: Path, call: int, number: int) -> None:
    """A bundle without its manifest is never left."""
    bundle = store(tmp_path, "old", age=WEEK)
    newest(tmp_path)
    before = [sum(other == CALLS[call] for other in CALLS[:call])]
    storage = FaultyStorage({CALLS[call]: [*([None] * before[0]), number]})
    with pytest.raises(StorageError):
        list(Pruner(tmp_path, storage).prune(OLD, now=NOW))
    if bundle.exists():
        found = {path.name for path in bundle.parent.iterdir()}
        assert found & {"old.manifest.json", "old.manifest.json.pruning"}
    assert prune(tmp_path) == ([("old", None)] if call == 0 else [])
    assert names(tmp_path) == []


def test_each_deletion_that_a_crash_interrupted_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those before it may be no manifests, of another bundle, or in a directory that is locked."""
    monkeypatch.setattr("ergo_capture.storage.lock._PATIENCE", 0.05)
    marked = {}
    for graph, name in (("a", "locked"), ("g", "b"), ("g", "c")):
        manifest = manifest_path(store(tmp_path, name, graph=graph, age=WEEK))
        marked[name] = manifest.rename(manifest.with_name(manifest.name + ".pruning"))
    (tmp_path / "bundles" / "g" / "a.manifest.json.pruning").write_bytes(b"{}")
    other = tmp_path / "bundles" / "g" / "b.capture.json"
    other.write_bytes(other.read_bytes().replace(b"e0", b"e9", 1))
    with directory_lock(tmp_path / "bundles" / "a"):
        Pruner(tmp_path, RealStorage()).finish_begun()
    assert names(tmp_path) == [
        *("a.manifest.json.pruning", "b.capture.json", "b.manifest.json"),
        *("locked.capture.json", "locked.manifest.json.pruning"),
    ]


def test_a_bundle_published_again_after_a_crash_is_kept(
    tmp_path: Path,
) -> None:
    """Recovery published it with a new manifest while the old one was marked for deletion."""
    bundle = store(tmp_path, "old", age=WEEK)
    manifest = manifest_path(bundle)
    manifest.rename(manifest.with_name(manifest.name + ".pruning"))
    again = store(tmp_path, "old", age=DAY / 2)
    index_path(again).write_bytes(b"{}")
    assert prune(tmp_path) == []
    assert names(tmp_path) == ["old.capture.json", "old.index.json", "old.manifest.json"]


def test_another_bundle_in_place_of_one_being_deleted_is_kept(tmp_path: Path) -> None:
    """Its bytes differ from the marked manifest, which is restored, and it is reported."""
    bundle = store(tmp_path, "old", age=WEEK)
    manifest = manifest_path(bundle)
    manifest.rename(manifest.with_name(manifest.name + ".pruning"))
    bundle.write_bytes(bundle.read_bytes().replace(b"e0", b"e9", 1))
    newest(tmp_path)
    assert [kept is None for _, kept in prune(tmp_path)] == [False]
    assert names(tmp_path) == ["old.capture.json", "old.manifest.json"]


@pytest.mark.parametrize("text", [b"", b"{}", b"\xff", b'{"bundle": "../../../lock"}'])
def test_a_marked_file_that_is_not_a_manifest_is_ignored(tmp_path: Path, text: bytes) -> None:
    """Nothing is deleted because of it."""
    place = tmp_path / "bundles" / "g"
    place.mkdir(parents=True)
    (place / "x.manifest.json.pruning").write_bytes(text)
    (tmp_path / "lock").write_bytes(b"1\n")
    assert prune(tmp_path) == []
    assert (tmp_path / "lock").exists()
    assert names(tmp_path) == ["x.manifest.json.pruning"]


def test_a_marked_manifest_cannot_name_a_file_elsewhere(tmp_path: Path) -> None:
    """It refers to the bundle beside it."""
    bundle = store(tmp_path, "x", age=WEEK, bundle="../../lock")
    manifest = manifest_path(bundle)
    manifest.rename(manifest.with_name(manifest.name + ".pruning"))
    (tmp_path / "lock").write_bytes(b"1\n")
    prune(tmp_path)
    assert (tmp_path / "lock").exists()
    assert bundle.exists()


def test_two_pruners_at_once_do_not_interfere(tmp_path: Path) -> None:
    """The daemon and the command take steps in turn."""
    for number in range(6):
        store(tmp_path, f"b{number}", age=WEEK)
    newest(tmp_path)
    one, other = (Pruner(tmp_path, RealStorage()).prune(OLD, now=NOW) for _ in range(2))
    for step in one:
        assert step.kept is None
        next(other, None)
    assert list(other) == []
    assert names(tmp_path) == []


@pytest.mark.parametrize("changed", [b"e0", b"e9"])
def test_a_bundle_published_again_while_it_is_read_is_kept(
    changed: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A session that was published at a stop goes on: what was read is not what would be deleted."""
    old = store(tmp_path, "old", age=WEEK, ended="interrupted")
    text = old.read_bytes()

    def publish_meanwhile(bundle: StoredBundle) -> str | None:
        found = difference_from_manifest(bundle)
        old.unlink()
        manifest_path(old).unlink()
        store(tmp_path, "old", age=DAY / 2, text=text.replace(b"e0", changed))
        return found

    monkeypatch.setattr("ergo_capture.server.ops.pruner.difference_from_manifest", publish_meanwhile)
    assert prune(tmp_path) == []
    assert names(tmp_path) == ["old.capture.json", "old.manifest.json"]


def test_bundles_are_deleted_several_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A listing of the directory and a sync for each bundle take ever longer the more bundles there are."""
    for number in range(100):
        bundle = store(tmp_path, f"b{number}", age=WEEK)
        receipt_path(bundle, "archive").write_bytes(b"{}")
    newest(tmp_path)
    calls: list[str] = []
    real_scan = os.scandir

    def scan(path: Any) -> Any:
        calls.append("list")
        return real_scan(path)

    class Counting(RealStorage):
        def sync_dir(self, path: Path) -> None:
            calls.append("sync")
            super().sync_dir(path)

    monkeypatch.setattr(os, "scandir", scan)
    monkeypatch.setattr("ergo_capture.server.ops.pruner._TOGETHER_SECONDS", 60)
    assert len(list(Pruner(tmp_path, Counting()).prune(OLD, now=NOW))) == 100
    assert calls.count("sync") == 2
    assert calls.count("list") < 10
    assert names(tmp_path) == []


def test_the_directorys_lock_is_left_free_between_deletions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A publication waits for a few bundles to be deleted, and not for all of them."""
    for number in range(12):
        store(tmp_path, f"b{number:02}", age=WEEK)
    newest(tmp_path)

    left: list[int] = []

    def publish() -> None:
        with directory_lock(tmp_path / "bundles" / "g") as alone:
            left.append(len(names(tmp_path)) if alone else 0)

    publication = threading.Thread(target=publish)

    class Slow(RealStorage):
        def replace(self, source: Path, destination: Path) -> None:
            if publication.ident is None:
                publication.start()
            time.sleep(0.03)
            super().replace(source, destination)

    # All are read at once, and deleted one at a time.
    monkeypatch.setattr("ergo_capture.server.ops.pruner._TOGETHER_SECONDS", 0.02)
    assert len(list(Pruner(tmp_path, Slow()).prune(OLD, now=NOW))) == 12
    publication.join(PATIENCE)
    assert left
    assert left[0] >= 2 * 10


def test_bundles_that_take_long_go_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is read, and deleted under a lock of its own; those of all graphs go in the same round."""
    for graph in ("a", "b"):
        for number in range(3):
            store(tmp_path, f"{graph}{number}", graph=graph, age=WEEK)
        newest(tmp_path, graph)
    monkeypatch.setattr("ergo_capture.server.ops.pruner._TOGETHER_SECONDS", -1)
    assert len(prune(tmp_path)) == 6
    assert names(tmp_path) == []


def test_the_bundles_of_all_graphs_go_in_one_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that are read together are deleted directory by directory."""
    for number in range(6):
        store(tmp_path, f"b{number}", graph="ab"[number % 2], age=(20 - number) * DAY)
    for graph in ("a", "b"):
        newest(tmp_path, graph)
    monkeypatch.setattr("ergo_capture.server.ops.pruner._TOGETHER_SECONDS", 60)
    assert prune(tmp_path) == [(f"b{number}", None) for number in range(6)]
    assert names(tmp_path) == []


def test_a_bundle_that_somebody_else_deletes_is_not_reported(tmp_path: Path) -> None:
    """Its manifest is gone when it is to be marked."""
    store(tmp_path, "old", age=WEEK)
    newest(tmp_path)
    assert list(Pruner(tmp_path, FaultyStorage({"rename": [errno.ENOENT]})).prune(OLD, now=NOW)) == []


def test_what_was_begun_is_finished_before_an_error_is_reported(tmp_path: Path) -> None:
    """The log names each bundle that was deleted, also where the next one could not be buried."""
    for number in range(3):
        store(tmp_path, f"b{number}", age=WEEK, sequence=number + 1)
    newest(tmp_path, sequence=9)

    def bury(bundle: Path, reason: str) -> None:
        if bundle.name.startswith("b1"):
            raise ErgoCaptureError("the tombstone cannot be written")

    pruner = Pruner(tmp_path, RealStorage())
    pruner.bury = bury
    steps = pruner.prune(OLD, now=NOW)
    assert next(steps).choice.bundle.path.name == "b0.capture.json"
    with pytest.raises(ErgoCaptureError, match="tombstone"):
        next(steps)
    assert {name.partition(".")[0] for name in names(tmp_path)} == {"b1", "b2"}


async def test_bundles_that_are_published_faster_than_a_tenth_of_the_time_allows_do_not_pile_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pause after a round does not count the time that its deletions took."""
    newest(tmp_path, now=datetime.now(UTC))
    store(tmp_path, "old", age=WEEK, now=datetime.now(UTC))

    class Slow(RealStorage):
        def remove(self, path: Path) -> None:
            time.sleep(0.1)
            super().remove(path)

    pauses: list[float] = []
    real_sleep = anyio.sleep

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)
        await real_sleep(0)

    retention = Retention(Pruner(tmp_path, Slow()), ONE, 0)
    monkeypatch.setattr("ergo_capture.server.ops.retention.anyio.sleep", sleep)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(retention.run)
        with anyio.fail_after(PATIENCE):
            while not pauses:
                await real_sleep(0.01)
        tasks.cancel_scope.cancel()
    assert retention.pruned == 1
    assert pauses[0] < 9 * 0.1


def test_nothing_is_deleted_while_the_directory_is_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody else is publishing; the next round tries again."""
    monkeypatch.setattr("ergo_capture.storage.lock._PATIENCE", 0.05)
    store(tmp_path, "old", age=WEEK)
    newest(tmp_path)
    with directory_lock(tmp_path / "bundles" / "g") as alone:
        assert alone
        assert prune(tmp_path) == []
    assert prune(tmp_path) == [("old", None)]


def test_unreadable_files_do_not_keep_other_bundles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unreadable bundle is reported once; the rest is pruned."""
    unreadable = [store(tmp_path, "a", age=WEEK), manifest_path(store(tmp_path, "b", age=WEEK))]
    (tmp_path / "bundles" / "lost+found").mkdir()
    store(tmp_path, "c", age=WEEK)
    newest(tmp_path)
    real_open, real_scan = os.open, os.scandir

    def refuse(path: Any, *arguments: Any, **options: Any) -> int:
        if path in unreadable:
            raise OSError(errno.EIO, "Input/output error", str(path))
        return real_open(path, *arguments, **options)

    def refuse_scan(path: Any) -> Any:
        if Path(path).name == "lost+found":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real_scan(path)

    monkeypatch.setattr(os, "open", refuse)
    monkeypatch.setattr(os, "scandir", refuse_scan)
    assert sorted(prune(tmp_path)) == [
        ("a", "it cannot be read: Input/output error"),
        ("b", "manifest unreadable"),
        ("c", None),
    ]


class Scarce(RealStorage):
    """A disk whose room is taken up by the files under a directory."""

    def __init__(self, size: int) -> None:
        self.room = size

    def free_bytes(self, path: Path) -> int:
        """Return the free bytes (``Storage``)."""
        return self.room - sum(file.stat().st_size for file in path.rglob("*.capture.json*"))


def test_the_oldest_bundles_are_deleted_until_enough_is_free(tmp_path: Path) -> None:
    """No more are deleted than necessary."""
    size = store(tmp_path, "b0", age=9 * DAY).stat().st_size
    for number in range(1, 5):
        store(tmp_path, f"b{number}", age=(9 - number) * DAY)
    pruner = Pruner(tmp_path, Scarce(5 * size))
    rules = RetentionRules(keep_free_bytes=2 * size - 1)
    assert [s.choice.bundle.path.name[:2] for s in pruner.prune(rules, now=NOW)] == ["b0", "b1"]
    assert list(pruner.prune(rules, now=NOW)) == []


def test_the_configuration_sets_bounds_for_all_graphs_and_for_one() -> None:
    """A setting that is not in a graph's table is taken from [retention]."""
    rules = retention_rules(
        parse(
            '[retention]\nmax_age = "30d"\nmax_bundles = 9\nkeep_free_bytes = "1GiB"\n'
            '[graphs.a]\n[graphs.b]\nretention = { max_age = "0s", max_bytes = "1KiB" }\n',
            "test",
        )
    )
    assert rules.default == Bounds(max_age=30 * DAY, max_bundles=9)
    assert rules.graphs == {"b": Bounds(timedelta(0), 1024, 9)}
    assert rules.keep_free_bytes == 1 << 30
    assert not retention_rules(parse("", "test")).are_set
    assert retention_rules(parse('[retention]\nmax_age = "999999999999d"', "test")).are_set


# --- in the daemon ---


@pytest.fixture
def logged() -> Iterator[list[Any]]:
    """Return the entries that the test logs."""
    with structlog.testing.capture_logs() as entries:
        yield entries


async def until(logged: list[Any], name: str, number: int = 1) -> list[Any]:
    """Wait until so many entries of an event are logged; return them."""
    with anyio.fail_after(PATIENCE):
        while len(found := [entry for entry in logged if entry["event"] == name]) < number:
            await anyio.sleep(0.01)
    return found


async def test_the_daemon_prunes_after_each_publication(logged: list[Any]) -> None:
    """The log says which bundle and why."""
    async with running_daemon("[retention]\nmax_bundles = 2\n") as daemon:
        bundles = []
        for number in range(4):
            async with daemon.session() as wire:
                await wire.say(event("a"), {"type": "close"})
                bundles.append((await wire.until("closed"))["bundle"])
            pruned = await until(logged, "bundle.pruned", max(0, number - 1))
        assert [entry["bundle"] for entry in pruned] == bundles[:2]
        assert {entry["reason"] for entry in pruned} == {"max_bundles"}
        assert sorted(map(str, daemon.bundles())) == sorted(bundles[2:])
        assert not list(daemon.state.rglob("*.pruning"))


async def test_the_daemon_prunes_by_age_some_time_after_its_start_and_keeps_snapshots(tmp_path: Path) -> None:
    """A bundle that expired while the daemon was stopped is deleted once the clock is trusted."""
    now = datetime.now(UTC)
    old = store(tmp_path, "old", graph="default", age=WEEK, now=now)
    store(tmp_path, "last", graph="default", age=WEEK, now=now, sequence=1)
    with structlog.testing.capture_logs() as logged:
        async with running_daemon('[retention]\nmax_age = "1d"\ninterval = "50ms"\n', state=tmp_path) as daemon:
            (pruned,) = await until(logged, "bundle.pruned")
            assert pruned["bundle"] == str(old)
            async with daemon.session() as wire:
                await wire.say(event("a"), {"type": "flush"})
                flushed = await wire.until("flushed")
                assert json.loads(Path(flushed["manifest"]).read_bytes())["ended"] == "open"
                rules = RetentionRules(Bounds(max_age=timedelta(microseconds=1)))
                daemon.service.retention.apply(rules, 0.001)
                await daemon.service.retention.take_round()
                assert Path(flushed["bundle"]).exists()
                await wire.say({"type": "close"})
                closed = await wire.until("closed")
                assert closed["bundle"] == flushed["bundle"]
            await until(logged, "bundle.pruned", 2)
            assert list(map(str, daemon.bundles())) == [closed["bundle"]]


async def test_a_start_finishes_an_interrupted_deletion_without_any_rules(tmp_path: Path) -> None:
    """The rules that began it may be gone from the configuration."""
    manifest = manifest_path(store(tmp_path, "old", age=WEEK))
    manifest.rename(manifest.with_name(manifest.name + ".pruning"))
    async with running_daemon(state=tmp_path):
        with anyio.fail_after(PATIENCE):
            while names(tmp_path):
                await anyio.sleep(0.01)


async def test_a_reload_applies_other_bounds_at_once(tmp_path: Path) -> None:
    """It does not wait for a publication; from then on bundles are compressed."""
    old = store(tmp_path, "old", age=WEEK, now=datetime.now(UTC))
    newest(tmp_path)
    text = '[retention]\nmax_bundles = 1\ninterval = "0s"\n[bundle]\ncompress = "zstd"\n'
    with structlog.testing.capture_logs() as logged:
        async with running_daemon('[retention]\ninterval = "0s"\n', state=tmp_path) as daemon:
            config = configured(daemon.state, daemon.socket, text)
            daemon.service.reloader = Reloader(daemon.service.components, lambda: config)
            assert old.exists()
            assert (await daemon.ask("reload"))["applied"] == ["bundle.compress", "retention.max_bundles"]
            await until(logged, "bundle.pruned")
            assert not old.exists()
            async with daemon.session() as wire:
                await wire.say(event("a"), {"type": "close"})
                assert (await wire.until("closed"))["bundle"].endswith(".capture.json.zst")


async def test_retention_errors_are_logged_once_with_a_hint(tmp_path: Path, logged: list[Any]) -> None:
    """The cases are an unsound bundle, a disk that stays too full, and a disk that fails."""
    bad = store(tmp_path, "bad", age=WEEK)
    bad.write_bytes(bad.read_bytes().replace(b"e0", b"e9", 1))
    store(tmp_path, "old", age=WEEK)
    newest(tmp_path)
    storage = FaultyStorage({"remove": [errno.EIO]})
    rules = RetentionRules(Bounds(max_bundles=1), keep_free_bytes=1 << 62)
    retention = Retention(Pruner(tmp_path, storage), rules, 0)
    for _ in range(3):
        await retention.take_round()
    lines = [entry["event"] for entry in logged]
    assert sorted(lines) == ["bundle.unsound", "retention.failed", "retention.short"]
    assert all(entry["hint"] for entry in logged)
    assert names(tmp_path) == ["bad.capture.json", "bad.manifest.json"]


async def test_rounds_follow_publications_and_the_interval(tmp_path: Path) -> None:
    """Without an interval, only ``look`` starts a round."""
    newest(tmp_path, now=datetime.now(UTC))
    retention = Retention(Pruner(tmp_path, RealStorage()), ONE, 0)
    async with anyio.create_task_group() as tasks:
        store(tmp_path, "first", age=WEEK, now=datetime.now(UTC))
        tasks.start_soon(retention.run)
        await _until_pruned(retention, 1)
        store(tmp_path, "second", age=WEEK, now=datetime.now(UTC))
        retention.look()
        await _until_pruned(retention, 2)
        tasks.cancel_scope.cancel()
    periodic = Retention(Pruner(tmp_path, RealStorage()), ONE, 0.001)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(periodic.run)
        store(tmp_path, "third", age=WEEK, now=datetime.now(UTC))
        await _until_pruned(periodic, 1)
        store(tmp_path, "fourth", age=WEEK, now=datetime.now(UTC))
        await _until_pruned(periodic, 2)
        tasks.cancel_scope.cancel()


async def _until_pruned(retention: Retention, number: int) -> None:
    with anyio.fail_after(PATIENCE):
        while retention.pruned < number:
            await anyio.sleep(0.01)


# --- wrong clocks ---


class Clocks:
    """Two clocks that a test sets, in seconds."""

    def __init__(self) -> None:
        self.wall = 1_000_000.0
        self.steady = 50.0

    def watch(self) -> ClockWatch:
        """Return the watch that compares them."""
        return ClockWatch(lambda: self.wall, lambda: self.steady)

    def go_on(self, seconds: float, jump: float = 0.0) -> None:
        """Let time pass; meanwhile the wall clock may be set forward or back."""
        self.wall += seconds + jump
        self.steady += seconds


@pytest.mark.parametrize("jump", [3 * 365 * 86_400.0, -3 * 365 * 86_400.0])
def test_ages_are_not_judged_for_a_while_after_a_jump(jump: float) -> None:
    """The same holds after a start. Slow corrections are no jump, and after a second jump the time begins again."""
    clocks = Clocks()
    watch = clocks.watch()
    assert watch.seconds_to_wait(600) == 600
    for _ in range(100):
        clocks.go_on(6, jump=0.5)
        assert not watch.has_jumped()
    assert watch.seconds_to_wait(600) == 0
    clocks.go_on(1, jump)
    assert watch.has_jumped()
    assert watch.jump == pytest.approx(jump)
    clocks.go_on(400)
    assert not watch.has_jumped()
    assert watch.seconds_to_wait(600) == pytest.approx(200)
    clocks.go_on(1, -jump)
    assert watch.has_jumped()
    assert watch.seconds_to_wait(600) == pytest.approx(600)


async def test_a_jump_of_the_clock_deletes_nothing_by_age(tmp_path: Path, logged: list[Any]) -> None:
    """The log has one line, and the status says it. Other bounds hold meanwhile, and the age after the interval."""
    clocks = Clocks()
    rules = RetentionRules(Bounds(max_age=DAY, max_bundles=3))
    retention = Retention(Pruner(tmp_path, RealStorage()), rules, 600, clocks.watch())
    now = datetime.now(UTC)
    for number in range(5):
        store(tmp_path, f"b{number}", age=WEEK, now=now, sequence=number + 1)
    newest(tmp_path, now=now, sequence=9)
    clocks.go_on(700, jump=3600)
    await retention.take_round()
    assert [line["event"] for line in logged] == ["retention.held", *["bundle.pruned"] * 3]
    assert {line.get("reason") for line in logged[1:]} == {"max_bundles"}
    assert logged[0]["jump_seconds"] == 3600
    status = retention.status()
    assert status is not None
    assert status.ages_held_seconds == pytest.approx(600)
    clocks.go_on(599)
    await retention.take_round()
    assert len(logged) == 4
    clocks.go_on(1)
    await retention.take_round()
    assert [line["reason"] for line in logged[4:]] == ["max_age", "max_age"]
    assert names(tmp_path) == []


async def test_a_jump_during_a_round_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ages that the round was begun with are wrong: nothing is deleted by them."""
    clocks = Clocks()
    retention = Retention(Pruner(tmp_path, RealStorage()), OLD, 600, clocks.watch())
    now = datetime.now(UTC)
    for number in range(5):
        store(tmp_path, f"b{number}", age=WEEK, now=now, sequence=number + 1)
    newest(tmp_path, now=now, sequence=9)
    clocks.go_on(600)

    def jump(bundle: StoredBundle) -> str | None:
        clocks.go_on(1, jump=86_400)
        return difference_from_manifest(bundle)

    monkeypatch.setattr("ergo_capture.server.ops.pruner.difference_from_manifest", jump)
    await retention.take_round()
    assert retention.pruned == 0
    assert len(names(tmp_path)) == 10


async def test_bundles_of_a_clock_that_was_ahead_do_not_displace_those_after_them(
    monkeypatch: pytest.MonkeyPatch, logged: list[Any]
) -> None:
    """The client was just told the path of its bundle; the log says once that times cannot be right."""
    ahead = True
    monkeypatch.setattr(publisher_module, "utc_now", lambda: "2091-01-01T00:00:00Z" if ahead else utc_now())
    async with running_daemon('[retention]\nmax_bundles = 2\ninterval = "10ms"\n') as daemon:
        closed = []
        for number in range(6):
            ahead = number < 3
            async with daemon.session() as wire:
                await wire.say(event("a"), {"type": "close"})
                closed.append((await wire.until("closed"))["bundle"])
            await until(logged, "bundle.pruned", max(0, number - 1))
            assert Path(closed[-1]).exists()
        assert sorted(map(str, daemon.bundles())) == sorted(closed[-2:])
        assert [line["bundle"] for line in logged if line["event"] == "bundle.pruned"] == closed[:4]
        assert await until(logged, "retention.suspect")


async def test_a_status_says_that_ages_are_not_judged() -> None:
    """This is so after a start; without a bound of age, the status has nothing."""
    async with running_daemon('[retention]\nmax_age = "30d"\n') as daemon:
        assert (await daemon.ask("status"))["status"]["retention"]["ages_held_seconds"] > 500
    async with running_daemon() as daemon:
        assert (await daemon.ask("status"))["status"]["retention"] is None


# --- other disks ---


async def test_a_graphs_directory_may_be_a_link_to_another_disk(tmp_path: Path, logged: list[Any]) -> None:
    """It is published to, listed, swept, examined and pruned like any other, and cleaned after a crash."""
    elsewhere = tmp_path / "disk" / "g"
    elsewhere.mkdir(parents=True)
    state = tmp_path / "state"
    (state / "bundles").mkdir(parents=True)
    (state / "bundles" / "default").symlink_to(elsewhere)
    (elsewhere / "x.capture.json.999999999.0.tmp").write_bytes(b"x")
    manifest = manifest_path(store(state, "begun", graph="default", age=WEEK))
    manifest.rename(manifest.with_name(manifest.name + ".pruning"))
    async with running_daemon("[retention]\nmax_bundles = 1\n", state=state) as daemon:
        assert await until(logged, "temporary.swept")
        for _ in range(2):
            async with daemon.session() as wire:
                await wire.say(event("a"), {"type": "close"})
                closed = await wire.until("closed")
        await until(logged, "bundle.pruned")
        assert sorted(path.name for path in elsewhere.iterdir()) == sorted(
            Path(closed[name]).name for name in ("bundle", "manifest")
        )
    assert [bundle.problem for bundle in Pruner(state, RealStorage()).catalogue.read()] == [None]
    (elsewhere / Path(closed["bundle"]).name).write_bytes(b"{}")
    assert not diagnose(state).sound
    assert list_files(state / "bundles") == sorted((state / "bundles" / "default").iterdir())


def test_only_the_disk_that_is_short_is_pruned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """keep_free_bytes holds for each file system that bundles are on."""
    for graph in ("near", "far"):
        for number in range(3):
            store(tmp_path, f"{graph}{number}", graph=graph, age=(9 - number) * DAY)
    real = Catalogue.read

    def read(catalogue: Catalogue) -> list[StoredBundle]:
        return [replace(b, device=7) if b.graph == "far" else b for b in real(catalogue)]

    class TwoDisks(RealStorage):
        def free_bytes(self, path: Path) -> int:
            return 10 if path.name == "far" else 10**9

    monkeypatch.setattr(Catalogue, "read", read)
    steps = Pruner(tmp_path, TwoDisks()).prune(RetentionRules(keep_free_bytes=1000), now=NOW)
    assert {step.choice.bundle.graph for step in steps} == {"far"}
