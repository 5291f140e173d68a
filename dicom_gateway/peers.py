"""May this peer send? The rules of ``ALLOWED_PEERS``, and what a peer is told that may not (PS3.8 9.3.4). Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final

_LONGEST_AE_TITLE: Final = 16
_WAY_OUT: Final = "write an AE title, an address or network, or both as AE_TITLE@10.1.2.0/24; * and ? stand for letters"

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True, kw_only=True)
class Rejection:
    """An A-ASSOCIATE-RJ: its three numbers (PS3.8 table 9-21), and why, for our log; it names no value of the peer."""

    result: int
    source: int
    diagnostic: int
    reason: str


CALLING_NOT_RECOGNISED: Final = Rejection(
    result=1, source=1, diagnostic=3, reason="its AE title or address is not among ALLOWED_PEERS"
)
CALLED_NOT_RECOGNISED: Final = Rejection(
    result=1, source=1, diagnostic=7, reason="it calls another AE title, and REQUIRE_CALLED_AE is set"
)
TOO_MANY: Final = Rejection(result=2, source=3, diagnostic=2, reason="MAX_ASSOCIATIONS are open")
TOO_MANY_OF_PEER: Final = Rejection(
    result=2, source=3, diagnostic=2, reason="MAX_ASSOCIATIONS_PER_PEER are open from its address"
)
NO_ROOM: Final = Rejection(
    result=2, source=3, diagnostic=1, reason="the disk is too full (DISK_RESERVE_BYTES, DISK_WATERMARK_PERCENT)"
)


@dataclass(frozen=True, kw_only=True)
class PeerRule:
    """One entry of ``ALLOWED_PEERS``: an AE title that may hold wildcards, a network, or both."""

    ae_title: str
    network: Network | None

    def admits(self, *, ae_title: str, address: str) -> bool:
        """Tell whether a peer is one of those that are meant."""
        return fnmatchcase(ae_title, self.ae_title) and (self.network is None or _is_within(address, self.network))


def parse_peer_rule(written: str) -> PeerRule:
    """Return what a site has written. Raises ``ValueError``, which says what to write instead."""
    text = written.strip()
    ae_title, at, place = text.rpartition("@")
    network = _network(place)
    if network is None:
        if at and "/" in place:
            raise ValueError(f"{place!r} is no network; {_WAY_OUT}")
        ae_title = text
    elif at and not ae_title:
        raise ValueError(f"{text!r} has no AE title before the @; {_WAY_OUT}")
    if len(ae_title) > _LONGEST_AE_TITLE or not ae_title.isprintable() or "\\" in ae_title or "[" in ae_title:
        raise ValueError(f"{ae_title!r} is no AE title, which has up to 16 characters; {_WAY_OUT}")
    if not ae_title and network is None:
        raise ValueError(f"is empty; {_WAY_OUT}")
    return PeerRule(ae_title=ae_title or "*", network=network)


@dataclass(frozen=True, kw_only=True)
class PeerRules:
    """Who may send, and by which name. No rules: everyone may."""

    allowed: tuple[PeerRule, ...] = ()
    called_ae_title: str = ""
    """The AE title that a peer has to call; empty where any will do."""

    def rejection(self, *, calling_ae_title: str, called_ae_title: str, address: str) -> Rejection | None:
        """Return why a peer may not send, None where it may."""
        allowed = not self.allowed or any(
            rule.admits(ae_title=calling_ae_title.strip(), address=address) for rule in self.allowed
        )
        if not allowed:
            return CALLING_NOT_RECOGNISED
        if self.called_ae_title and called_ae_title.strip() != self.called_ae_title:
            return CALLED_NOT_RECOGNISED
        return None

    def admits_address(self, address: str) -> bool:
        """Tell whether a peer that has no AE title, as over HTTP, may send from an address.

        Where rules name addresses, its own has to be among them; whichever title may send from there, it is credentials
        that stand for one here. Rules that name AE titles alone say nothing of it.
        """
        networks = [rule.network for rule in self.allowed if rule.network is not None]
        return not networks or any(_is_within(address, network) for network in networks)


@dataclass(frozen=True, kw_only=True)
class AssociationLimits:
    """How many connections may be open, in all and from one address."""

    in_all: int
    of_one_peer: int

    def rejection(self, *, addresses: Sequence[str], address: str) -> Rejection | None:
        """Return why one more from ``address`` may not be served beside those that are open, None where it may."""
        if len(addresses) >= self.in_all:
            return TOO_MANY
        if addresses.count(address) >= self.of_one_peer:
            return TOO_MANY_OF_PEER
        return None


def _network(text: str) -> Network | None:
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError:
        return None


def _is_within(address: str, network: Network) -> bool:
    try:
        known = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(known, ipaddress.IPv6Address) and known.ipv4_mapped is not None:
        known = known.ipv4_mapped
    return known in network
