"""The columns of a bundle that the page is made from."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import pytest
from tests.cli.runs import bundle

from ergo_capture import (
    CapturingSession,
    Constraints,
    EventTime,
    ExternalEvent,
    ExternalEventKind,
    FaultRuntime,
    MemoryDecisionLog,
    encode_bundle,
)
from ergo_capture.bundle.reader.opening import BundleFormatError
from ergo_capture.bundle.reader.stream import open_bundle
from ergo_capture.report.columns import pack_columns


def columns(path: Path) -> dict[str, Any]:
    """Return the columns of a bundle file."""
    with open_bundle(path) as stream:
        found: dict[str, Any] = json.loads(zlib.decompress(pack_columns(stream, {})))
        return found


def deferred(path: Path, times: list[tuple[int, str]]) -> dict[str, Any]:
    """Return the columns of a run that takes one episode a minute."""
    limits = Constraints(max_per_window=1, rate_window=EventTime(60, 0))
    session = CapturingSession("g", limits, MemoryDecisionLog(), FaultRuntime(), "rpv1:none")
    for number, (secs, kind) in enumerate(times):
        session.on_event(ExternalEvent(f"e{number}", ExternalEventKind[kind], EventTime(secs, 0)))
    path.write_bytes(encode_bundle(session.into_bundle()))
    return columns(path)


def test_every_column_has_a_value_for_each_event(tmp_path: Path) -> None:
    """Ten events give ten values in each column."""
    found = columns(bundle(tmp_path / "a.json", effects=True))
    for name in ("secs", "nanos", "id", "kind", "payload", "decision", "episode", "termination", "retries"):
        assert len(found[name]) == 10, name
    assert found["payload"][3] == '{"n": 3}'
    assert found["retries"][4] == 1
    assert found["kinds"][found["kind"][8]] == "Pump"


def test_a_deferred_episode_is_a_span_from_its_event_to_its_run(tmp_path: Path) -> None:
    """An episode that never runs has no end; a Pump that finds nothing due has no span."""
    found = deferred(
        tmp_path / "a.json",
        [(0, "Command"), (1, "Command"), (2, "Command"), (3, "Pump"), (61, "Pump"), (62, "Command")],
    )
    assert found["spans"] == [[1, 4, 0], [2, None, 1], [5, None, 0]]


def test_spans_that_do_not_overlap_share_a_row(tmp_path: Path) -> None:
    """There are as many rows as episodes that wait at once."""
    times = [(0, "Command")]
    for minute in range(1, 6):
        times += [(minute * 60 - 30, "Command"), (minute * 60, "Pump")]
    found = deferred(tmp_path / "a.json", times)
    assert [row for _, _, row in found["spans"]] == [0, 0, 0, 0, 0]
    assert all(ended is not None for _, ended, _ in found["spans"])


def test_an_event_without_a_decision_has_empty_columns(tmp_path: Path) -> None:
    """A bundle may have been cut after its capture."""

    def cut(data: dict[str, list[Any]]) -> None:
        del data["decisions"][7:]

    found = columns(bundle(tmp_path / "a.json", cut))
    assert [found["decisions"][number] for number in found["decision"][7:]] == ["", "", ""]
    assert found["episode"][7:] == [None, None, None]


def test_integers_from_2_to_the_53_are_given_as_text(tmp_path: Path) -> None:
    """JavaScript has no exact integers beyond that."""

    def change(data: dict[str, list[dict[str, Any]]]) -> None:
        data["decisions"][0]["episode_id"] = (1 << 53) - 1
        data["decisions"][1]["episode_id"] = 1 << 53

    assert columns(bundle(tmp_path / "a.json", change))["episode"][:2] == [9007199254740991, "9007199254740992"]


@pytest.mark.parametrize(
    ("secs", "dates"), [(0, False), (946_684_799, False), (946_684_800, True), (7_258_118_399, True), (1 << 40, False)]
)
def test_times_between_2000_and_2200_are_taken_for_dates(tmp_path: Path, secs: int, dates: bool) -> None:
    """Most times of the run must lie there: one at 0 does not turn all others into seconds."""
    assert deferred(tmp_path / "a.json", [(secs, "Command"), (secs, "Command")])["dates"] is dates
    one_at_zero = [(0, "Command"), (secs, "Command"), (secs, "Command")]
    assert deferred(tmp_path / "b.json", one_at_zero)["dates"] is dates
    assert deferred(tmp_path / "c.json", [(0, "Command"), *one_at_zero])["dates"] is False


def test_a_payload_that_is_not_utf8_is_shown_with_its_bytes_escaped(tmp_path: Path) -> None:
    """No daemon accepts one, but a bundle can hold it."""

    def change(data: dict[str, list[dict[str, Any]]]) -> None:
        data["events"][0]["payload"] = [123, 255, 125]

    assert columns(bundle(tmp_path / "a.json", change))["payload"][0] == "{\\xff}"


def test_a_malformed_event_is_an_error(tmp_path: Path) -> None:
    """The message is the one that every reader of bundles has for it."""
    path = bundle(tmp_path / "a.json")
    data = json.loads(path.read_text())
    data["events"][9]["kind"] = "Party"
    path.write_text(json.dumps(data))
    with pytest.raises(BundleFormatError, match="Party"):
        columns(path)
