"""Listens, and says in one line which setting to change where that cannot be done."""

from __future__ import annotations

import errno
import socket

from dicom_gateway.errors import StartError


def listen(hostname: str, port: int, *, hostname_setting: str, port_setting: str, backlog: int = 128) -> socket.socket:
    """Return a socket that listens. Raises ``StartError``."""
    try:
        found = socket.getaddrinfo(hostname or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        # IPv4 first: "localhost" means 127.0.0.1 to most peers.
        family, _, _, _, address = min(found, key=lambda entry: entry[0] != socket.AF_INET)
        return socket.create_server((str(address[0]), int(address[1])), family=family, backlog=backlog)
    except OSError as error:
        where = f"{hostname or '*'}:{port}"
        raise StartError(_cannot_listen(where, hostname_setting, port_setting, error)) from error


def _cannot_listen(where: str, hostname_setting: str, port_setting: str, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"{port_setting}: {where} is in use by another program; stop it, or set {port_setting} to a free port"
    if error.errno == errno.EACCES:
        return f"{port_setting}: {where} may not be used without privileges; set {port_setting} to a port above 1023"
    return f"{hostname_setting}: cannot listen on {where}: {error.strerror or error}"
