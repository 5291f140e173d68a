"""The databases that Prefect's server may have: SQLite, the embedded PostgreSQL, and the distribution's."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from urllib.parse import quote

from tests.services import ROOT, running, wait_until

SQLITE, EMBEDDED, DISTRIBUTION = "SQLite", "embedded PostgreSQL", "distribution's PostgreSQL"


class DatabaseMissingError(Exception):
    """A database cannot be had on this machine. The message says why, in one line."""


def database(name: str, folder: Path) -> AbstractContextManager[str | None]:
    """Run a database; give what Prefect takes for it, or None for the one that ``dicomflow up`` starts itself.

    Entering raises ``DatabaseMissingError``.
    """
    makers: dict[str, Callable[[], AbstractContextManager[str | None]]] = {
        SQLITE: lambda: nullcontext(f"sqlite+aiosqlite:///{folder}/prefect.db"),
        EMBEDDED: lambda: nullcontext(None),
        DISTRIBUTION: _distribution_postgres,
    }
    return makers[name]()


@contextmanager
def _distribution_postgres() -> Iterator[str | None]:
    """Run the distribution's PostgreSQL as its package sets it up, in a folder of its own, on a socket there."""
    programs = _programs()
    # It refuses to run as root; its package has made a user.
    user = ["runuser", "--user", "postgres", "--"] if os.geteuid() == 0 else []
    folder = Path(tempfile.mkdtemp(prefix="dicomflow-bench-postgres-"))
    try:
        if user:
            shutil.chown(folder, "postgres")
        data = folder / "data"
        initdb = [*user, str(programs / "initdb"), "--username=postgres", "--auth=trust", "--encoding=UTF8"]
        subprocess.run([*initdb, "--no-locale", f"--pgdata={data}"], check=True, stdout=subprocess.DEVNULL)
        server = [*user, str(programs / "postgres"), "-D", str(data), "-k", str(folder), "-h", ""]
        ready = [str(programs / "pg_isready"), "--quiet", "--host", str(folder)]
        with running(server, log=folder / "log", environment=os.environ, stop_signal=signal.SIGINT):
            wait_until(lambda: subprocess.run(ready, check=False).returncode == 0, seconds=60, what="PostgreSQL serves")
            yield f"postgresql+asyncpg://postgres@/postgres?host={quote(str(folder))}"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _programs() -> Path:
    found = subprocess.run([ROOT / "deployments/host/postgresql.sh"], capture_output=True, text=True, check=False)
    if found.returncode != 0:
        raise DatabaseMissingError(found.stderr.strip().splitlines()[-1])
    return Path(found.stdout.strip())
