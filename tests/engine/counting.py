"""Callables for the python engine of tests whose graph keeps context; found as ``tests.engine.counting:NAME``."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

ADAPTER = """
kind: adapter
id: counter
version: 1.0.0
runtime_compatibility: 0.1.0-alpha.1
context_keys:
  - { name: total, type: Number, required: false, writable: true }
  - { name: note, type: String, required: false, writable: true }
  - { name: n, type: Number, required: false, writable: false }
event_kinds:
  - name: add
    payload_schema:
      type: object
      properties: { n: { type: number }, total: { type: number, maximum: 100 }, note: { type: string } }
      required: [n]
      additionalProperties: false
  - name: plain
    payload_schema:
      type: object
      properties: { n: { type: number, minimum: 0 } }
      additionalProperties: false
accepts:
  effects:
    - { name: set_context, payload_schema: { type: object, additionalProperties: false } }
capture: { format_version: "1", fields: [] }
"""


def effect(key: str, value: dict[str, Any]) -> dict[str, Any]:
    """Return an effect that writes one key."""
    return {"kind": "set_context", "writes": [{"key": key, "value": value}]}


def add(graph_id: str, event_id: str, kind: str, at: Any, payload: bytes, deadline: Any) -> Any:
    """Add what an event brings to the total, as far as the store knows it; do what its id says besides."""
    fields = json.loads(payload)
    what = event_id.partition(".")[0]
    if what == "hang":
        sys.stderr.write(f"{event_id} runs\n")
        sys.stderr.flush()
        time.sleep(3600)
    if what == "undeclared":
        return {"termination": "Completed", "effects": [effect("nothing", {"Number": 1})]}
    if what == "fail":
        return {"Failed": "SemanticError"}
    if what == "long":
        return {"termination": "Completed", "effects": [effect("note", {"String": "x" * 2000})]}
    total = fields.get("total", 0.0) + fields.get("n", 0.0)
    return {"termination": "Completed", "effects": [effect("total", {"Number": total})]}
