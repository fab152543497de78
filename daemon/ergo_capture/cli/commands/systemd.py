"""``ergo-capture systemd install``: install units, service user and a first configuration."""

from __future__ import annotations

import os
import re
import sys
from contextlib import suppress
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Final

import click

from ergo_capture.cli.support.command import PATH, Command, Group, flag
from ergo_capture.config import SYSTEM_FILE, Config, to_toml
from ergo_capture.errors import ErgoCaptureError
from ergo_capture.storage.atomic import write_bytes_atomic
from ergo_capture.storage.write_error import as_written

_SHIPPED_COMMAND: Final = "/usr/bin/ergo-capture"
#: The directory of the units: /etc is for the administrator's drop-ins, and /usr/lib for the distribution.
_UNITS: Final = "usr/local/lib/systemd/system"
_SYSUSERS: Final = "usr/local/lib/sysusers.d/ergo-capture.conf"
#: Files of 0.1.0, below the directory of units or as links to them: a socket by which whoever asked for the status of a
#: stopped service started it, and a drop-in with which a reload that was refused looked like one that was done.
_FORMER: Final = (
    f"{_UNITS}/ergo-capture-control.socket",
    "etc/systemd/system/sockets.target.wants/ergo-capture-control.socket",
    f"{_UNITS}/ergo-capture.service.d/10-notify-reload.conf",
)
_SOCKET: Final = "ergo-capture.socket"
#: The unit that ships bundles.
_SHIP: Final = "ergo-capture-ship.service"
#: The directories that ``ProtectHome=yes`` and ``PrivateTmp=yes`` hide from the service.
_HIDDEN: Final = ("/root", "/home", "/run/user", "/tmp", "/var/tmp")  # noqa: S108 - nothing is written there
#: The directories from which the shipped unit lets the service execute programs.
_EXECUTABLE: Final = ("/usr", "/bin", "/lib", "/lib64", "/opt")
#: The characters that systemd refuses in the path of a command, quoted or not.
_REFUSED: Final = re.compile(r"""["'\\\x00-\x1f\x7f]""")
#: The first lines of a script; for an interpreter whose path has spaces, pip writes a script for a shell.
_SCRIPT: Final = re.compile(rb"#!\s*/bin/sh\s*\n'''exec' \"(?P<quoted>[^\"]+)\"|#!\s*(?P<plain>\S+)")


@click.group(cls=Group)
def systemd() -> None:
    """Run ergo-capture under systemd."""


@systemd.command(cls=Command, examples=("ergo-capture systemd install --dry-run",))
@click.option(
    "--prefix",
    type=PATH,
    default="/",
    show_default=True,
    metavar="DIR",
    help="Root directory of the system to install into.",
)
@click.option(
    "--command", type=PATH, metavar="FILE", help="The ergo-capture command that the service runs; by default this one."
)
@flag("--ship", help="Also write the unit that ships bundles to object stores; see `ergo-capture help ship`.")
@flag("--dry-run", help="Print what would be written, and write nothing.")
def install(prefix: Path, command: Path | None, *, ship: bool, dry_run: bool) -> None:
    """Write the units and a first configuration.

    It also writes the definition of the service's user, and prints the commands to run next. An existing configuration is kept. Units are replaced, drop-ins in
    /etc/systemd/system are not.
    """
    runs = _command(command)
    # An installed unit for shipping is replaced like the others.
    ship = ship or (prefix / _UNITS / _SHIP).exists()
    services = ["ergo-capture.service", *([_SHIP] if ship else [])]
    there = [name for name in services if (prefix / _UNITS / name).exists()]
    files = {prefix / _UNITS / name: _adapted(name, runs) for name in services}
    files[prefix / _UNITS / _SOCKET] = _shipped(_SOCKET).read_text("utf-8")
    files[prefix / _SYSUSERS] = _shipped("ergo-capture.sysusers.conf").read_text("utf-8")
    kept = prefix / SYSTEM_FILE.relative_to("/")
    if not kept.exists():
        files[kept] = to_toml(Config(), comments=True)
    for path, text in files.items():
        if not dry_run:
            # Unlike the daemon's own directories, these are readable for every user, including the daemon's.
            path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            write_bytes_atomic(path, text.encode(), what="systemd file")
            path.chmod(0o644)
        click.echo(f"{'would write' if dry_run else 'wrote'} {path}")
    if kept not in files:
        click.echo(f"kept {kept}")
    former = [path for path in map(prefix.joinpath, _FORMER) if path.exists() or path.is_symlink()]
    for path in former:
        if not dry_run:
            path.unlink()
        click.echo(f"{'would remove' if dry_run else 'removed'} {path}")
    if dry_run:
        return
    click.echo("now run")
    click.echo("  systemd-sysusers && systemctl daemon-reload")
    for name in services:
        # One that runs would go on with the program of before.
        click.echo(f"  systemctl {'restart' if name in there else 'enable --now'} {name}")


