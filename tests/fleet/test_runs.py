"""``fleet verify``, ``replay`` and ``summary`` on real clusters: a scheduler and workers as processes."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
from tests.bundles import small_bundle
from tests.daemons import PATIENCE
from tests.fleet.clusters import ENVIRONMENT, Cluster
from tests.fleet.stores import directory_store, put_bundle

from ergo_capture import encode_bundle
from ergo_capture.fleet.check import Item
from ergo_capture.fleet.run import batches_of


@pytest.fixture
def fleet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a store of 36 sound bundles: three batches."""
    store = directory_store(tmp_path / "store")
    for number in range(36):
        put_bundle(store, f"s{number:02}", encode_bundle(small_bundle(events=5 + number)))
    (tmp_path / "config.toml").write_text("")
    return store.root


def command(store: Path, name: str, *options: str) -> list[str]:
    """Return a command line for a store."""
    config = store.parent / "config.toml"
    return [
        sys.executable,
        "-m",
        "ergo_capture",
        "fleet",
        name,
        "--config",
        str(config),
        "--store",
        store.as_uri(),
        *options,
    ]


def call(store: Path, name: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, and return its result."""
    return subprocess.run(
        command(store, name, *options), env=ENVIRONMENT, capture_output=True, text=True, timeout=90, check=False
    )


def index(store: Path) -> None:
    """Index a store."""
    assert call(store, "index", "--all").returncode == 0


def results(store: Path, run: str) -> list[dict[str, Any]]:
    """Return every line of a run's results, including those of bundles that were done twice."""
    return [
        json.loads(line) for path in (store / "runs" / run).glob("*.jsonl") for line in path.read_text().splitlines()
    ]


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Callable[[int], Cluster]]:
    """Start clusters of some workers."""
    with ExitStack() as stack:

        def start(workers: int) -> Cluster:
            made = Cluster(tmp_path)
            stack.callback(made.close)
            for _ in range(workers):
                made.add_worker()
            return made

        yield start


def wait_for(condition: Callable[[], Any]) -> None:
    """Wait until the condition holds."""
    end = time.monotonic() + PATIENCE * 2
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_run_names_what_is_wrong_and_goes_on_where_it_was(fleet: Path, tmp_path: Path) -> None:
    """The run uses processes of this machine, without a scheduler. A second start does nothing."""
    store = directory_store(fleet)
    text = encode_bundle(small_bundle(events=50))
    put_bundle(store, "diverged", text.replace(b'"episode_id":7,', b'"episode_id":9,', 1))
    flipped = put_bundle(store, "flipped", encode_bundle(small_bundle(events=51)), host="beta")
    (fleet / flipped.object).write_bytes(text)
    gone = put_bundle(store, "gone", encode_bundle(small_bundle(events=52)), host="beta")
    (fleet / gone.object).unlink()
    index(fleet)
    first = call(fleet, "verify", "--run", "nightly", "--jobs", "2")
    assert first.returncode == 1
    lines = first.stdout.splitlines()
    assert lines[0].startswith("39 bundles: 36 ok, 1 diverged, 2 unsound; ")
    assert [line.split(": ")[:2] for line in lines[1:]] == [
        ["unsound", "beta flipped"],
        ["unsound", "beta gone"],
        ["diverged", "alpha diverged"],
    ]
    before = {path: path.stat().st_mtime_ns for path in (fleet / "runs" / "nightly").iterdir()}
    second = call(fleet, "verify", "--run", "nightly")
    assert (second.returncode, second.stdout) == (1, first.stdout)
    assert {path: path.stat().st_mtime_ns for path in (fleet / "runs" / "nightly").iterdir()} == before
    # The run is of verifying.
    other = call(fleet, "replay", "--run", "nightly", "--engine", "fixed")
    assert (other.returncode, "it does something else" in other.stderr) == (2, True)
    (summed,) = map(json.loads, call(fleet, "summary", "nightly", "--json").stdout.splitlines())
    assert (summed["bundles"], summed["unfinished"], summed["outcomes"]["ok"]) == (39, 0, 36)


