"""``ergo-capture systemd install``: units, service user and first configuration, where systemd looks for them."""

from __future__ import annotations

import re
import subprocess
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

_SHIPPED_COMMAND: Final = "/usr/bin/ergo-capture"
#: Not /etc, which is for the administrator's drop-ins, and not /usr/lib, which is the distribution's.
_UNITS: Final = "usr/local/lib/systemd/system"
_SYSUSERS: Final = "usr/local/lib/sysusers.d/ergo-capture.conf"
#: The first version with Type=notify-reload; older ones take it for "simple".
_NOTIFY_RELOAD: Final = 253
#: The directories that ``ProtectHome=yes`` hides from a service.
_HIDDEN: Final = ("/root", "/home", "/run/user")


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
@flag("--dry-run", help="Print what would be written, and write nothing.")
def install(prefix: Path, command: Path | None, *, dry_run: bool) -> None:
    """Write the units, the definition of the service's user and a first configuration.

    Prints the commands to run next. An existing configuration is kept. Units are replaced, drop-ins in
    /etc/systemd/system are not.
    """
    runs = _command(command)
    files = {prefix / _UNITS / name: text for name, text in _units(runs)}
    files[prefix / _SYSUSERS] = _shipped("ergo-capture.sysusers.conf").read_text("utf-8")
    kept = prefix / SYSTEM_FILE.relative_to("/")
    if not kept.exists():
        files[kept] = to_toml(Config(), comments=True)
    for path, text in files.items():
        if not dry_run:
            # Unlike the daemon's own directories, these are readable for everybody, including the daemon's user.
            path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            write_bytes_atomic(path, text.encode(), what="systemd file")
            path.chmod(0o644)
        click.echo(f"{'would write' if dry_run else 'wrote'} {path}")
    if kept not in files:
        click.echo(f"kept {kept}")
    if dry_run:
        return
    click.echo("now run")
    click.echo("  systemd-sysusers && systemctl daemon-reload")
    click.echo("  systemctl enable --now ergo-capture.service")


def _command(given: Path | None) -> Path:
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
    for place in (runs, runs.resolve(), Path(sys.base_prefix) if given is None else runs):
        if any(place.is_relative_to(hidden) for hidden in _HIDDEN):
            raise ErgoCaptureError(
                f"install units: the service could not run '{place}', because home directories are hidden from it",
                op="install units",
                path=place,
                hint="make a virtual environment with /usr/bin/python3 below /opt, and install from there",
            )
    return runs


def _units(runs: Path) -> list[tuple[str, str]]:
    """Return the units as names below the directory of units and texts, adapted to the command."""
    names = ["ergo-capture.socket", "ergo-capture-control.socket"]
    if _version() >= _NOTIFY_RELOAD:
        names.append("ergo-capture.service.d/10-notify-reload.conf")
    found = [(name, _shipped(name).read_text("utf-8")) for name in names]
    service = _shipped("ergo-capture.service").read_text("utf-8").replace(_SHIPPED_COMMAND, str(runs))
    # The service must be able to execute the interpreter of a virtual environment.
    places = sorted({str(Path(sys.prefix)), str(Path(sys.base_prefix))} - {"/usr"})
    service = re.sub(r"(?m)^ExecPaths=.*$", lambda line: " ".join([line[0], *places]), service)
    return [*found, ("ergo-capture.service", service)]


def _version() -> int:
    """Return systemd's version, or 0 if it is unknown; that is treated as an old one."""
    with suppress(OSError):
        output = subprocess.run(["systemctl", "--version"], capture_output=True, text=True, check=False).stdout  # noqa: S607
        if match := re.match(r"systemd (\d+)", output):
            return int(match[1])
    return 0


def _shipped(name: str) -> Traversable:
    packaged = resources.files("ergo_capture") / "data" / "systemd"
    if not packaged.is_dir():
        # In a checkout the units are not beside the code.
        packaged = Path(__file__).resolve().parents[4] / "systemd"
    return packaged.joinpath(*name.split("/"))
