from __future__ import annotations

import logging
from pathlib import Path

import pytest

from flows_engine.errors import GpuLostError
from flows_engine.gpu_health import Health
from flows_engine.lost_gpus import LostGpus

WELL, GONE = Health(uuid="GPU-1"), Health(wrong="it is not among the GPUs of this host")


@pytest.fixture
def lost(tmp_path):
    known = {"0": GONE}
    gpus = LostGpus(folder=tmp_path / "lost-gpus", health=lambda ids: known, logger=logging.getLogger("test"))
    return gpus, known


def test_a_gpu_that_is_gone_is_kept_back_until_it_is_well(lost):
    gpus, known = lost
    assert gpus.among(["0"]) == {}  # it may never have been there
    with pytest.raises(GpuLostError, match="GPU 0 "):
        gpus.raise_if_lost(["0"], before={"0": WELL})
    assert "GPU-1" in gpus.among(["0"])["0"]
    known["0"] = WELL
    assert gpus.among(["0"]) == {}
    known["0"] = GONE
    assert gpus.among(["0"]) == {}


def test_a_note_for_which_a_full_disk_had_no_room_counts_all_the_same(lost, monkeypatch):
    gpus, _ = lost

    def full(path, _text):
        path.touch()
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as disk:
        disk.setattr(Path, "write_text", full)
        with pytest.raises(GpuLostError):
            gpus.raise_if_lost(["0"], before={"0": WELL})
    assert set(gpus.among(["0"])) == {"0"}
