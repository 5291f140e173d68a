from __future__ import annotations

from pathlib import Path

import pytest

from flows_engine.registry_silence import RegistrySilence, registry_of


@pytest.mark.parametrize(
    ("image", "registry"),
    [
        ("busybox", "docker.io"),
        ("team/model:1.2", "docker.io"),
        ("registry.example/team/model", "registry.example"),
        ("localhost/model", "localhost"),
        ("localhost:5000/model@sha256:ab", "localhost:5000"),
    ],
)
def test_the_registry_of_an_image(image: str, registry: str) -> None:
    assert registry_of(image) == registry


def test_a_silent_registry_is_remembered_for_a_while_and_others_are_not(tmp_path: Path) -> None:
    silence = RegistrySilence(folder=tmp_path / "silent")
    assert not silence.is_silent("a.example/model")
    silence.remember("a.example/model:1")
    assert silence.is_silent("a.example/other:2")
    assert not silence.is_silent("b.example/model")
    assert not RegistrySilence(folder=tmp_path / "silent", remember_seconds=0).is_silent("a.example/model")
