"""Who may send over HTTP, and as whom. Pure."""

from __future__ import annotations

import base64
import binascii
import hmac
from dataclasses import dataclass, field
from typing import Final

_BEARER: Final = "STOW"
_LONGEST_AE_TITLE: Final = 16


@dataclass(frozen=True, kw_only=True)
class StowCredentials:
    """What is asked for. With none of them, nobody is let in, unless ``is_anonymous``: then everybody is."""

    token: str | None = field(default=None, repr=False)
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    is_anonymous: bool = False

    @property
    def challenge(self) -> str:
        """What to tell somebody who is not let in (RFC 9110 11.6.1)."""
        schemes = ['Bearer realm="STOW"'] if self.token else []
        schemes += ['Basic realm="STOW", charset="UTF-8"'] if self.user and self.password else []
        return ", ".join(schemes)

    def sender_of(self, authorization: str) -> str | None:
        """Return the AE title that stands for whoever sends ``authorization``; None where it opens nothing."""
        scheme, _, given = authorization.partition(" ")
        given = given.strip()
        if scheme.lower() == "bearer" and self.token:
            return _BEARER if _is_same(given, self.token) else None
        if scheme.lower() == "basic" and self.user and self.password:
            return self._sender_of_basic(given)
        return _BEARER if self.is_anonymous else None

    def _sender_of_basic(self, given: str) -> str | None:
        try:
            user, _, password = base64.b64decode(given, validate=True).decode().partition(":")
        except (binascii.Error, ValueError):
            return None
        # Both are compared, always: how long it takes says nothing about which one is wrong.
        is_user, is_password = _is_same(user, self.user or ""), _is_same(password, self.password or "")
        return as_ae_title(user) if is_user and is_password else None


def as_ae_title(name: str) -> str:
    """Return a name as an AE title (PS3.5 6.2): ASCII that can be seen, no backslash, at most 16 characters."""
    kept = "".join(character for character in name if " " < character < "\x7f" and character != "\\")
    return kept[:_LONGEST_AE_TITLE] or _BEARER


def _is_same(given: str, wanted: str) -> bool:
    return hmac.compare_digest(given.encode("utf-8", "surrogatepass"), wanted.encode("utf-8", "surrogatepass"))
