"""The gateway as a process: receives, triggers, and keeps Prefect's deployments in step with the definitions."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterable

from prefect.client.orchestration import SyncPrefectClient

from deployments.deployment_keeper import DeploymentKeeper
from deployments.lost_runs import watch_for_lost_runs
from deployments.successor import finish_moves
from dicom_gateway.prefect_trigger import PrefectTrigger
from dicom_gateway.run_history import PrefectRunHistory
from dicom_gateway.wiring import build_gateway
from flows_engine.definition.catalogue import CatalogueChange, FlowCatalogue
from flows_engine.definition.errors import Problem
from flows_engine.handoff.installation import instance_id
from flows_engine.handoff.site_settings import SiteSettings

logger = logging.getLogger(__name__)


def serve(settings: SiteSettings) -> None:
    """Receive until SIGTERM or SIGINT. Raises ``StartError`` if the gateway cannot start."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    catalogue = FlowCatalogue(
        settings.flow_directory,
        state_folder=settings.data_dir / "definitions",
        docker_kwargs_allowed=settings.docker_kwargs_allowed,
    )
    keeper = DeploymentKeeper(
        lambda: catalogue.snapshot().values(), instance_id=instance_id(settings.data_dir), also=_finish_what_was_cut_off
    )

    def changed(change: CatalogueChange) -> None:
        _log(change)
        keeper.definitions_changed()

    _log(catalogue.refresh())
    with PrefectTrigger() as trigger:
        gateway = build_gateway(settings, trigger, catalogue)
        gateway.start()
        logger.info("receiving as %s on port %d", settings.ae_title, gateway.port, extra={"action": "started"})
        keeper.start()
        try:
            catalogue.watch(stop, changed)
        finally:
            gateway.stop()
            keeper.stop()


def _finish_what_was_cut_off(client: SyncPrefectClient) -> None:
    """Do what a person's command or click began, where what should have gone on with it died."""
    finish_moves(client)
    withdrawn = PrefectRunHistory(client).withdraw_cancelled()
    if withdrawn:
        logger.info("runs of cancelled requests that were withdrawn: %d", withdrawn, extra={"action": "withdrawn"})
    if watch_for_lost_runs(client):
        logger.info("runs whose host is gone will be shown as Crashed", extra={"action": "automation_made"})


def _log(change: CatalogueChange) -> None:
    for kind, names in (("added", change.added), ("changed", change.changed), ("removed", change.removed)):
        for name in names:
            logger.info("flow %s %s", name, kind, extra={"action": f"definition_{kind}"})
    _log_problems(logging.ERROR, change.problems)
    _log_problems(logging.WARNING, change.warnings)


def _log_problems(level: int, problems: Iterable[Problem]) -> None:
    for problem in problems:
        logger.log(level, "%s", problem, extra={"action": "definition_problem"})
