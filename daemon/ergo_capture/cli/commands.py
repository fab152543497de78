"""The commands there are, as the help lists them, and examples of each.

Owns: their names, order and short descriptions; examples.
Not here: what they do and their options (the module of each name beside this one), how one is run (``app.py``).

Why apart from the commands: to list them none needs to be imported, and ``ergo-capture --help`` should not take as long
as all of them.
"""

from __future__ import annotations

from typing import Final

GROUPS: Final = {
    "Capture": {
        "serve": "run the daemon; works without any configuration",
        "send": "stream events to it; prints where the bundle is",
        "simulate": "run a written scenario into a bundle, without a daemon",
        "demo": "real flights through a daemon of its own, in some seconds",
    },
    "A running daemon": {
        "status": "sessions, commits, journal, memory, engines, disk, refusals",
        "top": "the same, live, with rates",
        "tap": "follow decisions as they become durable",
        "flush": "publish what open sessions hold by now",
        "reload": "have the configuration read again",
        "shutdown": "stop it in order",
        "metrics": "Prometheus's text format",
    },
    "Bundles and sessions": {
        "verify": "check format, hashes and ids; derive every decision again",
        "replay": "run the episodes again with an engine; explain what differs",
        "info": "what a run holds: counts, times, decisions, gaps, labels",
        "cat": "events with their decisions, also as they come",
        "tail": "the last of them, also as they come",
        "diff": "compare two runs, event by event",
        "extract": "a range of events as a scenario for simulate",
        "report": "the run as a picture and a table, in one page of HTML",
        "bundles": "list finished bundles, delete those that had their time",
    },
    "Damage": {
        "doctor": "what is wrong, where, and what recover would keep",
        "recover": "save what can be proved elsewhere; count the rest",
        "journal": "print a segment of the write-ahead journal",
    },
    "This host": {
        "config": "check, show or print the configuration",
        "systemd": "put units, user and configuration where systemd looks",
        "bench": "durable events a second, as this disk lets it be",
    },
}

COMMANDS: Final = tuple(name for group in GROUPS.values() for name in group)

_RUN: Final = "20261123T134500Z-1-9c4ef0aa"

EXAMPLES: Final = {
    "serve": (
        "ergo-capture serve --socket /tmp/capture.sock --state-dir /tmp/capture",
        "ergo-capture serve --config capture.toml",
    ),
    "send": (
        "ergo-capture send events.jsonl --socket /tmp/capture.sock",
        "python3 live_feed.py | ergo-capture send - --graph flights --label run=17",
    ),
    "simulate": ("ergo-capture simulate scenario.json -o run.capture.json",),
    "demo": ("ergo-capture demo --directory /tmp/demo",),
    "status": ("ergo-capture status --socket /tmp/capture.sock", "ergo-capture status --json"),
    "top": ("ergo-capture top --interval 2",),
    "tap": ("ergo-capture tap flights --rate 10", f"ergo-capture tap {_RUN} --json"),
    "flush": ("ergo-capture flush", f"ergo-capture flush {_RUN}"),
    "reload": ("ergo-capture config check && ergo-capture reload",),
    "shutdown": ("ergo-capture shutdown --socket /tmp/capture.sock",),
    "metrics": ("ergo-capture metrics | grep refusals",),
    "verify": (
        "ergo-capture verify run.capture.json",
        "ergo-capture verify /var/lib/ergo-capture/bundles --json",
    ),
    "replay": (
        'ergo-capture replay run.capture.json --engine "process:engine --flag"',
        "ergo-capture replay bundles/ --engine scripted:outcomes.json --jobs 4 -k",
    ),
    "info": ("ergo-capture info run.capture.json", "ergo-capture info /var/lib/ergo-capture"),
    "cat": (
        "ergo-capture cat run.capture.json --decision Defer --since 3600 --until 7200",
        f"ergo-capture cat {_RUN} --follow --json",
    ),
    "tail": ("ergo-capture tail -n 20 run.capture.json", "ergo-capture tail -f /var/lib/ergo-capture"),
    "diff": ("ergo-capture diff monday.capture.json tuesday.capture.json",),
    "extract": ("ergo-capture extract run.capture.json --from-id e7 --to-id e9 | ergo-capture simulate -",),
    "report": ("ergo-capture report run.capture.json -o run.html",),
    "bundles list": ("ergo-capture bundles list --graph flights",),
    "bundles prune": ("ergo-capture bundles prune --max-age 30d --dry-run",),
    "doctor": ("ergo-capture doctor /var/lib/ergo-capture", "ergo-capture doctor run.capture.json"),
    "recover": (
        "ergo-capture recover damaged.capture.json -o saved.capture.json",
        "ergo-capture recover /var/lib/ergo-capture -o /tmp/saved",
    ),
    "journal cat": ("ergo-capture journal cat journal/0000000000000001.journal --no-bodies",),
    "config check": ("ergo-capture config check capture.toml",),
    "config show": ("ergo-capture config show capture.toml",),
    "config default": ("ergo-capture config default > capture.toml",),
    "systemd install": ("ergo-capture systemd install --dry-run",),
    "bench": ("ergo-capture bench --directory /var/lib",),
}
