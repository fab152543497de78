"""The README's engine."""

import json
import sys


def say(message):
    print(json.dumps(message), flush=True)


say({"type": "ready", "protocol": "ergo-engine.v1", "runtime_provenance": "rpv1:example-1"})
for line in sys.stdin:
    run = json.loads(line)
    price = (run["payload"] or {}).get("price")
    writes = [] if price is None else [{"key": "last_price", "value": {"Number": price}}]
    effects = [{"kind": "set_context", "writes": writes}] if writes else []
    say({"type": "ran", "id": run["id"], "termination": "Completed", "effects": effects})
