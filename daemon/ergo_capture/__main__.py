"""``python -m ergo_capture`` and the command ``ergo-capture``."""

from __future__ import annotations

import sys

from ergo_capture import signals


def main() -> None:
    """Run the command line and exit with its code."""
    with signals.ending_in_order():
        try:
            from ergo_capture.cli.app import run  # noqa: PLC0415 - importing this module must not import the command line
        except KeyboardInterrupt:
            sys.exit(130)
        sys.exit(run())


if __name__ == "__main__":
    main()
