"""Studies are processed again: as the documentation says, by whoever asks, and once for each time of asking."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.acceptance.prefect_api import eventually
from tests.acceptance.site import Site, gated
from tests.factories import leaked_canaries
from tests.services import ROOT

pytestmark = [pytest.mark.docker, pytest.mark.dcmtk, pytest.mark.prefect]

_UID = "1.2.826.0.1.3680043.8.498.7315"


def _studies_of(site: Site, flow: str, count: int, **values: Any) -> list[str]:
    """Return the ids of studies that were received for ``flow``, oldest first, and whose runs are over."""
    for _ in range(count):
        site.send(site.study(flow, count=1, **values))
    runs = site.api.await_runs(flow, count)
    for run in runs:
        assert site.api.await_final(run["id"])["name"] == "Completed"
    return sorted(str(run["parameters"]["study_id"]) for run in runs)


def _by_rest(site: Site, study: str) -> None:
    """Do what the documentation shows, word for word."""
    (lines,) = re.findall(r"^```sh\n(.*?)^```$", (ROOT / "docs/reprocessing.md").read_text(), re.DOTALL | re.MULTILINE)
    environment = {**site.environment, "PREFECT_API_URL": f"{site.ui_url}/api", "STUDY": study}
    subprocess.run(["bash", "-euo", "pipefail", "-c", lines], env=environment, check=True, timeout=60)


def _by_prefects_command(site: Site, study: str) -> None:
    site.prefect("deployment", "run", "reprocess/study", "--param", f"study={study}")


def _by_our_command(site: Site, study: str) -> None:
    done = site.command("reprocess", study)
    assert done.returncode == 0, done.stderr
    assert "Completed: made " in done.stdout


@pytest.mark.parametrize("ask", [_by_rest, _by_prefects_command, _by_our_command])
def test_a_study_is_processed_again_by_whichever_door(site: Site, ask: Callable[[Site, str], None]) -> None:
    name = f"Again{ask.__name__.replace('_', '')}"
    site.define(name, "true")
    (study,) = _studies_of(site, name, 1)

    ask(site, study)

    first, second = site.api.await_runs(name, 2)
    assert site.api.await_final(second["id"])["name"] == "Completed"
    assert (first["parameters"]["reason"], second["parameters"]["reason"]) == ("received", "reprocess")
    assert second["parameters"]["study_id"] == study
    assert "reason:reprocess" in second["tags"]


def test_two_who_ask_at_once_get_one_run_and_a_repeat_gets_another(site: Site) -> None:
    site.define("AskedTwice", "true")
    (study,) = _studies_of(site, "AskedTwice", 1)
    site.define("AskedTwice", gated("true"))
    site.api.await_parameter("AskedTwice", "until [ -e /output/go ]")

    with ThreadPoolExecutor(2) as pool:
        told = list(pool.map(lambda _: site.command("reprocess", study), range(2)))

    _, again = site.api.await_runs("AskedTwice", 2)
    assert all(again["id"] in one.stdout for one in told), [one.stdout + one.stderr for one in told]
    assert len(site.api.runs("AskedTwice")) == 2
    site.await_gate(again["id"])
    assert (
        f"already under way: AskedTwice as run {again['id']}, which is Running"
        in site.command("reprocess", study).stdout
    )
    site.open_gate(again["id"])
    site.api.await_final(again["id"])
    assert site.command("reprocess", study).returncode == 0
    third = site.api.await_runs("AskedTwice", 3)[-1]
    site.await_gate(third["id"])
    site.open_gate(third["id"])
    site.api.await_final(third["id"])


def test_a_study_that_was_received_three_times_is_found_by_its_uid_and_one_that_is_not_there_is_told(
    site: Site,
) -> None:
    site.define("ThreeTimes", "true")
    studies = _studies_of(site, "ThreeTimes", 3, StudyInstanceUID=_UID)

    dry = site.command("reprocess", _UID, "--dry-run")
    everyone = site.command("reprocess", _UID, "--receptions", "all", "--flow", "ThreeTimes", "--note", "model v2")

    assert dry.returncode == 0, dry.stderr
    assert f"{studies[2]} is the newest of 3 receptions" in dry.stdout
    assert "dry run: ThreeTimes would run" in dry.stdout
    assert everyone.returncode == 0, everyone.stderr
    runs = site.api.await_runs("ThreeTimes", 6)[3:]
    assert sorted(run["parameters"]["study_id"] for run in runs) == studies
    assert {run["parameters"]["note"] for run in runs} == {"model v2"}
    for run in runs:
        assert site.api.await_final(run["id"])["name"] == "Completed"

    shutil.rmtree(site.data_dir / "studies" / studies[0])
    gone = site.command("reprocess", studies[0])
    assert gone.returncode == 1
    assert f"study {studies[0]} is not in " in gone.stdout
    unknown = site.command("reprocess", "0193e4c2-7a54-7cc3-98c4-dc0c0c07398f")
    assert unknown.returncode == 1
    assert "there is no study 0193e4c2-7a54-7cc3-98c4-dc0c0c07398f" in unknown.stdout + unknown.stderr
    # What was typed is a UID, and what Prefect was told is not.
    everything = site.api.everything()
    assert _UID not in everything
    assert leaked_canaries(everything) == []


def test_in_bulk_runs_come_behind_live_work_and_cancelling_the_request_withdraws_those_that_wait(site: Site) -> None:
    site.define("Bulk", "true")
    site.define("Live", "true")
    studies = _studies_of(site, "Bulk", 4)
    site.define("Bulk", gated("true"))
    site.api.await_parameter("Bulk", "until [ -e /output/go ]")

    asked = site.command("reprocess", "--since", "1h", "--flow", "Bulk", "--only-matching", "--no-wait")

    assert asked.returncode == 0, asked.stderr
    request = asked.stdout.split()[-1]
    runs = site.api.await_runs("Bulk", 8)[4:]
    assert {run["work_queue_name"] for run in runs} == {"background"}
    # Two slots: two run, two wait, and so does what comes in now, in front of them.
    running = eventually(
        lambda: [run["id"] for run in site.api.runs("Bulk")[4:] if run["state"]["name"] == "Running"],
        lambda found: len(found) == 2,
        what="two of four run",
    )
    site.send(site.study("Live", count=1))
    live = site.run_of("Live")
    site.await_gate(running[0])
    site.open_gate(running[0])
    assert site.api.await_final(live)["name"] == "Completed"

    site.api.cancel(request)

    assert site.api.await_final(request)["name"] == "Cancelled"
    left = [run["id"] for run in runs if run["id"] not in running]
    site.await_gate(running[1])
    site.open_gate(running[1])
    assert site.api.await_final(running[1])["name"] == "Completed"
    states = {}
    for run_id in left:
        # One of them may have taken the slot that was free for a moment.
        if site.api.run(run_id)["state"]["type"] not in {"CANCELLED", "SCHEDULED"}:
            site.await_gate(run_id)
            site.open_gate(run_id)
        states[run_id] = site.api.await_final(run_id)
    withdrawn = [state for state in states.values() if state["name"] == "Cancelled"]
    assert withdrawn
    assert {state["message"] for state in withdrawn} == {
        "withdrawn: the request to process its study again was cancelled"
    }
    assert sorted(run["parameters"]["study_id"] for run in runs) == sorted(studies)
