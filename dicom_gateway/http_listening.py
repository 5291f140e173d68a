"""Listens for HTTP, and says in one line which setting to change where that cannot be done."""

from __future__ import annotations

import errno
import socket
from typing import Final

from dicom_gateway.errors import StartError

_BACKLOG: Final = 128


def listen(hostname: str, port: int, *, setting: str) -> socket.socket:
    """Return a socket that listens. ``setting`` is what the names of both settings begin with.

    Raises ``StartError``.
    """
    try:
        found = socket.getaddrinfo(hostname or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        # IPv4 first: "localhost" means 127.0.0.1 to most programs.
        family, _, _, _, address = min(found, key=lambda entry: entry[0] != socket.AF_INET)
        return socket.create_server((str(address[0]), int(address[1])), family=family, backlog=_BACKLOG)
    except OSError as error:
        raise StartError(_cannot_listen(f"{hostname or '*'}:{port}", setting, error)) from error


def _cannot_listen(where: str, setting: str, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"{setting}_PORT: {where} is in use by another program; stop it, or set {setting}_PORT to a free port"
    if error.errno == errno.EACCES:
        return f"{setting}_PORT: {where} may not be used without privileges; set it to a port above 1023"
    return f"{setting}_HOSTNAME: cannot listen on {where}: {error.strerror or error}"
