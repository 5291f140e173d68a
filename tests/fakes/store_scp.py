"""A storage SCP that answers what a test tells it to: pynetdicom's, in threads of this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from pynetdicom import AE, evt
from pynetdicom.presentation import PresentationContext, build_context


@dataclass(kw_only=True)
class StoreScp:
    """``status`` gets the number of the instance, counted from 0; None aborts the association."""

    status: Callable[[int], int | None] = lambda _: 0x0000
    port: int = 0
    instances: list[tuple[str, str, bytes]] = field(default_factory=list)
    """SOP instance, transfer syntax and data set of what arrived, in order."""
    associations: int = 0

    def _established(self, event: evt.Event) -> None:
        self.associations += 1

    def _store(self, event: evt.Event) -> int:
        status = self.status(len(self.instances))
        if status is None:
            event.assoc.abort()
            return 0xC000
        self.instances.append(
            (
                str(event.request.AffectedSOPInstanceUID),
                str(event.context.transfer_syntax),
                event.request.DataSet.getvalue(),
            )
        )
        return status

    @contextmanager
    def listening(self, *contexts: PresentationContext, only_from: str | None = None) -> Iterator[StoreScp]:
        """Serve on a port of the system's choice, which ``port`` tells."""
        ae = AE(ae_title="RECEIVER")
        ae.supported_contexts = list(contexts) or [build_context("1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.1.2.1")]
        ae.require_calling_aet = [only_from] if only_from else []
        ae.maximum_pdu_size = 4096
        server = ae.start_server(
            ("127.0.0.1", 0),
            block=False,
            evt_handlers=[(evt.EVT_C_STORE, self._store), (evt.EVT_ESTABLISHED, self._established)],
        )
        self.port = server.server_address[1]
        try:
            yield self
        finally:
            server.shutdown()