def test_a_selection_that_is_sound_exits_with_0(fleet: Path) -> None:
    """It prints the name of the run."""
    index(fleet)
    done = call(fleet, "verify", "--session", "s07", "--jobs", "1")
    assert (done.returncode, done.stdout) == (0, "1 bundle: 1 ok; 12 events\n")
    assert re.search(r"^run \d{8}T\d{6}Z-[0-9a-f]{4}$", done.stderr, re.MULTILINE)


def test_a_second_run_on_the_host_is_not_warned_of(fleet: Path) -> None:
    """The port of another scheduler's HTTP server is not requested."""
    index(fleet)
    with socket.socket() as other:
        # If another process has the port already, the test has what it needs.
        with suppress(OSError):
            other.bind(("127.0.0.1", 8787))
            other.listen()
        done = call(fleet, "verify", "--session", "s07", "--jobs", "1")
    assert done.returncode == 0
    assert "already in use" not in done.stderr


def test_what_engines_log_is_not_among_the_results(fleet: Path) -> None:
    """Standard output holds the summary alone."""
    index(fleet)
    script = "import json,sys; print(json.dumps({'type':'ready','protocol':'ergo-engine.v1','runtime_provenance':'p'}))"
    (fleet.parent / "engine.py").write_text(
        f"{script}\nsys.stdout.flush()\n"
        "for line in sys.stdin:\n"
        "    print(json.dumps({'type': 'ran', 'id': json.loads(line)['id'], 'termination': 'Completed'}), flush=True)\n"
    )
    engine = f"process:{sys.executable} {fleet.parent / 'engine.py'}"
    done = call(fleet, "replay", "--session", "s07", "--jobs", "1", "--engine", engine, "--json")
    assert "engine.ready" not in done.stdout + done.stderr
    assert json.loads(done.stdout)["bundles"] == 1


def test_a_run_that_there_is_not_is_named_with_a_hint(fleet: Path) -> None:
    """It is not reported as a missing object of the store."""
    done = call(fleet, "summary", "weekly")
    assert done.returncode == 1
    assert "read run 'weekly': there is none" in done.stderr
    assert "Try: name a run" in done.stderr


def test_a_bundle_that_ends_its_worker_is_named(fleet: Path, cluster: Callable[[int], Cluster]) -> None:
    """Its batch is split, and the other bundles have results."""
    text = encode_bundle(small_bundle(events=5)).replace(b'"e3"', b'"poison"')
    put_bundle(directory_store(fleet), "s05a", text)
    index(fleet)
    engine = "python:tests.fleet.engines:deadly"
    done = call(fleet, "replay", "--engine", engine, "--run", "r", "--scheduler", cluster(2).address)
    assert done.returncode == 1, done.stderr
    first, failure = done.stdout.splitlines()
    assert first.startswith("37 bundles: 36 ok, 1 failed; ")
    assert failure.startswith("failed: alpha s05a: its worker ended repeatedly")
    # It is not tried again.
    assert call(fleet, "replay", "--engine", engine, "--run", "r").stdout == done.stdout


