"""Clusters for the runs of a fleet: a scheduler and workers as processes."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

from tests.daemons import PATIENCE
from tests.shared import REPOSITORY

ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": os.pathsep.join((str(REPOSITORY / "daemon"), str(REPOSITORY))),
    # Workers that a test kills are not waited for.
    "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "1",
    "DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT": "5s",
}


class Cluster:
    """A scheduler and workers, as processes."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self._stack = ExitStack()
        self.workers: list[subprocess.Popen[str]] = []
        self.scheduler = self._start("scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard")
        self.address = self._line(self.scheduler, r"Scheduler at:\s+(tcp://\S+)")

    def add_worker(self) -> None:
        """Start a worker that is started again where it ends."""
        options = ("--nthreads", "1", "--no-dashboard", "--local-directory", str(self.place), "--host", "127.0.0.1")
        self.workers.append(self._start("worker", self.address, *options))

    def _start(self, kind: str, *options: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "dask", kind, *options],
            env=ENVIRONMENT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            # A worker is a nanny and its child.
            start_new_session=True,
        )
        self._stack.callback(self._end, process)
        return process

    @staticmethod
    def _line(process: subprocess.Popen[str], pattern: str) -> str:
        assert process.stderr is not None
        for line in process.stderr:
            if found := re.search(pattern, line):
                return found[1]
        raise AssertionError("it ended")

    @staticmethod
    def _end(process: subprocess.Popen[str]) -> None:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(PATIENCE)
        assert process.stderr is not None
        process.stderr.close()

    def close(self) -> None:
        """End all of it."""
        self._stack.close()
