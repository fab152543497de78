"""Stores on the command line: targets of ``[ship.targets]`` and URLs."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Final

import click

from ergo_capture import config as configuration
from ergo_capture.cli.support.command import did_you_mean
from ergo_capture.config.paths import cache_directory
from ergo_capture.errors import ErgoCaptureError, ExitCode
from ergo_capture.objects.opening import is_store_url, open_store, target_of
from ergo_capture.objects.port import ObjectStore

store_option: Final = click.option(
    "--store",
    default="",
    metavar="NAME|URL",
    help="A target of [ship.targets], or the URL of a store; by default the only target.",
)


def store_named(name: str, config: Path | None) -> ObjectStore:
    """Return a store.

    Args:
        name: a target's name or a store's URL; empty for the only target.
        config: the configuration file; by default the usual one.

    Raises:
        ErgoCaptureError: there is no such target, or none, or several and none was named.
        ConfigError: the configuration is wrong.
    """
    targets = configuration.load(config, client=True).ship.targets
    if is_store_url(name):
        target, key = target_of(name, targets)
        return open_store(target if not key else _below(name, target))
    if name in targets:
        return open_store(targets[name])
    if not name and len(targets) == 1:
        return open_store(next(iter(targets.values())))
    if name:
        reason, hint = f"there is no table [ship.targets.{name}]", "name one of the configuration, or a URL"
        hint = did_you_mean(name, [*targets]).strip() or hint
    elif targets:
        reason, hint = f"the configuration has {len(targets)} targets", f"give --store: {', '.join(targets)}, or a URL"
    else:
        reason, hint = "the configuration has no table [ship.targets.NAME]", "give --store URL"
    raise ErgoCaptureError(f"open store '{name}': {reason}", op="open store", hint=hint, exit_code=ExitCode.USAGE)


def _below(url: str, target: configuration.settings.TargetConfig) -> configuration.settings.TargetConfig:
    """Return the settings of a target for another prefix."""
    import msgspec  # noqa: PLC0415 - only for this form

    return msgspec.structs.replace(target, url=url)


def cache_of(store: ObjectStore) -> Path:
    """Return the directory for copies of a store's files."""
    return cache_directory() / "stores" / hashlib.sha256(store.url.encode()).hexdigest()[:16]
