"""An installation whose Docker engine is on another host, without gateway and Prefect."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import uuid
from collections.abc import Mapping
from pathlib import Path

from flows_engine.definition.schema import FlowDefinition
from flows_engine.handoff.engine_address import EngineAddress
from flows_engine.handoff.site_settings import SiteSettings
from flows_engine.handoff.study_store import Fingerprint
from flows_engine.run_step import StepResult
from flows_engine.wiring import Engine, build_engine
from tests.integration.one_study import STUDY, write_record
from tests.services import ROOT

# A flow run, as far as it matters here: its process and how much memory that takes.
RUN = """
import json, logging, resource, sys
from flows_engine.definition.schema import FlowDefinition
from flows_engine.wiring import site_engine
definition = FlowDefinition.model_validate(json.loads(sys.argv[1]))
engine = site_engine()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
engine.run_step(definition, step=0, run_id=sys.argv[2], study_id=sys.argv[3], logger=logging.getLogger())
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


class RemoteSite:
    """An installation with one study, and a run."""

    def __init__(self, folder: Path, address: EngineAddress) -> None:
        self.folder = folder
        self.settings = SiteSettings(
            data_dir=folder / "data",
            static_dir=folder / "static",
            docker_host=address.url,
            docker_tls_verify=address.certificates is not None,
            docker_cert_path=address.certificates,
        )
        study = self.settings.data_dir / "studies" / STUDY
        self.input = study / "input"
        self.input.mkdir(parents=True)
        (self.input / "slice").write_bytes(b"pixels")
        (self.input / "slice").chmod(0o600)
        write_record(study, Fingerprint(instance_count=0, columns={}))
        self.run_id = str(uuid.uuid4())

    @property
    def engine(self) -> Engine:
        return build_engine(self.settings)

    def run(
        self, definition: FlowDefinition, step: int = 0, *, engine: Engine | None = None, **how: object
    ) -> StepResult:
        return (engine or self.engine).run_step(
            definition,
            step=step,
            run_id=self.run_id,
            study_id=STUDY,
            logger=logging.getLogger("test"),
            **how,  # type: ignore[arg-type]
        )

    def start(self, definition: FlowDefinition) -> subprocess.Popen[str]:
        """Run the first model in a process of its own."""
        environment = {**os.environ, **self.settings.as_environment()}
        command = [sys.executable, "-c", RUN, definition.model_dump_json(), self.run_id, STUDY]
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)

    def output(self, step: int = 0) -> Path:
        return self.settings.data_dir / "runs" / self.run_id / f"model-{step + 1}" / "output"

    def make_huge_input(self) -> None:
        """Add a file that takes no room here, and more time to be sent than a test has."""
        with (self.input / "huge").open("wb") as file:
            file.truncate(1 << 40)


def flow(*scripts: str, **model: object) -> FlowDefinition:
    kwargs = model.pop("docker_kwargs", {})
    assert isinstance(kwargs, Mapping)
    models = [
        {
            "docker_kwargs": {"image": "busybox", "command": ["sh", "-c", script], **kwargs},
            "pull_before_exec": False,
            **model,
        }
        for script in scripts
    ]
    return FlowDefinition.model_validate({"name": "remote", "triggers": [], "models": models})
