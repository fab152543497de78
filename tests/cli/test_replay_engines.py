"""``ergo-capture replay`` with engines that end, hang or answer what is invalid; and runs in which one did."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from tests.daemons import COMMAND, PATIENCE, command_environment, plain
from tests.engine.engines import PUPPET, command_event, listening_puppet

from ergo_capture import CapturingSession, Constraints, EventTime, MemoryDecisionLog, RunTermination, encode_bundle
from ergo_capture.cli import app
from ergo_capture.engine import replaying
from ergo_capture.kernel.events import EventLike
from ergo_capture.kernel.outcomes import ErrKind
from ergo_capture.kernel.ports import IN_DOUBT, RunResult

COMPLETED = RunResult(RunTermination.Completed)
AWAY = RunResult(RunTermination.Failed(ErrKind.AdapterUnavailable))
FAILED = RunResult(RunTermination.Failed(ErrKind.RuntimeError))
Capture = pytest.CaptureFixture[str]


class Ends:
    """An engine that ends the episodes of some events otherwise than as Completed."""

    def __init__(self, ends: dict[str, RunResult]) -> None:
        self.ends = ends

    def run(self, graph_id: str, event_id: str, event: EventLike, deadline: EventTime | None) -> RunResult:
        """Return the outcome of one attempt."""
        return self.ends.get(event_id, COMPLETED)


def run_of(path: Path, ids: Sequence[str], ends: dict[str, RunResult] | None = None, retries: int = 0) -> Path:
    """Write the bundle of a run of events with those ids; return its path."""
    session = CapturingSession(
        "default", Constraints(max_retries=retries), MemoryDecisionLog(), Ends(ends or {}), "rpv1:puppet"
    )
    for at, event_id in enumerate(ids):
        session.on_event(command_event(event_id, at))
    path.write_bytes(encode_bundle(session.into_bundle()))
    return path


def puppet(*options: str) -> str:
    """Return the engine's SPEC for the puppet as a child."""
    return f"process:{sys.executable} {PUPPET} {' '.join(options)}"


def told(arguments: list[str], capsys: Capture, code: int) -> str:
    """Return what ``replay`` prints; check its exit code."""
    assert app.run(["replay", *arguments]) == code, capsys.readouterr()
    return plain(capsys.readouterr().out)


WRONG = [
    ("die", "it exited with code 9"),
    ("half", "it exited with code 0"),
    ("hang", "it did not answer within 0.5 s"),
    ("stray", "it answered run 1000001, which it was not asked for"),
    ("garbage", "talk to engine: it said 'Segmentation fault'"),
    ("bad-1", "its answer is invalid: unknown variant `Finished`"),
]


@pytest.mark.parametrize(("what", "said"), WRONG, ids=[what for what, _ in WRONG])
def test_what_an_engine_does_wrong_is_no_divergence(what: str, said: str, tmp_path: Path, capsys: Capture) -> None:
    """Exit code 1, with the decision, what the engine did, and what was captured."""
    path = run_of(tmp_path / "a.capture.json", ["ok.0", what, "ok.2"])
    found = json.loads(told([str(path), "--engine", puppet(), "--timeout", "0.5", "--json"], capsys, 1))
    assert found["outcome"] == "failed"
    assert found["decision"] == {"index": 1, "event_id": what}
    assert found["error"].startswith(f"replay: at decision 1, event '{what}', the engine failed: {said}")
    assert found["error"].endswith("; captured there: Completed")
    assert "proves nothing about the graph" in found["hint"]


def test_an_engine_that_answers_an_old_run_again_is_named_at_the_time_out(tmp_path: Path, capsys: Capture) -> None:
    """The engine may answer with the same id each time."""
    engine = tmp_path / "engine.py"
    engine.write_text(
        "import sys\n"
        'print(\'{"type":"ready","protocol":"ergo-engine.v1","runtime_provenance":"rpv1:puppet"}\', flush=True)\n'
        "for line in sys.stdin:\n"
        '    print(\'{"type":"ran","id":0,"termination":"Completed"}\', flush=True)\n'
    )
    path = run_of(tmp_path / "a.capture.json", ["a", "b"])
    said = told([str(path), "--engine", f"process:{sys.executable} {engine}", "--timeout", "0.5"], capsys, 1)
    assert "at decision 1, event 'b', the engine failed: it did not answer within 0.5 s, and answered 1 times" in said


