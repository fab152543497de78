"""The error for an adapter, an event or an effect that is refused, and its codes."""

from __future__ import annotations

from typing import Final

from ergo_capture.errors import ErgoCaptureError, ExitCode

#: The adapter is not YAML that the reference reads, or holds a value that JSON does not have.
MANIFEST_UNREADABLE: Final = "manifest_unreadable"
#: A field of the manifest is missing or of another type.
MANIFEST_SHAPE: Final = "manifest_shape"
#: A rule of manifests is broken; ``rule`` is the reference's name for it (``ADP-8``, ``COMP-3``).
MANIFEST_RULE: Final = "manifest_rule"
#: The optional packages are not installed.
EXTRA_MISSING: Final = "extra_missing"
#: The text is not an event.
INVALID_EVENT: Final = "invalid_event"
#: A schema, or the adapter's contract, refuses an event.
SCHEMA_VIOLATION: Final = "schema_violation"
#: A captured payload lacks a key that the context store holds.
KEY_MISSING: Final = "store_key_missing"
#: A write of an effect is not allowed by the adapter.
INVALID_EFFECT: Final = "invalid_effect"
#: The context store would grow beyond its bound.
CONTEXT_FULL: Final = "context_full"
#: The configuration of egress channels is refused, by itself or beside the adapter.
EGRESS_CONFIG: Final = "egress_config"


class AdapterError(ErgoCaptureError, ValueError):
    """An adapter, an event or an effect was refused.

    Args:
        code: one of this module's codes, which are stable.
        message: what is wrong, in the reference's words if it has any.
        where: the place: a path into the manifest (``$.context_keys[0].type``) with line and column, or into the
            payload (``$.v[2]``).
        fix: what to do, as an imperative sentence.
        rule: the rule that was broken: ``ADP-8`` of a manifest, or the keyword of a JSON schema (``maximum``).
        line: line in the adapter's text, from 1.
        column: column in that line, from 1.
        exit_code: the exit code of the command line, if the error is not handled.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        where: str,
        fix: str,
        rule: str | None = None,
        line: int | None = None,
        column: int | None = None,
        exit_code: int | None = None,
    ) -> None:
        super().__init__(message, op="apply adapter", hint=fix, exit_code=exit_code)
        self.code = code
        self.where = where
        self.fix = fix
        self.rule = rule
        self.line = line
        self.column = column


def extra_missing(error: ImportError) -> AdapterError:
    """Return the error for an installation without the packages that adapters need."""
    return AdapterError(
        EXTRA_MISSING,
        f"reading an adapter needs the package '{error.name}', which is not installed",
        where="the Python environment",
        fix="install the extra that adapters need: pip install 'ergo-capture[adapter]'",
        exit_code=ExitCode.CONFIG,
    )


def spell_path(path: tuple[str | int, ...]) -> str:
    """Return a path into a JSON value as text: ``$.v[2]``."""
    return "$" + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
