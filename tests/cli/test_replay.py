"""``ergo-capture replay``: bundles that replay alike, and explanations of the first difference."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.cli.runs import bundle, script
from tests.daemons import command, plain
from tests.engine.engines import PUPPET, listening_puppet

from ergo_capture.bundle.reader import elements
from ergo_capture.cli import app
from ergo_capture.cli.commands.replay import NO_ENGINE
from ergo_capture.kernel.explanation import AHEAD

READY = {"type": "ready", "protocol": "ergo-engine.v1", "runtime_provenance": "rpv1:test"}

Change = Callable[[Any], None]


def told(arguments: list[str], capsys: pytest.CaptureFixture[str], code: int) -> str:
    """Return what a command prints; check its exit code."""
    assert app.run(["replay", *arguments]) == code, capsys.readouterr()
    return plain(capsys.readouterr().out)


def test_the_original_engine_replays_alike(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The run has deferrals, a Pump and a retry."""
    path = bundle(tmp_path / "a.capture.json")
    assert told([str(path), "--engine", script(tmp_path / "s.json")], capsys, 0) == f"{path}: same, 10 decisions\n"


def test_replay_without_an_engine_verifies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Decisions are derived from the recorded outcomes, and whoever forgot --engine is told so."""
    path = bundle(tmp_path / "a.capture.json", effects=True)
    assert told([str(path)], capsys, 0) == f"{path}: same, 10 decisions\n  note: {NO_ENGINE}\n"


def put(index: int, field: str, value: Any) -> Change:
    """Return a change of a decision's field."""

    def change(data: Any) -> None:
        data["decisions"][index][field] = value

    return change


def swap(data: Any) -> None:
    """Swap two decisions."""
    decisions = data["decisions"]
    decisions[4], decisions[5] = decisions[5], decisions[4]


def drop(data: Any) -> None:
    """Remove the last decision."""
    del data["decisions"][-1]


def double(data: Any) -> None:
    """Add a decision without an event."""
    data["decisions"].append(data["decisions"][-1])


BEFORE_5 = ["2  'e2'  Invoke  episode 2  Completed", "3  'e3'  Invoke  episode 3  Completed"]
BEFORE_5 += ["4  'e4'  Invoke  episode 4  Completed  1 retry"]

CHANGED: list[tuple[str, Change, str, str, str]] = [
    (
        "event_id",
        put(5, "event_id", "x"),
        "changed",
        "event_id",
        'decision 5, event \'x\': event_id was captured as "x" and replayed as "e5"',
    ),
    (
        "decision",
        put(5, "decision", "Defer"),
        "changed",
        "decision",
        'decision 5, event \'e5\': decision was captured as "Defer" and replayed as "Invoke"',
    ),
    (
        "schedule_at",
        put(5, "schedule_at", {"secs": 1, "nanos": 0}),
        "changed",
        "schedule_at",
        'decision 5, event \'e5\': schedule_at was captured as {"secs":1,"nanos":0} and replayed as null',
    ),
    (
        "episode_id",
        put(5, "episode_id", 77),
        "changed",
        "episode_id",
        "decision 5, event 'e5': episode_id was captured as 77 and replayed as 5",
    ),
    (
        "deadline",
        put(5, "deadline", {"secs": 9, "nanos": 0}),
        "changed",
        "deadline",
        'decision 5, event \'e5\': deadline was captured as {"secs":9,"nanos":0} and replayed as null',
    ),
    (
        "termination",
        put(5, "termination", {"Failed": "SemanticError"}),
        "changed",
        "termination",
        'decision 5, event \'e5\': termination was captured as {"Failed":"SemanticError"} and replayed as "Completed"',
    ),
    (
        "retry_count",
        put(5, "retry_count", 2),
        "changed",
        "retry_count",
        "decision 5, event 'e5': retry_count was captured as 2 and replayed as 0",
    ),
    (
        "effects",
        put(5, "effects", [{"effect": {"kind": "k", "writes": []}, "effect_hash": "0"}]),
        "changed",
        "effects",
        "decision 5, event 'e5': 1 effect was captured and 0 replayed",
    ),
    (
        "another order",
        swap,
        "reordered",
        "event_id",
        "decision 4, event 'e5': captured here, and replayed further on; the replay has event 'e4' here",
    ),
    ("one gone", drop, "extra", "extra", "decision 9, event 'e9': the replay leads to it, and it was not captured"),
    (
        "one more",
        double,
        "missing",
        "missing",
        "decision 10, event 'e9': captured, and nothing leads to it in the replay",
    ),
]