def test_a_service_that_hangs_up_is_no_divergence(tmp_path: Path, capsys: Capture) -> None:
    """The same for an engine behind a socket."""
    path = run_of(tmp_path / "a.capture.json", ["ok.0", "die"])
    with listening_puppet(tmp_path / "e.sock"):
        said = told([str(path), "--engine", f"socket:{tmp_path}/e.sock"], capsys, 1)
    assert "at decision 1, event 'die', the engine failed: it closed the connection" in said


@pytest.mark.parametrize(
    ("what", "said"),
    [("raise", "it raised LookupError: nothing there"), ("wrong", "its return value is invalid: ValueError: ")],
)
def test_what_a_python_engine_does_wrong_is_no_divergence(
    what: str, said: str, tmp_path: Path, capsys: Capture
) -> None:
    """It is named, and no traceback is printed."""
    path = run_of(tmp_path / "a.capture.json", [what])
    found = told([str(path), "--engine", "python:tests.engine.scripts:obey"], capsys, 1)
    assert f"at decision 0, event '{what}', the engine failed: {said}" in found


def test_an_engine_that_fails_as_at_the_capture_replays_the_same(tmp_path: Path, capsys: Capture) -> None:
    """A note says so; the engine is started again for the next attempt and the next event."""
    ids = ["ok.0", "die.1", "ok.2", "bad-1.3", "ok.4"]
    path = run_of(tmp_path / "a.capture.json", ids, {"die.1": AWAY, "bad-1.3": FAILED}, retries=1)
    found = json.loads(told([str(path), "--engine", puppet(), "--json"], capsys, 0))
    assert (found["outcome"], found["decisions"]) == ("same", 5)
    assert found["notes"] == [
        *2 * ["decision 1, event 'die.1': the engine failed as at the capture: it exited with code 9"],
        *2 * ["decision 3, event 'bad-1.3': the engine failed as at the capture: its answer is invalid: " + BAD_1],
    ]


BAD_1 = "unknown variant `Finished`, expected one of `Completed`, `TimedOut`, `Aborted`, `Failed`"


