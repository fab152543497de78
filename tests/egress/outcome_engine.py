"""An engine that returns recorded outcomes: ``python outcome_engine.py OUTCOMES [CALLS]``.

OUTCOMES is a JSON list as the conformance data has it; the outcomes of one event are returned in order. The id of each
event that is run is appended to the file CALLS.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict, deque
from pathlib import Path
from typing import Any


def say(message: dict[str, Any]) -> None:
    """Write a message."""
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


outcomes: defaultdict[str, deque[Any]] = defaultdict(deque)
for outcome in json.loads(Path(sys.argv[1]).read_bytes()):
    outcomes[outcome["event_id"]].append(outcome)
say({"type": "ready", "protocol": "ergo-engine.v1", "runtime_provenance": "rpv1:recorded"})
for line in sys.stdin:
    message = json.loads(line)
    if message["type"] != "run":
        continue
    if len(sys.argv) > 2:
        with Path(sys.argv[2]).open("a") as calls:
            calls.write(message["event_id"] + "\n")
    found = outcomes[message["event_id"]]
    said = found.popleft() if len(found) > 1 else found[0]
    say({"type": "ran", "id": message["id"], "termination": said["termination"], "effects": said["effects"]})
