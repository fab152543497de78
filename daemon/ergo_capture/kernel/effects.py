"""What an episode did to the world: effects, their canonical text and their hash."""

from __future__ import annotations

import hashlib
import math
import re
from typing import Final

import msgspec
from msgspec import UNSET, UnsetType


class Value(msgspec.Struct, frozen=True, forbid_unknown_fields=True, gc=False):
    """A typed value, exactly one field set (``ergo_runtime::common::Value``, externally tagged).

    An integer given for a number is the f64 that it is in the reference, whose text is another: ``3.0``.

    Raises:
        ValueError: no variant, or more than one, is set; or a number is none, or not finite.
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
    """Why refused here: JSON has no other numbers, and a bundle with one in it could not be read."""
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
    """Something an action wants done outside (``ergo_runtime::common::IntentRecord``)."""

    kind: str
    intent_id: str
    fields: tuple[IntentField, ...]


class ActionEffect(msgspec.Struct, frozen=True, omit_defaults=True):
    """What one action did (``ergo_runtime::common::ActionEffect``); unknown fields are ignored when read."""

    kind: str
    writes: tuple[EffectWrite, ...]
    intents: tuple[IntentRecord, ...] = ()


def encode_effect(effect: ActionEffect) -> bytes:
    """The effect's canonical compact JSON: what is hashed, and what stands in a bundle."""
    text = msgspec.json.encode(effect)
    if _POSITIVE_EXPONENT.search(text) is None:
        return text
    return _TOKENS.sub(_spell_exponent, text)


def compute_effect_hash(effect: ActionEffect) -> str:
    """SHA-256 of the canonical text, in hex (``ergo_supervisor::compute_effect_hash``)."""
    return hashlib.sha256(encode_effect(effect)).hexdigest()


# Why: msgspec writes 1e16 where serde_json, since 1.0.147, writes 1e+16. A digit run with an exponent can
# also stand inside a string, so strings are matched first and left alone.
_POSITIVE_EXPONENT: Final = re.compile(rb"[0-9]e[0-9]")
_TOKENS: Final = re.compile(rb'"(?:[^"\\]|\\.)*"|([0-9])e([0-9])', re.DOTALL)


def _spell_exponent(match: re.Match[bytes]) -> bytes:
    return match[0] if match[1] is None else match[1] + b"e+" + match[2]
