"""The reference's runs as cases, with doubles for its driver and its channels that keep a clock of their own."""

from __future__ import annotations

import base64
import gzip
import json
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.shared import conformance, shared

from ergo_capture.adapter.egress import EgressConfig, EgressFailure, check_ready, intent_frame, read_ack
from ergo_capture.adapter.host import HostError, failed
from ergo_capture.adapter.ingress import GRACE_MS, SUCCESS, Observation
from ergo_capture.adapter.simulate import Case, read_case
from ergo_capture.kernel.effects import IntentRecord
from ergo_capture.kernel.records import CapturedIntentAck

#: The time that the reference waits for a late line before it ends its channels, in milliseconds.
STRAGGLERS_MS = 20


def rows(name: str) -> list[dict[str, Any]]:
    """Return the lines of one of the host's conformance files."""
    found: list[dict[str, Any]] = conformance(f"ergo/{name}.jsonl")
    return found


def flight(name: str) -> tuple[dict[str, Any], list[str], bytes]:
    """Return a run of 2,000 flights: the facts about it, the driver's lines, the capture."""
    folder: Path = shared("conformance") / "ergo"
    lines = gzip.decompress((folder / f"{name}.driver.jsonl.gz").read_bytes()).decode().split("\n")[:-1]
    capture = gzip.decompress((folder / f"{name}.capture.json.gz").read_bytes())
    return json.loads((folder / f"{name}.json").read_bytes()), lines, capture


def graph_id(row: dict[str, Any]) -> str:
    """Return the id of the graph in its YAML."""
    for line in row["graph_yaml"].split("\n"):
        if line.startswith("id: "):
            return str(line.removeprefix("id: "))
    raise AssertionError(row["name"])


