"""Settings -> an engine whose parts are connected. Nothing is read from the environment on import."""

from __future__ import annotations

import functools
import logging
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from flows_engine.check_output import OutputCounts, check_output
from flows_engine.container_spec import INSTANCE_LABEL, RUN_LABEL, Origin
from flows_engine.definition.expect import Expect
from flows_engine.definition.schema import FlowDefinition, Node
from flows_engine.definition.step_graph import STUDY
from flows_engine.deliver import DeliveryResult, deliver
from flows_engine.destinations.dicom_node import DicomNode
from flows_engine.disk_reserve import DiskReserve
from flows_engine.docker_runner import DockerRunner
from flows_engine.engine_block import address_of_block
from flows_engine.errors import EngineError, WorkspaceError
from flows_engine.gpu_health import health
from flows_engine.gpu_memory import total_mib
from flows_engine.handoff.engine_address import EngineAddress
from flows_engine.handoff.installation import instance_id
from flows_engine.handoff.run_claim import RunClaimedError, claim
from flows_engine.handoff.run_request import Sender
from flows_engine.handoff.site_settings import SiteSettings, load_site_settings
from flows_engine.handoff.study_store import StudyAbsentError, StudyNotFoundError, StudyRecord, StudyStore
from flows_engine.interfaces import ContainerRunner
from flows_engine.redaction import redactor_for
from flows_engine.registry_silence import RegistrySilence
from flows_engine.run_record import DeliveryRecord, RunRecord, StepRecord, read_records, write_record
from flows_engine.run_step import Host, StepResult, run_step
from flows_engine.static_mounts import StaticMounts
from flows_engine.study_view import study_view
from flows_engine.workspace import ELSEWHERE, Workspace

Logger = logging.Logger | logging.LoggerAdapter[logging.Logger]

