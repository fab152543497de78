"""Parse and format durations, sizes, file modes and counts."""

from __future__ import annotations

import re
from typing import Any, Final, Self

_DURATION: Final = re.compile(r"(\d{1,22})(ns|us|ms|s|m|h|d)")
_NANOS: Final = {
    "ns": 1,
    "us": 1_000,
    "ms": 1_000_000,
    "s": 1_000_000_000,
    "m": 60_000_000_000,
    "h": 3_600_000_000_000,
    "d": 86_400_000_000_000,
}
_SIZE: Final = re.compile(r"(\d{1,22})\s*(B|KiB|MiB|GiB|TiB)?")
_BYTES: Final = {None: 1, "B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}


class Duration(int):
    """A span of time in nanoseconds, exact; written as ``1h30m``, ``250ms``, ``0s``."""

    @classmethod
    def parse(cls, text: object) -> Self:
        """Return the duration in ``text``.

        Raises:
            ValueError: it is not a duration.
        """
        if isinstance(text, str) and text:
            parts = _DURATION.findall(text)
            if parts and "".join(number + unit for number, unit in parts) == text:
                return cls(sum(int(number) * _NANOS[unit] for number, unit in parts))
        raise ValueError(f"{text!r} is not a duration; write one such as 250ms, 10s, 5m or 1h30m")

    @property
    def seconds(self) -> float:
        """Return the duration in seconds."""
        return self / 1_000_000_000

    def __str__(self) -> str:
        if not self:
            return "0s"
        rest, text = int(self), ""
        for unit in ("d", "h", "m", "s", "ms", "us", "ns"):
            count, rest = divmod(rest, _NANOS[unit])
            if count:
                text += f"{count}{unit}"
        return text

    def __repr__(self) -> str:
        return f"Duration({str(self)!r})"


class Size(int):
    """A number of bytes; written as ``64KiB``, ``8MiB``, or a bare number."""

    @classmethod
    def parse(cls, text: object) -> Self:
        """Return the size in ``text``.

        Raises:
            ValueError: it is not a size.
        """
        if isinstance(text, int) and not isinstance(text, bool) and text >= 0:
            return cls(text)
        match = _SIZE.fullmatch(text) if isinstance(text, str) else None
        if match is None:
            raise ValueError(f"{text!r} is not a size; write one such as 64KiB, 8MiB or 1GiB")
        return cls(int(match[1]) * _BYTES[match[2]])

    def __str__(self) -> str:
        for unit in ("TiB", "GiB", "MiB", "KiB"):
            if self and self % _BYTES[unit] == 0:
                return f"{self // _BYTES[unit]}{unit}"
        return f"{int(self)}B"

    def __repr__(self) -> str:
        return f"Size({str(self)!r})"


class Mode(int):
    """A file mode; written as an octal string such as ``0660``."""

    @classmethod
    def parse(cls, text: object) -> Self:
        """Return the file mode in ``text``.

        Raises:
            ValueError: it is not a file mode.
        """
        if isinstance(text, str) and re.fullmatch(r"0?[0-7]{3}", text):
            return cls(int(text, 8))
        raise ValueError(f'{text!r} is not a file mode; write one such as "0660"')

    def __str__(self) -> str:
        return f"{int(self):04o}"

    def __repr__(self) -> str:
        return f"Mode({str(self)!r})"


def counted(number: int, what: str) -> str:
    """Return a number with a noun: ``1 event``, ``2,000 events``."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def decode_unit(kind: type, value: Any) -> Any:
    """Return the value of a setting that is a duration, a size or a file mode (msgspec's ``dec_hook``).

    Raises:
        ValueError: the value does not have that form.
        NotImplementedError: the setting is of another kind.
    """
    if issubclass(kind, Duration | Size | Mode):
        return kind.parse(value)
    raise NotImplementedError(kind)
