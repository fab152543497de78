"""Parsing and printing of durations, sizes and modes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ergo_capture.units import Duration, Mode, Size


@pytest.mark.parametrize(
    ("text", "nanos"),
    [
        ("0s", 0),
        ("1ns", 1),
        ("7us", 7_000),
        ("250ms", 250_000_000),
        ("10s", 10_000_000_000),
        ("5m", 300_000_000_000),
        ("1h", 3_600_000_000_000),
        ("1h30m", 5_400_000_000_000),
        ("1d", 86_400_000_000_000),
        ("007s", 7_000_000_000),
    ],
)
def test_a_duration_is_exact(text: str, nanos: int) -> None:
    """A duration is a whole number of nanoseconds, without rounding through floats."""
    assert Duration.parse(text) == nanos


@pytest.mark.parametrize(
    "value",
    [
        "",
        "10",
        "s",
        "-1s",
        "1.5s",
        " 1s",
        "1s ",
        "1 s",
        "1w",
        "1S",
        10,
        1.5,
        True,
        None,
        [],
        "9" * 23 + "s",
        "9" * 5000 + "s",
    ],
)
def test_an_invalid_duration_is_refused_with_examples(value: object) -> None:
    """The message quotes the value and shows valid durations."""
    with pytest.raises(ValueError, match="is not a duration; write one such as 250ms") as caught:
        Duration.parse(value)
    assert repr(value) in str(caught.value)


def test_the_longest_duration_has_seconds() -> None:
    """It fits in a float."""
    assert Duration.parse("9" * 22 + "d").seconds > 1e26


@pytest.mark.parametrize(
    ("value", "size"),
    [
        ("0", 0),
        ("0B", 0),
        (0, 0),
        (512, 512),
        ("1", 1),
        ("3B", 3),
        ("64KiB", 65_536),
        ("8 MiB", 8 << 20),
        ("2TiB", 2 << 40),
    ],
)
def test_a_size_is_a_number_of_bytes(value: object, size: int) -> None:
    """Sizes are binary units, bytes, or a bare number."""
    assert Size.parse(value) == size


@pytest.mark.parametrize("value", ["", "KiB", "-1", -1, "1KB", "1kib", "1.5MiB", 1.5, True, None, "1PiB", "9" * 23])
def test_an_invalid_size_is_refused_with_examples(value: object) -> None:
    """The message quotes the value; decimal units are not guessed."""
    with pytest.raises(ValueError, match="is not a size; write one such as 64KiB") as caught:
        Size.parse(value)
    assert repr(value) in str(caught.value)


@pytest.mark.parametrize(("text", "mode"), [("0660", 0o660), ("660", 0o660), ("0000", 0), ("777", 0o777)])
def test_a_mode_is_octal(text: str, mode: int) -> None:
    """Modes are strings of octal digits, with or without a leading zero."""
    assert Mode.parse(text) == mode


@pytest.mark.parametrize("value", [660, 0o660, "", "66", "0668", "4755", "u+rw", None])
def test_an_invalid_mode_is_refused(value: object) -> None:
    """A bare number is refused: TOML reads 0660 as decimal, or not at all."""
    with pytest.raises(ValueError, match="is not a file mode"):
        Mode.parse(value)


@given(st.integers(0, 1 << 70))
def test_a_printed_duration_reads_back(nanos: int) -> None:
    """Every duration prints as a text that means the same."""
    assert Duration.parse(str(Duration(nanos))) == nanos


@given(st.integers(0, 1 << 70))
def test_a_printed_size_reads_back(size: int) -> None:
    """Every size prints as a text that means the same."""
    assert Size.parse(str(Size(size))) == size


@given(st.sampled_from([Duration.parse, Size.parse, Mode.parse]), st.text(max_size=8))
def test_any_text_is_a_value_or_a_valueerror(parse: Callable[[object], int], text: str) -> None:
    """No text makes a parser fail in another way."""
    with contextlib.suppress(ValueError):
        assert parse(text) >= 0


def test_repr_shows_the_unit() -> None:
    """This is for debugging a configuration."""
    assert (repr(Duration.parse("90s")), repr(Size.parse("64KiB")), repr(Mode.parse("660"))) == (
        "Duration('1m30s')",
        "Size('64KiB')",
        "Mode('0660')",
    )
    assert Duration.parse("250ms").seconds == 0.25
