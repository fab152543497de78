"""The base class of every error that ergo-capture raises on purpose, and exit codes."""

from __future__ import annotations

from enum import IntEnum
from pathlib import Path
from typing import Any


class ExitCode(IntEnum):
    """Exit codes of the command; part of the public contract."""

    OK = 0
    FAILED = 1
    USAGE = 2
    DATA_LOSS = 3
    DIVERGED = 4
    CONFIG = 78


class ErgoCaptureError(Exception):
    """An operation failed; the message says which, on which path and why, the hint what to do next.

    Args:
        message: one sentence, complete without the other fields.
        op: the operation that failed, as a verb phrase (``"open journal segment"``).
        path: the file, directory or socket of the operation.
        hint: what the reader can do next, as an imperative sentence.
        exit_code: the command's exit code if nothing handles the error.

    The cause is chained with ``raise ... from``.
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
        # By default, exceptions are unpickled by calling the constructor with the message only, which fails for
        # subclasses with other arguments, and errors of worker processes would be lost. Other causes may not pickle.
        cause = self.__cause__ if isinstance(self.__cause__, OSError | ErgoCaptureError) else None
        return _unpickle, (type(self), self.args, self.__dict__, cause)

    @property
    def cause(self) -> BaseException | None:
        """Return the exception that led to this one, if any."""
        return self.__cause__


def _unpickle(
    kind: type[ErgoCaptureError], arguments: tuple[Any, ...], state: dict[str, Any], cause: BaseException | None
) -> ErgoCaptureError:
    """Return an error as it was in the process that raised it."""
    error = kind.__new__(kind, *arguments)
    error.__dict__.update(state)
    error.__cause__ = cause
    return error
