"""A gateway in a process of its own, as a test starts and kills it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.services import ROOT


class MortalGateway:
    """The processes of ``tests.integration.gateway_process``, which listen once this is made."""

    def __init__(self, data_dir: Path, *, log: Path | None = None, **settings: object) -> None:
        output = (log or Path(os.devnull)).open("ab")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.integration.gateway_process", str(data_dir), json.dumps(settings)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=output,
            text=True,
        )
        output.close()
        line = self.process.stdout.readline()
        assert line.strip().isdigit(), "the gateway did not start"
        self.port = int(line)

    def receivers(self) -> list[int]:
        """Return the numbers of the processes that receive."""
        path = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [int(number) for number in path.read_text().split()]

    def kill(self) -> None:
        """End it as a power cut does; its receivers follow by themselves."""
        self.process.kill()
        self.process.wait()
        # Not read to its end, which is where the last receiver has followed.
        self.process.stdout.close()
