"""``ergo-capture send`` with the reference's inputs: drivers' streams and fixtures, as the reference hears them."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.adapter.cases import rows
from tests.daemons import DaemonProcess, command, event, short_directory

from ergo_capture import decode_bundle

HELLO = {"type": "hello", "protocol": "ergo-driver.v0"}
END = {"type": "end"}
BAD = event("bad", payload=[])
FIXTURES = rows("fixtures")
#: Those that the reference ran without an adapter, with the limits that the daemon has by default.
PLAIN = [
    row
    for row in FIXTURES
    if row["capture"] and row["adapter_yaml"] is None and not row["constraints"] and not row["max_events"]
]
REFUSED = [
    row
    for row in FIXTURES
    # Nothing tells that an input whose first line is of no kind was to be a fixture: its lines are rejected one by one.
    if row["name"] != "unknown-kind"
    and ("code: driver.input_invalid" in row["stderr"] or "duplicate_event_id" in row["stderr"])
]


@pytest.fixture(scope="module")
def daemon() -> Iterator[DaemonProcess]:
    """Run one daemon for all tests of this file; each opens its own session."""
    with short_directory() as place, DaemonProcess(place, place / "state") as running:
        yield running.start()


def sent(daemon: DaemonProcess, *frames: Any, text: str | None = None) -> tuple[int, dict[str, Any], str]:
    """Send an input; return the exit code, the summary, and standard error."""
    given = text if text is not None else "".join(json.dumps(frame) + "\n" for frame in frames)
    ran: subprocess.CompletedProcess[str] = command("send", "-", "--json", "--socket", str(daemon.socket), input=given)
    return ran.returncode, json.loads(ran.stdout or "{}"), ran.stderr


def bundles(daemon: DaemonProcess) -> list[Path]:
    """Return all bundles that were published."""
    return list((daemon.state / "bundles").rglob("*.capture.json"))


def ended(summary: dict[str, Any]) -> str:
    """Return how the manifest says that the session ended."""
    return str(json.loads(Path(summary["manifest"]).read_text())["ended"])


def test_a_stream_with_an_end_is_complete(daemon: DaemonProcess) -> None:
    """The summary says it."""
    code, summary, _ = sent(daemon, HELLO, event("a"), END)
    assert (code, summary["ended"], summary["reason"], ended(summary)) == (0, "complete", None, "complete")


def test_a_stream_without_an_end_is_interrupted(daemon: DaemonProcess) -> None:
    """The reason and the exit code are the reference's; nothing is lost."""
    code, summary, said = sent(daemon, HELLO, event("a"))
    assert (code, summary["ended"], summary["reason"]) == (0, "interrupted", "driver_terminated")
    assert (summary["events"], ended(summary)) == (1, "interrupted")
    assert said == ""


@pytest.mark.parametrize("behind", [event("b"), END, HELLO, "x"], ids=["event", "end", "hello", "nonsense"])
def test_frames_after_the_end_are_refused(daemon: DaemonProcess, behind: Any) -> None:
    """Named with their line and counted; the session is interrupted, with the events before."""
    code, summary, said = sent(daemon, HELLO, event("a"), END, behind)
    assert (code, summary["reason"], summary["events"]) == (3, "protocol_violation", 1)
    assert (summary["rejected"], summary["rejections"]) == (1, {"bad_frame": 1})
    assert "in line 4: bad_frame: it came after `end`" in said
    assert ended(summary) == "interrupted"


def test_an_empty_line_after_the_end_interrupts_too(daemon: DaemonProcess) -> None:
    """The reference does the same; the line counts as no event."""
    code, summary, _ = sent(daemon, text=f"{json.dumps(HELLO)}\n{json.dumps(event('a'))}\n{json.dumps(END)}\n\n")
    assert (code, summary["reason"], summary["rejected"]) == (0, "protocol_violation", 0)


def test_what_follows_a_second_hello_is_refused(daemon: DaemonProcess) -> None:
    """The reference reads no further."""
    code, summary, said = sent(daemon, HELLO, event("a"), HELLO, event("b"), END)
    assert (code, summary["reason"], summary["events"], summary["rejected"]) == (3, "protocol_violation", 1, 2)
    assert "it came after a second hello" in said


