"""``ergo-capture seal``: keys for seals."""

from __future__ import annotations

import os
from pathlib import Path

import click

from ergo_capture.cli.support.command import PATH, Command, Group
from ergo_capture.cli.support.output import check_output
from ergo_capture.errors import ErgoCaptureError, ExitCode


@click.group(cls=Group)
def seal() -> None:
    """Create keys for seals, which chain a host's manifests together."""


@seal.command(
    cls=Command,
    examples=(
        "ergo-capture seal keygen -o seal.key",
        "ergo-capture seal keygen -o seal-2.key --replaces seal.key",
    ),
)
@click.option("--output", "-o", type=PATH, required=True, metavar="FILE", help="The key's file, which must not exist.")
@click.option("--replaces", type=PATH, metavar="FILE", help="The key that it replaces, and which endorses it.")
def keygen(output: Path, replaces: Path | None) -> None:
    """Create a key, and print its public key.

    The file is for the daemon alone. Keep the public key on another host, where the seals are checked with it.
    """
    from ergo_capture.seal.keys import encode_key, generate_key, read_key  # noqa: PLC0415 - needs optional packages

    check_output(output, "seal key")
    key = generate_key(None if replaces is None else read_key(str(replaces.absolute())))
    try:
        fd = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(fd, "wb") as file:  # noqa: PTH123 - a descriptor
            file.write(encode_key(key))
            file.flush()
            os.fsync(fd)
    except OSError as error:
        raise ErgoCaptureError(
            f"write seal key '{output}': {error.strerror}",
            op="write seal key",
            path=output,
            hint="name a file that does not exist yet: a key that was used must not be lost"
            if isinstance(error, FileExistsError)
            else "name a file in a directory that is there and that you may write to",
            exit_code=ExitCode.FAILED,
        ) from error
    click.echo(key.public)