def test_an_engine_that_hangs_is_told_of_meanwhile(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The note is on standard error, and names the decision."""
    monkeypatch.setattr(replaying, "_NOTICE_SECONDS", 0.1)
    path = run_of(tmp_path / "a.capture.json", ["ok", "hang"])
    assert app.run(["replay", str(path), "--engine", puppet(), "--timeout", "0.5"]) == 1
    assert f"{path}: the engine has not answered decision 1, event 'hang', for 0.1 s" in capsys.readouterr().err


# --- what the capture says of the engine ---


def test_an_episode_in_doubt_is_explained_and_not_run(tmp_path: Path, capsys: Capture) -> None:
    """``in_doubt = "interrupt"``: it was not run again at the capture, and is not at the replay."""
    path = run_of(tmp_path / "a.capture.json", ["ok.0", "ok.1", "ok.2"], {"ok.1": IN_DOUBT})
    said = told([str(path), "--engine", puppet("--log", str(tmp_path / "calls"))], capsys, 0)
    assert said == (
        f"{path}: same, 3 decisions\n"
        "  note: decision 1, event 'ok.1', in_doubt: the daemon stopped before the decision was durable; the episode was "
        "not run again; it was not replayed either\n"
    )
    assert (tmp_path / "calls").read_text().split() == ["ok.0", "ok.2"]


@pytest.mark.parametrize(
    ("end", "says"),
    [
        (AWAY, "at the capture it was away, or ended before it answered"),
        (FAILED, "at the capture it raised an error, or answered something invalid"),
        (RunResult(RunTermination.TimedOut), "at the capture it took longer than the deadline"),
    ],
    ids=["away", "failed", "late"],
)
def test_an_engine_that_failed_at_the_capture_is_named(
    end: RunResult, says: str, tmp_path: Path, capsys: Capture
) -> None:
    """It is the cause, and not the graph."""
    path = run_of(tmp_path / "a.capture.json", ["a", "b"], {"b": end})
    said = told([str(path), "--engine", "fixed"], capsys, 4)
    assert f"  engine    {says}\n" in said
    causes = said.partition("likely causes:\n")[2].splitlines()
    if end in (AWAY, FAILED):
        assert causes[0] == "    - the engine failed at the capture and not now, which says nothing about the graph"
        assert len(causes) == 2
    else:
        assert causes[0] == "    - a deadline passed on one machine and not on the other"


def test_all_divergences_of_a_bundle_can_be_asked_for(tmp_path: Path, capsys: Capture) -> None:
    """The replay goes on with what the engine says now."""
    ids = [f"e{number}" for number in range(6)]
    path = run_of(tmp_path / "a.capture.json", ids, {"e1": AWAY, "e4": RunResult(RunTermination.Aborted)})
    arguments = [str(path), "--engine", "fixed", "--all-divergences"]
    said = told(arguments, capsys, 4)
    assert said.startswith(
        f"{path}: diverged at 2 decisions of 6\n  decision 1, event 'e1': termination was captured as"
    )
    assert said.endswith(
        "  further on:\n"
        '    decision 4, event \'e4\': termination was captured as "Aborted" and replayed as "Completed"\n'
    )
    found = json.loads(told([*arguments, "--json"], capsys, 4))
    assert (found["diverged"], found["decisions"]) == (2, 6)
    assert [other["index"] for other in found["other_divergences"]] == [4]


def test_many_divergences_are_counted(tmp_path: Path, capsys: Capture) -> None:
    """The first hundred are named."""
    ids = [f"e{number}" for number in range(120)]
    path = run_of(tmp_path / "a.capture.json", ids, dict.fromkeys(ids, AWAY))
    said = told([str(path), "--engine", "fixed", "--all-divergences"], capsys, 4)
    assert "diverged at 120 decisions of 120\n" in said
    assert said.endswith("    and 20 more\n")


# --- processes ---


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_the_engine_ends_with_a_killed_replay(jobs: str, tmp_path: Path) -> None:
    """It ends also after SIGKILL, and if several processes replay."""
    paths = [str(run_of(tmp_path / f"{name}.capture.json", ["hang"])) for name in "ab"]
    engine = puppet("--log", str(tmp_path / "calls"))
    with subprocess.Popen(
        [*COMMAND, "replay", *paths, "--engine", engine, "--jobs", jobs],
        env=command_environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as replay:
        wait_until(lambda: (tmp_path / "calls").exists() and len(running(str(tmp_path))) > int(jobs))
        replay.kill()
    wait_until(lambda: not running(str(tmp_path)))


def running(argument: str) -> list[str]:
    """Return the processes that have a text in their arguments."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if argument.encode() in (process / "cmdline").read_bytes():
                found.append(process.name)
        except OSError:
            continue
    return found


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait until something is true."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_progress_is_shown_on_a_terminal(tmp_path: Path) -> None:
    """A bar of the decisions, though the engine is slow and the bundle small."""
    path = run_of(tmp_path / "a.capture.json", [f"wait.{number}" for number in range(60)])
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [*COMMAND, "replay", str(path), "--engine", puppet()],
        env={**command_environment(), "TERM": "xterm", "COLUMNS": "80"},
        stdout=subprocess.DEVNULL,
        stderr=theirs,
    ) as replay:
        os.close(theirs)
        shown = b""
        try:
            while data := os.read(ours, 1 << 16):
                shown += data
        except OSError:
            # The terminal's other end is closed.
            pass
        os.close(ours)
    assert replay.returncode == 0
    assert b"decisions" in shown
    assert any(b"%d/" % number in shown for number in range(1, 60))
