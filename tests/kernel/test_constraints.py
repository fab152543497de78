"""Limits are numbers that a u64 holds; a value is one of four kinds."""

from __future__ import annotations

from typing import Any

import pytest

from ergo_capture import Constraints
from ergo_capture.kernel.effects import Value
from ergo_capture.kernel.time import U64_MAX


@pytest.mark.parametrize("field", ["max_in_flight", "max_per_window", "max_retries"])
@pytest.mark.parametrize("value", [0, U64_MAX])
def test_a_limit_may_be_any_u64(field: str, value: int) -> None:
    """Zero is allowed too."""
    fields: dict[str, Any] = {field: value}
    assert getattr(Constraints(**fields), field) == value


@pytest.mark.parametrize("field", ["max_in_flight", "max_per_window", "max_retries"])
@pytest.mark.parametrize("value", [-1, U64_MAX + 1])
def test_a_limit_that_no_u64_holds_is_refused(field: str, value: int) -> None:
    """The error names its field."""
    fields: dict[str, Any] = {field: value}
    with pytest.raises(ValueError, match=f"^invalid value: integer `{value}`, expected u64 for {field}$"):
        Constraints(**fields)


@pytest.mark.parametrize("fields", [{}, {"Number": 1.0, "Bool": True}, {"String": "", "Series": ()}])
def test_a_value_is_exactly_one(fields: dict[str, Any]) -> None:
    """The error names the four kinds."""
    with pytest.raises(ValueError, match=r"^a value is exactly one of `Number`, `Series`, `Bool`, `String`$"):
        Value(**fields)


def test_a_value_holds_floats() -> None:
    """Integers in a list become floats too."""
    numbers: Any = [1, 2]
    assert (Value(Number=3).Number, Value(Series=numbers).Series) == (3.0, (1.0, 2.0))
    assert type(Value(Number=3).Number) is float
