"""The Prefect worker of type ``dicomflow``: runs are forked from a process that has imported what they need.

To Prefect, a run is still the command ``python -m prefect.engine``: its environment, folder, cancelling, crashes, hooks
and limits are those of Prefect's process worker. Only its process is not started from nothing, which takes seconds.

The worker hears of new runs from the server. It asks by itself now and then, and whenever a run is over.
"""

from __future__ import annotations

import asyncio
import logging
import os
from typing import TYPE_CHECKING, Any, Final

from prefect.settings import get_current_settings
from prefect.utilities.processutils import command_to_string
from prefect.workers.process import ProcessJobConfiguration, ProcessWorkerResult

from flows_engine.definition.naming import WORKER_TYPE
from flows_engine.handoff.site_settings import SiteSettings
from flows_engine.worker.new_work import announced_runs
from flows_engine.worker.study_worker import StudyWorker
from flows_engine.worker.warm_start import ENGINE_COMMAND, start_runs_warm
from flows_engine.worker.zygote_keeper import ZygoteKeeper

if TYPE_CHECKING:
    from anyio.abc import TaskStatus
    from prefect.client.schemas.objects import FlowRun

logger = logging.getLogger(__name__)

_SETTINGS: Final = frozenset(name.upper() for name in SiteSettings.model_fields) | {"CONF_DIR", "PATH"}
_OF_WHAT_RUNS_HERE: Final = ("DOCKER_", "LD_", "PYTHON")
_PROGRAM: Final = "flows_engine.worker.warm_engine"


def _is_of_the_host(name: str) -> bool:
    return name in _SETTINGS or name.startswith(_OF_WHAT_RUNS_HERE)


class DicomflowJobConfiguration(ProcessJobConfiguration):
    """What a run is started with. Where no ``command`` is set, it is Prefect's engine under our own interpreter."""

    def prepare_for_flow_run(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - Prefect's arguments, untouched
        """Fill in what depends on the run."""
        # Left to itself, Prefect starts a second Python just to look for the flow's code. It is installed.
        self.command = self.command or command_to_string(list(ENGINE_COMMAND))
        super().prepare_for_flow_run(*args, **kwargs)
        # Who may make runs may give them an environment. What runs on this host, on which data and on which engine, is
        # for the host to say.
        self.env = {name: value for name, value in self.env.items() if not _is_of_the_host(name)}
        self.env |= {name: value for name, value in os.environ.items() if _is_of_the_host(name)}


class DicomflowWorker(StudyWorker):
    """Starts runs soon after they are made, and warm."""

    type = WORKER_TYPE
    job_configuration = DicomflowJobConfiguration

    _display_name = "DicomFlow"
    _description = "Execute flow runs as processes of a host, forked from one that has imported what they need."
    _documentation_url = ""
    _logo_url = ""

    def __init__(self, work_pool_name: str, **options: Any) -> None:  # noqa: ANN401 - Prefect's, untouched
        super().__init__(work_pool_name, **options)
        settings = get_current_settings().to_environment_variables(exclude_unset=True)
        self.zygote = ZygoteKeeper(_PROGRAM, environment={**os.environ, **settings})
        self._asking = asyncio.Lock()
        self._something_new = asyncio.Event()
        self._listening: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> DicomflowWorker:
        """Start a zygote, which is ready when the server has answered, or a little later."""
        self.zygote.start()
        try:
            await super().__aenter__()
        except BaseException:
            self.zygote.stop()
            raise
        self._listening = [asyncio.create_task(self._listen()), asyncio.create_task(self._take_up_what_is_new())]
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """Stop, and with it the runs that are under way, as Prefect's process worker does."""
        for task in self._listening:
            task.cancel()
        await asyncio.gather(*self._listening, return_exceptions=True)
        try:
            await super().__aexit__(*exc_info)
        finally:
            self.zygote.stop()  # last: it tells how the runs ended

    async def run(
        self,
        flow_run: FlowRun,
        configuration: ProcessJobConfiguration,
        task_status: TaskStatus[int] | None = None,
    ) -> ProcessWorkerResult:
        """Execute a run until it is over, and see to it that the next one is asked for."""
        start_runs_warm(self.zygote)
        try:
            return await super().run(flow_run, configuration, task_status)
        finally:
            self._something_new.set()

    async def get_and_submit_flow_runs(self) -> list[FlowRun]:
        """Ask for runs that wait, and start them. Asked twice at a time, the server might name a run twice."""
        async with self._asking:
            return await super().get_and_submit_flow_runs()

    async def _listen(self) -> None:
        async for _ in announced_runs(lambda: self.work_pool.id):
            self._something_new.set()

    async def _take_up_what_is_new(self) -> None:
        while True:
            await self._something_new.wait()
            self._something_new.clear()
            if self.limiter.available_tokens < 1:
                continue  # the end of a run will be something new
            try:
                await self.get_and_submit_flow_runs()
            except Exception as error:  # noqa: BLE001 - Prefect's own loop asks again, and knows what to do about it
                logger.debug("asking for runs failed (%s)", type(error).__name__)
