"""What the head of a Store request asks for, so that what cannot be served is told before its body is read. Pure."""

from __future__ import annotations

from email.message import Message
from typing import Final

_JSON: Final = "application/dicom+json"
_ACCEPTED_AS_JSON: Final = frozenset({"*/*", "application/*", "application/json", _JSON})


class UnsupportedMediaTypeError(ValueError):
    """The body is of a media type that is not taken (HTTP 415). The message quotes nothing of it."""


def boundary_of(content_type: str) -> str:
    """Return the boundary of a ``multipart/related`` body of DICOM files (PS3.18 10.5.1.2).

    Raises ``UnsupportedMediaTypeError``.
    """
    message = Message()
    message["content-type"] = content_type
    if message.get_content_type() != "multipart/related":
        raise UnsupportedMediaTypeError("the body is not multipart/related")
    if message.get_param("type", "application/dicom") != "application/dicom":
        raise UnsupportedMediaTypeError("only parts of the type application/dicom are taken")
    boundary = message.get_param("boundary", "")
    return boundary if isinstance(boundary, str) else ""


def accepts_json(accept: str) -> bool:
    """Tell whether an answer as DICOM JSON will do for whoever sends this ``Accept``."""
    offered = {media_range.partition(";")[0].strip().lower() for media_range in accept.split(",")}
    return not offered - {""} or bool(offered & _ACCEPTED_AS_JSON)
