"""What a person does in Prefect's UI, done in a real browser."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.acceptance.browser import browsing
from tests.acceptance.site import Site
from tests.factories import copying_model_keys, model_keys

pytestmark = [pytest.mark.browser, pytest.mark.docker, pytest.mark.dcmtk, pytest.mark.prefect]


def test_a_failed_run_is_understood_and_retried_from_its_page(site: Site) -> None:
    weighing = model_keys(command="cat /weights/model.bin", static_mounts=["RetriedByHand:/weights"])
    site.write_flow("RetriedByHand", models=[copying_model_keys(), weighing])
    site.api.await_deployments("RetriedByHand")
    run_id, _ = site.send_and_await("RetriedByHand")

    with browsing(site.ui_url) as ui:
        ui.open(f"/runs/flow-run/{run_id}")
        expect(ui.page.get_by_text("model 1 (busybox) starts")).to_be_visible()
        ui.picture("failed-run")
        ui.page.get_by_text("Details", exact=True).click()
        # The step and its cause, in one line.
        reason = "model 2 (busybox): static mount 'RetriedByHand' is not in STATIC_DIR"
        expect(ui.page.get_by_text(reason).first).to_be_visible()

        weights = Path(site.environment["STATIC_DIR"]) / "RetriedByHand"
        weights.mkdir()
        (weights / "model.bin").write_text("weights")
        ui.page.get_by_role("button", name="Retry").click()
        ui.page.get_by_role("dialog").get_by_role("button", name="Retry").click()
        site.api.await_state(run_id, "Completed")
        expect(ui.page.get_by_text("Completed", exact=True).first).to_be_visible()
        ui.picture("retried-run")

    # The model that had finished did not run again.
    assert site.api.log_until(run_id, "model 2 (busybox) starts").count("model 1 (busybox) starts") == 1


def test_a_study_is_processed_again_from_the_form_of_its_deployment(site: Site) -> None:
    site.define("AgainByForm", "true")
    site.send(site.study("AgainByForm", count=1))
    received = site.run_of("AgainByForm")
    study = site.api.run(received)["parameters"]["study_id"]
    site.api.await_final(received)
    so_far = len(site.api.runs("study"))

    with browsing(site.ui_url) as ui:
        ui.open(f"/deployments/deployment/{site.api.deployment('study', flow='reprocess')['id']}/run")
        ui.field("Note (Optional)").fill("model v2")
        ui.field("Study (Optional)").fill(study)
        ui.picture("reprocess-form")
        ui.submit()
        request = site.api.await_runs("study", so_far + 1)[-1]
        assert site.api.await_final(request["id"])["name"] == "Completed"
        _, again = site.api.await_runs("AgainByForm", 2)
        ui.open(f"/runs/flow-run/{request['id']}")
        ui.page.get_by_text("Details", exact=True).click()
        expect(ui.page.get_by_text(f"made AgainByForm as run {again['id']}").first).to_be_visible()
        ui.picture("reprocess-request")

    assert (again["parameters"]["study_id"], again["parameters"]["note"]) == (study, "model v2")
    assert site.api.await_final(again["id"])["name"] == "Completed"


def test_the_form_of_a_flow_needs_nothing_but_a_study(site: Site) -> None:
    site.define("ByItsOwnForm", "true")
    site.send(site.study("ByItsOwnForm", count=1))
    received = site.run_of("ByItsOwnForm")
    study = site.api.run(received)["parameters"]["study_id"]

    with browsing(site.ui_url) as ui:
        ui.open(f"/deployments/deployment/{site.api.deployment('ByItsOwnForm')['id']}/run")
        ui.field("study_id").fill(study)
        ui.picture("flow-form")
        ui.submit()
        _, run = site.api.await_runs("ByItsOwnForm", 2)

    assert site.api.await_final(run["id"])["name"] == "Completed"
    found = site.api.run(run["id"])
    assert found["name"] == f"ByItsOwnForm {study}"
    assert f"study:{study}" in found["tags"]
