"""The file system: a port, and the operating system's implementation."""

from ergo_capture.storage.lock import LOCK_PAUSE, RealLock, directory_lock
from ergo_capture.storage.port import FULL, Buffer, Lock, Storage, StorageError, StorageFile
from ergo_capture.storage.posix import RealFile, RealStorage

__all__ = [
    "FULL",
    "LOCK_PAUSE",
    "Buffer",
    "Lock",
    "RealFile",
    "RealLock",
    "RealStorage",
    "Storage",
    "StorageError",
    "StorageFile",
    "directory_lock",
]
