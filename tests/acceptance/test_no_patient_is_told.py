"""A model prints the header of what it reads: neither Prefect nor any log tells who the patient is."""

from __future__ import annotations

import pytest

from tests.acceptance.site import Site
from tests.factories import CANARIES, leaked_canaries

pytestmark = [pytest.mark.docker, pytest.mark.dcmtk, pytest.mark.prefect]

_PRINTS_HEADER = "echo printed:; strings -n 4 /input/*.dcm; cat /input/*.dcm | head -c 2000 | tr -c '[:print:]' '\\n'"
_SAYS_HEADER = """printf '{"who": "%s"}' "$(strings /input/* | grep CANARY | head -1)" > /output/result.json"""


def test_a_model_that_prints_its_input_gives_nobody_away(site: Site) -> None:
    site.define("Talks", _PRINTS_HEADER, f"cat /proc/self/mounts; ls -lR /input; {_SAYS_HEADER}")
    site.define("TalksLast", "strings /input/*.dcm | grep CANARY | head -1 >&2; exit 5")
    files = site.study("Talks", "TalksLast")
    assert len(leaked_canaries(files[0].read_bytes().decode("latin-1"))) == len(CANARIES)
    site.send(files)
    runs = [site.run_of(name) for name in ("Talks", "TalksLast")]
    states = [site.api.await_final(run_id) for run_id in runs]
    assert [state["name"] for state in states] == ["Completed", "Failed"]
    assert states[1]["message"] == "model 1 (busybox) exited with code 5: [patient]"
    assert "What model 2 says of its result" in site.api.everything()
    log = site.api.log_until(runs[0], "printed:")
    assert any("[patient]" in line for line in log)
    assert "DicomFlow tests" in "\n".join(log)
    assert leaked_canaries(site.api.everything()) == []
    assert leaked_canaries(site.service_logs()) == []
    kept = [path for path in (site.data_dir / "prefect").rglob("*") if path.is_file()]
    assert leaked_canaries("\n".join(path.read_bytes().decode("latin-1") for path in kept)) == []
