"""The catalogue and runs of a fleet while everything is killed and the store's requests suffer."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from tests.bundles import small_bundle
from tests.daemons import short_directory
from tests.fault_proxy import Fault, fault_proxy, flipped
from tests.fleet.clusters import ENVIRONMENT, Cluster
from tests.fleet.stores import put_bundle
from tests.processes import SOAK_SECONDS
from tests.seaweed import Seaweed, seaweed
from tests.ship.rig import table_of

from ergo_capture import encode_bundle
from ergo_capture.fleet.check import Job, check_item
from ergo_capture.objects.directory import DirectoryStore
from ergo_capture.objects.opening import open_store
from ergo_capture.objects.port import ObjectStore

HARM = [Fault.UNAVAILABLE, Fault.FORBIDDEN, Fault.RESET, Fault.LOST_ANSWER, Fault.FLIPPED_DOWN]
VICTIMS = ["command", "worker", "scheduler", "server"]


def fill(store: ObjectStore, first: int, end: int) -> dict[str, str]:
    """Write bundles, every tenth of them changed in the store; return the outcome that each must have."""
    expected = {}
    for number in range(first, end):
        session = f"s{number:04}"
        text = encode_bundle(small_bundle(events=5 + number))
        item = put_bundle(store, session, text)
        expected[session] = "unsound" if number % 10 == 9 else "ok"
        if number % 10 == 9:
            store.put(item.object, [text.replace(b'"e1"', b'"e0"', 1)], len(text))
    return expected


class Fleet:
    """A store that is harmed, and the commands that work on it.

    Args:
        place: a directory with a short path.
        server: the store.
        config: the path of a configuration with the store as its only target.
        choose: the random choices.
    """

    def __init__(self, place: Path, server: Seaweed, config: Path, choose: random.Random) -> None:
        self._place = place
        self._server = server
        self._config = config
        self._choose = choose
        self._stack = ExitStack()
        self.cluster = self._new_cluster()

    def start(self, *command: str) -> subprocess.Popen[str]:
        """Start ``fleet`` with a subcommand and its options."""
        return subprocess.Popen(
            [sys.executable, "-m", "ergo_capture", "fleet", *command, "--config", str(self._config)],
            env=ENVIRONMENT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def call(self, *command: str) -> tuple[int, str, str]:
        """Run ``fleet`` to its end; return the exit code, the output and the messages."""
        with self.start(*command) as process:
            try:
                out, err = process.communicate(timeout=120)
            finally:
                process.kill()
        return process.returncode, out, err

    def _new_cluster(self) -> Cluster:
        cluster = Cluster(self._place)
        self._stack.callback(cluster.close)
        for _ in range(2):
            cluster.add_worker()
        return cluster

    def harm(self, victim: str, process: subprocess.Popen[str]) -> None:
        """Kill the command, a worker, the scheduler or the server, and start what the command needs again."""
        match victim:
            case "command":
                process.kill()
            case "worker":
                os.killpg(self.cluster.workers.pop().pid, signal.SIGKILL)
                self.cluster.add_worker()
            case "scheduler":
                os.killpg(self.cluster.scheduler.pid, signal.SIGKILL)
                self.cluster.close()
                self.cluster = self._new_cluster()
            case "server":
                self._server.kill()
                time.sleep(self._choose.uniform(0, 0.5))
                self._server.start()

    def close(self) -> None:
        """End the cluster."""
        self._stack.close()


def results(store: ObjectStore, run: str) -> dict[str, set[str]]:
    """Return the outcomes of each session in a run."""
    found: dict[str, set[str]] = {}
    for info in list(store.list(f"runs/{run}/")):
        if info.key.endswith(".jsonl"):
            for line in b"".join(store.get(info.key)).splitlines():
                result: dict[str, Any] = json.loads(line)
                found.setdefault(result["item"]["session"], set()).add(result["outcome"])
    return found


def chaos(place: Path, seconds: float, kills: int, seed: int) -> None:
    """Index and verify a growing fleet under kills and faults until the time is over, and judge each round.

    Args:
        place: a directory with a short path.
        seconds: when to begin no further round.
        kills: how often each of the victims is killed in a round.
        seed: of the random choices.
    """
    choose, end, expected = random.Random(seed), time.monotonic() + seconds, dict[str, str]()
    is_harmful, rounds = threading.Event(), 0
    with seaweed() as server, fault_proxy(server.ports["s3"]) as proxy, ExitStack() as stack:
        config = place / "config.toml"
        config.write_text(table_of(server.target("fleet", endpoint=proxy.endpoint, timeout="5s")))
        store = open_store(server.target("fleet"))
        proxy.fault = lambda _method, _path: (
            choose.choice(HARM) if is_harmful.is_set() and choose.random() < 0.03 else None
        )
        fleet = Fleet(place, server, config, choose)
        stack.callback(fleet.close)
        while rounds == 0 or time.monotonic() < end:
            expected |= fill(store, rounds * 30, (rounds + 1) * 30)
            run = f"r{rounds}"
            is_harmful.set()
            victims = VICTIMS * kills
            choose.shuffle(victims)
            # The command is called again until nothing is left to do, as its messages and the manual say.
            for number, victim in enumerate(victims):
                command = (
                    ["verify", "--run", run, "--scheduler", fleet.cluster.address] if number % 2 else ["index", "--all"]
                )
                with fleet.start(*command) as process:
                    time.sleep(choose.uniform(0, 4))
                    fleet.harm(victim, process)
                    try:
                        _, err = process.communicate(timeout=120)
                    finally:
                        process.kill()
                    assert "Traceback" not in err, (command, number, err)
            is_harmful.clear()
            code, _, err = fleet.call("index", "--all")
            assert code == 0, err
            code, out, err = fleet.call("verify", "--run", f"{run}-sound", "--scheduler", fleet.cluster.address)
            assert code == 1, (out, err)
            assert results(store, f"{run}-sound") == {session: {outcome} for session, outcome in expected.items()}
            harmed = results(store, run)
            wrong = {s: found for s, found in harmed.items() if found - {"failed"} - {expected[s]}}
            assert wrong == {}, "a run under faults said otherwise than the truth"
            code, out, err = fleet.call("find", "--json")
            assert code == 0, err
            assert sorted(json.loads(line)["session"] for line in out.splitlines()) == sorted(expected)
            rounds += 1
    print(f"{rounds} rounds, {len(expected)} bundles, {kills * rounds} kills of each; {len(proxy.requests)} requests")  # noqa: T201


class _Flipping(DirectoryStore):
    """A store whose answers are changed on their way, as often as it is told."""

    flips = 0

    def get(self, *arguments: Any, **options: Any) -> Iterator[bytes]:
        """Return an object's content."""
        content = b"".join(super().get(*arguments, **options))
        self.flips -= 1
        yield flipped(content) if self.flips >= 0 else content


@pytest.mark.parametrize(("flips", "outcome"), [(0, "ok"), (1, "ok"), (2, "ok"), (100, "unsound")])
def test_a_bundle_is_unsound_only_if_each_of_three_copies_is(tmp_path: Path, flips: int, outcome: str) -> None:
    """One whose byte changed on its way to the worker is read again."""
    (tmp_path / "store").mkdir()
    store = _Flipping(tmp_path / "store")
    item = put_bundle(store, "s", encode_bundle(small_bundle()))
    store.flips = flips
    assert check_item(store, item, Job(), str(tmp_path)).outcome == outcome
    assert list(tmp_path.iterdir()) == [tmp_path / "store"]


@pytest.mark.timeout(300)
def test_no_run_says_a_false_word_when_everything_is_killed() -> None:
    """One round: the catalogue is whole afterwards, and each bundle has the outcome that is true."""
    with short_directory() as place:
        chaos(place, 0, 1, 3)


@pytest.mark.soak
@pytest.mark.timeout(SOAK_SECONDS + 900)
def test_no_run_says_a_false_word_in_a_soak() -> None:
    """The long form."""
    with short_directory() as place:
        chaos(place, SOAK_SECONDS, 3, 4)
