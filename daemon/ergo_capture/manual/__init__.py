"""The manual: Markdown topics, shown by ``ergo-capture help TOPIC``."""

from __future__ import annotations

from importlib import resources
from typing import Final

#: Every topic, in reading order.
_TOPICS: Final = (
    "terms",
    "protocol",
    "engines",
    "ergo",
    "library",
    "configuration",
    "systemd",
    "operating",
    "log",
    "metrics",
    "access",
    "limits",
    "retention",
    "ship",
    "seal",
    "fleet",
    "damage",
    "replaying",
    "events",
    "fates",
    "contributing",
)


def topics() -> dict[str, str]:
    """Return the title of each topic by its name, in reading order."""
    return {name: _title(read(name)) for name in _TOPICS}


def read(name: str) -> str:
    """Return the Markdown text of a topic.

    Raises:
        KeyError: there is no such topic.
    """
    if name not in _TOPICS:
        raise KeyError(name)
    return (resources.files(__name__) / f"{name}.md").read_text(encoding="utf-8")


def _title(text: str) -> str:
    return next(line.removeprefix("# ") for line in text.splitlines() if line.startswith("# "))
