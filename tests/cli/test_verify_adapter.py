"""``ergo-capture verify --adapter``: payloads, effects and the values of the context store."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.adapter.cases import flight, rows
from tests.bundles import NOW, manifest_of

from ergo_capture import decode_bundle, encode_bundle
from ergo_capture.adapter import ContextStore, HostedEvent, load_adapter
from ergo_capture.adapter.host import Host
from ergo_capture.bundle.adapted import check_adapted
from ergo_capture.bundle.manifest import encode_manifest
from ergo_capture.bundle.merged import MergedDigest
from ergo_capture.bundle.names import manifest_path
from ergo_capture.bundle.reader.stream import BundleStream
from ergo_capture.bundle.semantic_kinds import KindColumn, SemanticKinds
from ergo_capture.cli import app
from ergo_capture.kernel.constraints import NO_CONSTRAINTS
from ergo_capture.kernel.effects import ActionEffect, EffectWrite, Value
from ergo_capture.kernel.events import EventLike, ExternalEvent, ExternalEventKind
from ergo_capture.kernel.outcomes import RunTermination
from ergo_capture.kernel.ports import RunResult
from ergo_capture.kernel.records import CaptureBundle, CapturedActionEffect, ExternalEventRecord, hash_payload
from ergo_capture.kernel.time import EventTime

Told = Callable[..., dict[str, Any]]

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
        """One attempt."""
        del graph_id, event_id, deadline
        assert isinstance(event, ExternalEvent)
        payload = json.loads(event.payload)
        if "by" not in payload:
            return RunResult(RunTermination.Completed)
        write = EffectWrite("total", Value(Number=payload.get("total", 0) + payload["by"]))
        return RunResult(RunTermination.Completed, (ActionEffect("set_context", (write,)),))


def run(
    events: list[tuple[str, dict[str, Any]]], first: int = 0, store: ContextStore | None = None
) -> tuple[Host, dict[str, Any]]:
    """Drive events through the reference's host; return it and what a manifest says of the store."""
    adapter = load_adapter(ADAPTER)
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
    """Semantic kinds as a manifest holds them."""
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
    """Write a bundle, and a manifest of it where something is said of it."""
    text = encode_bundle(bundle)
    path.write_bytes(text)
    if about:
        manifest = manifest_of(path, text, "counter", NOW, events=len(bundle.events), **about)
        manifest_path(path).write_bytes(encode_manifest(manifest))
    return path


@pytest.fixture
def told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Told:
    """Verify bundles against the adapter; return the JSON of the last one."""
    adapter = tmp_path / "adapter.yaml"
    adapter.write_text(ADAPTER)

    def verify(code: int, *bundles: Path, options: tuple[str, ...] = ()) -> dict[str, Any]:
        arguments = ["verify", "--json", "--adapter", str(adapter), *options, *map(str, bundles)]
        assert app.run(arguments) == code, capsys.readouterr().out
        found: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
        return found

    return verify