def _command(given: Path | None) -> Path:
    """Return the command that the service runs.

    Raises:
        ErgoCaptureError: the service could not run it.
    """
    path = given or Path(sys.executable).parent / "ergo-capture"
    # Do not resolve links: Python finds a virtual environment through the link to its interpreter.
    runs = Path.cwd() / path
    if not runs.is_file():
        raise ErgoCaptureError(
            f"install units: there is no command '{runs}'",
            op="install units",
            path=runs,
            hint="name the installed ergo-capture with --command",
        )
    if as_written(runs) != str(runs) or _REFUSED.search(str(runs)):
        raise ErgoCaptureError(
            f"install units: systemd cannot run a command with the path '{as_written(runs)}'",
            op="install units",
            path=as_written(runs),
            hint="install into a directory whose name is UTF-8, without quotes, backslashes and control characters",
        )
    for place in (runs, *interpreters(runs)):
        for real in (place, place.resolve()):
            if any(real.is_relative_to(hidden) for hidden in _HIDDEN):
                raise ErgoCaptureError(
                    f"install units: the service could not run '{real}', because home directories and temporary "
                    "directories are hidden from it",
                    op="install units",
                    path=real,
                    hint="a Python of pyenv, uv or conda is below a home directory: make a virtual environment with the "
                    "system's, `/usr/bin/python3 -m venv /opt/ergo-capture`, and install from there",
                )
    return runs


def interpreters(runs: Path) -> list[Path]:
    """Return the interpreter in the first lines of a script, and the home of its virtual environment's interpreter."""
    found: list[Path] = []
    with suppress(OSError), runs.open("rb") as file:
        match = _SCRIPT.match(file.readline(4096) + file.readline(4096))
        if match:
            found.append(Path(os.fsdecode(match["quoted"] or match["plain"])))
    for interpreter in list(found):
        with suppress(OSError):
            settings = (interpreter.parent.parent / "pyvenv.cfg").read_text("utf-8", "replace")
            found += [Path(home) for home in re.findall(r"(?m)^home\s*=\s*(/.*\S)\s*$", settings)]
    return found


def _executable(runs: Path) -> list[str]:
    """Return the directories that the service has to execute besides those of the shipped unit."""
    places = {runs.parent}
    for path in interpreters(runs):
        for place in (path, path.resolve()):
            directory = place if place.is_dir() else place.parent
            # The directory above bin holds the libraries too.
            places.add(directory.parent if directory.name == "bin" else directory)
    kept = {place for place in places if not any(place.is_relative_to(known) for known in _EXECUTABLE)}
    return sorted(str(place) for place in kept - {Path("/")})


def quoted(word: str) -> str:
    """Return a path as one word of a line in a unit: with specifiers escaped, and quoted if necessary."""
    word = word.replace("%", "%%")
    if re.fullmatch(r"[\w/.+:@=%-]+", word):
        return word
    escaped = re.sub(r'[\\"]', r"\\\g<0>", word)
    return '"' + re.sub(r"[\x00-\x1f\x7f]", lambda control: f"\\x{ord(control[0]):02x}", escaped) + '"'


def _adapted(name: str, runs: Path) -> str:
    """Return the text of a service that runs a command of another path, and may execute what that needs."""
    service = _shipped(name).read_text("utf-8")
    # The prefix of a command is within the quotes.
    shipped = rf"(?m)^(Exec\w+=)(-?){re.escape(_SHIPPED_COMMAND)}(?= )"
    service = re.sub(shipped, lambda line: line[1] + quoted(f"{line[2]}{runs}"), service)
    places = [quoted(place) for place in _executable(runs)]
    return re.sub(r"(?m)^ExecPaths=.*$", lambda line: " ".join([line[0], *places]), service)


def _shipped(name: str) -> Traversable:
    packaged = resources.files("ergo_capture") / "data" / "systemd"
    if not packaged.is_dir():
        # In a checkout the units are not beside the code.
        packaged = Path(__file__).resolve().parents[4] / "systemd"
    return packaged.joinpath(*name.split("/"))
