"""``fleet index``, ``find`` and ``export`` as they are called."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from tests.fleet.stores import directory_store, manifest_fields, put_manifest
from tests.shared import REPOSITORY

from ergo_capture import manual, read_capture_bundle
from ergo_capture.cli.app import run
from ergo_capture.fleet import catalogue, export
from ergo_capture.objects.keys import object_key

CAPTURE = REPOSITORY / "tests" / "data" / "real" / "ergo-cli" / "cap_ctx.json"


@pytest.fixture
def fleet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an indexed store of four bundles of two hosts."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    store = directory_store(tmp_path / "store")
    put_manifest(store, manifest_fields("one"))
    put_manifest(store, manifest_fields("two", graph="prices", labels={"team": "dev", "it's": 'a "b"'}, after=1))
    put_manifest(store, manifest_fields("three", ended="recovered", lost={"events": 3}, after=2), host="beta")
    put_manifest(store, manifest_fields("three", part=2, bundle="three~2.capture.json", after=3), host="beta")
    assert call(store.root, "index", "--all") == 0
    return store.root


def call(store: Path, command: str, *options: str) -> int:
    """Run a command on a store, with an empty configuration."""
    config = store.parent / "config.toml"
    config.write_text("")
    return run(["fleet", command, "--config", str(config), "--store", store.as_uri(), *options])


def found(fleet: Path, capfd: pytest.CaptureFixture[str], *options: str) -> list[Any]:
    """Return what ``find --json`` prints."""
    capfd.readouterr()
    assert call(fleet, "find", "--json", *options) == 0
    return [json.loads(line) for line in capfd.readouterr().out.splitlines()]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], ["one", "two", "three", "three"]),
        (["--since", "2026-11-21T12:00:00Z"], ["two", "three", "three"]),
        (["--since", "2026-11-21T12:00:01Z", "--until", "2026-11-23"], ["three"]),
        (["--since", "2026-11-21T14:00:00+02:00", "--until", "2026-11-22T12:00:00Z"], ["two"]),
        (["--graph", "prices"], ["two"]),
        (["--host", "beta"], ["three", "three"]),
        (["--session", "three"], ["three", "three"]),
        (["--ended", "recovered"], ["three"]),
        (["--label", "team=dev"], ["two"]),
        (["--label", 'it\'s=a "b"', "--label", "team=dev"], ["two"]),
        (["--label", "team=dev", "--label", "team2=dev"], []),
        (["--where", "lost > 0"], ["three"]),
        (["--where", "part = 2 -- the second"], ["three"]),
        (["--where", "graph = 'prices' OR host = 'beta'", "--ended", "complete"], ["two", "three"]),
        (["--graph", "x' OR '1'='1"], []),
    ],
)
def test_find_prints_the_bundles_that_fulfil_every_option(
    fleet: Path, capfd: pytest.CaptureFixture[str], options: list[str], expected: list[str]
) -> None:
    """Oldest first."""
    assert [row["session"] for row in found(fleet, capfd, *options)] == expected


def test_find_prints_times_in_utc_and_every_column(fleet: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A program reads them."""
    (row,) = found(fleet, capfd, "--session", "two")
    assert (row["ended_at"], row["host"], row["events"]) == ("2026-11-21T12:00:00Z", "alpha", 10)
    assert row["object"] == object_key(row["sha256"], compressed=False)


