"""Destinations that are down, do not want us, or refuse some instances: never said to be sent, never sent twice."""

from __future__ import annotations

from pathlib import Path

import pytest

from deployments.demo.studies import data_sets
from tests.acceptance.site import Site, node, receiver
from tests.fakes.store_scp import StoreScp
from tests.services import unused_port

pytestmark = [pytest.mark.docker, pytest.mark.dcmtk, pytest.mark.prefect]

_COPY = "cp /input/* /output/"


def test_what_is_down_gets_the_rest_by_a_retry_and_the_others_get_theirs_at_once(site: Site, tmp_path: Path) -> None:
    port = unused_port()
    with receiver(tmp_path / "up") as up:
        site.define("Down", _COPY, destinations=[up, node(port)])
        files = site.study("Down", count=3)
        site.send(files)
        run_id = site.run_of("Down")
        state = site.api.await_final(run_id)
        assert (state["name"], state["message"]) == (
            "Failed",
            f"ARCHIVE@127.0.0.1:{port} cannot be reached: connection refused",
        )
        assert data_sets(tmp_path / "up") == data_sets(files[0].parent)
    # What was up is down now: a retry that sent there again would fail.
    with receiver(tmp_path / "down", port=port):
        site.api.retry(run_id)
        state = site.api.await_final(run_id)
        assert state["name"] == "Completed", state["message"]
        assert data_sets(tmp_path / "down") == data_sets(files[0].parent)
    assert site.api.log(run_id).count("model 1 (busybox) starts") == 1
    assert site.api.state_names(run_id)[-3:] == ["Finished", "Sending", "Completed"]


def test_a_rejected_association_is_told_as_it_was_answered(site: Site) -> None:
    peer = StoreScp()
    with peer.listening(only_from="SOMEBODY_ELSE"):
        site.define("Rejecting", _COPY, destinations=[node(peer.port, ae_title="RECEIVER")])
        run_id, state = site.send_and_await("Rejecting")
    assert state["name"] == "Failed"
    assert state["message"].startswith(f"RECEIVER@127.0.0.1:{peer.port} rejected the association from STORESCP: ")
    assert "\n" not in state["message"]
    assert peer.instances == []
    assert "Completed" not in site.api.state_names(run_id)


def test_refused_instances_fail_the_run_and_a_retry_sends_those_alone(site: Site, tmp_path: Path) -> None:
    refusing = {"now": True}
    peer = StoreScp(status=lambda number: 0xA700 if refusing["now"] and number % 2 else 0x0000)
    with peer.listening(), receiver(tmp_path) as other:
        site.define("Refusing", _COPY, destinations=[node(peer.port, ae_title="RECEIVER"), other])
        # Every second instance is refused, and again what was refused: three attempts leave 1 of 6, 4 and 2.
        run_id, state = site.send_and_await("Refusing", count=8)
        assert state["name"] == "Failed"
        assert state["message"].startswith(f"RECEIVER@127.0.0.1:{peer.port} did not take ")
        assert "0xA700 (out of resources)" in state["message"]
        assert not any("Traceback" in line for line in site.api.log_until(run_id, state["message"]))
        assert len(data_sets(tmp_path)) == 8
        taken = [uid for number, (uid, _, _) in enumerate(peer.instances) if number % 2 == 0]
        refusing["now"] = False
        before = len(peer.instances)
        site.api.retry(run_id)
        assert site.api.await_final(run_id)["name"] == "Completed"
        again = [uid for uid, _, _ in peer.instances[before:]]
    assert not set(again) & set(taken)
    assert sorted([*taken, *again]) == sorted(data_sets(tmp_path))