@pytest.mark.parametrize(("change", "kind", "field", "sentence"), [c[1:] for c in CHANGED], ids=[c[0] for c in CHANGED])
def test_a_changed_capture_is_found_and_explained(
    change: Change, kind: str, field: str, sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """For each field it gives the place, both values, the decisions before, and likely causes."""
    path = bundle(tmp_path / "a.capture.json", change)
    engine = script(tmp_path / "s.json")
    found = json.loads(told([str(path), "--engine", engine, "--json"], capsys, 4))["divergence"]
    assert (found["kind"], found["field"], found["sentence"]) == (kind, field, sentence)
    assert found["causes"]
    if found["index"] == 5:
        assert found["before"] == BEFORE_5
    said = told([str(path), "--engine", engine], capsys, 4)
    assert said.startswith(f"{path}: diverged\n  {sentence}\n  field     {field}\n")
    assert "likely causes:" in said


def test_a_different_effect_is_shown_on_both_sides(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its content, not only its hash."""
    path = bundle(tmp_path / "a.capture.json", effects=True)
    (tmp_path / "other.py").write_text(
        "tried = set()\n"
        "def run(graph_id, event_id, kind, at, payload, deadline):\n"
        "    if event_id == 'e4' and not tried:\n"
        "        tried.add(1)\n"
        "        return 'TimedOut'\n"
        "    writes = [{'key': 'x', 'value': {'Number': 2.5}}]\n"
        "    return {'termination': 'Completed', 'effects': [{'kind': 'set', 'writes': writes}]} if event_id == 'e6' else None\n"
    )
    sys.path.insert(0, str(tmp_path))
    try:
        said = told([str(path), "--engine", "python:other:run"], capsys, 4)
    finally:
        sys.path.remove(str(tmp_path))
        sys.modules.pop("other", None)
    assert 'effect 0 was captured as {"kind":"set","writes":[{"key":"x","value":{"Number":1.5}}]}' in said
    assert '"Number":2.5' in said


def test_text_output_of_a_divergence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The whole text."""
    path = bundle(tmp_path / "a.capture.json", put(5, "termination", "Aborted"))
    said = told([str(path), "--engine", script(tmp_path / "s.json")], capsys, 4)
    assert (
        said
        == f"""{path}: diverged
  decision 5, event 'e5': termination was captured as "Aborted" and replayed as "Completed"
  field     termination
  captured  "Aborted"
  replayed  "Completed"
  before it, the same on both sides:
    2  'e2'  Invoke  episode 2  Completed
    3  'e3'  Invoke  episode 3  Completed
    4  'e4'  Invoke  episode 4  Completed  1 retry
  likely causes:
    - the engine is not the one that ran: compare the bundle's runtime_provenance with what it says of itself
    - the engine depends on something besides the event: a clock, a network, chance, or what it kept from before
    - a deadline passed on one machine and not on the other
    - the bundle was edited after the capture
"""
    )


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_directories_and_patterns_are_replayed(jobs: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With --keep-going all bundles are replayed, in order, and a summary is printed."""
    for number in range(6):
        (tmp_path / "deep").mkdir(exist_ok=True)
        bundle(tmp_path / "deep" / f"{number}.capture.json", swap if number == 2 else None)
    engine = script(tmp_path / "s.json")
    said = told([str(tmp_path), "--engine", engine, "--keep-going", "--jobs", jobs], capsys, 4)
    assert [line.rpartition("/")[2][:1] for line in said.splitlines() if ".capture.json" in line] == list("012345")
    assert "same        5" in " ".join(said.split("\n"))
    pattern = str(tmp_path / "deep" / "[01].capture.json")
    assert told([pattern, "--engine", engine, "--json"], capsys, 0).count('"outcome":"same"') == 2


def test_replay_stops_at_the_first_difference(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The bundles that are left are counted."""
    for number in range(4):
        bundle(tmp_path / f"{number}.capture.json", swap if number == 1 else None)
    said = told([str(tmp_path), "--engine", script(tmp_path / "s.json")], capsys, 4)
    assert "2.capture.json" not in said
    assert "not replayed" in said


@pytest.mark.parametrize(
    ("more", "code"),
    [
        (["--strict"], 0),
        (["--strict", "--runtime-provenance", "rpv1:other"], 1),
        (["--strict", "--adapter-provenance", "apv1:other"], 1),
    ],
)
def test_strict_checks_provenance(
    more: list[str], code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The check and its messages are those of the reference's strict replay."""
    path = bundle(tmp_path / "a.capture.json")
    said = told([str(path), "--engine", script(tmp_path / "s.json"), *more], capsys, code)
    # The path before the colon has the name of this test.
    assert ("provenance" in said.partition(": ")[2]) == (code == 1)


def test_an_unsound_bundle_fails_with_the_references_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 1: a payload that does not match its hash."""

    def spoil(data: Any) -> None:
        data["events"][3]["payload_hash"] = "0" * 64

    path = bundle(tmp_path / "a.capture.json", spoil)
    assert "payload hash mismatch for event 'e3'" in told([str(path), "--engine", "fixed"], capsys, 1)


@pytest.mark.parametrize(
    ("field", "value", "complaint"),
    [
        ("payload_hash", "0" * 64, "payload hash mismatch for event 'e7'"),
        ("event_id", "e5", "duplicate event_id 'e5'"),
        ("payload", list(b"[]"), "provenance mismatch: expected"),
    ],
)
def test_provenance_is_checked_after_hashes_and_ids_and_before_payloads(
    field: str, value: Any, complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The reference's order, if more than one thing is wrong."""

    def spoil(data: Any) -> None:
        data["events"][7][field] = value
        data["events"][7]["payload_hash"] = (
            hashlib.sha256(bytes(data["events"][7]["payload"])).hexdigest() if field != "payload_hash" else value
        )

    path = bundle(tmp_path / "a.capture.json", spoil)
    strict = ["--engine", "fixed", "--strict", "--runtime-provenance", "rpv1:other"]
    assert complaint in told([str(path), *strict], capsys, 1)


def test_a_read_error_after_a_divergence_comes_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reference reads all of a bundle before it replays any of it."""
    monkeypatch.setattr(elements, "_BLOCK", 256)

    def spoil(data: Any) -> None:
        data["decisions"][0]["episode_id"] = 77
        data["decisions"] += 2 * AHEAD * [data["decisions"][-1]] + [data["decisions"][-1] | {"retry_count": 4242}]

    path = bundle(tmp_path / "a.capture.json", spoil)
    path.write_text(path.read_text().replace("4242", "-1"))
    assert f"`$.decisions[{10 + 2 * AHEAD}].retry_count`" in told([str(path), "--engine", "fixed"], capsys, 1)


@pytest.mark.parametrize(
    ("field", "value", "complaint"),
    [
        ("payload_hash", "0" * 64, "payload hash mismatch for event 'e7'"),
        ("event_id", "e5", "duplicate event_id 'e5'"),
    ],
)
@pytest.mark.parametrize("more", [["--engine", "fixed", "--strict"], []], ids=["replay", "verify"])
def test_an_unsound_record_after_a_divergence_comes_first(
    field: str, value: str, complaint: str, more: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The reference validates all of a bundle before it replays any of it."""

    def spoil(data: Any) -> None:
        data["decisions"][2]["episode_id"] = 77
        data["events"][7][field] = value

    path = bundle(tmp_path / "a.capture.json", spoil)
    if "--strict" in more:
        more = [*more, "--runtime-provenance", json.loads(path.read_text())["runtime_provenance"]]
    assert complaint in told([str(path), *more], capsys, 1)


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--engine", "nope"], 2, "no engine 'nope'"),
        (["--engine", "fixed:Nope"], 2, "unknown variant `Nope`"),
        (["--engine", "scripted:/nowhere.json"], 2, "/nowhere.json"),
        (["--engine", "python:nowhere:f"], 2, "No module named 'nowhere'"),
        (["--engine", "process:/nowhere/engine"], 1, "No such file"),
        (["--engine", "socket:/nowhere.sock"], 1, "the engine is not ready: No such file"),
    ],
)
def test_an_invalid_engine_is_an_error(
    arguments: list[str], code: int, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The message has the valid forms, or the reason why the engine cannot be reached."""
    path = bundle(tmp_path / "a.capture.json")
    assert app.run(["replay", str(path), *arguments]) == code
    captured = capsys.readouterr()
    assert says in captured.out + captured.err


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_engine_logs_do_not_mix_with_results(jobs: str, tmp_path: Path) -> None:
    """Standard output is JSON only, also with several processes; what a result says is no line of the log too."""
    paths = [str(bundle(tmp_path / f"{name}.capture.json")) for name in "ab"]
    ended = command("replay", *paths, "--engine", "socket:/nowhere.sock", "--json", "--keep-going", "--jobs", jobs)
    assert [json.loads(line)["outcome"] for line in ended.stdout.splitlines()] == ["failed", "failed"]
    assert ended.stderr == ""


def test_what_an_engine_says_before_it_fails_is_in_the_result(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The last lines of its standard error, of one that never starts and of one that ends at its first request."""
    path = str(bundle(tmp_path / "a.capture.json"))
    for text, message in (
        (
            "import sys\nprint('so it is', file=sys.stderr)\nsys.exit(3)\n",
            "the engine is not ready: it exited with code 3",
        ),
        (f"print({json.dumps(READY)!r}, flush=True)\ninput()\n1 / 0\n", "the engine failed: it exited with code 1"),
    ):
        engine = tmp_path / "engine.py"
        engine.write_text(text)
        assert app.run(["replay", path, "--engine", f"process:{sys.executable} {engine}"]) == 1
        printed, said = capsys.readouterr()
        assert message in printed
        assert "\n  its standard error ends with:\n    " in printed
        assert ("\n    so it is\n" in printed) or ("\n    ZeroDivisionError: division by zero\n" in printed)
        assert said == ""


def test_nothing_to_replay_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An empty directory is not a success."""
    assert app.run(["replay", str(tmp_path)]) == 1
    assert "there is none at" in capsys.readouterr().err


def test_external_engines_replay(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A child process, and a service on a socket."""

    def completed(data: Any) -> None:
        data["decisions"][4]["retry_count"] = 0

    path = bundle(tmp_path / "a.capture.json", completed)
    assert "same" in told([str(path), "--engine", f"process:{sys.executable} {PUPPET}"], capsys, 0)
    with listening_puppet(tmp_path / "e.sock"):
        assert "same" in told([str(path), "--engine", f"socket:{tmp_path}/e.sock"], capsys, 0)