def test_another_version_of_the_protocol_is_refused(daemon: DaemonProcess) -> None:
    """It is refused before anything is captured, and no bundle is left."""
    before = len(bundles(daemon))
    code, _, said = sent(daemon, {"type": "hello", "protocol": "ergo-driver.v1"}, event("a"), END)
    assert code == 1
    assert "its hello declares the unsupported protocol 'ergo-driver.v1'" in said
    assert len(bundles(daemon)) == before


def test_a_stream_in_the_references_other_shapes_is_sent(daemon: DaemonProcess) -> None:
    """Frames and events as arrays."""
    lines = ['["hello","ergo-driver.v0"]', '["event",["a","Tick",[1,2],"k",{}]]', '["end"]']
    code, summary, said = sent(daemon, text="\n".join(lines))
    assert (code, summary["events"], summary["ended"]) == (0, 1, "complete"), said


@pytest.mark.parametrize("frames", [[], [BAD], [HELLO, END], [HELLO, BAD]])
def test_an_input_of_which_nothing_is_accepted_leaves_no_bundle(daemon: DaemonProcess, frames: list[Any]) -> None:
    """The summary names none."""
    before = len(bundles(daemon))
    code, summary, _ = sent(daemon, *frames)
    assert code == (3 if BAD in frames else 0)
    assert [summary[name] for name in ("events", "bundle", "manifest", "sha256", "bundles")] == [
        0,
        None,
        None,
        None,
        [],
    ]
    assert len(bundles(daemon)) == before


def test_people_are_told_that_there_is_no_bundle(daemon: DaemonProcess) -> None:
    """They are told on standard error; standard output is for paths."""
    ran = command("send", "-", "--socket", str(daemon.socket), input="")
    assert ran.stdout.startswith("0 events, 0 decisions")
    assert len(ran.stdout.splitlines()) == 1
    assert ran.stderr == "no bundle: no event was accepted\n"


@pytest.mark.parametrize("row", PLAIN, ids=lambda row: row["name"])
def test_a_fixture_gives_the_references_events(daemon: DaemonProcess, row: dict[str, Any]) -> None:
    """Ids, kinds, times and payloads, to the byte."""
    code, summary, said = sent(daemon, text=row["fixture"])
    assert code == 0, said
    captured = decode_bundle(Path(summary["bundle"]).read_bytes())
    assert captured.events == decode_bundle(row["capture"].encode()).events


def test_there_are_fixtures_to_compare() -> None:
    """Some that run, some that are refused."""
    assert len(PLAIN) > 1
    assert len(REFUSED) > 1


@pytest.mark.parametrize("row", REFUSED, ids=lambda row: row["name"])
def test_a_fixture_that_the_reference_refuses_is_refused_whole(daemon: DaemonProcess, row: dict[str, Any]) -> None:
    """The code is the reference's; no event is sent, and no bundle is left."""
    before = len(bundles(daemon))
    if not row["fixture"].strip():
        pytest.skip("an empty input holds no events, of whatever form")
    code, _, said = sent(daemon, text=row["fixture"])
    told = next(line.removeprefix("code: ") for line in row["stderr"].splitlines() if line.startswith("code: "))
    assert code == 1, said
    assert f"Error: read fixture 'standard input': {told}: " in said
    assert len(bundles(daemon)) == before


def test_semantic_kinds_of_a_fixture_are_kept(daemon: DaemonProcess) -> None:
    """They are also extracted again; an absent payload becomes an empty object, as in the reference."""
    fixture = (
        '\n{"kind":"episode_start"}\n{"kind":"event","event":{"type":"Command","semantic_kind":"tick"}}\n'
        '{"kind":"event","event":{"type":"Tick","semantic_kind":"tock","payload":{"b":1.0,"a":1}}}'
    )
    code, summary, said = sent(daemon, text=fixture)
    assert code == 0, said
    ran = command("extract", summary["bundle"], "--as", "fixture")
    assert [json.loads(line) for line in ran.stdout.splitlines()[1:]] == [
        {
            "kind": "event",
            "event": {"type": "Command", "id": "fixture_evt_1", "semantic_kind": "tick", "payload": {}},
        },
        {
            "kind": "event",
            "event": {"type": "Pump", "id": "fixture_evt_2", "semantic_kind": "tock", "payload": {"a": 1, "b": 1.0}},
        },
    ]
