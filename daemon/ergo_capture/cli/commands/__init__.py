"""The table of commands: names, order, short descriptions, and the module of each.

It is separate from the commands, so that listing them imports none of them.
"""

from __future__ import annotations

from typing import Final

GROUPS: Final = {
    "Capture": {
        "serve": "run the daemon; needs no configuration",
        "send": "stream events to the daemon; print the path of the bundle",
        "ingress": "make a channel's events durable in front of `ergo run`",
        "egress": "make the intents and acks of `ergo run` durable",
        "simulate": "run a scenario file without a daemon, and write its bundle",
        "demo": "capture a sample of real flights, with a temporary daemon",
    },
    "Running daemon": {
        "status": "show sessions, commits, journal, memory, engines, disk",
        "top": "show the status continuously, with rates",
        "tap": "follow decisions as they become durable",
        "flush": "publish what open sessions hold",
        "reload": "read the configuration again",
        "shutdown": "stop the daemon in order",
        "metrics": "print metrics in Prometheus's text format",
    },
    "Bundles and sessions": {
        "verify": "check format, hashes and ids; derive every decision again",
        "replay": "run the episodes again with an engine; explain differences",
        "info": "summarize runs: counts, times, decisions, gaps, labels",
        "cat": "print events with their decisions; can follow a session",
        "tail": "print the last events; can follow a session",
        "intents": "list intents, and which of them are not acknowledged",
        "diff": "compare two runs event by event",
        "extract": "write a range of events as a scenario, a stream or a fixture",
        "feed": "print a capture as a driver's stream for `ergo run`",
        "report": "draw a run as one page of HTML",
        "seal": "make keys for seals, which chain manifests together",
        "bundles": "list finished bundles, delete expired ones, fetch shipped ones",
        "ship": "ship finished bundles to object stores",
    },
    "Many hosts": {
        "fleet": "find, export and prove the bundles in an object store",
    },
    "Damage": {
        "doctor": "report damage, where it is, and what recover would keep",
        "recover": "write what can be proved to a new place; count the rest",
        "journal": "print a segment of the write-ahead journal",
    },
    "This host": {
        "config": "check or show the configuration, print the default one",
        "systemd": "install units, service user and configuration",
        "bench": "measure durable events per second on this disk",
    },
    "Documentation": {
        "help": "list the manual's topics, or show one",
    },
}

COMMANDS: Final = tuple(name for group in GROUPS.values() for name in group)

#: The modules of this package that hold several commands; any other command is in the module of its own name.
_SHARED: Final = {
    "flush": "control",
    "reload": "control",
    "shutdown": "control",
    "metrics": "control",
    "tail": "cat",
    "top": "status",
    "help": "manual",
}


def module_of(name: str) -> str:
    """Return the full name of the module that defines a command; its function is called as the command."""
    return f"{__name__}.{_SHARED.get(name, name)}"
