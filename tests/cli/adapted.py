"""A run of a graph that counts and reads back what it has counted, as a bundle with its manifest."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import msgspec
from tests.bundles import NOW, manifest_of

from ergo_capture import encode_bundle
from ergo_capture.adapter import ContextStore, HostedEvent, load_adapter
from ergo_capture.adapter.host import Host
from ergo_capture.bundle.manifest import encode_manifest
from ergo_capture.bundle.merged import MergedDigest
from ergo_capture.bundle.names import manifest_path
from ergo_capture.bundle.semantic_kinds import KindColumn, SemanticKinds
from ergo_capture.kernel.constraints import NO_CONSTRAINTS
from ergo_capture.kernel.effects import ActionEffect, EffectWrite, Value
from ergo_capture.kernel.events import EventLike, ExternalEvent, ExternalEventKind
from ergo_capture.kernel.outcomes import RunTermination
from ergo_capture.kernel.ports import RunResult
from ergo_capture.kernel.records import CaptureBundle, CapturedActionEffect, ExternalEventRecord, hash_payload
from ergo_capture.kernel.time import EventTime

ADAPTER = """\
kind: adapter
id: counter
version: 1.0.0
runtime_compatibility: 0.1.0-alpha.1
context_keys:
  - { name: total, type: Number, required: false, writable: true }
  - { name: label, type: String, required: false, writable: true }
event_kinds:
  - name: count
    payload_schema:
      type: object
      properties: { by: { type: number }, total: { type: number }, label: { type: string } }
      additionalProperties: false
  - name: clock
    payload_schema: { type: object, properties: { hour: { type: number } }, additionalProperties: false }
accepts:
  effects: [{ name: set_context, payload_schema: { type: object, additionalProperties: false } }]
capture: { format_version: "1", fields: [] }
"""


class Counter:
    """An engine that adds ``by`` to the ``total`` that it reads back."""

    def run(self, graph_id: str, event_id: str, event: EventLike, deadline: EventTime | None) -> RunResult:
        """Return the outcome of one attempt."""
        del graph_id, event_id, deadline
        assert isinstance(event, ExternalEvent)
        payload = json.loads(event.payload)
        if "by" not in payload:
            return RunResult(RunTermination.Completed)
        write = EffectWrite("total", Value(Number=payload.get("total", 0) + payload["by"]))
        return RunResult(RunTermination.Completed, (ActionEffect("set_context", (write,)),))


def run(
    events: list[tuple[str, dict[str, Any]]],
    first: int = 0,
    store: ContextStore | None = None,
    *,
    adapter_text: str = ADAPTER,
) -> tuple[Host, dict[str, Any]]:
    """Drive events through the reference's host; return it and what a manifest says of the store."""
    adapter = load_adapter(adapter_text)
    host = Host("counter", NO_CONSTRAINTS, Counter(), "rpv1:none", adapter=adapter, store=store)
    began, digest = host.store.snapshot(), MergedDigest()
    for index, (kind, payload) in enumerate(events):
        event = HostedEvent(f"e{first + index}", ExternalEventKind.Command, EventTime(index, 0), kind, payload)
        digest.add(index, adapter.bind(event, host.store).taken)
        host.step(event)
    numbers = [("count", "clock").index(kind) + 1 for kind, _ in events]
    about = {"merged": digest.hexdigest(), "store": began or None, "semantic_kinds": column(numbers)}
    return host, about


def column(numbers: list[int]) -> SemanticKinds:
    """Return semantic kinds as a manifest holds them."""
    column = KindColumn()
    lines = [
        b'{"type":"event","event":{"event_id":"e","kind":"Pump","at":{"secs":0,"nanos":0},"semantic_kind":"%b"}}\n'
        % (b"count", b"clock")[number - 1]
        for number in numbers
    ]
    column.add(b"".join(lines), len(lines), 0, len(lines))
    found = column.finish()
    assert found is not None
    return found


EVENTS: list[tuple[str, dict[str, Any]]] = [
    ("count", {"by": 1}),
    ("clock", {"hour": 4}),
    ("count", {"by": 2.5}),
    ("count", {"by": 3, "total": 9}),
]


def write(path: Path, bundle: CaptureBundle, **about: Any) -> Path:
    """Write a bundle, and with ``about`` a manifest of it."""
    text = encode_bundle(bundle)
    path.write_bytes(text)
    if about:
        manifest = manifest_of(path, text, "counter", NOW, events=len(bundle.events), **about)
        manifest_path(path).write_bytes(encode_manifest(manifest))
    return path


def with_payload(bundle: CaptureBundle, index: int, payload: bytes) -> None:
    """Change a payload and its hash."""
    record = bundle.events[index]
    bundle.events[index] = ExternalEventRecord(
        record.event_id, record.event_time, record.kind, payload, hash_payload(payload)
    )


def with_effect(bundle: CaptureBundle, index: int, effect: ActionEffect) -> None:
    """Change the effect of a decision and its hash."""
    bundle.decisions[index] = msgspec.structs.replace(
        bundle.decisions[index], effects=(CapturedActionEffect.of(effect),)
    )


def two_parts(folder: Path) -> tuple[Path, Path, dict[str, Any]]:
    """Return the bundles of a rotated session, the second one without a manifest, and the fields that it would have."""
    first, about = run(EVENTS[:3])
    one = write(folder / "s.capture.json", first.bundle(), session="s", part=1, **about)
    second, about = run(EVENTS[:3], 3, first.store)
    return one, write(folder / "s~2.capture.json", second.bundle()), about


def count(
    graph_id: str, event_id: str, kind: str, at: EventTime, payload: bytes, deadline: EventTime | None
) -> RunResult:
    """Run the engine as a Python callable."""
    del kind, at
    event = ExternalEvent(event_id, ExternalEventKind.Command, payload=payload)
    return Counter().run(graph_id, event_id, event, deadline)


def miscount(*arguments: Any) -> RunResult:
    """Run an engine that adds nothing for ``e2``."""
    return RunResult(RunTermination.Completed) if arguments[1] == "e2" else count(*arguments)


class Busy:
    """The number of episodes of ``wait`` that are under way, and the most there were at once."""

    now = most = 0


async def wait(*arguments: Any) -> RunResult:
    """Run an engine whose episodes take a moment."""
    Busy.now += 1
    Busy.most = max(Busy.most, Busy.now)
    await asyncio.sleep(0.01)
    Busy.now -= 1
    return count(*arguments)
