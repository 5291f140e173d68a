"""Keeps the deployments on the Prefect server in step with the definitions in force."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable

from prefect.client.orchestration import SyncPrefectClient, get_client

from deployments.apply import bring_into_step
from flows_engine.definition.schema import FlowDefinition

logger = logging.getLogger(__name__)

_FIRST_PAUSE_SECONDS = 1.0
_LONGEST_PAUSE_SECONDS = 30.0
# Studies that matched a definition just before it went away have their runs by then.
_REMOVAL_SECONDS = 10.0
# What nobody tells of is set right by then: runs of a definition that is gone are over, a deployment was deleted by
# hand, the server has another database.
_LOOK_SECONDS = 60.0


class DeploymentKeeper:
    """A thread that brings Prefect into step whenever it is told to, and every minute; it tries until it has worked.

    Prefect may be down when a definition changes, or when the gateway starts: neither may keep it from receiving.
    """

    def __init__(
        self,
        definitions: Callable[[], Iterable[FlowDefinition]],
        *,
        instance_id: str,
        also: Callable[[SyncPrefectClient], object] = lambda _: None,
    ) -> None:
        """``also`` is done after each step."""
        self._definitions = definitions
        self._also = also
        self._instance_id = instance_id
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="deployment-keeper", daemon=True)

    def start(self) -> None:
        """Begin; the first step is taken at once."""
        self._wake.set()
        self._thread.start()

    def definitions_changed(self) -> None:
        """Say that there is something to do. Returns at once."""
        self._wake.set()

    def stop(self) -> None:
        """End, after the step in hand."""
        self._stop.set()
        self._wake.set()
        self._thread.join()

    def _run(self) -> None:
        pause_seconds = _FIRST_PAUSE_SECONDS
        look_again_seconds = _LOOK_SECONDS
        while not self._stop.is_set():
            self._wake.wait(look_again_seconds)
            self._wake.clear()
            if self._stop.is_set():
                return
            try:
                with get_client(sync_client=True) as client:
                    changes = bring_into_step(client, self._definitions(), instance_id=self._instance_id)
                    self._also(client)
            # Edge of the thread: whatever a server says, deployments must not stay out of step for good. Type only,
            # since the text of an answer may be anything.
            except Exception as error:  # noqa: BLE001
                logger.warning(
                    "Prefect cannot be brought into step yet (%s); trying again in %.0f s",
                    type(error).__name__,
                    pause_seconds,
                    extra={"action": "deploy_postponed"},
                )
                self._stop.wait(pause_seconds)
                pause_seconds = min(pause_seconds * 2, _LONGEST_PAUSE_SECONDS)
                self._wake.set()
                continue
            pause_seconds = _FIRST_PAUSE_SECONDS
            # What is paused now is deleted by a later step.
            look_again_seconds = (
                _REMOVAL_SECONDS if any(change.action == "pause" for change in changes) else _LOOK_SECONDS
            )
            for change in changes:
                logger.info("%s", change, extra={"action": "deployed"})
