"""Channels that follow scripts, for tests."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

PUPPET = Path(__file__).with_name("puppet.py")


def ready(*kinds: str) -> dict[str, str]:
    """Return the step that says that the channel is ready."""
    return {"send": json.dumps({"type": "ready", "protocol": "ergo-egress.v1", "handled_kinds": kinds})}


def puppet(place: Path, name: str, script: dict[str, Any]) -> tuple[str, ...]:
    """Return the command of a channel that follows a script; what it reads is appended to ``NAME.heard``."""
    (place / f"{name}.json").write_text(json.dumps(script))
    return (sys.executable, str(PUPPET), str(place / f"{name}.json"), str(place / f"{name}.heard"))


def heard(place: Path, name: str) -> list[dict[str, Any]]:
    """Return the messages that a channel read."""
    path = place / f"{name}.heard"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