def test_a_manifest_proves_what_came_from_the_store(
    tmp_path: Path, told: Told, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the schema of each event's kind."""
    host, about = run(EVENTS)
    file = write(tmp_path / "s.capture.json", host.bundle(), **about)
    found = told(0, file)["adapter"]
    assert found == {
        "provenance": load_adapter(ADAPTER).provenance,
        "events": 4,
        "merged_events": 1,
        "kinds": "known",
        "store": "known",
        "merged": "proved",
        "problem": None,
    }
    assert app.run(["verify", str(file), "--adapter", str(tmp_path / "adapter.yaml")]) == 0
    assert "1 with values of the store, proved by the manifest" in capsys.readouterr().out


def test_without_a_manifest_the_output_says_what_was_not_proved(
    tmp_path: Path, told: Told, capsys: pytest.CaptureFixture[str]
) -> None:
    """A capture of the reference has none."""
    file = write(tmp_path / "s.capture.json", run(EVENTS)[0].bundle())
    found = told(0, file)["adapter"]
    assert (found["kinds"], found["merged"]) == ("unknown", "not proved")
    assert app.run(["verify", str(file), "--adapter", str(tmp_path / "adapter.yaml")]) == 0
    assert "not proved: no manifest says `merged`" in capsys.readouterr().out


def with_payload(bundle: CaptureBundle, index: int, payload: bytes) -> None:
    """Change a payload, and its hash with it."""
    record = bundle.events[index]
    bundle.events[index] = ExternalEventRecord(
        record.event_id, record.event_time, record.kind, payload, hash_payload(payload)
    )


def with_effect(bundle: CaptureBundle, index: int, effect: ActionEffect) -> None:
    """Change the effect of a decision, and its hash with it."""
    bundle.decisions[index] = msgspec.structs.replace(
        bundle.decisions[index], effects=(CapturedActionEffect.of(effect),)
    )


def change_a_value_of_the_store(bundle: CaptureBundle) -> None:
    """An event no longer has what the effect before it wrote."""
    with_payload(bundle, 2, b'{"by":2.5,"total":2.0}')


def change_an_effect(bundle: CaptureBundle) -> None:
    """The store holds something else than what the events have."""
    with_effect(bundle, 0, ActionEffect("set_context", (EffectWrite("total", Value(Number=7)),)))


def change_the_last_key(bundle: CaptureBundle) -> None:
    """A value that was sent becomes the store's."""
    with_payload(bundle, 3, b'{"by":3,"total":3.5}')


@pytest.mark.parametrize("change", [change_a_value_of_the_store, change_an_effect, change_the_last_key])
def test_a_change_that_mends_its_hash_is_found_by_the_manifest(
    change: Callable[[CaptureBundle], None], tmp_path: Path, told: Told
) -> None:
    """Whoever changed it made a manifest that fits, too, and did not think of ``merged``."""
    host, about = run(EVENTS)
    bundle = host.bundle()
    change(bundle)
    found = told(1, write(tmp_path / "s.capture.json", bundle, **about))
    assert found["adapter"]["problem"]["code"] == "merged_differs"
    if change is change_a_value_of_the_store:
        assert "event 2, 'e2', has 'total' as 2.0, the store has 1.0" in found["hint"]


def test_a_kind_that_was_changed_is_found(tmp_path: Path, told: Told) -> None:
    """The payload breaks its schema; the bundle alone does not hold the kinds."""
    host, about = run(EVENTS)
    about["semantic_kinds"] = column([1, 1, 1, 1])
    found = told(1, write(tmp_path / "s.capture.json", host.bundle(), **about))
    assert found["adapter"]["problem"]["code"] == "schema_violation"
    assert "event 1, 'e1'" in found["error"]
    assert "'hour' was unexpected" in found["error"]


def test_a_missing_key_of_the_store_diverges(tmp_path: Path, told: Told) -> None:
    """With what the host makes of the event."""
    host, _ = run(EVENTS)
    with_payload(host.bundle(), 2, b'{"by":2.5}')
    found = told(4, write(tmp_path / "s.capture.json", host.bundle()))
    assert found["divergence"] == {
        "index": 2,
        "event_id": "e2",
        "field": "payload",
        "captured": '{"by":2.5}',
        "replayed": '{"by":2.5,"total":1.0}',
    }


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (b'{"hour": 4}', "not in canonical form"),
        (b'{"hour":4,"hour":4}', "not in canonical form"),
        (b'{"hour":4e0}', "not in canonical form"),
        (b"", "there is none"),
        (b'{"hour":"4"}', "is not of type"),
        (b'{"minute":4}', "was unexpected"),
    ],
)
def test_a_payload_that_the_host_does_not_make_is_unsound(
    payload: bytes, message: str, tmp_path: Path, told: Told
) -> None:
    """In form or by every schema there is."""
    host, _ = run(EVENTS)
    with_payload(host.bundle(), 1, payload)
    found = told(1, write(tmp_path / "s.capture.json", host.bundle()))
    assert message in found["error"]
    assert (found["adapter"]["problem"]["index"], found["adapter"]["events"]) == (1, 1)


