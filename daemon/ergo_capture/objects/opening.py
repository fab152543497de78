"""Open the store of a target or a URL."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import unquote, urlsplit

import msgspec

from ergo_capture.config.paths import cache_directory
from ergo_capture.config.shipping import TargetConfig
from ergo_capture.errors import ErgoCaptureError, ExitCode
from ergo_capture.objects import SCHEMES
from ergo_capture.objects.credentials import read_credentials
from ergo_capture.objects.directory import DirectoryStore
from ergo_capture.objects.port import ObjectStore
from ergo_capture.objects.remote import RemoteStore


def open_store(target: TargetConfig) -> ObjectStore:
    """Return the store of a target; credentials are read again.

    Raises:
        ErgoCaptureError: the extra is not installed, or the settings cannot be used.
    """
    if target.url.startswith("file:"):
        return DirectoryStore(Path(unquote(urlsplit(target.url).path)))
    return RemoteStore(
        target.url,
        endpoint=target.endpoint,
        region=target.region,
        ca_file=target.ca_file,
        credentials=read_credentials(target.credentials),
        part_bytes=target.part_bytes,
        timeout=target.timeout.seconds,
    )


def store_named(name: str, targets: Mapping[str, TargetConfig]) -> ObjectStore:
    """Return a store; arguments and errors are those of ``target_named``."""
    return open_store(target_named(name, targets))


def target_named(name: str, targets: Mapping[str, TargetConfig]) -> TargetConfig:
    """Return the settings of a store.

    Args:
        name: a target's name or a store's URL; empty for the only target.
        targets: the configured targets.

    Raises:
        ErgoCaptureError: there is no such target, or the name is empty and there is not exactly one.
    """
    if is_store_url(name):
        target, _ = target_of(name, targets)
        return msgspec.structs.replace(target, url=name)
    if name in targets:
        return targets[name]
    if not name and len(targets) == 1:
        return next(iter(targets.values()))
    known = ", ".join(targets)
    if name:
        url = f"a URL, such as file://{Path(name).absolute() if '/' in name else '/DIR'}"
        reason, hint = (
            f"there is no table [ship.targets.{name}]",
            f"name {known} or {url}" if targets else f"name {url}",
        )
    elif targets:
        reason, hint = f"there are {len(targets)} targets", f"name one: {known}"
    else:
        reason, hint = (
            "there is no table [ship.targets.NAME]",
            "name the store's URL, or the file that has the table with --config",
        )
    store = f"store '{name}'" if name else "a store"
    raise ErgoCaptureError(
        f"open {store}: {reason} in the configuration", op="open store", hint=hint, exit_code=ExitCode.USAGE
    )


def cache_of(store: ObjectStore) -> Path:
    """Return the directory for copies of a store's files."""
    return cache_directory() / "stores" / hashlib.sha256(store.url.encode()).hexdigest()[:16]


def is_store_url(name: str) -> bool:
    """Return whether a name on the command line is a URL of a store."""
    return name.startswith(SCHEMES)


def target_of(url: str, targets: Mapping[str, TargetConfig]) -> tuple[TargetConfig, str]:
    """Return the settings for a URL and the key that it names.

    They are those of the configured target with the longest URL that is a prefix of the given one. If there is none,
    the whole path of the URL is the key, and the settings come from the environment.
    """
    matches = [target for target in targets.values() if f"{url}/".startswith(f"{target.url.rstrip('/')}/")]
    if matches:
        target = max(matches, key=lambda each: len(each.url))
        return target, url.removeprefix(target.url.rstrip("/")).strip("/")
    scheme, _, rest = url.partition("://")
    if scheme == "file":
        return TargetConfig(url="file:///"), rest.strip("/")
    bucket, _, key = rest.partition("/")
    return TargetConfig(url=f"{scheme}://{bucket}"), key.strip("/")