def test_the_copies_of_a_worker_that_was_killed_are_swept(
    fleet: Path, tmp_path: Path, cluster: Callable[[int], Cluster], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker that replaces it removes them; none is left in the directory for temporary files."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setitem(ENVIRONMENT, "TMPDIR", str(temporary))
    put_bundle(directory_store(fleet), "s99", encode_bundle(small_bundle(events=5)).replace(b'"e3"', b'"poison"'))
    index(fleet)
    made = cluster(1)
    engine = "python:tests.fleet.engines:deadly"
    done = call(fleet, "replay", "--engine", engine, "--session", "s99", "--scheduler", made.address)
    assert "its worker ended repeatedly" in done.stdout
    wait_for(lambda: not list(tmp_path.rglob("ergo-capture-fleet-*")))


def test_a_worker_that_is_killed_costs_nothing_but_time(fleet: Path, cluster: Callable[[int], Cluster]) -> None:
    """Another worker does its batch."""
    index(fleet)
    made = cluster(2)
    engine = "python:tests.fleet.engines:slow"
    process = subprocess.Popen(
        command(fleet, "replay", "--engine", engine, "--run", "r", "--scheduler", made.address),
        env={**ENVIRONMENT, "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "3"},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        wait_for((fleet / "runs" / "r" / "run.json").exists)
        os.killpg(made.workers[0].pid, signal.SIGKILL)
        out, _ = process.communicate(timeout=90)
    finally:
        process.kill()
    assert process.returncode == 0
    assert out.startswith("36 bundles: 36 ok; ")


def test_a_run_goes_on_after_its_scheduler_was_killed(fleet: Path, cluster: Callable[[int], Cluster]) -> None:
    """The command ends with a hint; with another scheduler it does only the bundles without results."""
    index(fleet)
    made = cluster(1)
    options = ("--engine", "python:tests.fleet.engines:slow", "--run", "r")
    process = subprocess.Popen(
        command(fleet, "replay", *options, "--scheduler", made.address),
        env=ENVIRONMENT,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        wait_for(lambda: results(fleet, "r"))
        os.killpg(made.scheduler.pid, signal.SIGKILL)
        _, err = process.communicate(timeout=90)
    finally:
        process.kill()
    assert process.returncode == 1
    assert "run the same command again" in err
    assert "Traceback" not in err
    made.close()
    done = {path.name: path.stat().st_mtime_ns for path in (fleet / "runs" / "r").glob("*.jsonl")}
    again = call(fleet, "replay", *options, "--scheduler", cluster(1).address)
    assert (again.returncode, again.stdout.split(";")[0]) == (0, "36 bundles: 36 ok")
    assert len(results(fleet, "r")) == 36
    assert all((fleet / "runs" / "r" / name).stat().st_mtime_ns == time for name, time in done.items())


def test_a_scheduler_that_does_not_answer_is_named(fleet: Path) -> None:
    """The command fails within seconds."""
    index(fleet)
    done = call(fleet, "verify", "--scheduler", "tcp://127.0.0.1:1")
    assert done.returncode == 1
    assert "connect to scheduler 'tcp://127.0.0.1:1'" in done.stderr
    assert "Traceback" not in done.stderr


def test_workers_of_another_release_are_refused(fleet: Path, cluster: Callable[[int], Cluster]) -> None:
    """Their results would be those of another program."""
    index(fleet)
    code = "import ergo_capture.version as v; v.PROGRAM += '-other'; from ergo_capture.__main__ import main; main()"
    line = [sys.executable, "-c", code, *command(fleet, "verify", "--scheduler", cluster(1).address)[3:]]
    done = subprocess.run(line, env=ENVIRONMENT, capture_output=True, text=True, timeout=90, check=False)
    assert done.returncode == 1
    assert "install the same release on every worker" in done.stderr


def test_summary_writes_a_page_with_reports(fleet: Path, tmp_path: Path) -> None:
    """Failures come first; every bundle that can be read has a report."""
    text = encode_bundle(small_bundle(events=50))
    put_bundle(directory_store(fleet), "<b>", text.replace(b'"episode_id":7,', b'"episode_id":9,', 1))
    index(fleet)
    call(fleet, "verify", "--run", "r", "--jobs", "1")
    done = call(fleet, "summary", "r", "--html", str(tmp_path / "page"))
    assert done.returncode == 4
    page = (tmp_path / "page" / "index.html").read_text()
    assert "&lt;b&gt;" in page
    assert "<b>" not in page.partition("<tbody>")[2]
    (link,) = re.findall(r'href="([^"]+)"', page)
    from urllib.parse import unquote

    assert b"<html" in (tmp_path / "page" / unquote(link)).read_bytes()


def test_an_unknown_run_is_an_error(fleet: Path) -> None:
    """The error has its path."""
    done = call(fleet, "summary", "none")
    assert done.returncode == 1
    assert "read run 'none': there is none in 'file://" in done.stderr
    assert call(fleet, "summary", "../x").returncode == 2


def test_batches_are_bounded_in_number_and_size() -> None:
    """A large bundle is a batch of its own."""

    def item(number: int, size: int) -> Item:
        return Item(f"m{number}", "o", "h", "s", 1, "g", size)

    items = [item(number, 1) for number in range(20)] + [item(20, 60 << 20), item(21, 8 << 20), item(22, 1 << 30)]
    assert [len(batch) for batch in batches_of(items)] == [16, 5, 1, 1]
