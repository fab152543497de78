"""Open the store that a target's settings, or a URL, name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

from ergo_capture.config.settings import TargetConfig
from ergo_capture.objects.credentials import read_credentials
from ergo_capture.objects.directory import DirectoryStore
from ergo_capture.objects.port import ObjectStore
from ergo_capture.objects.remote import RemoteStore

#: The beginnings of URLs that name stores.
SCHEMES: Final = ("s3://", "gs://", "az://", "file://")


def open_store(target: TargetConfig) -> ObjectStore:
    """Return the store of a target; credentials are read anew.

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


def is_store_url(name: str) -> bool:
    """Return whether a name on the command line is a URL of a store."""
    return name.startswith(SCHEMES)


def target_of(url: str, targets: Mapping[str, TargetConfig]) -> tuple[TargetConfig, str]:
    """Return the settings for a URL and the key that it names.

    Of the configured targets the one with the longest URL that the given one begins with counts. Without one the whole
    path of the URL is the key, and the environment has the settings.
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
