"""``dicomflow deploy --write``: the ``prefect.yaml`` of a folder of definitions. Asks no Prefect server."""

from __future__ import annotations

import os
from pathlib import Path

import typer

from deployments.errors import CommandError
from deployments.plan import desired_deployment, reprocess_deployment
from deployments.prefect_yaml import prefect_yaml
from flows_engine.definition.catalogue import FlowCatalogue
from flows_engine.handoff.site_settings import SiteSettings


class FileNotWrittenError(CommandError):
    """A ``prefect.yaml`` could not be read or written. The message says where and why."""


def write_prefect_yaml(settings: SiteSettings, file: Path, *, check_only: bool) -> int:
    """Write ``file`` anew from the definitions, or only tell whether it is as it would be; return the exit status.

    1 if a definition has problems, which are printed: then nothing is written, because a flow would be missing.
    Raises ``FileNotWrittenError`` and ``NameNotForPrefectYamlError``.
    """
    catalogue = FlowCatalogue(
        settings.flow_directory,
        state_folder=settings.data_dir / "definitions",
        docker_kwargs_allowed=settings.docker_kwargs_allowed,
        remember=False,
    )
    found = catalogue.refresh()
    for problem in (*found.problems, *found.warnings):
        typer.echo(str(problem), err=True)
    if found.problems:
        typer.echo(f"{file} is left as it is, because a flow would be missing from it", err=True)
        return 1
    deployments = [
        *(desired_deployment(definition, parameter_schema={}) for definition in catalogue.snapshot().values()),
        reprocess_deployment(parameter_schema={}),
    ]
    text = prefect_yaml(deployments)
    try:
        fresh = _holds(file, text)
        if not fresh and not check_only:
            _write(file.resolve(), text)
    except OSError as error:
        raise FileNotWrittenError(f"{file}: cannot be read and written: {error.strerror}; name another file") from None
    if not fresh and check_only:
        typer.echo(f"{file} is out of date; run: dicomflow deploy --write {file}", err=True)
        return 1
    typer.echo(f"{file} {'is as it would be written' if fresh else 'is written'}: {len(deployments)} deployments")
    return 0


def _holds(file: Path, text: str) -> bool:
    try:
        return file.read_text(encoding="utf-8", errors="replace") == text
    except FileNotFoundError:
        return False


def _write(file: Path, text: str) -> None:
    """Put ``text`` in the place of a file, whole or not at all."""
    unfinished = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        with unfinished.open("w", encoding="utf-8") as content:
            content.write(text)
            content.flush()
            os.fsync(content.fileno())
        unfinished.replace(file)
    finally:
        unfinished.unlink(missing_ok=True)
