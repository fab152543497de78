"""The catalogue: every run of ``index`` comes to the same end, whatever ran before it."""

from __future__ import annotations

import secrets
from pathlib import Path

import pytest
from tests.fleet.stores import BEGIN, directory_store, manifest_fields, put_manifest
from tests.seaweed import Seaweed

from ergo_capture.fleet.catalogue import COLUMNS, part_key, row_of
from ergo_capture.fleet.find import Query, find, parts_for
from ergo_capture.fleet.index import IndexedDate, dates_in, index
from ergo_capture.objects.keys import ShippedManifest
from ergo_capture.objects.opening import open_store
from ergo_capture.objects.port import ObjectStore

DATE = BEGIN.date().isoformat()


@pytest.fixture(params=["directory", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    """Return an empty store."""
    if request.param == "directory":
        return directory_store(tmp_path / "store")
    server: Seaweed = request.getfixturevalue("s3")
    return open_store(server.target(f"fleet/{secrets.token_hex(4)}"))


def run(store: ObjectStore) -> list[IndexedDate]:
    """Index all dates."""
    return list(index(store, dates_in(store)))


def sessions(store: ObjectStore, cache: Path) -> list[str]:
    """Return the sessions in the catalogue, oldest first."""
    query = Query()
    return [row["session"] for row in find(parts_for(store, query, cache), query)]


def test_only_new_manifests_are_read_and_the_rest_is_kept(store: ObjectStore, tmp_path: Path) -> None:
    """A second run adds nothing; a late manifest gets into the file of its date."""
    put_manifest(store, manifest_fields("one"))
    put_manifest(store, manifest_fields("two", after=1))
    assert [(each.date, each.added, each.manifests) for each in run(store)] == [
        ("2026-11-20", 1, 1),
        ("2026-11-21", 1, 1),
    ]
    put_manifest(store, manifest_fields("late"), host="beta")
    assert [(each.added, each.removed, each.manifests) for each in run(store)] == [(1, 0, 2), (0, 0, 1)]
    assert [(each.added, each.removed, each.manifests) for each in run(store)] == [(0, 0, 2), (0, 0, 1)]
    assert sessions(store, tmp_path / "cache") == ["one", "late", "two"]


def test_a_run_that_has_nothing_to_add_writes_nothing(tmp_path: Path) -> None:
    """Copies that readers hold stay good."""
    store = directory_store(tmp_path / "store")
    put_manifest(store, manifest_fields("one"))
    run(store)
    before = (store.root / part_key(DATE)).stat()
    run(store)
    after = (store.root / part_key(DATE)).stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


def test_a_manifest_that_is_gone_loses_its_row(tmp_path: Path) -> None:
    """A bucket's lifecycle rule deletes manifests with their bundles."""
    store = directory_store(tmp_path / "store")
    key = put_manifest(store, manifest_fields("one"))
    put_manifest(store, manifest_fields("two"))
    run(store)
    (store.root / key).unlink()
    assert [(each.added, each.removed, each.manifests) for each in run(store)] == [(0, 1, 1)]
    assert sessions(store, tmp_path) == ["two"]


@pytest.mark.parametrize("damage", ["empty", "cut", "overwritten"])
def test_a_damaged_file_is_written_anew(tmp_path: Path, damage: str) -> None:
    """The catalogue holds nothing of its own."""
    store = directory_store(tmp_path / "store")
    for number in range(50):
        put_manifest(store, manifest_fields(f"s{number:02}"))
    run(store)
    path = store.root / part_key(DATE)
    text = path.read_bytes()
    path.write_bytes({"empty": b"", "cut": text[:-9], "overwritten": text[:40] + bytes(200) + text[240:]}[damage])
    assert [each.added for each in run(store)] == [50]
    assert len(sessions(store, tmp_path)) == 50


def test_what_is_no_manifest_is_named_and_has_no_row(tmp_path: Path) -> None:
    """The others of its date do."""
    store = directory_store(tmp_path / "store")
    put_manifest(store, manifest_fields("one"))
    key = f"manifests/date={DATE}/host=alpha/bad.0123456789abcdef.json"
    store.put(key, [b"{}"], 2)
    (indexed,) = run(store)
    assert (indexed.added, [name for name, _ in indexed.unreadable]) == (1, [key])
    assert "missing required field" in indexed.unreadable[0][1]


def test_a_file_of_another_release_has_null_where_it_lacks_a_column(tmp_path: Path) -> None:
    """The index continues that file."""
    import duckdb

    store = directory_store(tmp_path / "store")
    key = put_manifest(store, manifest_fields("one"))
    path = store.root / part_key(DATE)
    path.parent.mkdir(parents=True)
    duckdb.sql(f"COPY (SELECT '{key}' AS manifest, 'old' AS session, 7 AS unknown) TO '{path}' (FORMAT parquet)")
    put_manifest(store, manifest_fields("two"))
    assert [(each.added, each.manifests) for each in run(store)] == [(1, 2)]
    assert sorted(sessions(store, tmp_path)) == ["old", "two"]


def test_a_row_takes_nothing_of_the_wrong_type() -> None:
    """Manifests come from other releases, and from anybody who may write to the store."""
    wrong = {name: {"count": "x"} for name in COLUMNS} | {"events": 1 << 70, "labels": {"a": 1, "b": "c"}}
    row = row_of(ShippedManifest("alpha", "k", wrong), "m")
    assert len(row.pop("manifest_sha256")) == 64
    assert {name: value for name, value in row.items() if value not in (None, 0)} == {
        "host": "alpha",
        "object": "k",
        "manifest": "m",
        "labels": {"b": "c"},
        "compression": "none",
    }


@pytest.mark.parametrize(
    ("ended_at", "expected"),
    [
        ("2026-11-28T01:30:00+02:00", "2026-11-27 23:30:00.000000"),
        ("2026-11-28T01:30:00Z", "2026-11-28 01:30:00.000000"),
        ("9999-12-31T23:59:59-10:00", None),
        ("yesterday", None),
    ],
)
def test_times_are_in_utc(ended_at: str, expected: str | None) -> None:
    """One that has no date there is none."""
    assert row_of(ShippedManifest("alpha", "k", {"ended_at": ended_at}), "m")["ended_at"] == expected
