"""A unit of systemd as the tests inside a box see it."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ergo_capture import manual

CONFIG = Path("/etc/ergo-capture/config.toml")
STATE = Path("/var/lib/ergo-capture")


def said(*words: str) -> subprocess.CompletedProcess[str]:
    """Run a command and return what it said, whether it failed or not."""
    return subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)


def documented(topic: str, word: str) -> list[str]:
    """Return the commands of the block of a topic that has the word in it, as root runs them."""
    blocks = re.findall(r"^```console\n(.*?)^```$", manual.read(topic), re.DOTALL | re.MULTILINE)
    (block,) = (block for block in blocks if word in block)
    return [line.removeprefix("$ sudo ") for line in block.splitlines()]


class Unit:
    """A unit, and commands whose failure shows what it has logged.

    Args:
        name: its name.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def run(self, *words: str, fails: bool = False) -> str:
        """Run a command and return its output; fail if it fails."""
        done = said(*words)
        assert fails or done.returncode == 0, f"{words}: {done.stdout}{done.stderr}{self.log()}"
        return done.stdout

    def log(self) -> str:
        """Return what the unit has logged lately."""
        said("journalctl", "--sync")
        return said("journalctl", "--no-pager", "-n", "60", "-o", "cat", "-u", self.name).stdout

    def shown(self, name: str) -> str:
        """Return a property of the unit."""
        return self.run("systemctl", "show", "--value", "-p", name, self.name).strip()

    def until(self, true: Callable[[], Any], what: str) -> None:
        """Wait until a condition holds; fail if it does not in time."""
        deadline = time.monotonic() + 30
        while not true():
            assert time.monotonic() < deadline, f"{what}\n{said('systemctl', 'status', self.name).stdout}\n{self.log()}"
            time.sleep(0.05)

    @contextmanager
    def configured(self, text: str) -> Iterator[None]:
        """Have the unit run with another configuration."""
        kept = CONFIG.read_text()
        CONFIG.write_text(text)
        self.run("systemctl", "restart", self.name)
        try:
            yield
        finally:
            CONFIG.write_text(kept)
            self.run("systemctl", "restart", self.name)
