"""Settings -> an engine whose parts are connected. Nothing is read from the environment on import."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from flows_engine.check_output import OutputCounts, check_output
from flows_engine.container_spec import INSTANCE_LABEL, RUN_LABEL, Origin
from flows_engine.definition.expect import Expect
from flows_engine.definition.schema import FlowDefinition, Node
from flows_engine.deliver import DeliveryResult, deliver
from flows_engine.destinations.dicom_node import DicomNode
from flows_engine.docker_runner import DockerRunner, engine_url
from flows_engine.errors import WorkspaceError
from flows_engine.handoff.run_claim import RunClaimedError, claim
from flows_engine.handoff.run_request import Sender
from flows_engine.handoff.site_settings import SiteSettings, load_site_settings
from flows_engine.handoff.study_store import StudyNotFoundError, StudyStore
from flows_engine.interfaces import ContainerRunner
from flows_engine.redaction import redactor_for
from flows_engine.registry_silence import RegistrySilence
from flows_engine.run_step import Host, StepResult, run_step
from flows_engine.static_mounts import StaticMounts
from flows_engine.workspace import Workspace

Logger = logging.Logger | logging.LoggerAdapter[logging.Logger]

# The pools admit no more runs than there are GPUs; a wait means that another one is about to end.
_GPU_WAIT_SECONDS: Final = 600.0


@dataclass(frozen=True, kw_only=True)
class Engine:
    """What a flow run does to this host: run models, send results, tidy up."""

    runner: ContainerRunner
    store: StudyStore
    runs: Path
    host: Host
    calling_ae_title: str
    instance_id: str

    def run_step(
        self, definition: FlowDefinition, *, step: int, run_id: str, study_id: str, logger: Logger
    ) -> StepResult:
        """Run model number ``step`` (counted from 0) of a run: the first on the study, the next on what the last one
        left.

        Running a step again begins it afresh. Raises an ``EngineError`` whose message names the model.
        """
        workspace = self._workspace(run_id)
        try:
            record = self.store.record(study_id)
            source = self.store.input_folder(study_id) if step == 0 else workspace.output(step - 1)
        except StudyNotFoundError as error:
            raise WorkspaceError(str(error)) from error
        return run_step(
            definition,
            step=step,
            source=source,
            origin=Origin(run_id=run_id, study_id=study_id, instance_id=self.instance_id),
            workspace=workspace,
            host=self.host,
            runner=self.runner,
            redact=redactor_for(record.fingerprint),
            logger=logger,
        )

    def check_output(
        self, definition: FlowDefinition, *, output_dir: str, study_id: str, logger: Logger
    ) -> OutputCounts:
        """See whether what lies in ``output_dir`` is what the definition expects of its last model.

        Raises ``UnexpectedOutputError`` where it is not, and ``WorkspaceError`` where it cannot be told.
        """
        try:
            return check_output(
                Path(output_dir),
                expect=definition.expected or Expect(),
                fingerprint=self.store.record(study_id).fingerprint,
                input_folder=self.store.input_folder(study_id),
                logger=logger,
            )
        except StudyNotFoundError as error:
            raise WorkspaceError(str(error)) from error

    def deliver(self, *, output_dir: str, node: Node, number: int, run_id: str, logger: Logger) -> DeliveryResult:
        """Send what lies in ``output_dir`` to ``node``, destination number ``number`` (counted from 0) of the run.

        Doing it again sends only what has not arrived. Raises ``NothingToSendError``, ``DestinationUnavailableError``
        (a retry may help) and ``DeliveryRefusedError``.
        """
        return deliver(
            Path(output_dir),
            destination=DicomNode(
                host=node.host,
                port=node.port,
                ae_title=node.ae_title,
                calling_ae_title=self.calling_ae_title,
                on_notice=logger.warning,
            ),
            journal_path=self._workspace(run_id).journal(number),
            logger=logger,
        )

    def sender(self, *, study_id: str) -> Sender:
        """Return who sent a study, as its record says. Raises ``WorkspaceError`` where it has none that can be read."""
        try:
            return self.store.record(study_id).sender
        except StudyNotFoundError as error:
            raise WorkspaceError(str(error)) from error

    @contextmanager
    def claim(self, *, run_id: str) -> Iterator[None]:
        """Hold a run while it is executed, so that others can see that it is; see ``run_claim``.

        Raises ``WorkspaceError`` where another process of this host executes it.
        """
        with ExitStack() as held:
            try:
                held.enter_context(claim(self.runs / run_id))
            except RunClaimedError as error:
                raise WorkspaceError(str(error)) from error
            yield

    def remove_containers(self, *, run_id: str) -> int:
        """Kill and remove what is left of a run's containers; return how many there were."""
        return self.runner.remove_all(label=RUN_LABEL, value=run_id)

    def remove_all_containers(self) -> int:
        """Kill and remove every container that was started for this ``DATA_DIR``; return how many there were."""
        return self.runner.remove_all(label=INSTANCE_LABEL, value=self.instance_id)

    def _workspace(self, run_id: str) -> Workspace:
        return Workspace(self.runs / run_id)


def build_engine(settings: SiteSettings) -> Engine:
    """Return the engine of a site. Nothing is started and nothing is asked of Docker yet."""
    data_dir = settings.data_dir.resolve()
    return Engine(
        runner=DockerRunner(
            engine_url=engine_url(), silence=RegistrySilence(folder=data_dir / "locks" / "silent-registries")
        ),
        store=StudyStore(data_dir / "studies"),
        runs=data_dir / "runs",
        host=Host(
            gpus=tuple(settings.gpus),
            gpu_folder=data_dir / "locks",
            gpu_wait_seconds=_GPU_WAIT_SECONDS,
            static_mounts=StaticMounts(static_dir=settings.static_dir, cache=data_dir / "static-cache"),
        ),
        calling_ae_title=settings.ae_title,
        instance_id=instance_id(data_dir),
    )


def instance_id(data_dir: Path) -> str:
    """Return what tells this ``DATA_DIR`` from others on the same Docker engine."""
    return hashlib.sha256(str(data_dir.resolve()).encode()).hexdigest()[:16]


def site_engine() -> Engine:
    """Return the engine of the site whose settings this process finds in its environment."""
    return build_engine(load_site_settings(os.environ).settings)
