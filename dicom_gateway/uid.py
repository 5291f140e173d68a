"""What may pass for a UID. Pure."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

_UID: Final = re.compile(r"[0-9]+(\.[0-9]+)*\Z")
_LONGEST_UID: Final = 64


def is_uid(text: str | None) -> bool:
    """Tell whether ``text`` is digits and dots, at most 64 characters (PS3.5 9.1).

    A component with leading zeros is let pass: scanners send it, and it harms nobody.
    """
    return text is not None and len(text) <= _LONGEST_UID and _UID.match(text) is not None


@lru_cache(maxsize=256)
def sent_sop_class_uid(sent: bytes) -> str | None:
    """Return the same of a SOP Class UID, of which a sender has few."""
    return sent_uid(sent)


def sent_uid(sent: bytes) -> str | None:
    """Return the UID that a peer sent, without its padding; None where it is none. Some peers pad with a space."""
    text = sent.rstrip(b"\0 ").decode("ascii", "replace")
    return text if is_uid(text) else None
