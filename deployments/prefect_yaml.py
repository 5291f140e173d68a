"""Deployments -> the text of a ``prefect.yaml``, from which ``prefect deploy --all`` makes the very same. Pure.

The text is the same on every machine. What depends on the machine, or would be taken for one of Prefect's own
placeholders, is put in by the build step, whose outputs Prefect puts in the place of ``{{ dicomflow.… }}``.
"""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Iterable, Mapping
from typing import Any, Final

import yaml

from deployments.errors import CommandError
from deployments.plan import Deployment, pools_for
from flows_engine.definition.naming import FLOW_NAME, instance_tag

BUILD_STEP: Final = "deployments.build_step.prepare"
BUILD_ID: Final = "dicomflow"
BRACES_OUTPUT: Final = "braces"
INSTANCE_OUTPUT: Final = "instance"

_HEADER: Final = """\
# Written by `dicomflow deploy --write` from the flow definitions. Change those, and write this file anew.
#
# `prefect deploy --all` makes from it what `dicomflow deploy` makes. It looks for the first work pool before it does
# anything else: on a server that has none yet, run `dicomflow deploy --pools` first.
"""
# What Prefect 3.8 takes for a placeholder.
_PLACEHOLDER: Final = re.compile(r"{{(?=\s*[\w.\-\[\]$]+\s*}})")
_FILE_SUFFIX: Final = ".py"
# PyYAML writes them as they are, and reads them as something else.
_RARE_LINE_ENDS: Final = frozenset("\x85\u2028\u2029")


class NameNotForPrefectYamlError(CommandError):
    """A flow has a name that ``prefect deploy`` would change. The message says which."""


def prefect_yaml(deployments: Iterable[Deployment]) -> str:
    """Return the text of a ``prefect.yaml`` for ``deployments``, which it holds in the order of their names.

    Raises ``NameNotForPrefectYamlError``.
    """
    listed = sorted(deployments, key=lambda deployment: (deployment.name, deployment.entrypoint))
    prepare = {BUILD_STEP: {"id": BUILD_ID, "pools": list(pools_for(listed))}}
    # The workers have the code installed. Without `pull: []`, each would look for it in the folder of this file.
    parts = [_HEADER, _dump({"name": BUILD_ID}), _dump({"build": [prepare]}), _dump({"pull": []})]
    if not listed:
        return "\n".join([*parts, _dump({"deployments": []})])
    entries = [textwrap.indent(_dump([_entry(deployment)]), "  ") for deployment in listed]
    return "\n".join([*parts, "deployments:\n" + "\n".join(entries)])


def _entry(deployment: Deployment) -> dict[str, Any]:
    # Prefect takes such a name for that of a file, and cuts it.
    if deployment.name.endswith(_FILE_SUFFIX):
        raise NameNotForPrefectYamlError(
            f"{deployment.name!r}: is no name that `prefect deploy` keeps, since it ends with {_FILE_SUFFIX}; "
            "give the flow another one, or use `dicomflow deploy`"
        )
    limit = None
    if deployment.concurrency_limit is not None:
        limit = {"limit": deployment.concurrency_limit, "collision_strategy": deployment.collision_strategy}
    entry = {
        "name": deployment.name,
        "version": deployment.version,
        # Left to itself, Prefect asks git for a version.
        "version_type": "prefect:simple",
        "description": deployment.description,
        "tags": list(deployment.tags),
        "work_pool": {"name": deployment.work_pool, "work_queue_name": deployment.work_queue},
        "concurrency_limit": limit,
        "entrypoint": deployment.entrypoint,
        "enforce_parameter_schema": True,
        "paused": deployment.paused,
        # None, said here, so that a person at a terminal is not asked for some.
        "schedules": [],
        "parameters": deployment.parameters,
    }
    literal: dict[str, Any] = _literal({key: value for key, value in entry.items() if value is not None})
    if deployment.flow_name == FLOW_NAME:
        literal["tags"].append(instance_tag(_output(INSTANCE_OUTPUT)))
    return literal


def _literal(value: Any) -> Any:  # noqa: ANN401 - any part of a YAML document
    """Return a value in which Prefect finds no placeholder, and in which the step's output makes it what it was."""
    if isinstance(value, str):
        return _PLACEHOLDER.sub(_output(BRACES_OUTPUT), value)
    if isinstance(value, Mapping):
        return {key: _literal(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_literal(item) for item in value]
    return value


def _output(name: str) -> str:
    return f"{{{{ {BUILD_ID}.{name} }}}}"


class _Dumper(yaml.SafeDumper):
    """Writes text of several lines as a block, and the items of a list further in than its key."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:  # noqa: ARG002
        super().increase_indent(flow, indentless=False)

    def ignore_aliases(self, data: object) -> bool:  # noqa: ARG002
        return True

    def text(self, value: str) -> yaml.ScalarNode:
        # A block that begins with a space, or ends with several lines, is written in ways that few people read right.
        as_block = "\n" in value.strip() and value.removesuffix("\n") == value.strip()
        style = '"' if _RARE_LINE_ENDS.intersection(value) else "|" if as_block else None
        return self.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_Dumper.add_representer(str, _Dumper.text)


def _dump(part: object) -> str:
    return yaml.dump(part, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=sys.maxsize)
