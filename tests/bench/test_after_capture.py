"""Measure what is done with a bundle after the capture, against the least cost of reading it (``yardstick.py``).

    python -m pytest -m bench -s tests/bench/test_after_capture.py

Both sides are processes, start-up included, measured in turns. The figures are user times but where it says wall:
other work on the machine counts for those least.

Once, on two idle cores with SHA extensions, 100,000 events of 256 bytes, compiled modules (an environment that forbids
bytecode adds 0.1 s to each start):

* ``verify --no-manifest --jobs 1``: 1.3 (1.26 to 1.44) of the yardstick, of 300,000 events too; goal 1.7; 4.0 before. Of the 6.7 us an event: decoding the numbers of a block's payloads as one list 3.1, cutting the arrays out 0.5,
  SHA-256 0.5, reading 0.5, payloads are objects 0.4, ids 0.4, the rest of the text 0.4, text of decisions composed and
  compared 0.3, quotes 0.15, turns of the loop the rest.
* ``--jobs 2``, wall: 1.14 (0.76 to 1.29), of 300,000 events 0.88 (0.84 to 0.94); goal 1.1.
* A bundle of 137 KB: 1.0 ms; goal 12; 44 before.
* Payloads of 36 KB and of 1 MB: 0.92 and 0.97 of the time a byte of 30 KB; goal 1.3; 10 before.
* Against ``verify``: ``replay --engine fixed`` 1.04 (goal 1.2), ``diff`` 0.99 (1.5), ``doctor`` 1.09 (1.2), ``cat`` 1.33
  (1.4), ``report`` 1.38 (1.4), ``recover`` 1.86 (2.0). Peak of memory: 31 MiB, ``report`` 36, ``recover`` 34.
* ``write_capture_bundle``: 1.60 of encoding the payloads' arrays.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest
from tests.bench import yardstick
from tests.bench.ratios import in_turns, report

from ergo_capture import (
    CapturingSession,
    Constraints,
    EventTime,
    ExternalEvent,
    ExternalEventKind,
    FaultRuntime,
    MemoryDecisionLog,
    read_capture_bundle,
    write_capture_bundle,
)

pytestmark = [pytest.mark.bench, pytest.mark.timeout(1800)]

EVENTS = int(os.environ.get("BENCH_EVENTS", "100000"))
ROUNDS = int(os.environ.get("BENCH_ROUNDS", "5"))


class Cost(NamedTuple):
    """The times of a process, in seconds, and its peak of memory in bytes."""

    user: float
    wall: float
    peak: int


#: Runs a command. It is small: a process begins with the peak of memory of the one that starts it.
_LAUNCHER = """
import os, resource, sys, time
began = time.perf_counter()
silent = [(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
_, status = os.waitpid(os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ, file_actions=silent), 0)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(status, used.ru_utime, time.perf_counter() - began, used.ru_maxrss)
"""


def measured(*command: str) -> Cost:
    """Run a command to its end, and return its cost; its children are included."""
    launcher = (sys.executable, "-I", "-S", "-c", _LAUNCHER, *command)
    printed = subprocess.run(launcher, stdout=subprocess.PIPE, text=True, check=True).stdout
    status, user_time, wall, peak = printed.split()
    assert status == "0", command
    return Cost(float(user_time), float(wall), int(peak) << 10)


def user(*command: str) -> float:
    """Return the user time of a command, in seconds."""
    return measured(*command).user


def ours(*arguments: str | Path) -> tuple[str, ...]:
    """Return a command of this program."""
    return (sys.executable, "-m", "ergo_capture", *map(str, arguments))


def least(bundle: Path) -> tuple[str, ...]:
    """Return the yardstick's command."""
    return (sys.executable, yardstick.__file__, str(bundle))


def capture(path: Path, count: int, payload: int) -> Path:
    """Write a bundle of events with payloads of so many bytes, and return its path."""
    session = CapturingSession("g", Constraints(), MemoryDecisionLog(), FaultRuntime(), "rpv1:none")
    for number in range(count):
        text = msgspec.json.encode({"carrier": "UA", "flight": number % 9000, "pad": ""})
        pad = (b"%x" % (number * 829_331_431)) * (payload // 2)
        text = text[:-2] + pad[: payload - len(text)] + text[-2:]
        at = EventTime(number // 10, number % 10 * 100_000_000)
        session.on_event(ExternalEvent.with_payload(f"ev-{number:08d}", ExternalEventKind.DataAvailable, at, text))
    write_capture_bundle(path, session.into_bundle())
    return path


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a bundle of events of 256 bytes."""
    # In a process of its own: a child begins with the peak of its parent.
    with ProcessPoolExecutor(1) as apart:
        return apart.submit(capture, tmp_path_factory.mktemp("bench") / "run.capture.json", EVENTS, 256).result()


def compare(title: str, bundle: Path, command: tuple[str, ...], goal: str) -> float:
    """Measure a command in turns with the yardstick; return the median ratio of user times."""
    return report(title, "s user", in_turns(lambda: user(*command), lambda: user(*least(bundle)), ROUNDS), goal)


def test_verify(bundle: Path) -> None:
    """Row 1: measure one process."""
    compare("verify --no-manifest --jobs 1", bundle, ours("verify", "--no-manifest", "--jobs", "1", bundle), "1.7")


def test_verify_in_two_processes(bundle: Path) -> None:
    """Row 2: measure wall time."""
    command = ours("verify", "--no-manifest", "--jobs", "2", bundle)
    pairs = in_turns(lambda: measured(*command).wall, lambda: measured(*least(bundle)).wall, ROUNDS)
    report("verify --no-manifest --jobs 2, wall", "s", pairs, "1.1")


def test_verify_of_a_small_bundle(tmp_path: Path) -> None:
    """Row 3: measure the marginal cost of a bundle of 154 KB; both sides are milliseconds."""
    files = [capture(tmp_path / f"{number}.capture.json", 118, 256) for number in range(101)]

    def marginal(command: Callable[..., tuple[str, ...]]) -> float:
        return (user(*command(*files)) - user(*command(files[0]))) * 10

    pairs = in_turns(
        lambda: marginal(lambda *some: ours("verify", "--no-manifest", "--jobs", "1", *some)),
        lambda: sum(user(*least(file)) for file in files[:5]) * 200,
        ROUNDS,
    )
    report(f"verify of {files[0].stat().st_size} bytes, marginal (the other is a whole process)", "ms", pairs, "12 ms")


@pytest.mark.parametrize("size", [36_000, 1_000_000])
def test_large_payloads(size: int, tmp_path: Path) -> None:
    """Row 4: measure the time a byte, against payloads of 30 KB."""
    volume = 30_000_000
    large = capture(tmp_path / "large.capture.json", volume // size, size)
    usual = capture(tmp_path / "usual.capture.json", volume // 30_000, 30_000)

    def verify(file: Path) -> float:
        return user(*ours("verify", "--no-manifest", "--jobs", "1", file))

    report(
        f"verify of {size:,} bytes against 30,000",
        "s user",
        in_turns(lambda: verify(large), lambda: verify(usual), ROUNDS),
        "1.3",
    )


#: Commands, and how many times ``verify`` they may take.
COMMANDS = {
    "replay --engine fixed": (("replay", "--no-manifest", "--engine", "fixed"), 1.2),
    "doctor": (("doctor",), 1.2),
    "report": (("report", "-o", "-"), 1.4),
    "cat": (("cat",), 1.4),
    "recover": (("recover",), 2.0),
}


@pytest.mark.parametrize("name", [*COMMANDS, "diff"])
def test_a_command_against_verify(name: str, bundle: Path, tmp_path: Path) -> None:
    """Rows 5 and 6: compare a command with ``verify``."""
    if name == "diff":
        command, goal = ours("diff", bundle, bundle), 1.5
    else:
        words, goal = COMMANDS[name]
        command = ours(*words, bundle)
    out = tmp_path / "out"

    def once() -> float:
        extra = ("-o", str(out)) if name == "recover" else ()
        cost = measured(*command, *extra)
        peaks.append(cost.peak)
        out.unlink(missing_ok=True)
        return cost.user

    peaks: list[int] = []
    verify = ours("verify", "--no-manifest", "--jobs", "1", bundle)
    report(f"{name} against verify", "s user", in_turns(once, lambda: user(*verify), ROUNDS), str(goal))
    print(f"peak memory {max(peaks) >> 20} MiB")  # noqa: T201 - a report


def test_writing_a_bundle_from_memory() -> None:
    """Row 11: measure the library's ``write_capture_bundle``, against encoding the payloads' arrays."""
    with tempfile.TemporaryDirectory() as place:
        path = capture(Path(place) / "run.capture.json", 50_000, 256)
        read = read_capture_bundle(path)
        encode = msgspec.json.Encoder().encode

        def ours() -> float:
            began = time.process_time()
            write_capture_bundle(path, read)
            return time.process_time() - began

        def theirs() -> float:
            began = time.process_time()
            for event in read.events:
                encode(list(event.payload))
            return time.process_time() - began

        report("write_capture_bundle against the payloads' arrays", "s", in_turns(ours, theirs, ROUNDS), "none")