def needs(row: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the needs of a graph's nodes, which its engine would report; the nodes are numbered by name."""
    found = re.findall(r"^  (\w+): \{ impl: (\w+)@\S+?(?:, params: (\{.*?\}))? \}$", row["graph_yaml"], re.MULTILINE)
    return [
        {"id": f"n{number}"} | _needs(impl, re.search(r"key: (\w+)", params))
        for number, (_, impl, params) in enumerate(sorted(found))
    ]


def _needs(impl: str, key: re.Match[str] | None) -> dict[str, Any]:
    number = {"name": "n", "type": "Number"}
    text = {"name": "label", "type": "String"}
    intents: dict[str, list[dict[str, Any]]] = {
        "send_one": [{"kind": "send_one", "fields": [number, text]}],
        "send_mirror": [{"kind": "send_mirror", "fields": [number], "mirrored": True}],
        "send_two": [
            {"kind": "alpha", "fields": [number, {"name": "s", "type": "String"}]},
            {"kind": "beta", "fields": [{"name": "flag", "type": "Bool"}, {"name": "k", "type": "Number"}]},
        ],
        "send_all": [
            {
                "kind": "send_all",
                "fields": [
                    number,
                    {"name": "v", "type": "Series"},
                    {"name": "b", "type": "Bool"},
                    {"name": "zeta", "type": "String"},
                ],
            }
        ],
        "send_bare": [{"kind": "send_bare", "fields": []}],
    }
    # Only the action that sends two intents writes where no key is given.
    named = "last_n" if key is None else key[1]
    if match := re.fullmatch(r"context_(\w+)_source", impl):
        return {"reads": [{"name": named, "type": match[1].capitalize()}]}
    if match := re.fullmatch(r"context_set_(\w+)", impl):
        return {"writes": [{"name": named, "type": match[1].capitalize()}]}
    writes = [{"name": named, "type": "Number"}] if impl == "send_two" else []
    return {"intents": intents[impl], "writes": writes} if impl in intents else {}


def case_of(row: dict[str, Any]) -> Case:
    """Return a line of the conformance data as a case; the graph's id and provenance are taken from the capture."""
    capture = json.loads(row["capture"]) if row["capture"] else {}
    lines = row.get("driver_lines", row.get("feed")) or []
    fields = {
        "graph_id": capture.get("graph_id", graph_id(row)),
        "runtime_provenance": capture.get("runtime_provenance", "rpv1:unknown"),
        "adapter_yaml": row["adapter_yaml"],
        "engine_outcomes": row["engine_outcomes"],
        "constraints": row["constraints"],
        "max_events": row["max_events"],
        "egress_toml": row.get("egress_toml"),
        "nodes": needs(row),
    }
    fields |= {"fixture": row["fixture"]} if row.get("fixture") is not None else {"driver_lines": lines}
    return read_case(json.dumps(fields))


class Clock:
    """Milliseconds of a simulated run."""

    def __init__(self) -> None:
        self.now = 0


class VirtualDriver:
    """A driver that does what a script says, seen by a host that may be told to stop at some time."""

    def __init__(self, steps: list[dict[str, Any]], clock: Clock, stop_at: int | None = None) -> None:
        self._clock = clock
        self._stop_at = stop_at
        self._lines: list[tuple[int, bytes]] = []
        self._at = 0
        self._closed_at: int | None = None
        self._status = SUCCESS
        self._rest = b""
        for step in steps:
            self._do(step)
        if self._closed_at is None:
            self._closed_at = self._at
        if self._rest:
            self._lines.append((self._closed_at, self._rest))

    def _do(self, step: dict[str, Any]) -> None:
        ((kind, value),) = step.items()
        if kind == "sleep_ms":
            self._at += value
        elif kind == "close_stdout":
            self._closed_at = self._at
        elif kind == "exit":
            self._status = f"exit status: {value}"
        elif kind == "signal":
            self._status = f"signal: {signal.Signals[value].value} ({value})"
        elif kind != "stderr":
            self._rest += self._written(kind, value)
            *whole, self._rest = self._rest.split(b"\n")
            self._lines += [(self._at, line) for line in whole]

    @staticmethod
    def _written(kind: str, value: Any) -> bytes:
        if kind == "repeat":
            return str(value["text"]).encode() * int(value["times"])
        if kind == "raw_b64":
            return base64.b64decode(value)
        return str(value).encode() + (b"\n" if kind == "line" else b"")

    def __iter__(self) -> Iterator[Observation]:
        for number, (at, line) in enumerate(self._lines):
            if self._stops_by(at):
                yield Observation("stop")
            self._clock.now = max(self._clock.now, at)
            if number == 0 and at > GRACE_MS:
                yield Observation("silence")
            try:
                yield Observation("line", line.decode())
            except UnicodeDecodeError:
                yield Observation("not_utf8")
        assert self._closed_at is not None
        if self._stops_by(self._closed_at):
            yield Observation("stop")
        self._clock.now = max(self._clock.now, self._closed_at)
        in_time = self._at - self._closed_at <= GRACE_MS
        yield Observation("end_of_output", status=self._status if in_time else None)

    def _stops_by(self, at: int) -> bool:
        return self._stop_at is not None and at >= self._stop_at


class VirtualChannels:
    """Egress channels that do what their scripts say."""

    def __init__(self, config: EgressConfig, behaviour: dict[str, Any], clock: Clock) -> None:
        self._config = config
        self._clock = clock
        self.channels = {name: _Channel(name, behaviour[name], clock) for name in sorted(config.channels)}

    def start(self) -> None:
        """Start each channel and take its first line."""
        for name, channel in self.channels.items():
            channel.run(channel.behaviour.get("start", []))
            line = channel.receive(self._clock.now + GRACE_MS)
            prefix = "start egress channels: egress lifecycle failure: egress channel"
            if line is None:
                silent = f"channel did not emit ready frame within {GRACE_MS}ms"
                detail = "channel closed stdout before ready handshake" if channel.ended else silent
                raise failed("egress.start_failed", f"{prefix} '{name}' startup failed: {detail}")
            try:
                check_ready(name, line, self._config.kinds_of(name))
            except EgressFailure as failure:
                detail = str(failure).partition(": ")[2]
                raise failed("egress.start_failed", f"{prefix} '{name}' protocol violation: {detail}") from failure

    def dispatch(self, intent: IntentRecord) -> CapturedIntentAck:
        """Send an intent and wait for its ack."""
        name = self._config.routes[intent.kind].channel
        channel = self.channels[name]
        if channel.exited_by(self._clock.now):
            raise EgressFailure("egress_io", name, "write intent payload: Broken pipe (os error 32)")
        channel.ask(intent)
        line = channel.receive(self._clock.now + self._config.timeout_of(intent.kind))
        if line is None and channel.ended:
            raise EgressFailure("egress_io", name, "channel closed stdout while waiting for ack")
        if line is None:
            raise EgressFailure("egress_ack_timeout", name, intent.intent_id)
        return read_ack(name, line, intent)

    def finish(self, *, host_stop: bool) -> None:
        """Look for late lines, then end each channel."""
        prefix = "egress lifecycle failure: egress channel"
        for name, channel in self.channels.items():
            late = channel.receive(self._clock.now + STRAGGLERS_MS)
            if late is not None:
                text = f"unexpected buffered stdout frame after final dispatch: {late}"
                raise failed("host.step_failed", f"{prefix} '{name}' has unresolved ack state: {text}")
            if channel.ended and not host_stop:
                text = "stdout reached EOF with no explicit shutdown"
                raise failed("host.step_failed", f"{prefix} '{name}' has unresolved ack state: {text}")
        errors: list[HostError] = []
        for name, channel in self.channels.items():
            channel.sent.append('{"type":"end"}')
            channel.run(channel.behaviour.get("end", [{"exit": 0}]))
            if channel.at > self._clock.now + GRACE_MS:
                text = f"I/O failure: channel did not terminate within shutdown timeout ({GRACE_MS}ms)"
                errors.append(failed("host.step_failed", f"{prefix} '{name}' {text}"))
        if errors:
            raise errors[0]


class _Channel:
    """One process, and the clock that it is at."""

    def __init__(self, name: str, behaviour: dict[str, Any], clock: Clock) -> None:
        self.name = name
        self.behaviour = behaviour
        self.at = 0
        #: The exact lines that the process read.
        self.sent: list[str] = []
        self._clock = clock
        self._exit_at: int | None = None
        self._out: list[tuple[int, str]] = []
        self._asked = 0
        #: Whether the last line that was waited for was the end of its output.
        self.ended = False

    def run(self, steps: list[dict[str, Any]], intent: IntentRecord | None = None) -> None:
        self.at = max(self.at, self._clock.now)
        for step in steps:
            ((kind, value),) = step.items()
            if kind == "sleep_ms":
                self.at += value
            elif kind == "exit":
                self._exit_at = self.at
                return
            elif kind == "send":
                self._out.append((self.at, value))
            elif kind == "ack":
                assert intent is not None
                good = {
                    "type": "intent_ack",
                    "intent_id": intent.intent_id,
                    "status": "accepted",
                    "acceptance": "durable",
                }
                fields = {key: item for key, item in (good | value).items() if item != "<absent>"}
                self._out.append((self.at, json.dumps(fields, ensure_ascii=False)))
            else:
                raise AssertionError(kind)

    def ask(self, intent: IntentRecord) -> None:
        if self.at <= self._clock.now:
            self.sent.append(intent_frame(intent).decode())
        scripts = self.behaviour.get("intents", [])
        steps = scripts[self._asked] if self._asked < len(scripts) else [{"ack": {}}]
        self._asked += 1
        self.run(steps, intent)

    def exited_by(self, now: int) -> bool:
        return self._exit_at is not None and self._exit_at < now

    def receive(self, until: int) -> str | None:
        if self._out and self._out[0][0] <= until:
            at, line = self._out.pop(0)
            self._clock.now = max(self._clock.now, at)
            return line
        self.ended = self._exit_at is not None and self._exit_at <= until and not self._out
        return None
