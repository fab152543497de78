"""A process engine as a child of the daemon: what it inherits, when it ends, and how its end is noticed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import anyio
import pytest
import structlog
from tests.daemons import COMMAND, DaemonProcess, command_environment, running_daemon, short_directory
from tests.engine.engines import captured, engine_of, process_graph, terminations
from tests.processes import is_alive, wait_until

#: Says ``ready``, writes its process id and the numbers of its descriptors to a file, and hangs for ever.
HANGS = """
import json, os, sys, time
print(json.dumps({"type": "ready", "protocol": "ergo-engine.v1", "runtime_provenance": "p"}), flush=True)
descriptors = sorted(map(int, os.listdir("/proc/self/fd")))
with open(sys.argv[1] + ".new", "w") as file:
    json.dump({"pid": os.getpid(), "descriptors": [d for d in descriptors if d != file.fileno()]}, file)
os.rename(sys.argv[1] + ".new", sys.argv[1])
time.sleep(3600)
"""

#: Says ``ready``, closes its standard input, and stays.
CLOSES_STDIN = """
import json, os, time
print(json.dumps({"type": "ready", "protocol": "ergo-engine.v1", "runtime_provenance": "p"}), flush=True)
os.close(0)
time.sleep(3600)
"""

READY = '{"type":"ready","protocol":"ergo-engine.v1","runtime_provenance":"p"}'


def graph_of(command: list[str]) -> str:
    """Return a configuration whose default graph has that command as its engine, which is started once."""
    engine = f'kind = "process"\ncommand = {json.dumps(command)}\nback_off = "1m"\nback_off_limit = "1m"\n'
    return f"[graphs.default.engine]\n{engine}"


def hanging_engine(place: Path) -> tuple[list[str], Path]:
    """Return the command of an engine that hangs, and the file in which it says who it is."""
    said = place / "said"
    return [sys.executable, "-c", HANGS, str(said)], said


async def trouble_of(text: str) -> str:
    """Return why the default graph's engine is away, once it is."""
    async with running_daemon(text) as daemon:
        engine = engine_of(daemon.service)
        with anyio.fail_after(20):
            while engine.trouble in ("it has not said `ready` yet", ""):
                await anyio.sleep(0.005)
        return engine.trouble


def test_an_engine_inherits_no_descriptors() -> None:
    """This includes those that the daemon was started with, and uvloop, which would leave them open."""
    with short_directory() as place:
        command, said = hanging_engine(place)
        with DaemonProcess(place, place / "state", config=graph_of(command)) as daemon:
            daemon.prefix = ["sh", "-c", 'exec 7</dev/null; exec "$@"', "sh"]
            daemon.start()
            wait_until(said.exists)
            # Descriptor 3 is the directory that it lists.
            assert set(json.loads(said.read_text())["descriptors"]) <= {0, 1, 2, 3}


def test_an_engine_ends_with_a_daemon_that_is_killed() -> None:
    """The engine may hang, and not notice the end of its standard input."""
    with short_directory() as place:
        command, said = hanging_engine(place)
        with DaemonProcess(place, place / "state", config=graph_of(command)) as daemon:
            daemon.start()
            wait_until(said.exists)
            daemon.kill()
        pid = json.loads(said.read_text())["pid"]
        wait_until(lambda: not is_alive(pid))


async def test_an_engine_ends_with_a_replay_that_is_killed() -> None:
    """``replay --engine process:...`` leaves no engine behind."""
    with short_directory() as place:
        async with running_daemon() as daemon:
            await captured(daemon, ["a"])
            (place / "a.capture.json").write_bytes(daemon.bundles()[0].read_bytes())
        (place / "engine.py").write_text(HANGS)
        said = place / "said"
        spec = f"process:{sys.executable} {place}/engine.py {said}"
        with subprocess.Popen(  # noqa: ASYNC220 - nothing else waits
            [*COMMAND, "replay", str(place / "a.capture.json"), "--engine", spec], env=command_environment()
        ) as replay:
            await anyio.to_thread.run_sync(wait_until, said.exists)
            replay.kill()
        pid = json.loads(said.read_text())["pid"]
        await anyio.to_thread.run_sync(wait_until, lambda: not is_alive(pid))


async def test_an_idle_engine_that_closes_its_standard_input_is_away_at_once() -> None:
    """The daemon does not wait for the next run, or for hang_timeout."""
    trouble = await trouble_of(graph_of([sys.executable, "-c", CLOSES_STDIN]))
    assert trouble == "it closed the connection"


@pytest.mark.parametrize(
    ("script", "trouble"),
    [
        (f"echo '{READY}'; exit 3", "it exited with code 3"),
        (f"echo '{READY}'; kill -SEGV $$", "it was killed by SIGSEGV"),
        ("exit 0", "it exited with code 0"),
    ],
)
async def test_how_an_engine_ended_is_told(script: str, trouble: str) -> None:
    """The exit code or the signal, whether it had said ``ready`` or not."""
    assert await trouble_of(graph_of(["sh", "-c", script])) == trouble


@pytest.mark.parametrize(
    ("text", "trouble"),
    [
        ("#!/bin/sh\r\nexit 0\r\n", "cannot start '{path}': the first line of '{path}' ends in CR LF"),
        ("#!/usr/bin/env sh\r\nexit 0\r\n", "it exited with code 127: the first line of '{path}' ends in CR LF"),
        ("#!/nowhere/sh\nexit 0\n", "cannot start '{path}': there is no '/nowhere/sh', which the first line"),
    ],
)
async def test_a_script_that_its_first_line_keeps_from_running_is_explained(
    tmp_path: Path, text: str, trouble: str
) -> None:
    """The system says only that there is no such file, though the script is there."""
    path = tmp_path / "engine"
    path.write_bytes(text.encode())
    path.chmod(0o755)
    assert (await trouble_of(graph_of([str(path)]))).startswith(trouble.format(path=path))


async def test_a_program_that_does_not_exist_is_named() -> None:
    """The error has the system's reason."""
    trouble = await trouble_of(graph_of(["/nowhere/engine"]))
    assert trouble == "cannot start '/nowhere/engine': No such file or directory"


@pytest.mark.parametrize(
    ("event_id", "error"),
    [
        ("bad-1", "unknown variant `Finished`, expected one of `Completed`, `TimedOut`, `Aborted`, `Failed`"),
        ("bad-5", "Expected `object`, got `int` - at `$.effects[0]`"),
    ],
)
async def test_an_invalid_answer_is_logged_with_what_was_expected(event_id: str, error: str) -> None:
    """The episode is Failed(RuntimeError), and the log says why; the log folds what is repeated too often."""
    with structlog.testing.capture_logs() as lines:
        async with running_daemon(process_graph()) as daemon:
            assert await terminations(daemon, [event_id]) == ["RuntimeError"]
    (line,) = (line for line in lines if line["event"] == "engine.failed")
    assert (line["graph"], line["event_id"], line["log_level"]) == ("default", event_id, "error")
    assert error in line["error"]
    assert "ergo-capture help engines" in line["hint"]
