"""Which image registries did not answer a short while ago, so that not every container waits for them again."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

REMEMBER_SECONDS: Final = 300.0


@dataclass(frozen=True, kw_only=True)
class RegistrySilence:
    """One empty file a registry below ``folder``; its modification time is when the registry was last found silent."""

    folder: Path
    remember_seconds: float = REMEMBER_SECONDS

    def is_silent(self, image: str) -> bool:
        """Return whether the registry of ``image`` was found silent within ``remember_seconds``."""
        try:
            age_seconds = time.time() - self._file(image).stat().st_mtime
        except FileNotFoundError:
            return False
        return 0 <= age_seconds < self.remember_seconds

    def remember(self, image: str) -> None:
        """Write down that the registry of ``image`` did not answer."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._file(image).touch()

    def _file(self, image: str) -> Path:
        return self.folder / hashlib.sha256(registry_of(image).encode()).hexdigest()[:16]


def registry_of(image: str) -> str:
    """Return the host that ``image`` is pulled from: its first part if that has a dot or a port, else Docker Hub."""
    first, slash, _ = image.partition("/")
    return first if slash and ("." in first or ":" in first or first == "localhost") else "docker.io"
