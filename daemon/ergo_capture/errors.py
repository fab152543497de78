"""The one base of every error that ergo-capture raises on purpose."""

from __future__ import annotations

from enum import IntEnum
from pathlib import Path
from typing import Any


class ExitCode(IntEnum):
    """What the process says to its caller; part of the public contract."""

    OK = 0
    FAILED = 1
    USAGE = 2
    DATA_LOSS = 3
    DIVERGED = 4
    CONFIG = 78


class ErgoCaptureError(Exception):
    """Something could not be done; says what, to which path, why, and what to do next.

    Args:
        message: one sentence, complete without the other fields.
        op: the operation that failed, as a verb phrase (``"open journal segment"``).
        path: what it was done to.
        hint: what the reader can do next, as an imperative sentence.
        exit_code: what the command line exits with when nothing handles the error.

    The cause is chained with ``raise ... from``, never flattened into the message only.
    """

    exit_code: int = ExitCode.FAILED

    def __init__(
        self,
        message: str,
        *,
        op: str | None = None,
        path: str | Path | None = None,
        hint: str | None = None,
        exit_code: int | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.op = op
        self.path = None if path is None else str(path)
        self.hint = hint
        if exit_code is not None:
            self.exit_code = exit_code

    def __str__(self) -> str:
        return self.message

    def __reduce__(self) -> tuple[Any, ...]:
        # Why: the usual way calls the constructor with the message alone, and an error that a worker process raised
        # could not be read by the one that waits for it. A cause of others may not travel at all.
        cause = self.__cause__ if isinstance(self.__cause__, OSError | ErgoCaptureError) else None
        return _made_again, (type(self), self.args, self.__dict__, cause)

    @property
    def cause(self) -> BaseException | None:
        """The exception that led to this one, if any."""
        return self.__cause__


def _made_again(
    kind: type[ErgoCaptureError], arguments: tuple[Any, ...], state: dict[str, Any], cause: BaseException | None
) -> ErgoCaptureError:
    """An error as it was in the process that raised it."""
    error = kind.__new__(kind, *arguments)
    error.__dict__.update(state)
    error.__cause__ = cause
    return error
