"""The application entity: listens, negotiates, and hands events to the handlers. pynetdicom's settings are all here."""

from __future__ import annotations

import contextlib
import errno
import logging
import socket
import threading
import time
from socketserver import TCPServer
from typing import Any, Final
from weakref import WeakSet

from pydicom import config as pydicom_config
from pydicom.uid import UID
from pynetdicom import AE, ALL_TRANSFER_SYNTAXES, _config
from pynetdicom.presentation import NonPatientObjectPresentationContexts
from pynetdicom.transport import ThreadedAssociationServer

from dicom_gateway.errors import StartError
from dicom_gateway.handlers import Handlers

_log = logging.getLogger(__name__)

_VERIFICATION: Final = "1.2.840.10008.1.1"
_MOST_ASSOCIATIONS: Final = 100
_LISTEN_BACKLOG: Final = 512
_LARGEST_PDU_BYTES: Final = 128 * 1024
_SILENCE_SECONDS: Final = 300.0
"""A peer that says nothing between two messages for so long is taken for dead. A scanner may pause for minutes."""
_UNFINISHED_PDU_SECONDS: Final = 60.0
"""A peer that falls silent in the middle of a PDU for so long is taken for dead."""
_NEGOTIATION_SECONDS: Final = 30.0
_POLL_SECONDS: Final = 0.2
_FAREWELL_SECONDS: Final = 1.0


class Receiver:
    """The storage SCP. ``start`` and ``stop`` are called once each."""

    def __init__(self, handlers: Handlers, *, ae_title: str, hostname: str, port: int) -> None:
        self._handlers = handlers
        self._ae_title = ae_title
        self._hostname = hostname
        self._wanted_port = port
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None

    @property
    def port(self) -> int:
        """The port that is listened on, also where port 0 left the choice to the system. Only after ``start``."""
        if self._server is None:
            raise StartError("the receiver is not started")
        return int(self._server.server_address[1])

    def start(self) -> None:
        """Begin to listen. Raises ``StartError`` where the address cannot be had."""
        _accept_every_storage_class()
        entity = AE(ae_title=self._ae_title)
        entity.maximum_associations = _MOST_ASSOCIATIONS
        entity.maximum_pdu_size = _LARGEST_PDU_BYTES
        entity.network_timeout = _SILENCE_SECONDS
        entity.dimse_timeout = _SILENCE_SECONDS
        entity.acse_timeout = _NEGOTIATION_SECONDS
        entity.add_supported_context(_VERIFICATION, ALL_TRANSFER_SYNTAXES)
        # Known to pynetdicom, but not as storage: hanging protocols, colour palettes, implant templates and the like.
        for context in NonPatientObjectPresentationContexts:
            entity.add_supported_context(str(context.abstract_syntax), ALL_TRANSFER_SYNTAXES)
        try:
            address = socket.getaddrinfo(
                self._hostname or None, self._wanted_port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )
            # IPv4 first: "localhost" means 127.0.0.1 to most senders.
            bound = min(address, key=lambda entry: entry[0] != socket.AF_INET)[4]
            server: _Server = entity.make_server(  # type: ignore[assignment]  # it returns what server_class names
                (str(bound[0]), int(bound[1])), evt_handlers=self._handlers.bindings(), server_class=_Server
            )
        except OSError as error:
            raise StartError(self._cannot_listen(error)) from error
        server.handlers = self._handlers
        self._server = server
        self._thread = threading.Thread(
            target=server.serve_forever, args=(_POLL_SECONDS,), name="receiver", daemon=True
        )
        self._thread.start()
        _log.info(
            "listening as %s on %s:%d", self._ae_title, self._hostname or "*", self.port, extra={"action": "listen"}
        )

    def stop(self, *, grace_seconds: float) -> None:
        """Take no more associations, let open ones go on for ``grace_seconds``, then end all there are."""
        server, thread = self._server, self._thread
        if server is None or thread is None:
            return
        server.shutdown()
        thread.join()
        deadline = time.monotonic() + grace_seconds
        while server.active_associations and time.monotonic() < deadline:
            time.sleep(0.02)
        _abort(server)
        self._handlers.end_all()

    def _cannot_listen(self, error: OSError) -> str:
        where = f"{self._hostname or '*'}:{self._wanted_port}"
        if error.errno == errno.EADDRINUSE:
            return f"AE_PORT: {where} is in use by another program; stop it, or set AE_PORT to a free port"
        if error.errno == errno.EACCES:
            return f"AE_PORT: {where} may not be used without privileges; set AE_PORT to a port above 1023"
        return f"AE_HOSTNAME: cannot listen on {where}: {error.strerror or error}"


class _Server(ThreadedAssociationServer):
    """The listening socket. pynetdicom's own has a backlog of 5, and its accepted sockets have no time-out."""

    request_queue_size = _LISTEN_BACKLOG
    handlers: Handlers | None = None

    _connections: WeakSet[socket.socket]

    def server_activate(self) -> None:
        """Begin to listen."""
        self._connections = WeakSet()
        super().server_activate()

    def get_request(self) -> tuple[socket.socket, Any]:
        """Accept a connection, and see to it that a peer that falls silent in the middle of a PDU frees its thread."""
        connection, address = super().get_request()
        connection.settimeout(_UNFINISHED_PDU_SECONDS)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self._connections.add(connection)
        return connection, address

    def drop_connections(self) -> None:
        """End every connection, also one whose thread waits for the rest of a PDU."""
        for connection in list(self._connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def shutdown(self) -> None:
        """Stop listening. pynetdicom's own wants to have started the server itself."""
        TCPServer.shutdown(self)
        self.server_close()

    def service_actions(self) -> None:
        """Look after associations that ended without an event; called several times a second."""
        super().service_actions()
        if self.handlers is not None:
            self.handlers.sweep()


def _abort(server: _Server) -> None:
    """Tell every peer that is left, and let none of them keep us."""
    aborts = [
        threading.Thread(target=association.abort, name="abort", daemon=True)
        for association in server.active_associations
    ]
    for abort in aborts:
        abort.start()
    deadline = time.monotonic() + _FAREWELL_SECONDS
    for abort in aborts:
        abort.join(timeout=max(0.0, deadline - time.monotonic()))
    server.drop_connections()


def configure_pynetdicom_logging(level: str) -> None:
    """Set how much pynetdicom tells: ``none`` (its warnings), ``standard``, or ``debug`` (may show patient data)."""
    _config.LOG_HANDLER_LEVEL = "none" if level == "none" else "standard"
    levels = {"none": logging.WARNING, "standard": logging.INFO, "debug": logging.DEBUG}
    logging.getLogger("pynetdicom").setLevel(levels[level])


def _accept_every_storage_class() -> None:
    """Change pynetdicom's process-wide settings: every storage class is accepted, and no UID ends an association.

    With its own validation a single odd UID aborts the association, and the sender's other instances with it; the
    handlers judge UIDs instead, and answer for that one instance.
    """
    _config.UNRESTRICTED_STORAGE_SERVICE = True
    _config.VALIDATORS["UI"] = _any_uid
    # Both libraries would repeat the sender's text, whatever that is, for each odd value of a command.
    pydicom_config.settings.reading_validation_mode = pydicom_config.IGNORE
    for name in ("pydicom", "pynetdicom.utils"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def _any_uid(_value: UID) -> tuple[bool, str]:
    return True, ""
