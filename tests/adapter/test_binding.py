"""Event lines bound to an adapter, or made canonical."""

from __future__ import annotations

import json

import pytest
from tests.adapter.cases import flight, rows

from ergo_capture.adapter.binding import Binding, read_hosted_line, read_hosted_lines, refusal_text
from ergo_capture.adapter.errors import AdapterError
from ergo_capture.adapter.events import HostedEvent, read_frame
from ergo_capture.kernel.effects import ActionEffect, EffectWrite, IntentRecord, Value


def line(payload: str = "null", **fields: object) -> bytes:
    """Return an event line that has this text as its payload."""
    event = {"event_id": "e1", "kind": "Command", "at": {"secs": 1, "nanos": 2}, **fields}
    return b'{"type":"event","event":' + json.dumps(event)[:-1].encode() + f',"payload":{payload}}}}}\n'.encode()


def test_a_line_is_the_event_that_a_driver_sent() -> None:
    """The numbers of its payload do not matter."""
    lines = [
        text.encode()
        for row in rows("ingress")
        for text in row["driver_lines"]
        if row["exit_code"] == 0 and text.startswith('{"type":"event","event":{')
    ]
    told = []
    for text in lines:
        try:
            told.append((text, read_frame(text)[1]))
        except ValueError:
            continue
    assert len(told) > 50
    for text, event in told:
        assert read_hosted_line(text, "reference") == event
    body = b"".join(text + b"\n" for text, _ in told)
    assert read_hosted_lines(body, "reference") == [event for _, event in told]


def test_a_semantic_kind_that_is_no_string_counts_as_none() -> None:
    """The daemon ignored it in graphs without an adapter."""
    assert read_hosted_line(line(semantic_kind=3), "reference").semantic_kind is None
    assert read_hosted_line(line(semantic_kind="price"), "reference").semantic_kind == "price"


def test_a_payload_is_canonical_without_an_adapter() -> None:
    """An absent payload stays empty; an empty object stays an object."""
    binding = Binding(None)
    store = binding.store()
    assert [
        binding.bind(read_hosted_line(line(text), "reference"), store).event.payload
        for text in ('{ "b": 1e2, "a": [1.0] }', "{}", "null")
    ] == [b'{"a":[1.0],"b":100.0}', b"{}", b""]


def test_numbers_are_read_as_they_are_configured() -> None:
    """The reference is sometimes off by one unit in the last place."""
    text = line('{"n":1.3000000000000003}')
    store = Binding(None).store()
    for numbers, payload in (("reference", b'{"n":1.3000000000000005}'), ("exact", b'{"n":1.3000000000000003}')):
        event = read_hosted_line(text, numbers)  # type: ignore[arg-type]
        assert Binding(None, numbers).bind(event, store).event.payload == payload  # type: ignore[arg-type]


def test_the_store_of_a_binding_is_bounded() -> None:
    """A store that is restored from text has the same bound."""
    about, _, _ = flight("flights-acc-2000")
    binding = Binding(about["adapter_yaml"], context_bytes=40)
    assert binding.adapter is not None
    store = binding.store(b'{"total":1.0}')
    assert store.get("total") == 1.0
    assert store.size < 40
    effect = ActionEffect("set_context", (EffectWrite("late_ratio", Value(Number=-1.234567890123456e-300)),))
    with pytest.raises(AdapterError, match="its limit is 40"):
        store.apply(effect, binding.adapter)


def test_what_no_merge_can_mend_is_refused_at_admission() -> None:
    """This holds with an adapter and without one."""
    about, _, _ = flight("flights-acc-2000")
    with pytest.raises(AdapterError, match="semantic_kind is required"):
        Binding(about["adapter_yaml"]).admit(HostedEvent("e", read_hosted_line(line(), "reference").kind, payload={}))
    Binding(None).admit(read_hosted_line(line('{"n":1}'), "reference"))


def test_effects_are_checked_before_they_count() -> None:
    """Undeclared kinds, keys and types are refused, and so are intents of the host's own effect."""
    binding = Binding(flight("flights-acc-2000")[0]["adapter_yaml"])
    good = ActionEffect("set_context", (EffectWrite("total", Value(Number=1.0)),))
    binding.check_effects([good])
    for bad in (
        ActionEffect("set_context", (EffectWrite("distance", Value(Number=1.0)),)),
        ActionEffect("set_context", (EffectWrite("total", Value(Bool=True)),)),
        ActionEffect("set_context", (), (IntentRecord("set_context", "i", ()),)),
        ActionEffect("send", ()),
    ):
        with pytest.raises(AdapterError) as caught:
            binding.check_effects([good, bad])
        assert caught.value.code == "invalid_effect"
    intent = IntentRecord("send", "i", ())
    binding.check_effects([ActionEffect("send", (), (intent,))], routed=["send"])
    for bad in (
        ActionEffect("send", ()),
        ActionEffect("send", good.writes, (intent,)),
        ActionEffect("send", (), (intent, IntentRecord("other", "j", ()))),
    ):
        with pytest.raises(AdapterError, match="egress-owned effect 'send'"):
            binding.check_effects([good, bad], routed=["send"])


def test_a_refusal_says_where_and_is_bounded() -> None:
    """A payload may be long, and the message quotes it."""
    binding = Binding(flight("flights-acc-2000")[0]["adapter_yaml"])
    ones = ",".join("1" * 5000)
    event = read_hosted_line(line(f'{{"carrier":[{ones}]}}', semantic_kind="flight"), "reference")
    with pytest.raises(AdapterError) as caught:
        binding.bind(event, binding.store())
    text = refusal_text(caught.value)
    assert len(text) <= 500
    assert text.endswith(" (at $.carrier, by 'type')")
