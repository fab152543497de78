"""An engine that answers what a capture recorded, by event id; run as ``recorded.py CAPTURE.json.gz``."""

from __future__ import annotations

import gzip
import json
import sys
from typing import Any


def main(path: str) -> None:
    """Answer until there are no more requests."""
    with gzip.open(path) as file:
        capture = json.load(file)
    outcomes = {
        decision["event_id"]: {
            "termination": decision["termination"],
            "effects": [effect["effect"] for effect in decision["effects"]],
        }
        for decision in capture["decisions"]
        if decision["decision"] == "Invoke"
    }
    say({"type": "ready", "protocol": "ergo-engine.v1", "runtime_provenance": capture["runtime_provenance"]})
    for line in sys.stdin:
        run = json.loads(line)
        say({"type": "ran", "id": run["id"], **outcomes[run["event_id"]]})


def say(message: dict[str, Any]) -> None:
    """Write one message."""
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
