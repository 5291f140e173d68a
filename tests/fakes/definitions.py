"""A folder of flow definitions without the folder."""

from __future__ import annotations

from collections.abc import Mapping

from flows_engine.definition.schema import FlowDefinition


class FakeDefinitions:
    """The definitions that it is given; they can be exchanged, as a folder's files can."""

    def __init__(self, *definitions: FlowDefinition) -> None:
        self.by_name = {definition.name: definition for definition in definitions}

    def snapshot(self) -> Mapping[str, FlowDefinition]:
        """Return the definitions in force at this moment."""
        return dict(self.by_name)


def flow(name: str, *triggers: dict[str, object]) -> FlowDefinition:
    """Return the smallest definition with these triggers, written as in a YAML file."""
    return FlowDefinition.model_validate(
        {"name": name, "triggers": list(triggers), "models": [{"docker_kwargs": {"image": "busybox"}}]}
    )
