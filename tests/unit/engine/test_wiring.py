from __future__ import annotations

from pathlib import Path

import pytest

from flows_engine.docker_runner import DockerRunner
from flows_engine.handoff.installation import instance_id
from flows_engine.handoff.site_settings import SiteSettings
from flows_engine.wiring import build_engine


def test_an_engine_is_built_without_touching_the_disk_or_docker(tmp_path: Path) -> None:
    settings = SiteSettings(
        data_dir=tmp_path / "data",
        static_dir=tmp_path / "static",
        gpus=("0", "2"),
        ae_title="SITE",
        docker_host=f"unix://{tmp_path}/nothing.sock",
    )
    engine = build_engine(settings)
    assert isinstance(engine.runner, DockerRunner)
    assert engine.runner.find_engine().url == f"unix://{tmp_path}/nothing.sock"
    assert engine.host.gpus == ("0", "2")
    assert engine.calling_ae_title == "SITE"
    assert engine.store.root == tmp_path / "data" / "studies"
    assert not (tmp_path / "data").exists()


def test_two_data_folders_are_told_apart_and_one_is_itself_by_any_path(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "link").symlink_to("a")
    assert instance_id(tmp_path / "a") == instance_id(tmp_path / "link")
    assert instance_id(tmp_path / "a") != instance_id(tmp_path / "b")


def test_the_gpus_of_another_host_are_not_taken_for_those_of_this_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flows_engine.wiring.total_mib", lambda gpus: dict.fromkeys(gpus, 80_000))
    for docker_host, known in ((None, {"0": 80_000}), ("tcp://gpu-host:2375", {})):
        settings = SiteSettings(data_dir=tmp_path, static_dir=tmp_path, docker_host=docker_host)
        assert build_engine(settings).host.gpu_total_mib(["0"]) == known
