"""The terminations of episodes, and the decisions of the supervisor."""

from __future__ import annotations

from enum import Enum
from typing import Any, ClassVar, Final

from ergo_capture.kernel.serde.complaints import unknown_variant


class ErrKind(Enum):
    """The reason why an episode failed (``ergo_adapter::ErrKind``)."""

    NetworkTimeout = "NetworkTimeout"
    AdapterUnavailable = "AdapterUnavailable"
    ValidationFailed = "ValidationFailed"
    RuntimeError = "RuntimeError"
    SemanticError = "SemanticError"
    DeadlineExceeded = "DeadlineExceeded"
    Cancelled = "Cancelled"


class Decision(Enum):
    """The supervisor's decision for an event (``ergo_supervisor::Decision``)."""

    Invoke = "Invoke"
    Skip = "Skip"
    Defer = "Defer"


_RETRYABLE: Final = frozenset({ErrKind.NetworkTimeout, ErrKind.AdapterUnavailable, ErrKind.RuntimeError})


class RunTermination:
    """The end of an episode's last attempt (``ergo_adapter::RunTermination``).

    One object exists per value: ``RunTermination.Completed``, ``.TimedOut``, ``.Aborted`` and
    ``RunTermination.Failed(ErrKind.X)``; compare with ``is`` or ``==``.
    """

    __slots__ = ("err", "json", "name", "retryable")

    Completed: ClassVar[RunTermination]
    TimedOut: ClassVar[RunTermination]
    Aborted: ClassVar[RunTermination]
    _failed: ClassVar[dict[ErrKind, RunTermination]] = {}

    #: ``Completed``, ``TimedOut``, ``Aborted`` or ``Failed``.
    name: str
    #: The reason; None unless ``name`` is ``Failed``.
    err: ErrKind | None
    #: The value's JSON text, as the reference writes it.
    json: bytes
    #: Whether the supervisor may try again (rule 4: mechanical failures only).
    retryable: bool

    def __init__(self, name: str, err: ErrKind | None = None) -> None:
        self.name = name
        self.err = err
        self.json = (f'"{name}"' if err is None else f'{{"{name}":"{err.value}"}}').encode()
        self.retryable = name == "TimedOut" or err in _RETRYABLE

    @classmethod
    def Failed(cls, err: ErrKind) -> RunTermination:  # noqa: N802 - the reference's variant name
        """Return the termination of an episode that failed for this reason."""
        return cls._failed[err]

    @property
    def label(self) -> str:
        """The value as one word: ``Completed``, ``Failed(NetworkTimeout)``."""
        return self.name if self.err is None else f"{self.name}({self.err.value})"

    @classmethod
    def every(cls) -> list[RunTermination]:
        """Return every termination there is."""
        return [*_UNITS.values(), *cls._failed.values()]

    def to_builtins(self) -> str | dict[str, str]:
        """Return the value as JSON types: a string, or ``{"Failed": kind}``."""
        return self.name if self.err is None else {self.name: self.err.value}

    @classmethod
    def from_builtins(cls, value: Any) -> RunTermination:
        """Return the termination that a decoded JSON value stands for.

        A unit variant may also be an object holding null (``{"Completed": null}``), as for serde.

        Raises:
            ValueError: not a termination; the message names the variants.
        """
        if isinstance(value, dict) and len(value) == 1:
            ((name, inner),) = value.items()
            if name == "Failed":
                if isinstance(inner, dict) and len(inner) == 1 and next(iter(inner.values())) is None:
                    inner = next(iter(inner))
                kinds = ErrKind.__members__
                if isinstance(inner, str) and inner in kinds:
                    return cls._failed[kinds[inner]]
                raise ValueError(unknown_variant(inner, kinds))
            if name in _UNITS and inner is None:
                return _UNITS[name]
        elif isinstance(value, str) and value in _UNITS:
            return _UNITS[value]
        raise ValueError(unknown_variant(value, _VARIANTS))

    def __repr__(self) -> str:
        return f"RunTermination.{self.name}" + ("" if self.err is None else f"(ErrKind.{self.err.name})")

    def __reduce__(self) -> tuple[Any, ...]:
        return (RunTermination.from_builtins, (self.to_builtins(),))


RunTermination.Completed = RunTermination("Completed")
RunTermination.TimedOut = RunTermination("TimedOut")
RunTermination.Aborted = RunTermination("Aborted")
for _kind in ErrKind:
    RunTermination._failed[_kind] = RunTermination("Failed", _kind)  # noqa: SLF001 - filling the class's own table

_UNITS: Final = {t.name: t for t in (RunTermination.Completed, RunTermination.TimedOut, RunTermination.Aborted)}
_VARIANTS: Final = (*_UNITS, "Failed")
