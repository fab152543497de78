"""Bring the catalogue up to date: add manifests that it does not have, and remove those that are gone.

Indexing is idempotent, also beside another indexing: a date's file is replaced by one with a row for each manifest that
the store lists.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Final, NamedTuple

import msgspec

from ergo_capture.errors import ErgoCaptureError
from ergo_capture.fleet.catalogue import COLUMNS, import_duckdb, part_key, quoted, row_of, rows_in
from ergo_capture.objects.keys import MANIFESTS, decode_shipped_manifest
from ergo_capture.objects.port import ObjectMissing, ObjectStore

_READ_BYTES: Final = 1 << 20
#: How many manifests are requested at once. Each has a few KB: most of the time is spent waiting for the store.
_AT_ONCE: Final = 16
#: How many manifests are read ahead of the one that is written.
_AHEAD: Final = 16 * _AT_ONCE


class IndexedDate(NamedTuple):
    """The result of indexing a date."""

    date: str
    #: The number of rows in its file.
    manifests: int
    added: int
    removed: int
    #: Keys of manifests that could not be read, each with the reason; they have no row.
    unreadable: tuple[tuple[str, str], ...]


def dates_in(store: ObjectStore) -> list[str]:
    """Return the dates of the manifests in a store, in order."""
    return [name.removeprefix("date=") for name in store.folders(MANIFESTS) if name.startswith("date=")]


def index(
    store: ObjectStore, dates: Iterable[str], *, on_manifest: Callable[[], None] = lambda: None
) -> Iterator[IndexedDate]:
    """Bring the files of some dates up to date, and yield the result for each.

    Args:
        store: the store.
        dates: the dates, as ``YYYY-MM-DD``.
        on_manifest: called for each manifest that was read.

    Raises:
        StoreError: the store does not answer; the dates before this one are done.
        ErgoCaptureError: the extra is not installed.
    """
    duckdb = import_duckdb()
    with ThreadPoolExecutor(_AT_ONCE, "manifests") as pool:
        for date in dates:
            with tempfile.TemporaryDirectory(prefix="ergo-capture-index-") as folder:
                yield _index_date(store, date, duckdb, pool, Path(folder), on_manifest)


def _index_date(
    store: ObjectStore,
    date: str,
    duckdb: Any,
    pool: ThreadPoolExecutor,
    folder: Path,
    on_manifest: Callable[[], None],
) -> IndexedDate:
    listed = {info.key for info in store.list(f"{MANIFESTS}/date={date}")}
    known_rows = folder / "known.parquet"
    with duckdb.connect() as database:
        known = _known(store, date, duckdb, database, known_rows)
        missing = sorted(listed - known)
        new_rows = folder / "new.jsonl"
        with new_rows.open("wb") as file:
            unreadable = _write_rows(store, missing, pool, file, on_manifest)
        added, removed = len(missing) - len(unreadable), len(known - listed)
        if added or removed:
            gone = folder / "gone.jsonl"
            gone.write_bytes(b"".join(msgspec.json.encode({"manifest": key}) + b"\n" for key in known - listed))
            part = folder / "part.parquet"
            _write_part(database, known_rows if known else None, new_rows, gone, part)
            store.put(part_key(date), _blocks(part), part.stat().st_size)
    return IndexedDate(date, len(known & listed) + added, added, removed, tuple(unreadable))


def _known(store: ObjectStore, date: str, duckdb: Any, database: Any, path: Path) -> set[str]:
    """Copy a date's file and return the manifests in it; none if there is no such file or it is damaged."""
    try:
        with path.open("wb") as file:
            for block in store.get(part_key(date)):
                file.write(block)
    except ObjectMissing:
        return set()
    try:
        # Decode all columns, so that a damaged file is noticed and written again.
        rows = database.execute(f"SELECT manifest, hash({', '.join(COLUMNS)}) FROM {rows_in([path])}").fetchall()
    except (duckdb.IOException, duckdb.InvalidInputException):
        return set()
    return {key for key, _ in rows}


def _write_rows(
    store: ObjectStore,
    keys: Iterable[str],
    pool: ThreadPoolExecutor,
    file: BinaryIO,
    on_manifest: Callable[[], None],
) -> list[tuple[str, str]]:
    """Write a line of JSON for each manifest, in the order of the keys, and return those that could not be read."""
    unreadable = []
    waiting = iter(keys)
    ahead = [(key, pool.submit(_read_row, store, key)) for key in islice(waiting, _AHEAD)]
    while ahead:
        following = [(key, pool.submit(_read_row, store, key)) for key in islice(waiting, _AHEAD)]
        for key, future in ahead:
            row = future.result()
            if isinstance(row, str):
                unreadable.append((key, row))
            else:
                file.write(row)
            on_manifest()
        ahead = following
    return unreadable


def _read_row(store: ObjectStore, key: str) -> bytes | str:
    """Return a manifest's row as a line of JSON (bytes), or the reason why it has none (str)."""
    try:
        text = b"".join(store.get(key))
    except ObjectMissing:
        return "it is gone"
    try:
        return msgspec.json.encode(row_of(decode_shipped_manifest(text), key)) + b"\n"
    except (ValueError, RecursionError) as error:
        return f"it is not the manifest of a shipped bundle: {error}"


def _write_part(database: Any, known: Path | None, new: Path, gone: Path, part: Path) -> None:
    columns = ", ".join(f"'{name}': '{kind}'" for name, kind in COLUMNS.items())
    rows = f"SELECT * FROM read_json({quoted(new)}, format='newline_delimited', columns={{{columns}}})"
    if known is not None:
        left = f"read_json({quoted(gone)}, format='newline_delimited', columns={{'manifest': 'VARCHAR'}})"
        rows = f"SELECT * FROM {rows_in([known])} ANTI JOIN {left} USING (manifest) UNION ALL BY NAME {rows}"
    try:
        database.execute(
            f"COPY (SELECT {', '.join(COLUMNS)} FROM ({rows}) ORDER BY ended_at, manifest) TO {quoted(part)} "
            "(FORMAT parquet, COMPRESSION zstd)"
        )
    except import_duckdb().Error as error:
        raise ErgoCaptureError(
            f"write the catalogue in '{part.parent}': {error}",
            op="write catalogue",
            path=part.parent,
            hint="set TMPDIR to a directory with room",
        ) from error


def _blocks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while block := file.read(_READ_BYTES):
            yield block
