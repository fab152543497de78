"""The worker process that verifies published bundles; ``shadow`` starts it.

It reads one request a line, a JSON string with the path of a bundle, and writes one answer a line (``Answer``). It runs
at low priority, and exits at the end of its standard input.
"""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec

from ergo_capture.bundle.proof import compare_with_manifest
from ergo_capture.bundle.verify import verify_bundle
from ergo_capture.errors import ErgoCaptureError

#: The niceness of the process.
_NICENESS: Final = 15


class Answer(msgspec.Struct, frozen=True):
    """The result of verifying a bundle."""

    #: Whether it is sound; None if it is gone.
    ok: bool | None
    #: The problem, in words; empty for none.
    problem: str = ""
    events: int = 0


def examine(bundle: Path) -> Answer:
    """Compare a bundle with its manifest and verify it."""
    try:
        compared = compare_with_manifest(bundle)
        if compared is None:
            # Retention has deleted it meanwhile.
            return Answer(None)
        if compared.problem is not None:
            return Answer(ok=False, problem=compared.in_words)
        verdict = verify_bundle(bundle)
    except FileNotFoundError:
        return Answer(None)
    except OSError as error:
        return Answer(ok=False, problem=error.strerror or str(error))
    except ErgoCaptureError as error:
        return Answer(ok=False, problem=error.message) if bundle.exists() else Answer(None)
    if verdict.complaint is not None:
        return Answer(ok=False, problem=verdict.complaint.message)
    if verdict.divergence is not None:
        return Answer(ok=False, problem=f"decision {verdict.divergence.index} does not follow from the events")
    return Answer(ok=True, events=verdict.events)


def main() -> None:
    """Serve the daemon until it closes the pipe."""
    for number in (signal.SIGINT, signal.SIGTERM):
        # The end of standard input ends the process.
        signal.signal(number, signal.SIG_IGN)
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, _NICENESS)
    for line in sys.stdin.buffer:
        answer = examine(Path(msgspec.json.decode(line, type=str)))
        sys.stdout.buffer.write(msgspec.json.encode(answer) + b"\n")
        sys.stdout.buffer.flush()
