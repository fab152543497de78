"""Sizes and spans as every command shows them to people.

Owns: ``size``, ``milliseconds``, ``span``.
Not here: sizes and durations as people write them, counts (``units.py``).
"""

from __future__ import annotations


def size(count: float) -> str:
    """Bytes with a binary unit, as the configuration has them: ``512 B``, ``1.5 MiB``, ``64 MiB``."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if count < 1024 or unit == "TiB":
            break
        count /= 1024
    return f"{count:,.0f} B" if unit == "B" else f"{f'{count:,.1f}'.removesuffix('.0')} {unit}"


def milliseconds(seconds: float) -> str:
    """Seconds as milliseconds, as exact as makes sense."""
    value = seconds * 1e3
    return f"{value:.2f} ms" if value < 10 else f"{value:,.0f} ms"


def span(seconds: float) -> str:
    """A time span in its two largest units: ``2h 3m``."""
    rest = int(seconds)
    parts: list[str] = []
    for unit, length in (("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1)):
        count, rest = divmod(rest, length)
        if count or (unit == "s" and not parts):
            parts.append(f"{count}{unit}")
    return " ".join(parts[:2])
