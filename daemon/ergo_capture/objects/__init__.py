"""Object stores: a port, and what is behind it; the keys under which bundles lie there."""

from typing import Final

#: The beginnings of URLs that name stores.
SCHEMES: Final = ("s3://", "gs://", "az://", "file://")
