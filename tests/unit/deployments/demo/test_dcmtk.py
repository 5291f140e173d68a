from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from deployments.demo import dcmtk
from tests.factories import ct_slice
from tests.services import unused_port


def test_a_program_of_the_same_name_beside_our_interpreter_is_not_taken(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    for folder in ("ours", "theirs"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "storescu").write_text("#!/bin/sh\n")
        (tmp_path / folder / "storescu").chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "ours" / "python"))
    monkeypatch.setenv("PATH", f"{tmp_path / 'ours'}{os.pathsep}{tmp_path / 'theirs'}")

    assert dcmtk.tool("storescu") == str(tmp_path / "theirs" / "storescu")


def test_a_missing_tool_is_named_with_the_way_out(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", "/nowhere")

    with pytest.raises(dcmtk.ToolMissingError, match=r"storescu is not installed.*apt-get install dcmtk"):
        dcmtk.tool("storescu")


def test_every_process_of_dcmtk_sends_without_delay(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.delenv("TCP_NODELAY", raising=False)

    assert dcmtk.environment()["TCP_NODELAY"] == "1"
    assert dcmtk.environment()["HOME"] == "/home/somebody"


@pytest.mark.dcmtk
def test_what_is_stored_lies_with_the_receiver(tmp_path: Path):
    sent, port = tmp_path / "sent.dcm", unused_port()
    received = tmp_path / "received"
    received.mkdir()
    instance = ct_slice()
    instance.save_as(sent, enforce_file_format=True)

    with dcmtk.receiver(received, port=port, ae_title="DESTINATION"):
        dcmtk.store([sent], port=port, called_ae_title="DESTINATION")
        assert dcmtk.listens(port)

    assert not dcmtk.listens(port)
    (file,) = received.iterdir()
    assert str(instance.SOPInstanceUID) in file.name


@pytest.mark.dcmtk
def test_what_was_not_acknowledged_is_an_error_with_the_words_of_dcmtk(tmp_path: Path):
    sent = tmp_path / "sent.dcm"
    ct_slice().save_as(sent, enforce_file_format=True)

    with pytest.raises(RuntimeError, match=r"storescu ended with status .*[Cc]onnect"):
        dcmtk.store([sent], port=unused_port(), called_ae_title="NOBODY")


@pytest.mark.dcmtk
def test_a_receiver_that_does_not_start_is_said_so(tmp_path: Path, free_port: int):
    with (
        pytest.raises(RuntimeError, match=f"does not listen on port {free_port}"),
        dcmtk.receiver(tmp_path / "missing", port=free_port, ae_title="DESTINATION"),
    ):
        pytest.fail("it listens")
