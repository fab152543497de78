"""``ergo-capture feed`` and ``extract --as``: a capture as a driver's stream, or as a fixture."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from tests.adapter.cases import flight, rows
from tests.cli.test_cli_simulate_host import case_file
from tests.daemons import event, running_daemon

from ergo_capture import decode_bundle
from ergo_capture.adapter.simulate import read_case, simulate
from ergo_capture.cli import app
from ergo_capture.protocol.driver import LineKind, read_driver_line

HELLO = '{"type":"hello","protocol":"ergo-driver.v0"}'
END = '{"type":"end"}'
ADAPTER = {row["name"]: row for row in rows("ingress")}


def hosted(event_id: str, at: int = 0, kind: str | None = "tick", payload: Any = None) -> dict[str, Any]:
    """Return an event frame with a semantic kind."""
    frame = event(event_id, at, payload={} if payload is None else payload)
    if kind is not None:
        frame["event"]["semantic_kind"] = kind
    return frame


def captured(state: Path, frames: Iterable[Any], config: str = "", *, close: bool = True) -> str:
    """Capture events in a session of a new daemon; return the session."""

    async def run() -> str:
        async with running_daemon(config, state) as daemon, daemon.session() as wire:
            frames_ = list(frames)
            await wire.say(*frames_)
            if close:
                await wire.say({"type": "close"})
                await wire.until("closed")
            else:
                await wire.until_ack(len(frames_))
            return str(wire.opened["session"])

    return asyncio.run(run())


def fed(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> list[str]:
    """Run ``feed`` and return the lines that it prints."""
    capsys.readouterr()
    assert app.run(["feed", *arguments]) == code
    return capsys.readouterr().out.splitlines()


def bundle_of(state: Path) -> str:
    """Return the only bundle below a state directory."""
    (found,) = (state / "bundles").rglob("*.capture.json")
    return str(found)


def test_a_session_is_fed_as_it_was_captured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Ids, kinds, times, semantic kinds and payloads, between hello and end."""
    frames = [hosted("a", 1, payload={"x": 1.5}), hosted("b", 2, "tock", {"s": "\n"}), hosted("c", 3)]
    session = captured(tmp_path, frames)
    first, *lines, last = fed(capsys, session, "--state-dir", str(tmp_path))
    assert (first, last) == (HELLO, END)
    assert [json.loads(line) for line in lines] == frames
    assert fed(capsys, bundle_of(tmp_path)) == [first, *lines, last]


def test_events_that_are_only_in_the_journal_are_fed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A session that was never closed, as after a crash."""
    frames = [hosted(f"e{n}", n, "tick" if n % 2 else "tock") for n in range(20)]
    session = captured(tmp_path, frames, close=False)
    lines = fed(capsys, session, "--state-dir", str(tmp_path))
    assert [json.loads(line) for line in lines[1:-1]] == frames


def test_all_parts_of_a_rotated_session_are_fed_in_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Twelve parts, whose names do not sort by number."""
    frames = [hosted(f"e{n}", n) for n in range(24)]

    async def run() -> str:
        async with running_daemon("[rotation]\nmax_events = 2\n", tmp_path) as daemon, daemon.session() as wire:
            for frame in frames:
                await wire.say(frame)
                await wire.stream.send(b"")
                await wire.until("ack")
            await wire.say({"type": "close"})
            await wire.until("closed")
            return str(wire.opened["session"])

    session = asyncio.run(run())
    assert len(list((tmp_path / "bundles").rglob("*.capture.json"))) > 10
    lines = fed(capsys, session, "--state-dir", str(tmp_path))
    assert [json.loads(line) for line in lines[1:-1]] == frames
    next((tmp_path / "bundles").rglob("*~3.capture.json")).unlink()
    assert app.run(["feed", session, "--state-dir", str(tmp_path)]) == 1
    assert "part 3 of" in capsys.readouterr().err


