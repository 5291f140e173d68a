"""The JSON schema that lets an editor complete and check a definition while it is written.

python -m flows_engine.definition.json_schema            write flow_definitions/flow.schema.json
python -m flows_engine.definition.json_schema --check    exit with 1 if it is not what it would be
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Final

from flows_engine.definition.allowable_kwargs import ALLOWABLE, SETTING
from flows_engine.definition.schema import FlowDefinition

SCHEMA_FILE: Final = Path("flow_definitions") / "flow.schema.json"
# The YAML reader takes every scalar as the text that stands there: what an editor sees as another type is still right.
_ALSO_WRITTEN_AS: Final = {
    "string": ["string", "number", "boolean"],
    "integer": ["integer", "string"],
    "number": ["number", "string"],
    "boolean": ["boolean", "string"],
}


def flow_schema() -> dict[str, Any]:
    """Return the JSON schema of a definition as an author may write it."""
    schema: dict[str, Any] = _lenient(FlowDefinition.model_json_schema())
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "DicomFlow flow definition"
    # The file's stem names a flow that has no name of its own.
    schema["required"] = [name for name in schema["required"] if name != "name"]
    for name in ("triggers", "models", "destinations", "return_to_sender_on_port"):
        field = schema["properties"][name]
        schema["properties"][name] = {"anyOf": [field, field["items"]], **_notes(field)}
    levels = schema["properties"]["tar_subdir"]
    levels["anyOf"] = [kind for kind in levels["anyOf"] if kind.get("type") != "null"]
    levels["anyOf"].append(levels["anyOf"][0]["items"])
    expect = schema["$defs"]["Expect"]["properties"]
    expect["modality"] = {"anyOf": [expect["modality"], expect["modality"]["items"]], **_notes(expect["modality"])}
    model = schema["$defs"]["Model"]["properties"]
    model["static_mount"] = model["static_mounts"]["items"]
    environment = schema["$defs"]["DockerKwargs"]["properties"]["environment"]
    for name in ALLOWABLE:
        field = schema["$defs"]["DockerKwargs"]["properties"][name]
        for kind in [kind for kind in field["anyOf"] if kind.get("type") == "array"]:
            field["anyOf"].append(kind["items"])
        field["description"] = f"Only where the site allows it, by {SETTING}."
    listed = {"type": "array", "items": {"type": "string", "pattern": "="}}
    schema["$defs"]["DockerKwargs"]["properties"]["environment"] = {"anyOf": [environment, listed]}
    return schema


def _notes(field: dict[str, Any]) -> dict[str, Any]:
    return {name: field.pop(name) for name in ("title", "description", "default") if name in field}


def _lenient(part: Any) -> Any:  # noqa: ANN401 - any part of a JSON document
    if isinstance(part, list):
        return [_lenient(item) for item in part]
    if not isinstance(part, dict):
        return part
    widened = {name: _lenient(value) for name, value in part.items()}
    kind = part.get("type")
    if isinstance(kind, str):
        widened["type"] = _ALSO_WRITTEN_AS.get(kind, kind)
    return widened


def main(arguments: list[str]) -> int:
    """Write the schema, or check the one that is there; return the exit status."""
    text = json.dumps(flow_schema(), indent=2, ensure_ascii=False) + "\n"
    if arguments == ["--check"]:
        fresh = SCHEMA_FILE.exists() and SCHEMA_FILE.read_text(encoding="utf-8") == text
        if not fresh:
            sys.stderr.write(f"{SCHEMA_FILE} is out of date; run: python -m flows_engine.definition.json_schema\n")
        return 0 if fresh else 1
    SCHEMA_FILE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