def test_find_says_that_there_are_more(fleet: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The limit is an option."""
    assert call(fleet, "find", "--limit", "3") == 0
    out, err = capfd.readouterr()
    assert [line.split()[-1] for line in out.splitlines()[1:]] == ["one", "two", "three"]
    assert "there are more: give --limit" in err
    assert "recovered, 3 lost" in out
    assert call(fleet, "find", "--limit", "0") == 0
    assert capfd.readouterr().out.splitlines()[-1].endswith("three~2")


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("nope = 1", "nope"),
        ("1 = 1) UNION ALL SELECT * FROM read_csv('/etc/passwd'", "disabled"),
        ("(SELECT count(*) FROM read_text('/etc/passwd')) > 0", "disabled"),
        ("", ""),
    ],
)
def test_a_condition_reads_nothing_but_the_catalogue(
    fleet: Path, capfd: pytest.CaptureFixture[str], where: str, message: str
) -> None:
    """People paste conditions that others wrote."""
    assert call(fleet, "find", "--where", where) == (2 if where else 0)
    err = capfd.readouterr().err
    assert message in err
    assert ("a condition in SQL over host, session" in err) == bool(where)


@pytest.mark.parametrize("text", ["soon", "99999999999999d", "2026-13-01"])
def test_a_time_that_is_none_is_named(fleet: Path, capfd: pytest.CaptureFixture[str], text: str) -> None:
    """The error shows the valid forms."""
    assert call(fleet, "find", "--since", text) == 2
    assert "--since is a time such as 7d, 2026-11-28" in capfd.readouterr().err


def test_find_without_a_catalogue_names_the_command(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """It is no error: nothing was shipped yet."""
    assert call(directory_store(tmp_path / "store").root, "find") == 0
    assert "run `ergo-capture fleet index`" in capfd.readouterr().err


def test_an_unreadable_manifest_gives_exit_code_3(fleet: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The manifest is named by its URL."""
    key = "manifests/date=2026-11-20/host=alpha/bad.0123456789abcdef.json"
    (fleet / key).write_bytes(b"[]")
    capfd.readouterr()
    assert call(fleet, "index", "--all") == 3
    assert f"{fleet.as_uri()}/{key}" in capfd.readouterr().err


def test_index_looks_at_the_last_days_unless_told_otherwise(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Old dates cost a request each."""
    store = directory_store(tmp_path / "store")
    put_manifest(store, manifest_fields("old", ended_at="2020-01-01T00:00:00Z"))
    put_manifest(store, manifest_fields("new", ended_at=datetime.now(UTC).isoformat()))
    assert call(store.root, "index", "--json") == 0
    assert [json.loads(line)["added"] for line in capfd.readouterr().out.splitlines()] == [1]


# --- export ---


def test_export_writes_one_row_an_event_with_its_decision(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Every field of the bundle is in it."""
    output = tmp_path / "run.parquet"
    assert run(["fleet", "export", str(CAPTURE), "-o", str(output)]) == 0
    assert capfd.readouterr().err == "1 file, 3 events\n"
    table = pq.read_table(output)
    assert table.schema.names == list(export.COLUMNS)
    assert [str(field.type).replace("list<element: string>", "list<string>") for field in table.schema] == list(
        export.COLUMNS.values()
    )
    bundle = read_capture_bundle(CAPTURE)
    for row, event, decision in zip(table.to_pylist(), bundle.events, bundle.decisions, strict=True):
        assert (row["event_id"], row["payload"].encode(), row["payload_hash"]) == (
            event.event_id,
            event.payload,
            event.payload_hash,
        )
        assert (row["at_secs"], row["at_nanos"]) == (event.event_time.secs, event.event_time.nanos)
        assert (row["decision"], row["episode_id"]) == (decision.decision.value, decision.episode_id)
        assert row["effect_hashes"] == [effect.effect_hash for effect in decision.effects]
    assert [row["index"] for row in table.to_pylist()] == [0, 1, 2]


def test_export_of_a_selection_takes_the_bundles_from_the_store(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """One file a bundle, named after host, session and part."""
    import hashlib

    store = directory_store(tmp_path / "store")
    text = CAPTURE.read_bytes()
    sha256 = hashlib.sha256(text).hexdigest()
    put_manifest(store, manifest_fields("a b", part=2, first_event=7, sha256=sha256), host="alpha")
    store.put(object_key(sha256, compressed=False), [text], len(text))
    assert call(store.root, "index", "--all") == 0
    assert call(store.root, "export", "--graph", "flights", "-o", str(tmp_path / "out")) == 0
    (file,) = (tmp_path / "out").iterdir()
    assert file.name == "alpha~a%20b~2.parquet"
    assert pq.read_table(file, columns=["index"])["index"].to_pylist() == [7, 8, 9]


def test_export_refuses_an_object_that_was_changed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The key states its hash; no file is written."""
    store = directory_store(tmp_path / "store")
    fields = manifest_fields("one")
    put_manifest(store, fields)
    store.put(object_key(fields["sha256"], compressed=False), [b"x"], 1)
    assert call(store.root, "index", "--all") == 0
    assert call(store.root, "export", "--graph", "flights", "-o", str(tmp_path / "out")) == 1
    assert "its SHA-256 is" in capfd.readouterr().err
    assert not (tmp_path / "out").exists()


def test_export_takes_captures_or_a_selection(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Both at once are wrong usage, and so are neither."""
    for arguments in ([], [str(CAPTURE), "--graph", "flights"]):
        assert run(["fleet", "export", *arguments, "-o", str(tmp_path / "x")]) == 2
        assert "Name captures, or select bundles" in capfd.readouterr().err


def test_export_leaves_nothing_of_a_bundle_that_does_not_hold_together(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Rows would pair events with decisions of others."""
    fields = json.loads(CAPTURE.read_bytes())
    fields["decisions"][1]["event_id"] = "other"
    bundle = tmp_path / "odd.capture.json"
    bundle.write_text(json.dumps(fields))
    assert run(["fleet", "export", str(bundle), "-o", str(tmp_path / "x.parquet")]) == 1
    assert "decision 'other' does not belong to event 'e2'" in capfd.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["odd.capture.json"]


def test_export_shows_bytes_that_are_not_utf8_as_escapes(tmp_path: Path) -> None:
    """A damaged payload stops no export; ``payload_hash`` is the hash of its bytes."""
    fields = json.loads(CAPTURE.read_bytes())
    fields["events"][1]["payload"] = list(b'{"a":"\xff"}')
    bundle = tmp_path / "odd.capture.json"
    bundle.write_text(json.dumps(fields))
    assert run(["fleet", "export", str(bundle), "-o", str(tmp_path / "x.parquet")]) == 0
    assert pq.read_table(tmp_path / "x.parquet")["payload"].to_pylist()[1] == '{"a":"\\xff"}'


@pytest.mark.parametrize("extra", ["fleet", "arrow"])
def test_a_missing_extra_is_named(
    fleet: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], extra: str
) -> None:
    """The error has the command that installs it."""
    import sys

    monkeypatch.setitem(sys.modules, {"fleet": "duckdb", "arrow": "pyarrow"}[extra], None)
    if extra == "fleet":
        assert call(fleet, "find") == 78
    else:
        assert run(["fleet", "export", str(CAPTURE), "-o", str(fleet / "x")]) == 78
    assert f"pip install 'ergo-capture[{extra}]'" in capfd.readouterr().err


def test_the_manual_lists_the_columns_of_both_files() -> None:
    """They are in order, and have their types."""
    tables = manual.read("fleet").partition("## Proving")[0]
    rows = [line.split("|")[1:3] for line in tables.splitlines() if line.startswith("| `")]
    listed = [(name.strip(" `"), kind.strip()) for name, kind in rows]
    assert listed == [*catalogue.COLUMNS.items(), *export.COLUMNS.items()]
