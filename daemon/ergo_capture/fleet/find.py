"""Query the catalogue for bundles.

The files of the dates in question are copied to a cache; a file is copied again only when it has changed.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable, Mapping
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import msgspec

from ergo_capture.errors import ErgoCaptureError, ExitCode
from ergo_capture.fleet.catalogue import COLUMNS, import_duckdb, part_key, rows_in
from ergo_capture.objects.directory import DirectoryStore
from ergo_capture.objects.keys import CATALOGUE
from ergo_capture.objects.port import ObjectStore
from ergo_capture.storage.atomic import AtomicFile, create_parents

#: How many rows are fetched at a time.
_ROWS: Final = 1000


class Query(msgspec.Struct, frozen=True, kw_only=True):
    """A query for bundles: those that fulfil every condition that is given."""

    #: The bundle ended at ``since`` or later, and before ``until``.
    since: datetime | None = None
    until: datetime | None = None
    graph: str | None = None
    host: str | None = None
    session: str | None = None
    ended: str | None = None
    labels: Mapping[str, str] = {}
    #: A condition in SQL over the catalogue's columns.
    where: str = ""
    #: The largest number of rows; None for all.
    limit: int | None = None


def parts_for(store: ObjectStore, query: Query, cache: Path) -> list[Path]:
    """Return the files of the dates that a query needs, copied to the cache if the store is remote.

    Args:
        store: the store.
        query: the query.
        cache: a directory for this store's files.

    Raises:
        StoreError: the store does not answer.
        CaptureWriteError: the cache cannot be written.
    """
    dates = [name.removeprefix("date=") for name in store.folders(CATALOGUE) if name.startswith("date=")]
    first = "" if query.since is None else query.since.astimezone(UTC).date().isoformat()
    # A bundle without a time of end has the date 0001-01-01, and is older than any other.
    last = "9999" if query.until is None else query.until.astimezone(UTC).date().isoformat()
    return [part for date in dates if first <= date <= last and (part := _part(store, date, cache)) is not None]


def find(parts: Iterable[Path], query: Query) -> Generator[dict[str, Any]]:
    """Yield the rows that match a query, the oldest first; times are in UTC.

    A condition in SQL can read nothing but the catalogue.

    Args:
        parts: the catalogue's files.
        query: the query.

    Raises:
        ErgoCaptureError: the condition is wrong, a file of the catalogue is damaged, or the extra is not installed.
    """
    duckdb = import_duckdb()
    files = list(parts)
    if not files:
        return
    conditions, values = _conditions(query)
    limit = "" if query.limit is None else f" LIMIT {query.limit}"
    with closing(duckdb.connect()) as database:
        try:
            database.execute("SET allowed_paths = $files", {"files": list(map(str, files))})
            database.execute("SET enable_external_access = false")
            database.execute("SET lock_configuration = true")
            cursor = database.execute(
                f"SELECT {', '.join(COLUMNS)} FROM {rows_in(files)} AS bundles{conditions} "
                f"ORDER BY ended_at, host, session, part{limit}",
                values,
            )
            while rows := cursor.fetchmany(_ROWS):
                for row in rows:
                    yield {name: _with_zone(value) for name, value in zip(COLUMNS, row, strict=True)}
        except duckdb.Error as error:
            raise _failed(error, query) from error


def _part(store: ObjectStore, date: str, cache: Path) -> Path | None:
    key = part_key(date)
    if isinstance(store, DirectoryStore):
        path = store.root / key
        return path if path.exists() else None
    info = store.head(key)
    if info is None:
        return None
    path = cache / key
    modified = info.modified.timestamp()
    try:
        status = path.stat()
    except OSError:
        status = None
    # The copy has the time of the object: with the same size and time it is that of the current object.
    if status is None or (status.st_size, int(status.st_mtime)) != (info.size, int(modified)):
        create_parents(path)
        with AtomicFile(path, what="catalogue") as file:
            for block in store.get(key):
                file.write(block)
            file.commit()
        os.utime(path, (modified, modified))
    return path


def _conditions(query: Query) -> tuple[str, dict[str, Any]]:
    """Return the WHERE clause, and the values of its parameters."""
    conditions, values = [], {}
    for name in ("graph", "host", "session", "ended"):
        value = getattr(query, name)
        if value is not None:
            conditions.append(f"{name} = ${name}")
            values[name] = value
    for name, sign in (("since", ">="), ("until", "<")):
        value = getattr(query, name)
        if value is not None:
            conditions.append(f"ended_at {sign} ${name}")
            values[name] = value.astimezone(UTC).replace(tzinfo=None)
    for number, (key, value) in enumerate(query.labels.items()):
        conditions.append(f"labels[$key{number}] = $value{number}")
        values |= {f"key{number}": key, f"value{number}": value}
    if query.where:
        # Put it on lines of its own: it may end in a comment.
        conditions.append(f"(\n{query.where}\n)")
    return " WHERE " + " AND ".join(conditions) if conditions else "", values


def _with_zone(value: Any) -> Any:
    return value.replace(tzinfo=UTC) if isinstance(value, datetime) else value


def _failed(error: Exception, query: Query) -> ErgoCaptureError:
    text = str(error).split("\n", 1)[0]
    if query.where:
        return ErgoCaptureError(
            f"query the catalogue for bundles where {query.where}: {text}",
            op="find bundles",
            hint=f"write a condition in SQL over {', '.join(COLUMNS)}",
            exit_code=ExitCode.USAGE,
        )
    return ErgoCaptureError(
        f"read the catalogue: {text}",
        op="find bundles",
        hint="`ergo-capture fleet index` writes a damaged file of it again",
    )
