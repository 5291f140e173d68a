"""What tells one installation from others."""

from __future__ import annotations

import hashlib
from pathlib import Path


def instance_id(data_dir: Path) -> str:
    """Return what tells this ``DATA_DIR`` from others on the same Docker engine, or the same Prefect server."""
    return hashlib.sha256(str(data_dir.resolve()).encode()).hexdigest()[:16]