def test_a_feed_may_begin_at_an_event(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It has that event and those after it; for an unknown one it fails, and prints no end."""
    captured(tmp_path, [hosted(name) for name in "abc"])
    lines = fed(capsys, bundle_of(tmp_path), "--from", "b")
    assert [json.loads(line)["event"]["event_id"] for line in lines[1:-1]] == ["b", "c"]
    assert fed(capsys, bundle_of(tmp_path), "--from", "x", code=1) == [HELLO]


def test_a_bundle_alone_has_no_semantic_kinds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its manifest is missing, which is said on standard error."""
    captured(tmp_path, [hosted("a")])
    alone = tmp_path / "alone.json"
    alone.write_bytes(Path(bundle_of(tmp_path)).read_bytes())
    capsys.readouterr()
    assert app.run(["feed", str(alone)]) == 0
    said = capsys.readouterr()
    assert "semantic_kind" not in said.out
    assert said.err.startswith("1 of 1 event without semantic_kind: ")


def test_an_event_that_was_sent_without_a_kind_is_fed_without_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its neighbours keep their kinds; a kind that is not a string counts as none."""
    odd = hosted("c")
    odd["event"]["semantic_kind"] = 3
    captured(tmp_path, [hosted("a"), hosted("b", kind=None), odd, hosted("d", kind="tock")])
    lines = fed(capsys, bundle_of(tmp_path))
    assert [json.loads(line)["event"].get("semantic_kind") for line in lines[1:-1]] == ["tick", None, None, "tock"]


def test_flights_come_back_as_the_lines_that_were_sent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """2,000 of them, each line the same event to the host."""
    _, lines, _ = flight("flights-acc-2000")
    captured(tmp_path, [line.encode() for line in lines[1:-1]])
    found = fed(capsys, bundle_of(tmp_path))
    assert len(found) == len(lines)
    assert [json.loads(line) for line in found] == [json.loads(line) for line in lines]


def test_what_is_fed_gives_the_capture_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The reference's host writes the same bytes from it as from the driver itself."""
    row = ADAPTER["ok-three-events"]
    captured(tmp_path, [line.encode() for line in row["driver_lines"][1:-1]])
    case = json.loads(case_file(row, tmp_path).read_text())
    outcome = simulate(read_case(json.dumps(case | {"driver_lines": fed(capsys, bundle_of(tmp_path))})))
    again = simulate(read_case(json.dumps(case)))
    assert outcome.status == "completed"
    assert outcome.bundle == again.bundle


def test_a_range_is_extracted_as_a_driver_stream(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each event keeps its own semantic kind."""
    captured(tmp_path, [hosted(name, at, kind) for at, (name, kind) in enumerate(zip("abcd", "wxyz", strict=True))])
    capsys.readouterr()
    assert app.run(["extract", bundle_of(tmp_path), "--as", "driver", "--event-id", "b", "--event-id", "d"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == HELLO
    assert [json.loads(line) for line in lines[1:-1]] == [hosted("b", 1, "x"), hosted("d", 3, "z")]
    assert [read_driver_line(line.encode()).kind for line in lines][-1] is LineKind.END


def test_a_range_is_extracted_as_a_fixture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The host makes the same events of it, but for the times, of which standard error speaks."""
    captured(tmp_path, [hosted("a", 0, payload={"x": 1}), hosted("b", 5)])
    fixture = tmp_path / "events.jsonl"
    assert app.run(["extract", bundle_of(tmp_path), "--as", "fixture", "-o", str(fixture)]) == 0
    assert "1 event written without the time" in capsys.readouterr().err
    assert [json.loads(line) for line in fixture.read_text().splitlines()] == [
        {"kind": "episode_start"},
        {"kind": "event", "event": {"type": "Command", "id": "a", "semantic_kind": "tick", "payload": {"x": 1}}},
        {"kind": "event", "event": {"type": "Command", "id": "b", "semantic_kind": "tick", "payload": {}}},
    ]


def test_a_fixture_of_a_graph_without_an_adapter_gives_the_capture_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The fixture goes through the reference's host twice."""
    outcomes = [{"event_id": name, "termination": "Completed"} for name in "ab"]
    first = '{"kind":"event","event":{"type":"Command","id":"a","payload":{"x":[1,2]}}}\n'
    fixture = first + '{"kind":"event","event":{"type":"DataAvailable","id":"b"}}\n'
    case = {"graph_id": "default", "fixture": fixture, "engine_outcomes": outcomes}
    (tmp_path / "case.json").write_text(json.dumps(case))
    for name in ("first", "second"):
        output = tmp_path / f"{name}.capture.json"
        assert app.run(["simulate", str(tmp_path / "case.json"), "-o", str(output)]) == 0
        capsys.readouterr()
        assert app.run(["extract", str(output), "--as", "fixture"]) == 0
        case["fixture"] = capsys.readouterr().out
        (tmp_path / "case.json").write_text(json.dumps(case))
    first_bytes = (tmp_path / "first.capture.json").read_bytes()
    assert (tmp_path / "second.capture.json").read_bytes() == first_bytes
    assert len(decode_bundle(first_bytes).events) == 2
