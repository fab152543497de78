"""The effects of an episode, their canonical text and their hash."""

from __future__ import annotations

import hashlib
import math
import re
from typing import Final

import msgspec
from msgspec import UNSET, UnsetType

from ergo_capture.kernel.serde.tokens import outside_strings


class Value(msgspec.Struct, frozen=True, forbid_unknown_fields=True, gc=False):
    """A typed value: exactly one field is set (``ergo_runtime::common::Value``, externally tagged).

    An integer given for a number becomes an f64, as in the reference, which writes ``3`` as ``3.0``.

    Raises:
        ValueError: not exactly one field is set, or a number is not a finite f64.
    """

    Number: float | UnsetType = UNSET
    Series: tuple[float, ...] | UnsetType = UNSET
    Bool: bool | UnsetType = UNSET
    String: str | UnsetType = UNSET

    def __post_init__(self) -> None:
        unset = (self.Number is UNSET) + (self.Series is UNSET) + (self.Bool is UNSET) + (self.String is UNSET)
        if unset != 3:
            raise ValueError("a value is exactly one of `Number`, `Series`, `Bool`, `String`")
        number, series = self.Number, self.Series
        if number is not UNSET:
            if type(number) is not float or not math.isfinite(number):
                msgspec.structs.force_setattr(self, "Number", _finite(number))
        elif series is not UNSET and not (
            type(series) is tuple and all(type(item) is float and math.isfinite(item) for item in series)
        ):
            msgspec.structs.force_setattr(self, "Series", tuple(map(_finite, series)))


def _finite(number: object) -> float:
    """Return a number as a float, and refuse those that JSON cannot hold: a bundle with one could not be read."""
    if isinstance(number, int | float) and not isinstance(number, bool):
        try:
            value = float(number)
        except OverflowError:
            value = math.inf
        if math.isfinite(value):
            return value
    raise ValueError(f"invalid value: `{number!r:.60}`, expected a finite f64")


class EffectWrite(msgspec.Struct, frozen=True):
    """One key written (``ergo_runtime::common::EffectWrite``)."""

    key: str
    value: Value


class IntentField(msgspec.Struct, frozen=True):
    """One field of an intent (``ergo_runtime::common::IntentField``)."""

    name: str
    value: Value


class IntentRecord(msgspec.Struct, frozen=True):
    """A request of an action to the outside world (``ergo_runtime::common::IntentRecord``)."""

    kind: str
    intent_id: str
    fields: tuple[IntentField, ...]


class ActionEffect(msgspec.Struct, frozen=True, omit_defaults=True):
    """The effect of one action (``ergo_runtime::common::ActionEffect``); unknown fields are ignored when read."""

    kind: str
    writes: tuple[EffectWrite, ...]
    intents: tuple[IntentRecord, ...] = ()


def encode_effect(effect: ActionEffect) -> bytes:
    """Return the effect's canonical compact JSON, which is hashed and which stands in a bundle."""
    return spell_exponents(msgspec.json.encode(effect))


def spell_exponents(text: bytes) -> bytes:
    """Return a JSON text of msgspec's with floats as the reference writes them: ``1e+16`` for ``1e16``."""
    return text if _POSITIVE_EXPONENT.search(text) is None else _EXPONENTS.sub(_spell_exponent, text)


def compute_effect_hash(effect: ActionEffect) -> str:
    """Return the SHA-256 of the canonical text, in hex (``ergo_supervisor::compute_effect_hash``)."""
    return hashlib.sha256(encode_effect(effect)).hexdigest()


# msgspec writes 1e16 where serde_json, since 1.0.147, writes 1e+16. The search is quick and finds nearly nothing; only
# then are strings told from numbers.
_POSITIVE_EXPONENT: Final = re.compile(rb"[0-9]e[0-9]")
_EXPONENTS: Final = outside_strings(rb"([0-9])e([0-9])")


def _spell_exponent(match: re.Match[bytes]) -> bytes:
    return match[0] if match[1] is None else match[1] + b"e+" + match[2]
