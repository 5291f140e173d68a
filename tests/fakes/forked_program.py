"""A program for a zygote: it does what its environment says, in Python, under ``ACT``."""

from __future__ import annotations

import os

_IMPORTED_IN = os.getpid()


def main() -> None:
    """Act."""
    exec(os.environ["ACT"], {"imported_in": _IMPORTED_IN, "__name__": "act"})
