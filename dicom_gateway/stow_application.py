"""Store requests over HTTP (DICOMweb STOW-RS, PS3.18 10.5): ``POST /studies`` and ``POST /studies/{study}``.

A body is taken as it comes, and written in threads, so that neither its size nor a slow disk holds up other requests.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from pathlib import Path
from shutil import disk_usage
from typing import Final

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from dicom_gateway.multipart import MalformedError
from dicom_gateway.peers import PeerRules
from dicom_gateway.serving import Receptions
from dicom_gateway.stow_answer import http_status, json_body
from dicom_gateway.stow_credentials import StowCredentials
from dicom_gateway.stow_request import UnsupportedMediaTypeError, accepts_json, boundary_of
from dicom_gateway.stow_upload import StowUpload
from dicom_gateway.tally import Tally
from dicom_gateway.uid import is_uid
from flows_engine.handoff.run_request import Sender

_log = logging.getLogger(__name__)

_SILENCE_SECONDS: Final = 60.0
"""A sender that falls silent in the middle of a body for so long is taken for dead."""
_SLOWEST_BYTES_PER_SECOND: Final = 4 * 1024
"""… and one that has been waited for longer than what came takes at this speed, and ``_SILENCE_SECONDS``."""


_NOT_AMONG_PEERS: Final = "its address is not among those of ALLOWED_PEERS"


class StowDoor:
    """Answers Store requests."""

    def __init__(
        self,
        *,
        receptions: Receptions,
        spool: Path,
        ae_title: str,
        credentials: StowCredentials,
        tally: Tally,
        peers: PeerRules | None = None,
        silence_seconds: float = _SILENCE_SECONDS,
    ) -> None:
        self._receptions = receptions
        self._spool = spool
        self._ae_title = ae_title
        self._credentials = credentials
        self._tally = tally
        self._peers = peers or PeerRules()
        self._silence_seconds = silence_seconds

    def application(self) -> Starlette:
        """Return it as a web server takes it."""
        return Starlette(
            routes=[
                Route("/studies", self._store, methods=["POST"]),
                Route("/studies/{study}", self._store, methods=["POST"]),
            ]
        )

    async def _store(self, request: Request) -> Response:
        client = request.client
        address, port = (client.host, client.port) if client is not None else ("", 0)
        if not self._peers.admits_address(address):
            self._tally.refused("peer")
            _log.warning("a request from %s was refused: %s", address, _NOT_AMONG_PEERS, extra={"action": "reject"})
            return PlainTextResponse(f"{_NOT_AMONG_PEERS}\n", 403)
        ae_title = self._credentials.sender_of(request.headers.get("authorization", ""))
        if ae_title is None:
            self._tally.refused("credentials")
            _log.warning("a request without valid credentials was refused", extra={"action": "reject"})
            return PlainTextResponse(
                "credentials are needed\n", 401, headers={"WWW-Authenticate": self._credentials.challenge}
            )
        refusal = self._refusal(request)
        if refusal is not None:
            return refusal
        sender = Sender(ae_title=ae_title, host=address, port=port)
        try:
            upload = StowUpload(
                boundary=boundary_of(request.headers.get("content-type", "")),
                open_reception=lambda: self._receptions.open(sender=sender, called_ae_title=self._ae_title),
                study_instance_uid=request.path_params.get("study"),
                tally=self._tally,
            )
        except UnsupportedMediaTypeError as error:
            self._tally.refused("media-type")
            return PlainTextResponse(f"{error}\n", 415)
        except MalformedError as error:
            return self._malformed(str(error))
        self._tally.accepted()
        return await self._receive(request, upload)

    def _refusal(self, request: Request) -> Response | None:
        """Return what to answer where the head of a request tells that it cannot be served."""
        study: str | None = request.path_params.get("study")
        if study is not None and not is_uid(study):
            return self._malformed("the study of the address is no UID")
        if not accepts_json(request.headers.get("accept", "")):
            self._tally.refused("media-type")
            return PlainTextResponse("answers are application/dicom+json\n", 406)
        if self._is_too_large(request):
            self._tally.refused("busy")
            _log.error("a request is larger than the space that is left", extra={"action": "store"})
            return PlainTextResponse("the disk has no room for it\n", 507)
        return None

    async def _receive(self, request: Request, upload: StowUpload) -> Response:
        """Take the body. When the server is stopped in the middle, its process ends, and the gateway ends its
        receptions: a thread may be writing still.
        """
        complete = False
        try:
            async for piece in self._pieces(request):
                await asyncio.to_thread(upload.feed, piece)
            outcomes = await asyncio.to_thread(upload.finish)
            status = http_status(outcomes)
            complete = upload.is_sealed
            response = Response(json_body(outcomes), status, media_type="application/dicom+json")
        except MalformedError as error:
            response = self._malformed(str(error))
        except TimeoutError:
            response = PlainTextResponse("the rest of the body did not come in time\n", 408)
        except ClientDisconnect:
            response = PlainTextResponse("the body was cut short\n", 400)
        except Exception as error:  # noqa: BLE001  # outer edge; the trace may quote what was sent
            _log.error("a request ended with %s", type(error).__name__, extra={"action": "store"})
            response = PlainTextResponse("the request could not be served\n", 500)
        try:
            await asyncio.to_thread(upload.close)
        finally:
            if upload.reception is not None:
                self._receptions.ended(upload.reception.id, complete=complete)
        return response

    async def _pieces(self, request: Request) -> AsyncIterator[bytes]:
        pieces = request.stream()
        patience_seconds = self._silence_seconds
        while True:
            began = time.monotonic()
            try:
                async with asyncio.timeout(min(patience_seconds, self._silence_seconds)):
                    piece = await anext(pieces)
            except StopAsyncIteration:
                return
            # Time is granted for what has come, and taken for what was waited; what our disk takes is not the sender's.
            patience_seconds += len(piece) / _SLOWEST_BYTES_PER_SECOND - (time.monotonic() - began)
            if piece:
                yield piece

    def _is_too_large(self, request: Request) -> bool:
        length = request.headers.get("content-length", "")
        return length.isdecimal() and int(length) > disk_usage(self._spool).free

    def _malformed(self, reason: str) -> Response:
        self._tally.refused("malformed")
        _log.warning("a request was refused: %s", reason, extra={"action": "reject"})
        return PlainTextResponse(f"{reason}\n", 400)
