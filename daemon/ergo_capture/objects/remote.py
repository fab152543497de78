"""S3, Google Cloud Storage and Azure, over obstore.

obstore hides the status of the reply, and reports a missing bucket as a missing file; this module takes both from its
messages. Objects are read in ranges, so that a broken connection costs one range and a request's time-out does not
bound the size of objects.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, TypeVar

from ergo_capture.extras import import_extra
from ergo_capture.objects.port import ObjectInfo, ObjectMissing, StoreAway, StoreError, StoreRefused

Result = TypeVar("Result")

#: Bytes that one request reads.
_RANGE_BYTES: Final = 16 << 20
#: The largest number of parts of an upload; S3 allows 10,000.
_MAX_PARTS: Final = 9_000
#: How many parts of one object are sent at once; each is held in memory.
_PARTS_AT_ONCE: Final = 2
#: Retries of obstore itself, within about two seconds; for longer failures the caller tries again.
_RETRIES: Final = 3
_CODE: Final = re.compile(r"<Code>(.*?)</Code>(?:\s*<Message>(.*?)</Message>)?", re.DOTALL)
_STATUS: Final = re.compile(r"status code: (\d{3}[^:\n]*)")
#: Matches the kind of a failure before there was a reply: ``Connect``, ``Timeout``, ``Request``, ``Decode``.
_UNANSWERED: Final = re.compile(r"HttpError \{\s*kind: (\w+)")
_NO_RANGE: Final = re.compile(r"status code: 416 ")
_NO_BUCKET: Final = re.compile(r"NoSuchBucket|ContainerNotFound|bucket does not exist")
#: Replies that do not change when the request is repeated.
_REFUSALS: Final = re.compile(r"status code: (?:400|401|403|405|501) |" + _NO_BUCKET.pattern)
#: Those of these replies that concern only one attempt.
_ONCE: Final = re.compile(r"BadDigest|XAmzContentChecksumMismatch|RequestTimeout|IncompleteBody|InvalidPart")


def import_obstore() -> Any:
    """Return the module.

    Raises:
        ErgoCaptureError: the extra is not installed.
    """
    return import_extra("ship", "obstore", "obstore.exceptions", "obstore.store", purpose="open an object store")


class RemoteStore:
    """A bucket, or a prefix in one.

    Args:
        url: ``s3://BUCKET/PREFIX``, ``gs://BUCKET/PREFIX`` or ``az://CONTAINER/PREFIX``.
        endpoint: the service's URL, if it is not the provider's own.
        region: the region of an S3 bucket; empty for the environment's.
        ca_file: a PEM file with the authority of the endpoint's certificate; empty for the system's.
        credentials: settings of the provider, by name in lower case; missing ones come from the environment.
        part_bytes: bytes of a part; larger objects are sent in parts.
        timeout: longest time of one request, in seconds.

    Raises:
        ErgoCaptureError: the extra is not installed.
        StoreRefused: the settings cannot be used.
    """

    def __init__(
        self,
        url: str,
        *,
        endpoint: str = "",
        region: str = "",
        ca_file: str = "",
        credentials: Mapping[str, str] | None = None,
        part_bytes: int = 8 << 20,
        timeout: float = 300.0,
    ) -> None:
        self._obstore = import_obstore()
        self.url = url.rstrip("/")
        self._part_bytes = part_bytes
        scheme, _, place = self.url.partition("://")
        bucket, _, prefix = place.partition("/")
        config: dict[str, Any] = dict(credentials or {})
        if endpoint:
            config["endpoint"] = endpoint
        client: dict[str, Any] = {"timeout": timedelta(seconds=timeout), "connect_timeout": timedelta(seconds=10)}
        if endpoint.startswith("http://"):
            client["allow_http"] = True
        stores = self._obstore.store
        if scheme == "s3":
            # Without a checksum, a byte that is flipped on the network is stored silently.
            config["checksum_algorithm"] = "SHA256"
            if region:
                config["region"] = region
        kind = {"s3": stores.S3Store, "gs": stores.GCSStore, "az": stores.AzureStore}[scheme]
        try:
            if ca_file:
                client["root_certificate"] = Path(ca_file).read_bytes()
            self._store = kind(
                bucket,
                prefix=prefix or None,
                config=config,
                client_options=client,
                retry_config={"max_retries": _RETRIES, "retry_timeout": timedelta(seconds=timeout)},
            )
        except OSError as error:
            raise StoreRefused(
                f"open store '{self.url}': read '{ca_file}': {error.strerror}",
                op="open store",
                path=ca_file,
                hint="name a file that you may read as ca_file",
            ) from error
        except (self._obstore.exceptions.BaseError, ValueError, TypeError) as error:
            # The message may quote a setting, but no value of one.
            raise StoreRefused(
                f"open store '{self.url}': {_first_line(error)}",
                op="open store",
                path=self.url,
                hint="see `ergo-capture help ship` for the settings of a target",
            ) from error

    def put(self, key: str, blocks: Iterable[bytes], size: int) -> None:
        """Write an object: in one request if it is small, else in parts."""
        part = max(self._part_bytes, -(-size // _MAX_PARTS))
        if size <= part:
            content = b"".join(blocks)
            assert len(content) == size
            self._ask("write", key, lambda: self._obstore.put(self._store, key, content, use_multipart=False))
        else:
            self._ask(
                "write",
                key,
                lambda: self._obstore.put(
                    self._store,
                    key,
                    iter(blocks),
                    use_multipart=True,
                    chunk_size=part,
                    max_concurrency=_PARTS_AT_ONCE,
                ),
            )

    def get(self, key: str) -> Iterator[bytes]:
        """Yield an object's content, a range at a time."""
        start = 0
        options: dict[str, Any] = {}
        while True:
            asked = {"range": (start, start + _RANGE_BYTES), **options}

            def ask(asked: dict[str, Any] = asked) -> tuple[bytes, Mapping[str, Any]]:
                try:
                    found = self._obstore.get(self._store, key, options=asked)
                except self._obstore.exceptions.BaseError as error:
                    if _NO_RANGE.search(str(error)) and not asked["range"][0]:
                        # The object is empty, so that no range can be read.
                        return b"", {"size": 0}
                    raise
                return bytes(found.bytes()), found.meta

            block, meta = self._ask("read", key, ask)
            if block:
                yield block
            start += len(block)
            if start >= meta["size"] or not block:
                return
            if meta["e_tag"]:
                # Require the same object: its beginning must not be followed by the rest of another one.
                options = {"if_match": meta["e_tag"]}

    def head(self, key: str) -> ObjectInfo | None:
        """Return size and time of an object."""
        try:
            return _info(self._ask("look at", key, lambda: self._obstore.head(self._store, key)))
        except ObjectMissing:
            return None

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Yield the objects below a prefix."""
        found = iter(self._obstore.list(self._store, prefix or None, chunk_size=1000))
        while chunk := self._ask("list", prefix, lambda: next(found, None)):
            yield from map(_info, chunk)

    def folders(self, prefix: str = "") -> tuple[str, ...]:
        """Return the names between a prefix and the next slash, sorted."""
        found = self._ask("list", prefix, lambda: self._obstore.list_with_delimiter(self._store, prefix or None))
        return tuple(sorted(folder.rstrip("/").rpartition("/")[2] for folder in found["common_prefixes"]))

    def _ask(self, what: str, key: str, request: Callable[[], Result]) -> Result:
        with self._translated(what, key):
            return request()

    @contextmanager
    def _translated(self, what: str, key: str) -> Iterator[None]:
        """Raise obstore's errors as this package's."""
        try:
            yield
        except FileNotFoundError as error:
            if _NO_BUCKET.search(str(error)):
                raise self._failed(StoreRefused, what, key, error) from error
            if what == "write":
                # The multipart upload is gone: it was completed and the answer was lost, or it was aborted.
                raise self._failed(StoreAway, what, key, error) from error
            raise ObjectMissing(
                f"{what} object '{self._named(key)}': there is none", op=f"{what} object", path=self._named(key)
            ) from error
        except self._obstore.exceptions.BaseError as error:
            denied = (
                self._obstore.exceptions.PermissionDeniedError,
                self._obstore.exceptions.UnauthenticatedError,
            )
            text = str(error)
            refused = isinstance(error, denied) or (_REFUSALS.search(text) and not _ONCE.search(text))
            raise self._failed(StoreRefused if refused else StoreAway, what, key, error) from error

    def _failed(self, kind: type[StoreError], what: str, key: str, error: Exception) -> StoreError:
        text = str(error)
        if code := _CODE.search(text):
            reason = code[1] + (f": {code[2].rstrip('.')}" if code[2] else "")
        elif status := _STATUS.search(text):
            reason = status[1].strip()
        elif unanswered := _UNANSWERED.search(text):
            reason = f"no answer ({unanswered[1].lower()})"
        else:
            reason = _first_line(error)
        hint = (
            "check the bucket, the credentials and their rights; `ergo-capture ship check` reports what is missing"
            if kind is StoreRefused
            else "it is tried again; `ergo-capture ship check` tests whether the store answers"
        )
        return kind(
            f"{what} object '{self._named(key)}': {reason}", op=f"{what} object", path=self._named(key), hint=hint
        )

    def _named(self, key: str) -> str:
        return f"{self.url}/{key}"


def _info(meta: Mapping[str, Any]) -> ObjectInfo:
    return ObjectInfo(meta["path"], meta["size"], meta["last_modified"])


def _first_line(error: Exception) -> str:
    """Return the first line of obstore's message; the others show the structure of its errors."""
    return str(error).split("\n", 1)[0].strip()
