"""An egress channel that follows a script: ``python puppet.py SCRIPT HEARD``.

SCRIPT is a JSON file as the conformance data has it: ``start`` steps, a list of steps for each intent in ``intents``
(by default a good ack), ``end`` steps. Each line that it reads is appended to the file HEARD.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

SCRIPT: dict[str, Any] = json.loads(Path(sys.argv[1]).read_bytes())


def say(text: bytes) -> None:
    """Write to standard output at once."""
    sys.stdout.buffer.write(text)
    sys.stdout.buffer.flush()


def do(steps: list[dict[str, Any]], intent_id: str = "") -> None:
    """Follow the steps."""
    for step in steps:
        ((kind, value),) = step.items()
        if kind == "sleep_ms":
            time.sleep(value / 1000)
        elif kind in {"send", "send_without_newline"}:
            say(value.encode() + (b"\n" if kind == "send" else b""))
        elif kind in {"ack", "ack_without_newline"}:
            good = {"type": "intent_ack", "intent_id": intent_id, "status": "accepted", "acceptance": "durable"}
            fields = {key: item for key, item in (good | value).items() if item != "<absent>"}
            say(json.dumps(fields, ensure_ascii=False).encode() + (b"\n" if kind == "ack" else b""))
        elif kind == "bytes_hex":
            say(bytes.fromhex(value))
        elif kind == "stderr":
            sys.stderr.write(value)
            sys.stderr.flush()
        elif kind == "close_stdout":
            os.close(1)
        elif kind == "close_stdin":
            os.close(0)
        elif kind == "exit":
            os._exit(value)
        else:
            raise AssertionError(kind)


with Path(sys.argv[2]).open("ab", buffering=0) as heard:
    do(SCRIPT.get("start", []))
    scripts = iter(SCRIPT.get("intents", []))
    for line in sys.stdin.buffer:
        heard.write(line)
        message = json.loads(line)
        if message["type"] == "end":
            do(SCRIPT.get("end", [{"exit": 0}]))
        else:
            do(next(scripts, [{"ack": {}}]), message["intent_id"])
