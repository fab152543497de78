"""Graphs with egress channels, as a daemon's configuration; the conformance data's and one of two intents an episode."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from tests.adapter.cases import graph_id, rows
from tests.egress.channels import puppet, ready

from ergo_capture.adapter.egress import intent_id, parse_egress_config

ENGINE = Path(__file__).with_name("outcome_engine.py")
ROWS = {row["name"]: row for row in rows("egress")}
#: Intents alpha and beta of each event, to channels a and b.
TWO = ROWS["ok-two-kinds-two-channels"]


def _duration(millis: int) -> str:
    return f'"{millis}ms"'


def configuration(row: dict[str, Any], place: Path, scripts: dict[str, Any] | None = None) -> str:
    """Return the graph of a row as a configuration, with puppets as channels.

    Args:
        row: the row; its engine's outcomes are in ``outcomes.json``, and the events that were run in ``calls``.
        place: a directory for the files.
        scripts: what the channels do, by name; by default as the row says.
    """
    (place / "adapter.yaml").write_text(row["adapter_yaml"])
    (place / "outcomes.json").write_text(json.dumps(row["engine_outcomes"]))
    config = parse_egress_config(row["egress_toml"])
    name = graph_id(row)
    command = json.dumps([sys.executable, str(ENGINE), str(place / "outcomes.json"), str(place / "calls")])
    lines = [f"[graphs.{name}]", f"adapter = {json.dumps(str(place / 'adapter.yaml'))}"]
    lines += [f"default_ack_timeout = {_duration(config.default_ack_timeout)}"]
    for key, value in (row["constraints"] or {}).items():
        if value is not None:
            seconds = f'"{value["secs"]}s"' if isinstance(value, dict) else value
            lines.append(f"{key} = {seconds}")
    lines += [f'engine = {{ kind = "process", command = {command} }}']
    for channel in config.channels:
        script = (scripts or row["egress_script_behaviour"])[channel]
        routes = {
            kind: "{}" if route.ack_timeout is None else f"{{ ack_timeout = {_duration(route.ack_timeout)} }}"
            for kind, route in config.routes.items()
            if route.channel == channel
        }
        lines += [f"[graphs.{name}.egress.{channel}]", f"command = {json.dumps(puppet(place, channel, script))}"]
        lines += ["routes = { " + ", ".join(f"{kind} = {route}" for kind, route in routes.items()) + " }"]
    return "\n".join(lines) + "\n"


def good(**intents: list[Any]) -> dict[str, Any]:
    """Return scripts for channels a and b of ``TWO``; by default each intent is acknowledged."""
    kinds = {"a": "alpha", "b": "beta"}
    return {name: {"start": [ready(kind)], "intents": intents.get(name, [])} for name, kind in kinds.items()}


def event_lines(row: dict[str, Any]) -> list[bytes]:
    """Return the lines of a row's events."""
    lines = row["feed"] or [step["line"] for step in row["feed_steps"] if "line" in step]
    return [line.encode() for line in lines if json.loads(line)["type"] == "event"]


def intents_of(row: dict[str, Any]) -> list[str]:
    """Return the ids of the intents that a row's engine emits, in order."""
    return [
        intent["intent_id"]
        for outcome in row["engine_outcomes"]
        for effect in outcome["effects"]
        for intent in effect.get("intents", [])
    ]


__all__ = ["ROWS", "TWO", "configuration", "event_lines", "good", "intent_id", "intents_of"]
