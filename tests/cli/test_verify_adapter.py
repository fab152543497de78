"""``ergo-capture verify --adapter``: payloads, effects and the values of the context store."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.adapter.cases import flight, rows
from tests.cli.adapted import ADAPTER, EVENTS, column, run, two_parts, with_effect, with_payload, write

from ergo_capture import decode_bundle
from ergo_capture.adapter import load_adapter
from ergo_capture.bundle.adapted import check_adapted
from ergo_capture.bundle.manifest import RefusedEvents
from ergo_capture.bundle.reader.stream import BundleStream
from ergo_capture.cli import app
from ergo_capture.journal.payloads import Interruption, LeftOver, RefusedEvent
from ergo_capture.kernel.effects import ActionEffect, EffectWrite, Value
from ergo_capture.kernel.records import CaptureBundle

Told = Callable[..., dict[str, Any]]


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
    """The schema of each event's kind proves it."""
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


def change_a_value_of_the_store(bundle: CaptureBundle) -> None:
    """Change a payload's value that an earlier effect wrote."""
    with_payload(bundle, 2, b'{"by":2.5,"total":2.0}')


def change_an_effect(bundle: CaptureBundle) -> None:
    """Change an effect, so that the store and the later payloads differ."""
    with_effect(bundle, 0, ActionEffect("set_context", (EffectWrite("total", Value(Number=7)),)))


def change_the_last_key(bundle: CaptureBundle) -> None:
    """Replace a value that was sent with the store's."""
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
    """The divergence shows the payload that the host makes of the event."""
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
    """The payload is wrong in form, or fits no schema at all."""
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


def test_an_effect_that_interrupted_the_run_is_as_captured(tmp_path: Path, told: Told) -> None:
    """The daemon keeps the decision, and ends the session with it; elsewhere such an effect is unsound."""
    host, about = run(EVENTS)
    bad = ActionEffect("set_context", (EffectWrite("other", Value(Number=7)),))
    about["interruption"] = Interruption(reason="invalid_effect", message="undeclared context key 'other'")
    about["left_over"] = LeftOver(4, "e4", 2)
    with_effect(host.bundle(), 3, bad)
    found = told(0, write(tmp_path / "s.capture.json", host.bundle(), **about))
    assert found["adapter"]["merged"] == "proved"
    assert found["notes"] == [
        "interrupted: invalid_effect: undeclared context key 'other'",
        "left over: 2 events, from 'e4' on, in the .rest.jsonl beside the bundle",
    ]
    with_effect(host.bundle(), 2, bad)
    assert "undeclared" in told(1, write(tmp_path / "s.capture.json", host.bundle(), **about))["error"]


def test_refused_events_are_noted(tmp_path: Path, told: Told) -> None:
    """The bundle does not hold them."""
    host, about = run(EVENTS)
    about["refused"] = RefusedEvents(3, [RefusedEvent(1, "x", "schema_violation", "total is too large")])
    found = told(0, write(tmp_path / "s.capture.json", host.bundle(), **about))
    assert found["notes"] == ["refused: 3 events, the first 'x': total is too large"]


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
    """The reference names it too, and likewise a bundle without an adapter."""
    host, _ = run(EVENTS)
    bundle = host.bundle()
    bundle.adapter_provenance = "adapter:other@1.0.0;sha256:0"
    assert "adapter provenance mismatch" in told(1, write(tmp_path / "s.capture.json", bundle))["error"]
    bundle.adapter_provenance = "none"
    assert "adapter must not be provided" in told(1, write(tmp_path / "s.capture.json", bundle))["error"]


def test_an_adapter_that_is_refused_is_an_error_before_any_bundle_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The error has the place in the manifest."""
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
