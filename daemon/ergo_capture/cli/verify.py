"""``ergo-capture verify``.

Owns: its arguments and output.
Not here: what is checked (``kernel/replay.py``, but for the floats that the reference misreads).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
import typer

from ergo_capture.capture.bundle import read_capture_bundle
from ergo_capture.errors import ErgoCaptureError, ExitCode
from ergo_capture.kernel.effects import compute_effect_hash, encode_effect
from ergo_capture.kernel.events import ExternalEventPayloadError
from ergo_capture.kernel.records import CaptureBundle, EpisodeInvocationRecord
from ergo_capture.kernel.replay import Divergence, first_divergence, rederive, validate_bundle_strict

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def verify(
    bundles: Annotated[list[Path], typer.Argument(help="Bundle files.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a bundle, one a line.")] = False,
) -> int:
    """Check format, hashes and ids, and derive every decision again from the recorded outcomes.

    Exit 0 where all is well, 4 where a decision diverges, 1 where a bundle is unsound or cannot be read.
    """
    worst = ExitCode.OK
    for path in bundles:
        result = check(path)
        outcome: ExitCode = result.pop("exit")
        if worst is not ExitCode.FAILED and outcome is not ExitCode.OK:
            worst = outcome
        typer.echo(msgspec.json.encode(result) if as_json else _in_words(result))
    return int(worst)


def check(path: Path) -> dict[str, Any]:
    """What can be said about a bundle: counts, and the first thing that is wrong with it."""
    result: dict[str, Any] = {"bundle": _printable(str(path)), "ok": False}
    try:
        bundle = read_capture_bundle(path)
        result |= {"graph": bundle.graph_id, "events": len(bundle.events), "decisions": len(bundle.decisions)}
        validate_bundle_strict(
            bundle,
            expected_adapter_provenance=bundle.adapter_provenance,
            expected_runtime_provenance=bundle.runtime_provenance,
        )
        divergence = _effect_hashes(bundle) or first_divergence(bundle.decisions, rederive(bundle))
    except (ErgoCaptureError, ExternalEventPayloadError) as error:
        return result | {"error": _printable(error.message), "hint": error.hint, "exit": ExitCode.FAILED}
    result["notes"] = list(_misread_floats(bundle))
    if divergence is None:
        return result | {"ok": True, "exit": ExitCode.OK}
    return result | {"divergence": describe(divergence), "exit": ExitCode.DIVERGED}


def _printable(text: str) -> str:
    """Why: a file's name may be bytes that no text can hold."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


_NUMBERS: Final = re.compile(rb'"(?:[^"\\]|\\.)*"|(-?)([0-9]+)\.?([0-9]*)(?:e([+-]?[0-9]+))?', re.DOTALL)


def _misread_floats(bundle: CaptureBundle) -> Iterator[str]:
    """A note where the reference reads an effect's number as another and so refuses what it wrote itself.

    Why: its parser multiplies or divides the digits by one power of ten, which rounds twice.
    """
    for index, record in enumerate(bundle.decisions):
        for effect in record.effects:
            for token in _NUMBERS.finditer(encode_effect(effect.effect)):
                if token[2] is not None and _as_the_reference(token) != float(token[0]):
                    yield (
                        f"the reference may refuse this bundle: it reads {token[0].decode()} in an effect of decision "
                        f"{index} (event {record.event_id!r}) as {_as_the_reference(token)!r}"
                    )
                    return


def _as_the_reference(token: re.Match[bytes]) -> float:
    value = float(int(token[2] + token[3]))
    exponent = int(token[4] or 0) - len(token[3])
    while exponent < -308:
        value, exponent = value / 1e308, exponent + 308
    value = value * float(f"1e{exponent}") if exponent >= 0 else value / float(f"1e{-exponent}")
    return -value if token[1] else value


def _effect_hashes(bundle: CaptureBundle) -> Divergence | None:
    for index, record in enumerate(bundle.decisions):
        for effect in record.effects:
            actual = compute_effect_hash(effect.effect)
            if actual != effect.effect_hash:
                return Divergence(index, record.event_id, "effect_hash", effect.effect_hash, actual)
    return None


def describe(divergence: Divergence) -> dict[str, Any]:
    """A divergence as JSON types."""
    return {
        "index": divergence.index,
        "event_id": divergence.event_id,
        "field": divergence.field,
        "captured": _plain(divergence.captured),
        "replayed": _plain(divergence.replayed),
    }


def _plain(value: Any) -> Any:
    if isinstance(value, EpisodeInvocationRecord):
        return {name: _plain(getattr(value, name)) for name in value.__struct_fields__}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if hasattr(value, "to_builtins"):
        return value.to_builtins()
    return msgspec.to_builtins(value, enc_hook=str)


def _in_words(result: dict[str, Any]) -> str:
    notes = "".join(f"\n  note: {note}" for note in result.get("notes", ()))
    name = result["bundle"]
    if "error" in result:
        hint = f"\n  try: {result['hint']}" if result["hint"] else ""
        return f"{name}: unsound: {result['error']}{hint}"
    if "divergence" in result:
        found = result["divergence"]
        captured, replayed = (msgspec.json.encode(found[side]).decode() for side in ("captured", "replayed"))
        return (
            f"{name}: diverged at decision {found['index']}, event {found['event_id']!r}, field {found['field']}\n"
            f"  captured: {captured}\n"
            f"  replayed: {replayed}{notes}"
        )
    return f"{name}: ok, {result['events']} events, {result['decisions']} decisions derived again{notes}"
