"""The settings of shipping: targets and announcements."""

from __future__ import annotations

import re
from typing import Annotated, Final, Literal

from ergo_capture.config.tables import Table, doc
from ergo_capture.units import Duration, Size


class TargetConfig(Table, frozen=True, kw_only=True):
    """A store that finished bundles are shipped to; there may be several of these tables."""

    # S3 takes no smaller part but the last.
    MINIMUM = {"part_bytes": Size(5 << 20), "timeout": Duration(1_000_000_000)}
    PATHS = ("ca_file",)

    url: Annotated[
        str,
        doc(
            "The store: s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, az://CONTAINER/PREFIX or file:///DIR.",
            "s3://bundles/prod",
        ),
    ]
    endpoint: Annotated[str, doc("URL of an S3 or Azure service other than the provider's own.")] = ""
    region: Annotated[str, doc("Region of an S3 bucket; empty for the environment's.")] = ""
    ca_file: Annotated[str, doc("PEM file of the authority that signed the endpoint's certificate.")] = ""
    credentials: Annotated[
        str,
        doc(
            "Name of a file in $CREDENTIALS_DIRECTORY, or its path; empty for the environment, or the instance's role."
        ),
    ] = ""
    verify: Annotated[
        Literal["read", "head"],
        doc("How a stored object is verified: read back and hashed, or by its size and the store's own checksum."),
    ] = "read"
    part_bytes: Annotated[
        Size, doc("Size of a part of a larger bundle; grows so that there are at most 9,000 parts.")
    ] = Size(8 << 20)
    timeout: Annotated[Duration, doc("Longest time of one request.")] = Duration(300_000_000_000)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not _STORE_URL.match(self.url):
            raise ValueError("`url` must begin with s3://BUCKET, gs://BUCKET, az://CONTAINER or file:///")


#: The beginning of the URL of a store.
_STORE_URL: Final = re.compile(r"(?:s3|gs|az)://[^/?#]+|file:///")
#: A target's name becomes part of file names.
_TARGET_NAME: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")


#: A server of the announcements. Passwords are in a file of their own, which no command prints.
_NATS_URL: Final = re.compile(r"(?:nats|tls)://[^/?#@\s]+")
#: The prefix of subjects: tokens without wildcards. Subjects that begin with `$` are the server's own.
_SUBJECT: Final = re.compile(r"(?!\$)[^\s.*>]+(?:\.[^\s.*>]+)*")


class AnnounceConfig(Table, frozen=True):
    """Announcements of shipped bundles in a stream of NATS JetStream, by `ergo-capture ship run`."""

    MINIMUM = {"timeout": Duration(100_000_000)}
    PATHS = ("ca_file",)

    servers: Annotated[
        tuple[str, ...],
        doc("Servers, tried in this order: tls://HOST:PORT or nats://HOST:PORT; none for no announcements."),
    ] = ()
    subject: Annotated[str, doc("What the subject begins with; the name of the bundle's graph follows as a token.")] = (
        "ergo.bundles"
    )
    credentials: Annotated[
        str,
        doc("Name of a file in $CREDENTIALS_DIRECTORY, or its path; empty for none. See `ergo-capture help ship`."),
    ] = ""
    ca_file: Annotated[str, doc("PEM file of the authority that signed the servers' certificates.")] = ""
    timeout: Annotated[
        Duration, doc("Longest time that a connection, or the acknowledgement of an announcement, may take.")
    ] = Duration(10_000_000_000)

    def __post_init__(self) -> None:
        super().__post_init__()
        for server in self.servers:
            if not _NATS_URL.fullmatch(server):
                raise ValueError(
                    "`servers` must be tls://HOST:PORT or nats://HOST:PORT, without user and password: write these to "
                    "the file that `credentials` names"
                )
        if not _SUBJECT.fullmatch(self.subject):
            raise ValueError("`subject` must be tokens with `.` between, without blanks, `*` and `>`")


class ShipConfig(Table, frozen=True):
    """Shipping of finished bundles to object stores, by `ergo-capture ship run`; the daemon itself ships nothing."""

    MINIMUM = {"interval": Duration(100_000_000), "back_off_limit": Duration(1_000_000_000)}
    PATHS = ("textfile",)

    host: Annotated[str, doc("Name of this host in the store; empty for the machine's name.")] = ""
    interval: Annotated[Duration, doc("How often to look for new bundles.")] = Duration(10_000_000_000)
    concurrency: Annotated[int, doc("Bundles that are sent to one target at once.", ge=1, le=64)] = 4
    back_off_limit: Annotated[Duration, doc("Longest pause before a store that failed is tried again.")] = Duration(
        300_000_000_000
    )
    textfile: Annotated[str, doc("A file ending in .prom for the shipper's metrics; empty for none.")] = ""
    announce: AnnounceConfig = AnnounceConfig()
    targets: dict[str, TargetConfig] = {}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.textfile and not self.textfile.endswith(".prom"):
            raise ValueError("`textfile` must end in .prom; node_exporter reads nothing else")
        for name in self.targets:
            if not _TARGET_NAME.fullmatch(name):
                raise ValueError(
                    f"`targets` names '{name}': write up to 32 lower-case letters, digits, `-` and `_`, a letter or digit first"
                )
