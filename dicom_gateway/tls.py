"""DICOM over TLS: the context of a port that speaks it (PS3.15 B.12: TLS 1.2 or newer, certificates on both sides)."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from dicom_gateway.errors import StartError

ClientCertificate = Literal["required", "optional", "none"]

NOTHING_YET: Final = (BlockingIOError, ssl.SSLWantReadError, TimeoutError)
"""What a receive raises once its time-out has passed: the kernel's, without and with TLS, or Python's own."""


@dataclass(frozen=True, kw_only=True)
class TlsFiles:
    """The settings ``TLS_CERT``, ``TLS_KEY``, ``TLS_CA`` and ``TLS_CLIENT_CERTIFICATE``."""

    certificate: Path
    key: Path
    authorities: Path | None
    client_certificate: ClientCertificate


def server_context(files: TlsFiles) -> ssl.SSLContext:
    """Return the context. Raises ``StartError``, which names the setting and the file."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    for name, path in (("TLS_CERT", files.certificate), ("TLS_KEY", files.key), ("TLS_CA", files.authorities)):
        if path is not None and not _is_readable(path):
            raise StartError(f"{name}: {path} cannot be read; name a file in PEM form that this user may read")
    try:
        # Without an answer of our own, a key with a passphrase would have a person asked for it.
        context.load_cert_chain(files.certificate, files.key, password=lambda: "")
    except (ssl.SSLError, OSError, ValueError) as error:
        raise StartError(
            f"TLS_KEY: {files.certificate} and {files.key} are no certificate and its key in PEM form without a"
            f" passphrase ({_why(error)})"
        ) from error
    if files.authorities is not None:
        try:
            context.load_verify_locations(files.authorities)
        except (ssl.SSLError, OSError) as error:
            raise StartError(
                f"TLS_CA: {files.authorities} holds no certificates in PEM form ({_why(error)})"
            ) from error
    modes = {"required": ssl.CERT_REQUIRED, "optional": ssl.CERT_OPTIONAL, "none": ssl.CERT_NONE}
    context.verify_mode = modes[files.client_certificate]
    return context


def _is_readable(path: Path) -> bool:
    try:
        with path.open("rb"):
            return True
    except OSError:
        return False


def _why(error: Exception) -> str:
    return getattr(error, "reason", None) or getattr(error, "strerror", None) or type(error).__name__
