"""Having the engine, which is root, hand to this process what a container wrote as another user.

An archive that the engine unpacks over a folder gives the folders that it names an owner, and leaves what is in them;
of a file it makes a further name (a hard link), and gives that, which is the file, an owner. So nothing is copied, and
the container's image needs no shell. The container has ended: else it could put a link where a folder was.
"""

from __future__ import annotations

import io
import os
import tarfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from flows_engine.folder_tree import DEEPEST

_MODE: Final = 0o755


@dataclass(frozen=True, kw_only=True)
class Strangers:
    """What is in a folder and is another user's, by paths from there; each folder stands before what is in it."""

    folders: tuple[str, ...]
    files: tuple[str, ...]

    def __bool__(self) -> bool:
        """Tell whether there is anything."""
        return bool(self.folders or self.files)


def strangers(folder: Path, *, user: int) -> Strangers:
    """Return what in ``folder`` is not ``user``'s, as far as it can be listed. No link is followed."""
    folders: list[str] = []
    files: list[str] = []
    pending = [("", 0)]
    while pending:
        inner, depth = pending.pop()
        # One that cannot be listed is handed over first, and looked into the next time.
        with suppress(OSError), os.scandir(folder / inner) as entries:
            for entry in entries:
                path = f"{inner}/{entry.name}" if inner else entry.name
                is_folder = entry.is_dir(follow_symlinks=False)
                if is_folder and depth < DEEPEST:
                    pending.append((path, depth + 1))
                if entry.stat(follow_symlinks=False).st_uid == user:
                    continue
                if is_folder:
                    folders.append(path)
                elif entry.is_file(follow_symlinks=False):
                    files.append(path)
    return Strangers(folders=tuple(folders), files=tuple(files))


def handing_over(found: Strangers, *, user: int, group: int, names_folder: str) -> bytes:
    """Return the archive that hands ``found`` over. Further names are made in ``names_folder``, which is new. Pure."""
    archive = io.BytesIO()
    # Names may be any bytes.
    with tarfile.open(
        fileobj=archive, mode="w", format=tarfile.GNU_FORMAT, encoding="utf-8", errors="surrogateescape"
    ) as tar:
        for kind, name, target in (
            *((tarfile.DIRTYPE, folder, "") for folder in found.folders),
            *([(tarfile.DIRTYPE, names_folder, "")] if found.files else ()),
            *((tarfile.LNKTYPE, f"{names_folder}/{number}", file) for number, file in enumerate(found.files)),
        ):
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname, entry.mode, entry.uid, entry.gid = kind, target, _MODE, user, group
            tar.addfile(entry)
    return archive.getvalue()
