"""A storage SCU that sends on before it is answered, as far as a receiver agrees to that (PS3.7 D.3.3.3)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from tests.benchmarks import raw_sender
from tests.fakes.instances import received

_PROPOSED = 0  # no limit, as dcm4che's storescu proposes


def prepared(*datasets: Dataset, sop_instance_uid: str | None = None) -> raw_sender.PreparedStudy:
    """Return CT instances as the raw sender sends them. ``sop_instance_uid`` is that of all commands."""
    instances = [received(dataset, sop_instance_uid=sop_instance_uid) for dataset in datasets]
    return raw_sender.PreparedStudy(
        sop_class_uid=CTImageStorage,
        transfer_syntax_uid=ExplicitVRLittleEndian,
        instances=tuple(
            raw_sender.PreparedInstance(
                sop_instance_uid=instance.sop_instance_uid.encode(),
                command=raw_sender.store_request(CTImageStorage, instance.sop_instance_uid, number),
                data_set=instance.data_set,
            )
            for number, instance in enumerate(instances, start=1)
        ),
    )


def answers(
    port: int, study: raw_sender.PreparedStudy, *, window: int = _PROPOSED, fragment_bytes: int | None = None
) -> Iterator[tuple[int, int]]:
    """Send a study in one association; yield the place of an instance, from 0, and its status, as answers come."""
    opened = raw_sender.Association(study, port=port, called_ae_title="STORESCP", window=window)
    with contextlib.closing(opened):
        for message_id, status in opened.answers(raw_sender.encode(study, fragment_bytes or opened.fragment_bytes)):
            yield message_id - 1, status
        opened.release()
