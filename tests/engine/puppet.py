"""An engine that does what the ids of events say, right or wrong; run as a child, or listening on a socket.

    python puppet.py [--socket PATH] [--log FILE] [--provenance P] [--silent | --mute | --garbage | --slow SECONDS]

``ok``, ``fail``, ``effect``, ``die``, ``half``, ``garbage``, ``long``, ``utf8``, ``twice``, ``stray``, ``hang``,
``wait`` (10 ms), ``hold`` and ``release`` (answers in another order), ``bad-N`` (the Nth invalid answer); what
follows the first dot of an id makes it unique.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import sys
import time
from pathlib import Path
from typing import Any, BinaryIO

EFFECT = {"kind": "set_context", "writes": [{"key": "x", "value": {"Number": 1.5}}]}
#: Answers whose id is valid and whose rest is not.
BAD: list[dict[str, Any]] = [
    {},
    {"termination": "Finished"},
    {"termination": {"Failed": "Sneeze"}},
    {"termination": 3},
    {"termination": "Completed", "effects": {}},
    {"termination": "Completed", "effects": [3]},
    {"termination": "Completed", "effects": [{"writes": []}]},
    {"termination": "Completed", "effects": [{"kind": "k", "writes": [{"key": "x", "value": {"Number": "1"}}]}]},
    {"termination": "Completed", "effects": [{"kind": "k", "writes": [{"key": "x", "value": {}}]}]},
    {
        "termination": "Completed",
        "effects": [{"kind": "k", "writes": [{"key": "x", "value": {"Number": 1, "Bool": True}}]}],
    },
    {"termination": "Completed", "effects": [{"kind": "k", "writes": [], "intents": [{"kind": "k"}]}]},
    {"termination": "Completed", "interruption": 7},
]


class Puppet:
    """One connection."""

    def __init__(self, heard: BinaryIO, said: BinaryIO, options: argparse.Namespace) -> None:
        self.heard = heard
        self.said = said
        self.log = Path(options.log).open("a", buffering=1) if options.log else None  # noqa: SIM115
        self.options = options
        self.held: list[int] = []

    def say(self, message: dict[str, Any] | bytes) -> None:
        """Write a message, or bytes as they are."""
        self.said.write(message if isinstance(message, bytes) else json.dumps(message).encode() + b"\n")
        self.said.flush()

    def ran(self, number: int, termination: Any = "Completed", **more: Any) -> None:
        """Write an answer."""
        self.say({"type": "ran", "id": number, "termination": termination, "effects": [], **more})

    def talk(self) -> None:
        """Say ``ready`` and answer until the other side hangs up."""
        if self.options.silent:
            self.heard.read()
            return
        time.sleep(self.options.slow)
        if self.options.garbage:
            self.say(b"Welcome to ACME engine 3.0\n")
        self.say({"type": "ready", "protocol": "ergo-engine.v1", "runtime_provenance": self.options.provenance})
        for line in self.heard:
            run = json.loads(line)
            if self.log:
                self.log.write(run["event_id"] + "\n")
            if not self.options.mute:
                self.answer(run["id"], run["event_id"].partition(".")[0])

    def answer(self, number: int, what: str) -> None:
        """Do what the event's id says."""
        if what == "fail":
            self.ran(number, {"Failed": "NetworkTimeout"})
        elif what == "effect":
            self.ran(number, effects=[EFFECT], interruption="a word")
        elif what == "die":
            os._exit(9)
        elif what == "half":
            self.say(b'{"type":"ran","id":%d,"termi' % number)
            os._exit(0)
        elif what == "garbage":
            self.say(b"Segmentation fault\n")
        elif what == "long":
            for _ in range(2000):
                self.say(b"x" * 65536)
        elif what == "utf8":
            self.say(b'{"type":"ran","id":%d,"termination":"\xff\xfe"}\n' % number)
        elif what == "twice":
            self.ran(number)
            self.ran(number)
        elif what == "stray":
            self.ran(number + 1_000_000)
            self.ran(number)
        elif what == "hang":
            time.sleep(3600)
        elif what == "wait":
            time.sleep(0.01)
            self.ran(number)
        elif what == "hold":
            self.held.append(number)
        elif what == "release":
            for held in [number, *reversed(self.held)]:
                self.ran(held)
            self.held.clear()
        elif what.startswith("bad-"):
            self.say({"type": "ran", "id": number, **BAD[int(what[4:])]})
        else:
            self.ran(number)


def main() -> None:
    """Serve on standard input and output, or one connection after the other."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--socket")
    parser.add_argument("--log")
    parser.add_argument("--provenance", default="rpv1:puppet")
    parser.add_argument("--silent", action="store_true")
    parser.add_argument("--mute", action="store_true")
    parser.add_argument("--garbage", action="store_true")
    parser.add_argument("--slow", type=float, default=0.0)
    options = parser.parse_args()
    if not options.socket:
        Puppet(sys.stdin.buffer, sys.stdout.buffer, options).talk()
        return
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(options.socket)
        listening.listen()
        while True:
            connection, _ = listening.accept()
            with connection, connection.makefile("rb") as heard, connection.makefile("wb") as said:
                try:
                    Puppet(heard, said, options).talk()
                except OSError:
                    continue


if __name__ == "__main__":
    main()