# Who waits is served in turn, when other models end. A day is longer than that takes; a run that failed because others
# took long would have to be retried by a person.
_GPU_WAIT_SECONDS: Final = 86_400.0


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
        self,
        definition: FlowDefinition,
        *,
        step: int,
        run_id: str,
        study_id: str,
        logger: Logger,
        is_halted: Callable[[], bool] = lambda: False,
    ) -> StepResult:
        """Run model number ``step`` (counted from 0) of a run, on the study or on what others left.

        Running a step again begins it afresh. Raises an ``EngineError`` whose message names the model.
        """
        workspace = self._workspace(run_id)
        if step == definition.graph.result:
            workspace.forget_deliveries()
        try:
            record = self.store.record(study_id)
            sources = self._sources(definition, step=step, study=record, workspace=workspace, logger=logger)
        except StudyNotFoundError as error:
            raise _not_here(error) from error
        return run_step(
            definition,
            step=step,
            sources=sources,
            origin=Origin(run_id=run_id, study_id=study_id, instance_id=self.instance_id),
            workspace=workspace,
            host=self.host,
            runner=self.runner,
            redact=redactor_for(record.fingerprint),
            logger=logger,
            is_halted=is_halted,
        )

    def _sources(
        self, definition: FlowDefinition, *, step: int, study: StudyRecord, workspace: Workspace, logger: Logger
    ) -> dict[str, Path]:
        """Return the folders that a model reads, by the names that its flow has for them."""
        graph = definition.graph

        def source(name: str) -> Path:
            if name == STUDY:
                return self._input(definition, study=study, workspace=workspace, logger=logger)
            writer = graph.writers[name]
            output = workspace.outputs(writer, graph.steps[writer].writes)[name]
            # A killed attempt may have left it on this host, while the run was carried on elsewhere.
            if not output.is_dir() or workspace.is_unfinished(output):
                raise WorkspaceError(f"what model {writer + 1} left is not whole below {workspace.root}; {ELSEWHERE}")
            return output

        return {name: source(name) for name in graph.steps[step].reads}

    def _input(self, definition: FlowDefinition, *, study: StudyRecord, workspace: Workspace, logger: Logger) -> Path:
        """Return the folder of what the flow gets of a study: that of the study itself, unless it asks for another."""
        source = self.store.input_folder(study.study_id)
        if not definition.has_own_input:
            return source
        return study_view(definition, study=study, source=source, folder=workspace.study, logger=logger)

    def check_output(
        self, definition: FlowDefinition, *, output_dir: str, run_id: str, study_id: str, logger: Logger
    ) -> OutputCounts:
        """See whether what lies in ``output_dir`` is what the definition expects of its last model.

        Raises ``UnexpectedOutputError`` where it is not, and ``WorkspaceError`` where it cannot be told.
        """
        workspace = self._workspace(run_id)
        _raise_if_elsewhere(output_dir, workspace)
        try:
            study = self.store.record(study_id)
            return check_output(
                Path(output_dir),
                expect=definition.expected or Expect(),
                fingerprint=study.fingerprint,
                input_folder=self._input(definition, study=study, workspace=workspace, logger=logger),
                is_whole=definition.input == "all",
                logger=logger,
            )
        except StudyNotFoundError as error:
            raise _not_here(error) from error

    def deliver(self, *, output_dir: str, node: Node, number: int, run_id: str, logger: Logger) -> DeliveryResult:
        """Send what lies in ``output_dir`` to ``node``, destination number ``number`` (counted from 0) of the run.

        Doing it again sends only what has not arrived. Raises ``NothingToSendError``, ``DestinationUnavailableError``
        (a retry may help), ``DeliveryRefusedError``, and ``WorkspaceError`` where nothing is there.
        """
        workspace = self._workspace(run_id)
        _raise_if_elsewhere(output_dir, workspace)
        result = deliver(
            Path(output_dir),
            destination=DicomNode(
                host=node.host,
                port=node.port,
                ae_title=node.ae_title,
                calling_ae_title=self.calling_ae_title,
                on_notice=logger.warning,
            ),
            journal_path=workspace.journal(number),
            logger=logger,
        )
        record = DeliveryRecord(destination=result.destination, instances=result.file_count)
        try:
            write_record(record, workspace.delivery_record(number))
        except EngineError as error:
            logger.warning("what %s has is not kept: %s", result.destination, error)
        return result

    def sender(self, *, study_id: str) -> Sender:
        """Return who sent a study, as its record says. Raises ``WorkspaceError`` where it has none that can be read."""
        try:
            return self.store.record(study_id).sender
        except StudyNotFoundError as error:
            raise _not_here(error) from error

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

    def record(self, definition: FlowDefinition, *, run_id: str, study_id: str, state: str) -> RunRecord:
        """Write down in its folder what a run did, and return it. Raises ``WorkspaceError`` and ``NoSpaceError``."""
        workspace = self._workspace(run_id)
        destinations = len(definition.destinations) + len(definition.return_to_sender_on_port)
        record = RunRecord(
            run_id=run_id,
            study_id=study_id,
            flow=definition.name,
            version=definition.version,
            definition_digest=definition.digest,
            worker_host=socket.gethostname(),
            ended_at=datetime.now(UTC),
            state=state,
            steps=read_records(StepRecord, map(workspace.step_record, range(len(definition.models)))),
            deliveries=read_records(DeliveryRecord, map(workspace.delivery_record, range(destinations))),
        )
        write_record(record, workspace.run_record)
        return record

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
    find_engine = _find_engine(settings)
    return Engine(
        runner=DockerRunner(
            find_engine=find_engine,
            disk_reserve_bytes=settings.disk_reserve_bytes,
            silence=RegistrySilence(folder=data_dir / "locks" / "silent-registries"),
        ),
        store=StudyStore(data_dir / "studies"),
        runs=data_dir / "runs",
        host=Host(
            gpus=tuple(settings.gpus),
            gpu_folder=data_dir / "locks" / "gpus",
            lost_gpu_folder=data_dir / "locks" / "lost-gpus",
            gpu_wait_seconds=_GPU_WAIT_SECONDS,
            branch_slots=settings.cpu_slots,
            branch_folder=data_dir / "locks",
            disk=DiskReserve(folder=data_dir, reserve_bytes=settings.disk_reserve_bytes),
            default_mem_limit=settings.default_mem_limit,
            docker_kwargs_allowed=settings.docker_kwargs_allowed,
            static_mounts=StaticMounts(static_dir=settings.static_dir, cache=data_dir / "static-cache"),
            # What is asked of NVIDIA's library here says nothing of the GPUs of another host.
            gpu_total_mib=lambda gpus: {} if find_engine().is_remote else total_mib(gpus),
            gpu_health=lambda gpus: {} if find_engine().is_remote else health(gpus),
        ),
        calling_ae_title=settings.ae_title,
        instance_id=instance_id(data_dir),
    )


def _raise_if_elsewhere(output_dir: str, workspace: Workspace) -> None:
    if not Path(output_dir).is_dir():
        raise WorkspaceError(f"what the models left is not at {output_dir}; {ELSEWHERE}")
    if workspace.is_unfinished(Path(output_dir)):
        raise WorkspaceError(f"what the models left is not whole at {output_dir}; {ELSEWHERE}")


def _not_here(error: StudyNotFoundError) -> WorkspaceError:
    return WorkspaceError(f"{error}; {ELSEWHERE}" if isinstance(error, StudyAbsentError) else str(error))


def _find_engine(settings: SiteSettings) -> Callable[[], EngineAddress]:
    block, site = settings.docker_host_block, settings.engine_address
    if block is None:
        return lambda: site
    kept = settings.data_dir / "locks" / "docker-host-block.json"
    return functools.cache(lambda: address_of_block(block, site=site, kept=kept))


def site_engine() -> Engine:
    """Return the engine of the site whose settings this process finds in its environment."""
    return build_engine(load_site_settings(os.environ).settings)