@pytest.mark.parametrize(
    ("effect", "message"),
    [
        (ActionEffect("set_context", (EffectWrite("other", Value(Number=7)),)), "undeclared context key 'other'"),
        (ActionEffect("set_context", (EffectWrite("total", Value(String="7")),)), "wrong type"),
        (ActionEffect("send", ()), "takes no effect 'send'"),
    ],
)
def test_an_effect_that_the_adapter_does_not_take_is_unsound(
    effect: ActionEffect, message: str, tmp_path: Path, told: Told
) -> None:
    """The host would have ended the run."""
    host, _ = run(EVENTS)
    with_effect(host.bundle(), 0, effect)
    assert message in told(1, write(tmp_path / "s.capture.json", host.bundle()))["error"]


def two_parts(folder: Path) -> tuple[Path, Path, dict[str, Any]]:
    """The bundles of a session that was rotated, the second one without a manifest; and what it would say."""
    first, about = run(EVENTS[:3])
    one = write(folder / "s.capture.json", first.bundle(), session="s", part=1, **about)
    second, about = run(EVENTS[:3], 3, first.store)
    return one, write(folder / "s~2.capture.json", second.bundle()), about


def test_the_store_of_a_part_is_handed_over_to_the_next(tmp_path: Path, told: Told) -> None:
    """Alone, the second part begins with a store that is not known."""
    one, two, _ = two_parts(tmp_path)
    assert told(0, two)["adapter"]["store"] == "unknown"
    found = told(0, one, two)["adapter"]
    assert (found["store"], found["merged_events"]) == ("known", 2)


def test_a_part_stands_on_its_own_by_its_manifest(tmp_path: Path, told: Told) -> None:
    """Its manifest holds the store at its beginning."""
    _, two, about = two_parts(tmp_path)
    write(two, decode_bundle(two.read_bytes()), session="s", part=2, **about)
    assert about["store"] == {"total": 3.5}
    assert told(0, two)["adapter"]["merged"] == "proved"


def test_a_manifest_that_disagrees_with_the_part_before_is_found(tmp_path: Path, told: Told) -> None:
    """The part before it is looked at in the same run."""
    one, two, about = two_parts(tmp_path)
    write(two, decode_bundle(two.read_bytes()), session="s", part=2, **(about | {"store": {"total": 4.5}}))
    assert told(1, two)["adapter"]["problem"]["code"] == "merged_differs"
    found = told(1, one, two)
    assert found["adapter"]["problem"]["code"] == "store_differs"
    assert '{"total":4.5}' in found["error"]


def test_another_adapter_is_named(tmp_path: Path, told: Told) -> None:
    """As the reference does, and a bundle without one."""
    host, _ = run(EVENTS)
    bundle = host.bundle()
    bundle.adapter_provenance = "adapter:other@1.0.0;sha256:0"
    assert "adapter provenance mismatch" in told(1, write(tmp_path / "s.capture.json", bundle))["error"]
    bundle.adapter_provenance = "none"
    assert "adapter must not be provided" in told(1, write(tmp_path / "s.capture.json", bundle))["error"]


def test_an_adapter_that_is_refused_is_an_error_before_any_bundle_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the place in the manifest."""
    bad = tmp_path / "bad.yaml"
    bad.write_text(ADAPTER.replace("id: counter", "id: Counter"))
    file = write(tmp_path / "s.capture.json", run(EVENTS)[0].bundle())
    assert app.run(["verify", "--adapter", str(bad), str(file)]) == 78
    said = capsys.readouterr()
    assert "ADP-1" in said.err
    assert not said.out


CAPTURED = [
    row for name in ("ingress", "fixtures", "egress") for row in rows(name) if row["capture"] and row["adapter_yaml"]
]


@pytest.mark.parametrize("row", CAPTURED, ids=lambda row: row["name"])
def test_every_capture_of_the_reference_keeps_its_adapter(row: dict[str, Any]) -> None:
    """Interrupted ones too."""
    found = check_adapted(BundleStream(text=row["capture"].encode()), load_adapter(row["adapter_yaml"]))
    assert found.problem is None


@pytest.mark.parametrize("name", ["flights-acc-2000", "flights-late-2000"])
def test_real_flights_keep_their_adapter(name: str) -> None:
    """1,804 of them read the total of the flights before."""
    about, _, capture = flight(name)
    found = check_adapted(BundleStream(text=capture), load_adapter(about["adapter_yaml"]))
    assert found.problem is None
    assert (found.events, found.merged_events) == (2000, 1804 if name == "flights-acc-2000" else 0)
