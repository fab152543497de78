"""A stand-in for ``ergo run``: starts a driver as the reference's host does, and reads its protocol.

    python stand_in.py SEEN COMMAND...

It writes the id of each event that it takes to the file SEEN before it takes the next, and says at the end how the run
ended, in the reference's words. An event with an id that it has had ends the run without a capture.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path


def say(text: str) -> None:
    """Print a line."""
    sys.stdout.write(text + "\n")


def main(seen_path: str, command: list[str]) -> int:
    """Run the driver and return the exit code."""
    driver = subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True)
    assert driver.stdout is not None
    seen: set[str] = set()
    greeted = ended = False
    began = time.monotonic()
    with Path(seen_path).open("a", encoding="utf-8") as file:
        for line in driver.stdout:
            try:
                frame = json.loads(line)
                kind = frame["type"]
            except (ValueError, TypeError, KeyError):
                kind = "unreadable"
            if not greeted:
                if kind != "hello" or time.monotonic() - began > 5:
                    say("code: driver.protocol_invalid")
                    os.killpg(driver.pid, signal.SIGKILL)
                    return 1
                greeted = True
            elif ended or kind in {"hello", "unreadable"}:
                say("status=interrupted reason=protocol_violation")
                os.killpg(driver.pid, signal.SIGKILL)
                return 0
            elif kind == "end":
                ended = True
            elif frame["event"]["event_id"] in seen:
                say("code: host.step_failed")
                os.killpg(driver.pid, signal.SIGKILL)
                return 1
            else:
                seen.add(frame["event"]["event_id"])
                file.write(frame["event"]["event_id"] + "\n")
                file.flush()
    try:
        code = driver.wait(5)
    except subprocess.TimeoutExpired:
        os.killpg(driver.pid, signal.SIGKILL)
        code = -9
    say("status=completed" if ended and code == 0 else f"status=interrupted reason=driver_terminated ({code})")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
