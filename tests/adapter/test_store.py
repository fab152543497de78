"""The context store."""

from __future__ import annotations

import msgspec
import pytest
from tests.adapter.test_accept import ADAPTER

from ergo_capture import ActionEffect
from ergo_capture.adapter import AdapterError, ContextStore
from ergo_capture.adapter.manifest import ContextKey
from ergo_capture.kernel.effects import EffectWrite, Value


def writes(*pairs: tuple[str, Value]) -> ActionEffect:
    """Return a ``set_context`` effect."""
    return ActionEffect("set_context", tuple(EffectWrite(key, value) for key, value in pairs))


def test_writes_are_kept_as_json() -> None:
    """A number is a float, and a series is a list of floats."""
    store = ContextStore()
    store.apply(writes(("v", Value(Series=(1, 2.5))), ("n", Value(Number=1))), ADAPTER)
    assert store.snapshot() == {"n": 1.0, "v": [1.0, 2.5]}
    assert list(store.snapshot()) == ["n", "v"]
    assert store.to_json() == b'{"n":1.0,"v":[1.0,2.5]}'


@pytest.mark.parametrize(
    ("effect", "message"),
    [
        (writes(("q", Value(Number=1))), "effect 'set_context' writes undeclared context key 'q'"),
        (writes(("fixed", Value(Number=1))), "effect 'set_context' writes non-writable context key 'fixed'"),
        (writes(("n", Value(Bool=True))), "effect 'set_context' key 'n' has wrong type: expected Number, got Bool"),
        (ActionEffect("send", ()), "no registered effect handler for kind 'send'"),
    ],
)
def test_a_write_that_the_adapter_does_not_allow_is_refused(effect: ActionEffect, message: str) -> None:
    """The words are the reference's."""
    with pytest.raises(AdapterError) as caught:
        ContextStore().apply(effect, ADAPTER)
    assert caught.value.code == "invalid_effect"
    assert caught.value.message == f"effect application failed: {message}"


def test_what_precedes_a_refused_write_stays_written() -> None:
    """There is no rollback, as in the reference."""
    store = ContextStore()
    with pytest.raises(AdapterError):
        store.apply(writes(("n", Value(Number=1)), ("q", Value(Number=1))), ADAPTER)
    assert store.snapshot() == {"n": 1.0}


def test_the_size_is_that_of_the_keys_and_values_as_json() -> None:
    """A value that is written again counts once."""
    store = ContextStore()
    for number in (1, 22.5, 3):
        store.apply(writes(("n", Value(Number=number))), ADAPTER)
    assert store.size == len('"n"') + len("3.0")
    assert ContextStore(store.snapshot()).size == store.size


def test_a_store_does_not_grow_beyond_its_limit() -> None:
    """The write is refused, and what was written stays."""
    store = ContextStore(limit=20)
    store.apply(writes(("v", Value(Series=(1, 2)))), ADAPTER)
    with pytest.raises(AdapterError, match="its limit is 20") as caught:
        store.apply(writes(("v", Value(Series=(1, 2, 3, 4, 5)))), ADAPTER)
    assert caught.value.code == "context_full"
    assert store.snapshot() == {"v": [1.0, 2.0]}


def test_a_store_survives_its_text() -> None:
    """Floats are equal to the last bit."""
    values = {"n": 1.3000000000000003, "v": [1e16, -0.0, 5e-324, 100.0]}
    store = ContextStore(values)
    again = ContextStore.from_json(store.to_json(), limit=7)
    assert repr(again.snapshot()) == repr(store.snapshot())
    assert again.to_json() == store.to_json()
    assert (again.size, again.limit) == (store.size, 7)


def test_a_store_takes_exactly_its_limit() -> None:
    """One byte more is refused; a value that is replaced makes room."""
    store = ContextStore(limit=len('"n"') + len("3.25"))
    store.apply(writes(("n", Value(Number=3.25))), ADAPTER)
    assert store.size == store.limit
    with pytest.raises(AdapterError, match="would take 8 bytes with key 'n'; its limit is 7"):
        store.apply(writes(("n", Value(Number=3.125))), ADAPTER)
    store.apply(writes(("n", Value(Number=1))), ADAPTER)
    assert (store.get("n"), store.size) == (1.0, 6)


def test_a_payload_holds_the_stores_value_where_its_text_is_the_same() -> None:
    """An integer is another text than a float, and so is minus zero."""
    store = ContextStore({"n": 1.0, "m": 0.0, "a": [1.0], "o": 2.0})
    assert store.held_by({"n": 1.0, "a": [1.0], "q": 1.0}) == ("a", "n")
    assert store.held_by({"n": 1, "m": -0.0, "a": [1], "o": 3.0}) == ()


def test_a_store_says_what_it_holds() -> None:
    """Values are by key; a key without a value has none."""
    values = {"n": 1.0}
    store = ContextStore(values)
    values["v"] = 2.0
    assert (list(store.keys()), len(store), store.limit) == (["n"], 1, None)
    assert ("n" in store, "v" in store, store.get("v")) == (True, False, None)
    assert repr(store) == "<ContextStore 1 keys, 6 bytes>"
    with pytest.raises(ValueError, match="Expected `object`, got `array`"):
        ContextStore.from_json("[]")


@pytest.mark.parametrize(
    ("value", "held"),
    [
        (Value(Number=1), 1.0),
        (Value(Series=()), []),
        (Value(Bool=False), False),
        (Value(String=""), ""),
    ],
)
def test_a_value_of_each_type_is_kept(value: Value, held: object) -> None:
    """This includes values that are empty or false."""
    kind = next(name for name in value.__struct_fields__ if getattr(value, name) is not msgspec.UNSET)
    store = ContextStore()
    store.apply(
        writes(("k", value)), Declares({"k": ContextKey("k", kind, required=False, writable=True, description=None)})
    )
    assert store.get("k") == held
    assert type(store.get("k")) is type(held)


class Declares:
    """An adapter that declares these context keys."""

    def __init__(self, context: dict[str, ContextKey]) -> None:
        self.context = context
