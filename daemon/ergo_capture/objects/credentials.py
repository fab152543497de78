"""Credentials of a store, from a file that systemd or the operator provides.

The file holds one ``KEY=VALUE`` a line, with the names that the providers' own tools use in the environment
(``AWS_ACCESS_KEY_ID``, ``AWS_SECRET_ACCESS_KEY``, ``AWS_SESSION_TOKEN``, ``AZURE_STORAGE_ACCOUNT_NAME``, ...), or is the
JSON of a Google service account.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final

from ergo_capture.objects.port import StoreRefused

#: Longest file that is read, in bytes.
_MAX_BYTES: Final = 64 << 10
_LINE: Final = re.compile(r"(?:export\s+)?([A-Za-z][A-Za-z0-9_]*)\s*=\s*(.*)")


def read_credentials(name: str) -> dict[str, str]:
    """Return the settings in a file of credentials; none for an empty name.

    Args:
        name: a name in ``$CREDENTIALS_DIRECTORY``, or a path.

    Raises:
        StoreRefused: there is no such file, or it cannot be read. The message does not contain any of its content.
    """
    text = credentials_text(name)
    if text.lstrip().startswith("{"):
        return {"google_service_account_key": text}
    return key_values(name, text)


def credentials_text(name: str) -> str:
    """Return the content of a file of credentials; nothing for an empty name.

    Raises:
        StoreRefused: as for ``read_credentials``.
    """
    if not name:
        return ""
    path = _path_of(name)
    try:
        with path.open("rb") as file:
            return file.read(_MAX_BYTES).decode()
    except OSError as error:
        raise _unusable(path, error.strerror or str(error)) from error
    except UnicodeDecodeError:
        raise _unusable(path, "it is not UTF-8") from None


def key_values(name: str, text: str) -> dict[str, str]:
    """Return the values in a file of credentials, by keys in lower case.

    Raises:
        StoreRefused: a line is not KEY=VALUE.
    """
    found = {}
    for number, line in enumerate(text.splitlines(), 1):
        stripped = line.strip()
        if not stripped or stripped.startswith("#"):
            continue
        match = _LINE.fullmatch(stripped)
        if match is None:
            raise _unusable(_path_of(name), f"line {number} is not KEY=VALUE")
        found[match[1].lower()] = _unquoted(match[2])
    return found


def _path_of(name: str) -> Path:
    return Path(os.environ.get("CREDENTIALS_DIRECTORY", ""), name)


def _unquoted(value: str) -> str:
    return value[1:-1] if len(value) > 1 and value[0] == value[-1] and value[0] in "\"'" else value


def _unusable(path: Path, reason: str) -> StoreRefused:
    return StoreRefused(
        f"read credentials '{path}': {reason}",
        op="read credentials",
        path=path,
        hint="write KEY=VALUE lines to a file that LoadCredential= of the unit names; see `ergo-capture help ship`",
    )
