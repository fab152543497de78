"""Object stores: a port and its implementations, and the keys of bundles."""

from typing import Final

#: The schemes of URLs that name stores.
SCHEMES: Final = ("s3://", "gs://", "az://", "file://")
