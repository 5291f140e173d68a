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
