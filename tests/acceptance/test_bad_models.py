"""Models that do what models should not: each run ends in a clear state with one line, and nothing else stops.

All are sent at once, each as a patient of its own; the tests then look at one each.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from deployments.demo.studies import data_sets
from tests.acceptance.prefect_api import PrefectApi
from tests.acceptance.site import Site, receiver, shell_models
from tests.factories import leaked_canaries, model_keys

pytestmark = [pytest.mark.docker, pytest.mark.dcmtk, pytest.mark.prefect]

_MISSING = "dicomflow-tests/there-is-no-such-image:1"
_COPY = "cp /input/* /output/"
_MODELS: dict[str, list[dict[str, Any]]] = {
    "ExitsThree": shell_models("head -c 8 /proc/sys/kernel/random/uuid > /output/token", "echo oops; exit 3"),
    "Missing": [model_keys(image=_MISSING, pull_before_exec=True)],
    "Endless": [{**shell_models("echo begun; while :; do sleep 1; done")[0], "timeout": 2}],
    "WritesNothing": shell_models("echo done"),
    "Untidy": shell_models(
        "rm -rf /input/*; mkdir -p /output/a/b;"
        ' for f in /input/*; do cp $f "/output/a/b/new\nline $(basename $f)"; done;'
        " ln -s /etc/passwd /output/a.dcm; ln -s / /output/root; mkfifo /output/pipe;"
        " for n in $(seq 10000); do : > /output/f$n; done; echo a report > /output/report.txt"
    ),
}
_WITHOUT_DESTINATION = {"ExitsThree", "Missing", "Endless"}


@pytest.fixture(scope="module")
def delivered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("delivered")


@pytest.fixture(scope="module")
def sent(site: Site, delivered: Path) -> dict[str, dict[str, bytes]]:
    """What was sent for each flow; the runs are over."""
    with receiver(delivered) as destination:
        for name, models in _MODELS.items():
            site.write_flow(name, models=models, destinations=[] if name in _WITHOUT_DESTINATION else [destination])
        site.api.await_deployments(*_MODELS)
        studies = {name: site.study(name) for name in _MODELS}
        site.send(*studies.values())
        for name in _MODELS:
            site.api.await_final(site.run_of(name))
    return {name: data_sets(files[0].parent) for name, files in studies.items()}


class _Seen:
    def __init__(self, site: Site, flow: str) -> None:
        self.api: PrefectApi = site.api
        self.run_id = site.run_of(flow)
        self.state = self.api.await_final(self.run_id)
        self.message: str = self.state["message"]

    @property
    def log(self) -> list[str]:
        return self.api.log(self.run_id)


def test_every_study_had_its_run_and_no_container_is_left(site: Site, sent: dict[str, dict[str, bytes]]) -> None:
    for name in _MODELS:
        (run,) = site.api.runs(name)
        assert site.containers(run["id"]) == []
        assert "\n" not in run["state"]["message"]
        assert leaked_canaries(run["state"]["message"]) == []


@pytest.mark.usefixtures("sent")
def test_an_exit_code_fails_the_run_with_the_step_and_its_last_words(site: Site) -> None:
    seen = _Seen(site, "ExitsThree")
    assert (seen.state["name"], seen.message) == ("Failed", "model 2 (busybox) exited with code 3: oops")
    site.api.log_until(seen.run_id, f"Finished in state Failed({seen.message!r})")
    assert not any("Traceback" in line for line in seen.log)
    tasks = {task["name"]: task["state_name"] for task in site.api.task_runs(seen.run_id)}
    assert tasks == {"model 1 (busybox)": "Completed", "model 2 (busybox)": "Failed"}


@pytest.mark.usefixtures("sent")
def test_a_retry_does_not_run_again_what_finished(site: Site) -> None:
    seen = _Seen(site, "ExitsThree")
    token = site.data_dir / "runs" / seen.run_id / "model-1" / "output" / "token"
    before = token.read_text(), token.stat().st_ctime_ns
    starts = seen.log.count("model 2 (busybox) starts")
    site.api.retry(seen.run_id)
    assert site.api.await_final(seen.run_id)["name"] == "Failed"
    log = site.api.log(seen.run_id)
    site.api.log_until(seen.run_id, "model 1 (busybox) starts")
    assert (token.read_text(), token.stat().st_ctime_ns) == before
    assert log.count("model 1 (busybox) starts") == 1
    assert starts == 1
    assert site.api.run(seen.run_id)["run_count"] == 2


@pytest.mark.usefixtures("sent")
def test_an_image_that_does_not_exist_fails_the_run_with_its_name(site: Site) -> None:
    seen = _Seen(site, "Missing")
    assert seen.state["name"] == "Failed"
    assert seen.message.startswith(
        f"model 1 ({_MISSING}): image {_MISSING} is not in the engine and cannot be pulled: "
    )


@pytest.mark.usefixtures("sent")
def test_a_model_that_never_ends_is_killed(site: Site) -> None:
    seen = _Seen(site, "Endless")
    assert (seen.state["name"], seen.message) == (
        "Failed",
        "model 1 (busybox): it ran longer than its timeout of 2 seconds and was killed",
    )
    assert "begun" in seen.log


@pytest.mark.usefixtures("sent")
def test_a_model_that_leaves_nothing_to_send_fails_the_run(site: Site) -> None:
    seen = _Seen(site, "WritesNothing")
    assert seen.state["name"] == "Failed"
    assert "nothing to send to ARCHIVE@" in seen.message


def test_in_an_untidy_folder_the_instances_are_found_and_nothing_else_is_sent(
    site: Site, sent: dict[str, dict[str, bytes]], delivered: Path
) -> None:
    """10,000 files, links out of the folder, a fifo, names with a newline; and the model tried to delete its input."""
    seen = _Seen(site, "Untidy")
    assert seen.state["name"] == "Completed", seen.message
    assert seen.message.startswith("1 model run, 2 instances")
    assert any(line.startswith("10001 files that are not DICOM are not sent to ARCHIVE@") for line in seen.log)
    assert any("1 of kind fifo" in line and "2 of kind symbolic link" in line for line in seen.log)
    assert data_sets(delivered) == sent["Untidy"]
