"""StudyInstanceUIDs as the ledger keeps them: hashed under a key that only this site has.

A UID names a patient's study in every other system of the hospital, and the possible ones are few enough to be tried
one by one. Without the key, a hash tells nobody anything.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from dicom_gateway import durable_files
from dicom_gateway.errors import StartError
from flows_engine.handoff.study_store import StudyRecord

_NAME: Final = "uid-key"
_KEY_BYTES: Final = 32
_INSTANCE_HASH_BYTES: Final = 16
_STUDY_INSTANCE_UID: Final = "0020000D"


class UidKey:
    """The key of one DATA_DIR."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    @property
    def check_value(self) -> str:
        """What tells this key from others, and says nothing about it."""
        return self.hash_of("")

    def hash_of(self, uid: str) -> str:
        """Return a UID as the ledger knows it."""
        return hmac.digest(self._key, uid.encode("utf-8", "surrogatepass"), hashlib.sha256).hex()

    def instance_hash(self, uid: str) -> bytes:
        """Return a SOP Instance UID as the ledger's index knows it: shorter, since there are many."""
        return hmac.digest(self._key, uid.encode("ascii"), hashlib.sha256)[:_INSTANCE_HASH_BYTES]

    def instance_hashes(self, uids: Iterable[str]) -> frozenset[bytes]:
        """Return several of them."""
        return frozenset(map(self.instance_hash, uids))

    def hashes_of(self, record: StudyRecord) -> frozenset[str]:
        """Return the StudyInstanceUIDs of a study as the ledger knows them: one association may carry several."""
        column = record.fingerprint.columns.get(_STUDY_INSTANCE_UID)
        uids = {uid for values in column.values for uid in values if uid} if column else set()
        return frozenset(map(self.hash_of, uids))


def make_uid_key(data_dir: Path) -> UidKey:
    """Return the key of a DATA_DIR; make it, at random, where there is none. Only for who has DATA_DIR to itself.

    Raises ``StartError``.
    """
    path = data_dir / _NAME
    try:
        if not path.exists():
            written = secrets.token_hex(_KEY_BYTES).encode() + b"\n"
            temporary = path.with_suffix(".part")
            durable_files.write_file(path, written, temporary=temporary, mode=durable_files.PRIVATE_FILE)
        return UidKey(_read(path))
    except OSError as error:
        raise StartError(f"DATA_DIR: {path} cannot be used: {error.strerror}") from error


def find_uid_key(data_dir: Path) -> UidKey | None:
    """Return the key of a DATA_DIR, or None where no gateway has made one yet. Raises ``StartError``."""
    path = data_dir / _NAME
    try:
        return UidKey(_read(path))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StartError(f"DATA_DIR: {path} cannot be used: {error.strerror}") from error


def _read(path: Path) -> bytes:
    try:
        key = bytes.fromhex(path.read_text("ascii").strip())
    except ValueError:
        key = b""
    if len(key) != _KEY_BYTES:
        raise StartError(
            f"DATA_DIR: {path} is damaged; delete it, and the gateway makes another one and finds the studies anew"
        )
    return key
