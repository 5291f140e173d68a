"""A DICOM application entity that takes instances by C-STORE (PS3.4 Annex B)."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from pydicom.uid import UID

from flows_engine.destinations.part10_head import NotSendableError, Part10Head, read_head
from flows_engine.destinations.store_association import MAX_CONTEXTS, Patience, Peer, StoreAssociation
from flows_engine.errors import WorkspaceError
from flows_engine.interfaces import DeliveryReport, Rejection

_SUCCESS: Final = 0x0000
# PS3.4 Table B.2-1. With these the instance is stored all the same.
_STORED_WITH_WARNING: Final = {
    0xB000: "coercion of data elements",
    0xB006: "elements discarded",
    0xB007: "data set does not match SOP class",
}
_REFUSALS: Final = {
    0xA700: "out of resources",
    0xA900: "data set does not match SOP class",
    0xC000: "cannot understand",
}
_OTHER_REFUSALS: Final = {
    0x0117: "invalid SOP instance",
    0x0122: "SOP class not supported",
    0x0124: "not authorized",
    0x0211: "unrecognized operation",
}

Context = tuple[str, str]


@dataclass(frozen=True, kw_only=True)
class _Item:
    path: Path
    head: Part10Head

    @property
    def context(self) -> Context:
        return self.head.sop_class_uid, self.head.transfer_syntax_uid


@dataclass(kw_only=True)
class _Outcome:
    on_delivered: Callable[[Path], None]
    rejected: list[Rejection]
    delivered: list[Path] = field(default_factory=list)
    warnings: Counter[int] = field(default_factory=Counter)

    def add(self, path: Path, status: int) -> None:
        if status != _SUCCESS and status not in _STORED_WITH_WARNING:
            self.rejected.append(Rejection(path=path, status=status, reason=_refusal(status)))
            return
        self.on_delivered(path)
        self.delivered.append(path)
        if status != _SUCCESS:
            self.warnings[status] += 1


@dataclass(frozen=True, kw_only=True)
class DicomNode:
    """Sends files to a storage SCP, each in the transfer syntax it is stored in, byte for byte.

    ``on_notice`` gets one sentence for each kind of warning that the receiver answered with. See ``Destination`` for
    what is promised.
    """

    host: str
    port: int
    ae_title: str
    calling_ae_title: str
    on_notice: Callable[[str], None] = logging.getLogger(__name__).warning
    patience: Patience = field(default_factory=Patience)

    @property
    def name(self) -> str:
        """``AE_TITLE@host:port``, for people."""
        return f"{self.ae_title}@{self.host}:{self.port}"

    def deliver(self, files: Sequence[Path], *, on_delivered: Callable[[Path], None]) -> DeliveryReport:
        """Send ``files`` and return what became of each.

        Raises ``DestinationUnavailableError`` where the peer cannot be reached, rejects the association or goes away.
        """
        items, rejected = _read_heads(files)
        outcome = _Outcome(on_delivered=on_delivered, rejected=rejected)
        try:
            for contexts, batch in _batches(items):
                self._send(contexts, batch, outcome)
        finally:
            for status, count in sorted(outcome.warnings.items()):
                self.on_notice(
                    f"{self.name} stored {count} instances with warning 0x{status:04X} ({_STORED_WITH_WARNING[status]})"
                )
        return DeliveryReport(delivered=tuple(outcome.delivered), rejected=tuple(outcome.rejected))

    def _send(self, contexts: Sequence[Context], batch: Sequence[_Item], outcome: _Outcome) -> None:
        peer = Peer(host=self.host, port=self.port, ae_title=self.ae_title, calling_ae_title=self.calling_ae_title)
        with StoreAssociation(peer, contexts=contexts, patience=self.patience) as association:
            for item in batch:
                if item.context in association.accepted:
                    outcome.add(item.path, association.store(item.path, item.head))
                else:
                    outcome.rejected.append(Rejection(path=item.path, status=None, reason=_no_context(item.head)))


def _read_heads(files: Sequence[Path]) -> tuple[list[_Item], list[Rejection]]:
    items: list[_Item] = []
    rejected: list[Rejection] = []
    for path in files:
        try:
            items.append(_Item(path=path, head=read_head(path)))
        except (NotSendableError, WorkspaceError) as error:
            rejected.append(Rejection(path=path, status=None, reason=str(error)))
    return items, rejected


def _batches(items: Sequence[_Item]) -> Iterator[tuple[tuple[Context, ...], list[_Item]]]:
    """Yield what goes over one association each: 128 presentation contexts at most (PS3.8 9.3.2.2)."""
    contexts = tuple(dict.fromkeys(item.context for item in items))
    for start in range(0, len(contexts), MAX_CONTEXTS):
        chosen = contexts[start : start + MAX_CONTEXTS]
        wanted = frozenset(chosen)
        yield chosen, [item for item in items if item.context in wanted]


def _no_context(head: Part10Head) -> str:
    return f"does not accept {UID(head.sop_class_uid).name} in {UID(head.transfer_syntax_uid).name}"


def _refusal(status: int) -> str:
    meaning = _OTHER_REFUSALS.get(status) or _REFUSALS.get(status & 0xFF00) or _REFUSALS.get(status & 0xF000)
    return f"status 0x{status:04X}" + (f" ({meaning})" if meaning else "")
