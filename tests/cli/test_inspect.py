"""``info``, ``cat``, ``tail``, ``diff`` and ``extract`` of bundles, as text and as JSON."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from tests.bundles import small_bundle
from tests.cli.runs import bundle
from tests.daemons import COMMAND, DaemonProcess, command, command_environment, plain, short_directory

from ergo_capture import (
    CapturingSession,
    Constraints,
    EventTime,
    ExternalEvent,
    ExternalEventKind,
    FaultRuntime,
    MemoryDecisionLog,
    encode_bundle,
    read_capture_bundle,
)
from ergo_capture.cli import app
from ergo_capture.client.load import Load


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Return the small run's bundle."""
    return bundle(tmp_path / "a.capture.json", effects=True)


def printed(arguments: list[str], capsys: pytest.CaptureFixture[str], code: int = 0) -> str:
    """Return what a command prints; check its exit code."""
    assert app.run(arguments) == code, capsys.readouterr()
    return plain(capsys.readouterr().out)


def test_info_as_json_has_the_counts(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They are numbers for a program."""
    found = json.loads(printed(["info", str(run), "--json"], capsys))
    assert (found["events"], found["decisions"], found["graph_id"]) == (10, 10, "g")
    assert found["kinds"] == {"Command": 9, "Pump": 1}
    assert sum(found["outcomes"].values()) == 10
    assert (found["retries"], found["most_retries"], found["effects"]) == (1, 1, 1)
    assert (found["first"], found["last"]) == (0, 36_000_000_000)
    assert found["without_payload"] == 1
    assert found["manifest"] is None


def test_deferred_episodes_are_counted_alike(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """``info`` counts as the report does: a Pump that finds nothing due, or puts an episode back, defers none."""
    limits = Constraints(max_per_window=1, rate_window=EventTime(100, 0))
    session = CapturingSession("g", limits, MemoryDecisionLog(), FaultRuntime(), "rpv1:none")
    # One runs, two are deferred; a Pump comes too early; one takes the second; one puts the third back.
    for at, kind in ((0, "Command"), (1, "Command"), (2, "Command"), (3, "Pump"), (100, "Pump"), (102, "Pump")):
        session.on_event(ExternalEvent.mechanical_at(f"e{at}", ExternalEventKind[kind], EventTime(at, 0)))
    path = tmp_path / "a.capture.json"
    path.write_bytes(encode_bundle(session.into_bundle()))
    found = json.loads(printed(["info", str(path), "--json"], capsys))
    assert (found["outcomes"], found["deferred"], found["put_back"], found["idle_pumps"]) == (
        {"Defer": 4, "Invoke": 2},
        2,
        1,
        1,
    )
    assert "4: 2 episodes deferred, 1 put back, 1 idle Pump" in printed(["info", str(path)], capsys)


def test_info_shows_jumps_of_the_clock(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Backward steps, and the longest gap with the event after it."""

    def jump(data: Any) -> None:
        data["events"][5]["event_time"]["secs"] = 3
        data["events"][9]["event_time"]["secs"] = 1000

    said = printed(["info", str(bundle(tmp_path / "a.capture.json", jump))], capsys)
    assert "1 backward, by 13 s at most" in said
    assert "968 s, before event 'e9'" in said


def test_names_from_clients_are_printed_as_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Brackets are no markup, and the terminal gets no control characters."""

    def change(data: Any) -> None:
        data["graph_id"] = "[bold]g \x1b[31mred"
        data["runtime_provenance"] = "[red]rpv1[/green]\x07"
        data["events"][9]["event_id"] = data["decisions"][9]["event_id"] = "[/x]\x1b[2J"
        data["events"][9]["event_time"]["secs"] = 1000
        data["decisions"][9]["interruption"] = "so\x1b[2J"

    path = bundle(tmp_path / "a.capture.json", change)
    assert app.run(["info", str(path)]) == 0
    assert app.run(["cat", str(path)]) == 0
    said = capsys.readouterr().out
    assert "[bold]g " in said
    assert "[red]rpv1[/green]" in said
    assert "before event '[/x]\\x1b[2J'" in said
    assert "interrupted: 'so\\x1b[2J'" in said
    assert "\x1b" not in said
    assert "\x07" not in said


def test_cat_prints_each_event_with_its_decision(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One per line."""
    lines = printed(["cat", str(run)], capsys).splitlines()
    assert len(lines) == 10
    assert lines[4] == "4  16 s  Command  'e4'  Invoke  episode 4  Completed  1 retry  {\"n\": 4}"


@pytest.mark.parametrize(
    ("options", "ids"),
    [
        (["--kind", "Pump"], ["e8"]),
        (["--since", "28"], ["e7", "e8", "e9"]),
        (["--until", "8"], ["e0", "e1"]),
        (["--since", "4", "--until", "8.5"], ["e1", "e2"]),
        (["--event-id", "e3", "--event-id", "e5"], ["e3", "e5"]),
        (["--from-id", "e7", "--to-id", "e8"], ["e7", "e8"]),
        (["--decision", "Skip"], []),
    ],
)
def test_cat_filters(options: list[str], ids: list[str], run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The filters are kind, decision, time, id and range."""
    lines = printed(["cat", str(run), "--json", *options], capsys).splitlines()
    assert [json.loads(line)["event_id"] for line in lines] == ids


@pytest.mark.parametrize("options", [["--kind", "Nope"], ["--since", "noon"], ["--decision", "Maybe"]])
def test_an_invalid_filter_is_a_usage_error(options: list[str], run: Path) -> None:
    """Exit code 2."""
    assert command("cat", str(run), *options).returncode == 2


@pytest.mark.timeout(20)
@pytest.mark.parametrize("name", ["cat", "extract"])
@pytest.mark.parametrize("option", ["--since", "--until"])
@pytest.mark.parametrize("seconds", ["1e99999999", "18446744073709551616", "inf", "nan", "9" * 5000])
def test_a_time_that_no_event_has_is_a_usage_error(
    name: str, option: str, seconds: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is refused at once: as an integer, the first one has a hundred million digits."""
    assert app.run([name, str(run), option, seconds, *(["-o", str(tmp_path / "x")] if name != "cat" else [])]) == 2
    assert "below 2^64" in capsys.readouterr().err


@pytest.mark.parametrize("seconds", ["-1e99999999", "1e-99999999", "-inf"])
def test_a_time_before_all_events_selects_all(seconds: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A negative one, and one below a nanosecond."""
    assert len(printed(["cat", str(run), "--since", seconds], capsys).splitlines()) == 10


def test_cat_into_a_closed_pipe_exits_141(run: Path) -> None:
    """``cat | head -1``: no traceback, and the shell's exit code for it."""
    with subprocess.Popen(
        [*COMMAND, "cat", *[str(run)] * 300], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=command_environment()
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(30) in (0, 141)


def test_tail_prints_the_last_events(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Ten by default, or as many as asked for, after filtering; in the form of ``cat``."""
    everything = printed(["cat", str(run)], capsys).splitlines()
    assert printed(["tail", str(run)], capsys).splitlines() == everything[-10:]
    assert printed(["tail", "-n", "3", str(run)], capsys).splitlines() == everything[-3:]
    assert printed(["tail", "-n", "0", str(run)], capsys) == ""
    json_lines = printed(["cat", str(run), "--json", "--kind", "Pump"], capsys).splitlines()
    assert printed(["tail", str(run), "--json", "--kind", "Pump", "-n", "1"], capsys).splitlines() == json_lines[-1:]


def test_tail_wants_one_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A directory of several is an error that names some; so is following a file."""
    (run.parent / "other.capture.json").write_bytes(run.read_bytes())
    assert app.run(["tail", str(run.parent)]) == 1
    assert "stands for 2 runs" in capsys.readouterr().err
    assert app.run(["tail", "-f", str(run)]) == 1
    assert "only a journal can be followed" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["extract", "simulate"])
def test_a_large_text_into_a_closed_pipe_exits_141(command: str, tmp_path: Path) -> None:
    """``extract | head -1``: the reader has gone, and the shell is told so."""
    events = [{"event_id": f"e{n}", "kind": "Command", "at": {"secs": n, "nanos": 0}} for n in range(5000)]
    scenario = tmp_path / "s.json"
    scenario.write_text(json.dumps({"graph_id": "g", "constraints": {}, "events": events}))
    source = scenario
    if command == "extract":
        source = tmp_path / "b.capture.json"
        assert app.run(["simulate", str(scenario), "-o", str(source)]) == 0
    with subprocess.Popen(
        [*COMMAND, command, str(source)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=command_environment()
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(1)
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(30) == 141


def test_diff_of_a_bundle_with_itself_is_empty(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 0."""
    assert printed(["diff", str(run), str(run)], capsys) == "the same, 10 events\n"


def test_diff_finds_changed_moved_and_missing_events(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Aligned by event id; exit code 4."""

    def change(data: Any) -> None:
        del data["events"][9], data["decisions"][9]
        data["decisions"][1]["termination"] = "Aborted"
        for side in ("events", "decisions"):
            data[side][5], data[side][6] = data[side][6], data[side][5]
        data["runtime_provenance"] = "rpv1:other"

    other = bundle(tmp_path / "b.capture.json", change, effects=True)
    found = json.loads(printed(["diff", str(run), str(other), "--json"], capsys, 4))
    assert (found["common"], found["only_a"], found["only_b"], found["changed"], found["moved"]) == (9, 1, 0, 1, 1)
    assert found["first_only_a"] == ["e9"]
    assert found["first_changed"] == [
        {"event_id": "e1", "field": "decision.termination", "a": "Completed", "b": "Aborted"}
    ]
    assert [one["field"] for one in found["head"]] == ["runtime_provenance"]
    said = printed(["diff", str(run), str(other)], capsys, 4)
    assert 'event \'e1\', decision.termination\n  - "Completed"\n  + "Aborted"' in said
    assert "only in the first: 'e9'" in said


def test_diff_shows_the_first_difference(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The place, the field and both sides, after the three decisions before it."""

    def change(data: Any) -> None:
        data["decisions"][5]["retry_count"] = 2
        data["decisions"][7]["retry_count"] = 2

    other = bundle(tmp_path / "b.capture.json", change, effects=True)
    said = printed(["diff", str(run), str(other)], capsys, 4)
    assert (
        said
        == """10 events in both, 2 of them changed, 0 in another order
0 events only in the first, 0 only in the second
first difference: event 'e5' at place 5: decision.retry_count is 0 in the first and 2 in the second
  before it, the same on both sides:
    2  'e2'  Invoke  episode 2  Completed
    3  'e3'  Invoke  episode 3  Completed
    4  'e4'  Invoke  episode 4  Completed  1 retry
event 'e5', decision.retry_count
  - 0
  + 2
event 'e7', decision.retry_count
  - 0
  + 2
"""
    )


def moved(places: list[int]) -> Any:
    """Return a change that reorders events and decisions."""

    def change(data: Any) -> None:
        for side in ("events", "decisions"):
            data[side] = [data[side][place] for place in places]

    return change


@pytest.mark.parametrize(
    ("places", "count", "ids", "place"),
    [
        ([1, 2, 3, 4, 5, 6, 7, 8, 9, 0], 1, ["e0"], 0),
        ([9, 0, 1, 2, 3, 4, 5, 6, 7, 8], 1, ["e9"], 0),
        ([0, 1, 7, 3, 4, 5, 6, 2, 8, 9], 2, ["e2", "e7"], 2),
    ],
)
def test_diff_counts_the_fewest_moves(
    places: list[int], count: int, ids: list[str], place: int, run: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """One event that went to the other end is one move, not nine; and it is where they part."""
    other = bundle(tmp_path / "b.capture.json", moved(places), effects=True)
    found = json.loads(printed(["diff", str(run), str(other), "--json"], capsys, 4))
    assert (found["moved"], found["first_moved"], found["changed"]) == (count, ids, 0)
    assert place in (found["first"]["a"], found["first"]["b"])


def twice(data: Any) -> None:
    """Repeat an event id; the second event ends differently."""
    data["events"][6]["event_id"] = data["decisions"][6]["event_id"] = "e5"
    data["decisions"][6]["termination"] = "Aborted"


def test_diff_aligns_repeated_ids_in_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They are also aligned after a difference."""
    path = bundle(tmp_path / "a.capture.json", twice)
    assert printed(["diff", str(path), str(path)], capsys) == "the same, 10 events\n"

    def change(data: Any) -> None:
        twice(data)
        data["decisions"][0]["retry_count"] = 1

    found = json.loads(printed(["diff", str(path), str(bundle(tmp_path / "b", change)), "--json"], capsys, 4))
    assert (found["common"], found["changed"], found["only_a"], found["only_b"]) == (10, 1, 0, 0)


def test_diff_reports_an_extra_decision(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The decision has no event."""
    other = bundle(tmp_path / "b", lambda data: data["decisions"].append(data["decisions"][-1]), effects=True)
    found = json.loads(printed(["diff", str(run), str(other), "--json"], capsys, 4))
    assert (found["common"], found["only_b"], found["first_only_b"]) == (10, 1, ["e9"])


def test_extract_keeps_both_outcomes_of_a_repeated_id(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The first completed, and must not get the outcome of the second."""
    path = bundle(tmp_path / "a.capture.json", twice)
    printed(["extract", str(path), "-o", str(tmp_path / "s.json")], capsys)
    assert json.loads((tmp_path / "s.json").read_bytes())["schedule"]["e5"] == ["Completed", "Aborted"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--from-id", "nope"], "there is no event 'nope'"),
        (["--to-id", "nope"], "there is no event 'nope'"),
        (["--from-id", "e5", "--to-id", "e2"], "there is no event 'e2' after 'e5'"),
    ],
)
@pytest.mark.parametrize("name", ["cat", "extract"])
def test_a_range_with_an_unknown_id_is_an_error(
    name: str, options: list[str], says: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The result is neither empty nor everything up to the end."""
    assert app.run([name, str(run), *options]) == 1
    assert says in capsys.readouterr().err


def test_a_complete_extract_simulates_to_the_same_bundle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It has outcomes, retries and episodes that a Pump ran."""
    path = bundle(tmp_path / "a.capture.json")
    printed(["extract", str(path), "-o", str(tmp_path / "s.json")], capsys)
    printed(["simulate", str(tmp_path / "s.json"), "-o", str(tmp_path / "b.capture.json")], capsys)
    assert (tmp_path / "b.capture.json").read_bytes() == path.read_bytes()


def test_extract_writes_a_range(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Only the selected events."""
    printed(["extract", str(run), "--from-id", "e2", "--to-id", "e4", "-o", str(tmp_path / "s.json")], capsys)
    printed(["simulate", str(tmp_path / "s.json"), "-o", str(tmp_path / "b.capture.json")], capsys)
    events = read_capture_bundle(tmp_path / "b.capture.json").events
    assert [record.event_id for record in events] == ["e2", "e3", "e4"]


def test_an_empty_extract_is_an_error(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The error has a hint where to look."""
    assert app.run(["extract", str(run), "--since", "10000"]) == 1
    assert "no event is selected" in capsys.readouterr().err


def test_info_of_a_journal_lists_its_open_sessions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The argument is a journal, or a state directory with its bundles."""
    with short_directory() as place, DaemonProcess(place, place / "state") as daemon:
        daemon.start()
        with Load(daemon.socket, window=16) as load:
            load.run(100)
            daemon.kill()
        found = json.loads(printed(["info", str(place / "state" / "journal"), "--json"], capsys))
        (session,) = found["sessions"]
        assert (session["accepted"], session["graph"], session["ended"]) == (100, "default", None)
        assert not found["sealed"]
        said = printed(["info", str(place / "state")], capsys)
        assert session["session"] in said
        assert "no orderly stop" in said


def test_in_a_pipe_no_line_ends_in_blanks(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They are what fills a table on a terminal."""
    said = printed(["info", str(run)], capsys)
    assert "decisions" in said
    assert [line for line in said.splitlines() if line != line.rstrip()] == []


def test_a_directory_is_no_segment(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The hint names one of its segments."""
    (tmp_path / "0000000000000007.journal").touch()
    assert app.run(["journal", "cat", str(tmp_path)]) == 1
    assert f"it is a directory\nTry: name a file such as {tmp_path}/0000000000000007.journal" in capsys.readouterr().err


def test_cat_of_several_runs_names_their_sessions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An event's id is unique only within its run; for a single run nothing is added."""
    names = ["a", os.fsdecode(b"b\xff")]
    files = [str(bundle(tmp_path / f"{name}.capture.json")) for name in names]
    assert app.run(["cat", *files, "--event-id", "e1"]) == 0
    assert [line.split("  ")[0] for line in capsys.readouterr().out.splitlines()] == ["a", "b\ufffd"]
    assert app.run(["cat", "--json", *files, "--event-id", "e1"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["session"] for line in lines] == ["a", "b\ufffd"]
    assert app.run(["cat", "--json", files[0], "--event-id", "e1"]) == 0
    assert "session" not in json.loads(capsys.readouterr().out)


def with_payload(path: Path, payload: bytes) -> Path:
    """Write the bundle of two events with this payload of the second one, and its hash; return the path."""
    value = json.loads(encode_bundle(small_bundle()))
    value["events"][1] |= {"payload": list(payload), "payload_hash": hashlib.sha256(payload).hexdigest()}
    path.write_text(json.dumps(value, separators=(",", ":")) + "\n")
    return path


NO_PAYLOADS = {
    "not UTF-8": (b'{"a":"\xff"}', '{"a":"\\xff"}'),
    "a surrogate": (b'{"a":"\xed\xa0\x80"}', '{"a":"\\xed\\xa0\\x80"}'),
    "no JSON": (b"zzz", "zzz"),
    "two values": (b"{} {}", "{} {}"),
}


@pytest.mark.parametrize(("payload", "shown"), NO_PAYLOADS.values(), ids=NO_PAYLOADS)
def test_a_payload_that_is_not_json_is_shown(
    payload: bytes, shown: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A damaged bundle may hold any bytes; those who look into it want to see them."""
    bad = with_payload(tmp_path / "bad.capture.json", payload)
    good = with_payload(tmp_path / "good.capture.json", b"{}")
    for name in ("cat", "tail"):
        assert printed([name, str(bad)], capsys).splitlines()[1].endswith(f"  {shown}")
    lines = [json.loads(line) for line in printed(["cat", str(bad), "--json"], capsys).splitlines()]
    assert [line["payload"] for line in lines] == [{"n": 0}, shown]
    assert json.dumps(shown) in printed(["diff", str(good), str(bad)], capsys, 4)


@pytest.mark.parametrize("payload", [payload for payload, _ in NO_PAYLOADS.values()], ids=NO_PAYLOADS)
@pytest.mark.parametrize(
    "arguments",
    [["extract"], ["extract", "--as", "driver"], ["extract", "--as", "fixture"], ["feed"]],
    ids=" ".join,
)
def test_a_payload_that_is_not_json_is_not_handed_on(
    arguments: list[str], payload: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The program that reads the lines would stop at it, and name no event."""
    bad = with_payload(tmp_path / "bad.capture.json", payload)
    assert app.run([*arguments, str(bad)]) == 1
    said = plain(capsys.readouterr().err)
    assert f"'{bad}': invalid payload for event 'e1': payload bytes are not valid JSON: " in said
    assert "ergo-capture verify" in said


def test_a_number_of_retries_beyond_any_memory_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A damaged bundle may say any number, and a scenario lists every attempt."""
    value = json.loads(encode_bundle(small_bundle()))
    value["decisions"][1]["retry_count"] = 1 << 60
    path = tmp_path / "a.capture.json"
    path.write_text(json.dumps(value))
    assert app.run(["extract", str(path)]) == 1
    assert "event 'e1' was retried 1,152,921,504,606,846,976 times" in plain(capsys.readouterr().err)
    assert app.run(["extract", "--as", "driver", str(path)]) == 0
