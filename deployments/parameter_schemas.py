"""The schemas of what our flows take, from which Prefect's UI builds its forms: read from a file beside this one.

Making them takes Prefect, the engine and the gateway, which whoever deploys does not need otherwise.

python -m deployments.parameter_schemas            write them anew
python -m deployments.parameter_schemas --check    exit with 1 if they are not what they would be
"""

from __future__ import annotations

import json
import sys
from functools import cache
from pathlib import Path
from typing import Any, Final

from flows_engine.definition import naming

_FILE: Final = Path(__file__).with_name("parameter_schemas.json")


def process_study_schema() -> dict[str, Any]:
    """Return the schema of the parameters of the flow that runs on a study."""
    return _written()[naming.FLOW_NAME]


def reprocess_schema() -> dict[str, Any]:
    """Return the schema of what can be asked for when studies are processed again."""
    return _written()[naming.REPROCESS_FLOW_NAME]


@cache
def _written() -> dict[str, dict[str, Any]]:
    schemas: dict[str, dict[str, Any]] = json.loads(_FILE.read_text(encoding="utf-8"))
    return schemas


def made_anew() -> dict[str, dict[str, Any]]:
    """Return the schemas by flow, as the flows themselves have them."""
    from prefect.utilities.callables import parameter_schema  # noqa: PLC0415 - see above

    from dicom_gateway.reprocess import reprocess  # noqa: PLC0415
    from flows_engine.flows.process_study import process_study  # noqa: PLC0415

    return {
        # `prefect deploy` leaves definitions out where there are none.
        flow.name: {key: value for key, value in schema.items() if value or key != "definitions"}
        for flow in (process_study, reprocess)
        for schema in [parameter_schema(flow).model_dump_for_openapi()]
    }


def main(arguments: list[str]) -> int:
    """Write the schemas, or check those that are there; return the exit status."""
    text = json.dumps(made_anew(), indent=1, ensure_ascii=False) + "\n"
    if arguments == ["--check"]:
        fresh = _FILE.exists() and _FILE.read_text(encoding="utf-8") == text
        if not fresh:
            sys.stderr.write(f"{_FILE.name} is out of date; run: python -m deployments.parameter_schemas\n")
        return 0 if fresh else 1
    _FILE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
