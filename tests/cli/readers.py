"""The commands that read runs, and how each is called: what all of them have to do is tested with this table."""

from __future__ import annotations

from typing import Final

#: Arguments after the run's name, by command. ``OTHER`` is another run, in the current directory; files named here
#: are written to it.
OTHER: Final = "other.capture.json"
READERS: Final[dict[str, list[str]]] = {
    "verify": [],
    "replay": ["--engine", "fixed"],
    "info": [],
    "cat": [],
    "tail": [],
    "intents": [],
    "diff": [OTHER],
    "extract": ["-o", "out.scenario.json"],
    "feed": [],
    "report": ["-o", "out.html"],
}
#: Those that show what they can of a bundle of another version; the others refuse it.
SHOWING: Final = ("info", "cat", "tail", "diff", "report")
