"""A DICOM file -> what it says of its patient, its study and its references."""

from __future__ import annotations

from collections.abc import Container
from pathlib import Path
from typing import Final

from pydicom.charset import decode_bytes, default_encoding, python_encoding
from pydicom.valuerep import PN_DELIMS, TEXT_VR_DELIMS

from flows_engine.data_set_walk import UnreadableError, Value, values
from flows_engine.destinations.part10_head import NotSendableError, read_head
from flows_engine.expectations import InstanceFacts, comparable, comparable_name, is_decoded
from flows_engine.output_files import open_regular

_SPECIFIC_CHARACTER_SET: Final = 0x00080005
_SOP_INSTANCE_UID: Final = 0x00080018
_MODALITY: Final = 0x00080060
_REFERENCED_SOP_INSTANCE_UID: Final = 0x00081155
_PATIENT_NAME: Final = 0x00100010
_PATIENT_ID: Final = 0x00100020
_STUDY_INSTANCE_UID: Final = 0x0020000D
_TOP: Final = frozenset(
    {_SPECIFIC_CHARACTER_SET, _SOP_INSTANCE_UID, _MODALITY, _PATIENT_NAME, _PATIENT_ID, _STUDY_INSTANCE_UID}
)
# Referenced Results, Study, Performed Procedure Step, Patient and Visit Sequence, and RT Referenced Study Sequence: the
# UIDs in their items name what is no instance, such as the study (PS3.3 10.3, C.8.8.5). Items within have their own.
_OF_NO_INSTANCE: Final = frozenset({0x00081100, 0x00081110, 0x00081111, 0x00081120, 0x00081125, 0x30060012})
# PS3.5 7.1: once. What stands there more often is kept, within bounds.
_MOST_TIMES: Final = 10
_BACKSLASH: Final = 0x5C
_ESCAPE: Final = b"\x1b"


def instance_facts(path: Path, *, known_instances: Container[str] | None = None) -> InstanceFacts:
    """Read a file in the DICOM file format (PS3.10 7.1), of which nothing is kept but what it says of itself.

    References to what is not among ``known_instances`` are counted, at whatever depth they stand; None: nobody asks.
    Raises ``UnreadableError``, and ``WorkspaceError`` for what is not a readable regular file.
    """
    try:
        head = read_head(path)
    except NotSendableError as error:
        raise UnreadableError(str(error)) from None
    deep = frozenset() if known_instances is None else frozenset({_REFERENCED_SOP_INSTANCE_UID})
    found: dict[int, list[bytes]] = {tag: [] for tag in _TOP}
    missing_reference_count = 0
    with open_regular(path) as file:
        for value in values(
            file, offset=head.data_set_offset, transfer_syntax_uid=head.transfer_syntax_uid, top=_TOP, deep=deep
        ):
            if value.tag in _TOP:
                if len(found[value.tag]) == _MOST_TIMES:
                    raise UnreadableError(f"an element stands in it more than {_MOST_TIMES} times")
                found[value.tag].append(value.raw)
            elif known_instances is not None and not _exists(value, known_instances):
                missing_reference_count += 1
    character_sets = b"".join(found[_SPECIFIC_CHARACTER_SET][:1])
    names = (_text(raw, character_sets, delimiters=PN_DELIMS) for raw in found[_PATIENT_NAME])
    ids = (_text(raw, character_sets, delimiters=TEXT_VR_DELIMS) for raw in found[_PATIENT_ID])
    return InstanceFacts(
        patient_ids=frozenset(text for text in map(comparable, ids) if text),
        patient_names=frozenset(text for text in map(comparable_name, names) if text),
        study_instance_uids=_plain(found[_STUDY_INSTANCE_UID]),
        sop_instance_uids=_plain(found[_SOP_INSTANCE_UID]),
        modalities=_plain(found[_MODALITY]),
        missing_reference_count=missing_reference_count,
    )


def _exists(reference: Value, known_instances: Container[str]) -> bool:
    uid = comparable(reference.raw.decode("latin-1"))
    return not uid or reference.sequence in _OF_NO_INSTANCE or uid in known_instances


def _plain(raws: list[bytes]) -> frozenset[str]:
    return frozenset(text for raw in raws if (text := comparable(raw.decode("latin-1"))))


def _text(raw: bytes, character_sets: bytes, *, delimiters: set[int]) -> str:
    """Return a text, or, where it cannot be decoded, its bytes as something that is equal to itself alone."""
    if raw.isascii() and _ESCAPE not in raw:
        return raw.decode("ascii")
    encodings = _encodings(character_sets)
    try:
        if _ESCAPE not in raw:
            return raw.decode(encodings[0])
        text = decode_bytes(raw, encodings, {*delimiters, _BACKSLASH})
    except (LookupError, ValueError, AssertionError):
        return _as_bytes(raw)
    return text if is_decoded(text) else _as_bytes(raw)


def _as_bytes(raw: bytes) -> str:
    # No text has a control character at its beginning.
    return "\1" + raw.strip(b" \0").hex()


def _encodings(character_sets: bytes) -> tuple[str, ...]:
    """Return Python's names of the character sets (PS3.3 C.12.1.1.2). What is not known there is passed over."""
    names = [name.strip(" \0") for name in character_sets.decode("ascii", "replace").split("\\")]
    known = [python_encoding[name] for name in names if name in python_encoding]
    return tuple(known) or (default_encoding,)
