"""An engine that completes everything and notes what it reads; run as ``noting.py LOG READY``.

READY is JSON: fields of ``ready`` besides the protocol. A run whose event id begins with ``die`` ends the program.
"""

from __future__ import annotations

import json
import sys
from typing import Any


def main(log: str, ready: str) -> None:
    """Answer until there are no more requests."""
    say({"type": "ready", "protocol": "ergo-engine.v1", "runtime_provenance": "rpv1:noting", **json.loads(ready)})
    with open(log, "a", encoding="utf-8") as notes:  # noqa: PTH123 - a program of its own
        for line in sys.stdin:
            notes.write(line)
            notes.flush()
            message = json.loads(line)
            if message["type"] == "run":
                if message["event_id"].startswith("die"):
                    return
                say({"type": "ran", "id": message["id"], "termination": "Completed"})


def say(message: dict[str, Any]) -> None:
    """Write one message."""
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
