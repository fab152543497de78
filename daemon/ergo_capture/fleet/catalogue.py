"""The catalogue: one row of Parquet for each manifest in a store, one file for each date.

    catalogue/date=YYYY-MM-DD/part-0.parquet

The date is that of the manifest's key. The catalogue holds nothing of its own: it can be deleted and indexed again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import msgspec

from ergo_capture.extras import import_extra
from ergo_capture.objects.keys import CATALOGUE, ShippedManifest

#: The columns and their types, in the order of the file. ``date`` is in the file's path.
COLUMNS: Final[Mapping[str, str]] = {
    "host": "VARCHAR",
    "session": "VARCHAR",
    "part": "BIGINT",
    "graph": "VARCHAR",
    "ended": "VARCHAR",
    "forced": "BOOLEAN",
    "opened_at": "TIMESTAMP",
    "ended_at": "TIMESTAMP",
    "first_event": "BIGINT",
    "events": "BIGINT",
    "decisions": "BIGINT",
    "refused": "BIGINT",
    "left_over": "BIGINT",
    "lost": "BIGINT",
    "last_event_id": "VARCHAR",
    "sequence": "BIGINT",
    "labels": "MAP(VARCHAR, VARCHAR)",
    "engine": "VARCHAR",
    "decided_by": "VARCHAR",
    "adapter_provenance": "VARCHAR",
    "runtime_provenance": "VARCHAR",
    "program": "VARCHAR",
    "style": "VARCHAR",
    "bytes": "BIGINT",
    "sha256": "VARCHAR",
    "compression": "VARCHAR",
    "file_bytes": "BIGINT",
    "file_sha256": "VARCHAR",
    "object": "VARCHAR",
    "manifest": "VARCHAR",
    "manifest_sha256": "VARCHAR",
    "seal": "VARCHAR",
}
#: The range of BIGINT.
_BIGINT: Final = range(-(1 << 63), 1 << 63)
#: The format of DuckDB's timestamps.
_TIMESTAMP: Final = "%Y-%m-%d %H:%M:%S.%f"


def import_duckdb() -> Any:
    """Return the module.

    Raises:
        ErgoCaptureError: the extra is not installed.
    """
    return import_extra("fleet", "duckdb", purpose="open the catalogue")


def part_key(date: str) -> str:
    """Return the key of a date's file."""
    return f"{CATALOGUE}/date={date}/part-0.parquet"


def rows_in(paths: Iterable[Path]) -> str:
    """Return a subquery in SQL for the rows of files; columns that an older release did not write are NULL."""
    none = ", ".join(f"NULL::{kind} AS {name}" for name, kind in COLUMNS.items())
    names = ", ".join(map(quoted, paths))
    return (
        f"(SELECT {none} WHERE false UNION ALL BY NAME "
        f"SELECT * FROM read_parquet([{names}], union_by_name = true, hive_partitioning = false))"
    )


def quoted(path: Path) -> str:
    """Return a path as a string of SQL."""
    return "'" + str(path).replace("'", "''") + "'"


def row_of(shipped: ShippedManifest, key: str) -> dict[str, Any]:
    """Return a manifest's row; fields that its version does not have, or has with another type, are None.

    Args:
        shipped: the manifest's object.
        key: the key of that object.
    """
    fields = shipped.manifest
    row = {name: _CONVERSIONS[kind](fields.get(name)) for name, kind in COLUMNS.items()}
    for name in ("refused", "left_over", "lost"):
        row[name] = _count(fields.get(name))
    # The file of an uncompressed bundle is its text.
    for name, text in (("file_bytes", "bytes"), ("file_sha256", "sha256")):
        row[name] = row[text] if row[name] is None else row[name]
    row["compression"] = row["compression"] or "none"
    return row | {
        "host": shipped.host,
        "object": shipped.key,
        "manifest": key,
        "manifest_sha256": hashlib.sha256(shipped.text).hexdigest(),
        "seal": None if shipped.seal is None else msgspec.json.encode(shipped.seal).decode(),
    }


def _count(value: Any) -> int:
    """Return the number of events in a field of a manifest: a number, or an object that has one."""
    if isinstance(value, dict):
        value = value.get("count", value.get("events"))
    return _integer(value) or 0


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _integer(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value in _BIGINT else None


def _boolean(value: Any) -> bool | None:
    return value if isinstance(value, bool) else None


def _timestamp(value: Any) -> str | None:
    """Return a time in UTC as DuckDB reads it."""
    try:
        found = datetime.fromisoformat(value)
        return (found if found.tzinfo is None else found.astimezone(UTC)).strftime(_TIMESTAMP)
    except (TypeError, ValueError, OverflowError):
        return None


def _labels(value: Any) -> dict[str, str]:
    pairs = value.items() if isinstance(value, dict) else ()
    return {key: text for key, text in pairs if isinstance(text, str)}


_CONVERSIONS: Final = {
    "VARCHAR": _text,
    "BIGINT": _integer,
    "BOOLEAN": _boolean,
    "TIMESTAMP": _timestamp,
    "MAP(VARCHAR, VARCHAR)": _labels,
}
