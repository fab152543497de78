"""The filesystem: a port, and the operating system's."""

from ergo_capture.storage.lock import names_held
from ergo_capture.storage.port import FULL, Buffer, Lock, Storage, StorageError, StorageFile
from ergo_capture.storage.posix import RealLock, RealStorage
from ergo_capture.storage.posix_file import RealFile

__all__ = [
    "FULL",
    "Buffer",
    "Lock",
    "RealFile",
    "RealLock",
    "RealStorage",
    "Storage",
    "StorageError",
    "StorageFile",
    "names_held",
]
