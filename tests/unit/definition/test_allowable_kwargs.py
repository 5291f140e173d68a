"""What a site may let its flows ask of Docker."""

from __future__ import annotations

from typing import Any

import pytest
from docker.types import HostConfig
from pydantic import ValidationError

from flows_engine.definition.allowable_kwargs import ALLOWABLE, ALLOWED_HERE
from flows_engine.definition.docker_kwargs import DockerKwargs

_WELL: dict[str, tuple[Any, Any]] = {
    "blkio_weight": ("500", 500),
    "cap_add": (["sys_nice", "CAP_IPC_LOCK"], ["SYS_NICE", "CAP_IPC_LOCK"]),
    "cap_drop": ("ALL", ["ALL"]),
    "cgroup_parent": ("/models", "/models"),
    "cgroupns": ("private", "private"),
    "cpuset_mems": ("0-1", "0-1"),
    "device_cgroup_rules": (["c 10:229 rwm", "b 8:* r"], ["c 10:229 rwm", "b 8:* r"]),
    "device_read_bps": ([{"Path": "/dev/sda", "Rate": "1000"}], [{"Path": "/dev/sda", "Rate": 1000}]),
    "device_read_iops": ({"Path": "/dev/sda", "Rate": 1}, [{"Path": "/dev/sda", "Rate": 1}]),
    "device_write_bps": ([{"Path": "/dev/sda", "Rate": "1000"}], [{"Path": "/dev/sda", "Rate": 1000}]),
    "device_write_iops": ([{"Path": "/dev/sda", "Rate": "1000"}], [{"Path": "/dev/sda", "Rate": 1000}]),
    "devices": (["/dev/x:/dev/y:rwm", "/dev/fuse", "/dev/z:r"], ["/dev/x:/dev/y:rwm", "/dev/fuse", "/dev/z:r"]),
    "dns": ("10.0.0.1", ["10.0.0.1"]),
    "dns_opt": (["ndots:2", "rotate"], ["ndots:2", "rotate"]),
    "dns_search": ("hospital.example", ["hospital.example"]),
    "domainname": ("hospital.example", "hospital.example"),
    "extra_hosts": ({"licences": "10.0.0.5", "me": "host-gateway"}, {"licences": "10.0.0.5", "me": "host-gateway"}),
    "group_add": ([44, "video"], ["44", "video"]),
    "hostname": ("model1", "model1"),
    "init": ("true", True),
    "ipc_mode": ("host", "host"),
    "mac_address": ("02:42:ac:11:00:02", "02:42:ac:11:00:02"),
    "network": ("models", "models"),
    "network_mode": ("host", "host"),
    "oom_kill_disable": ("no", False),
    "oom_score_adj": ("-500", -500),
    "pid_mode": ("host", "host"),
    "pids_limit": ("-1", -1),
    "platform": ("linux/arm64/v8", "linux/arm64/v8"),
    "privileged": ("yes", True),
    "runtime": ("runsc", "runsc"),
    "security_opt": ("seccomp=unconfined", ["seccomp=unconfined"]),
    "stop_signal": ("SIGINT", "SIGINT"),
    "storage_opt": ({"size": "10G"}, {"size": "10G"}),
    "sysctls": ({"net.core.somaxconn": "1024"}, {"net.core.somaxconn": "1024"}),
    "ulimits": (
        [{"name": "memlock", "soft": "-1", "hard": "-1"}, {"name": "nofile", "soft": 10, "hard": -1}],
        [{"name": "memlock", "soft": -1, "hard": -1}, {"name": "nofile", "soft": 10, "hard": -1}],
    ),
    "userns_mode": ("host", "host"),
    "uts_mode": ("host", "host"),
}
_BAD: list[tuple[str, Any, str]] = [
    ("blkio_weight", "9", "greater than or equal to 10"),
    ("cap_add", ["SYS NICE"], "is no capability like SYS_NICE"),
    ("cap_add", [{"a": "b"}], "string"),
    ("cgroupns", "shared", "neither host nor private"),
    ("device_cgroup_rules", ["a *:* rwm"], "is no rule like"),
    ("device_cgroup_rules", ["c 195:* rwm"], "gpu: true"),
    ("device_read_bps", [{"Path": "/dev/sda"}], "Field required"),
    ("device_write_bps", [{"Path": "sda", "Rate": 1}], "is no device like"),
    ("devices", ["x"], "is no device like"),
    ("devices", ["/dev/x:/dev/y:z"], "is no device like"),
    ("devices", ["/dev/../etc"], "is no device like"),
    ("devices", ["/dev"], "folder of all devices"),
    ("devices", ["/dev/./:/dev"], "folder of all devices"),
    ("devices", ["/dev/nvidia0"], "gpu: true"),
    ("devices", ["//dev/./nvidia-caps/nvidia-cap1:/dev/x"], "gpu: true"),
    ("dns", ["dns.example"], "is no address"),
    ("extra_hosts", {"a b": "10.0.0.5"}, "is no name of a host"),
    ("extra_hosts", {"__prefect_kind": "10.0.0.5"}, "is no name of a host"),
    ("extra_hosts", {"licences": "nowhere"}, "stands for licences is no address"),
    ("group_add", ["a b"], "is no user"),
    ("hostname", "-x", "is no name of a host"),
    ("init", "maybe", "boolean"),
    ("mac_address", "02:42", "is no address like"),
    ("network_mode", "a b", "is no mode"),
    ("pids_limit", "-2", "greater than or equal to -1"),
    ("platform", "linux amd64", "is no platform"),
    ("runtime", "/bin/sh", "is no name"),
    ("security_opt", ["seccomp=a\nb"], "characters that cannot be seen"),
    ("stop_signal", "HUP!", "is no signal"),
    ("storage_opt", {"type": "1"}, "is not {size: 10g}"),
    ("sysctls", {"__prefect_kind": "1"}, "is no setting of the kernel"),
    ("ulimits", [{"name": "memory", "soft": "1", "hard": "1"}], "'memlock'"),
    ("ulimits", [{"name": "nofile", "soft": "2", "hard": "1"}], "above the hard one"),
    ("ulimits", [{"name": "nofile", "soft": "-1", "hard": "1"}], "above the hard one"),
    ("ulimits", [{"name": "nofile", "soft": 1, "hard": 1}] * 2, "names a limit twice"),
    ("ulimits", ["nofile=1:1"], "dictionary"),
]
# What docker-py takes beside the configuration of the host.
_OF_THE_CONTAINER = {"domainname", "hostname", "mac_address", "network", "platform", "stop_signal"}


def kwargs(**values: Any) -> DockerKwargs:
    return DockerKwargs.model_validate({"image": "busybox", "network_disabled": "false", **values})


def test_nothing_is_left_out_here() -> None:
    assert _WELL.keys() == ALLOWABLE


@pytest.mark.parametrize("name", sorted(_WELL))
def test_what_is_written_reaches_docker_py_and_outlives_being_a_parameter(name: str) -> None:
    written, meant = _WELL[name]
    given = kwargs(**{name: written})
    assert given.create_options() == {name: meant}
    assert DockerKwargs.model_validate_json(given.model_dump_json()) == given
    if name not in _OF_THE_CONTAINER:
        HostConfig(version="1.41", **given.create_options())


@pytest.mark.parametrize(("name", "written", "reason"), _BAD)
def test_what_the_engine_would_not_take_is_refused(name: str, written: object, reason: str) -> None:
    with pytest.raises(ValidationError) as caught:
        kwargs(**{name: written})
    assert reason in str(caught.value)


def test_what_is_not_used_is_no_part_of_a_definition() -> None:
    assert not ALLOWABLE & kwargs().model_dump(mode="json").keys()


@pytest.mark.parametrize("name", sorted(_WELL))
def test_where_the_site_has_its_say_only_what_it_allows_is_taken(name: str) -> None:
    values = {"image": "busybox", "network_disabled": "false", name: _WELL[name][0]}
    assert DockerKwargs.model_validate(values, context={ALLOWED_HERE: {name}}) == kwargs(**values)
    with pytest.raises(ValidationError) as caught:
        DockerKwargs.model_validate(values, context={ALLOWED_HERE: ALLOWABLE - {name}})
    assert [(error["type"], error["loc"]) for error in caught.value.errors()] == [("not_allowed", (name,))]


def test_what_is_not_allowed_is_found_again_where_it_runs() -> None:
    given = kwargs(cap_add="SYS_NICE", privileged="no", user="1000")
    assert given.not_among(()) == ["cap_add", "privileged"]
    assert given.not_among(("privileged", "cap_add", "init")) == []


@pytest.mark.parametrize("values", [{"network": "models"}, {"network_mode": "host"}])
def test_a_network_is_asked_for_twice(values: dict[str, str]) -> None:
    with pytest.raises(ValidationError, match="write `network_disabled: false` beside it"):
        kwargs(network_disabled="true", **values)
    assert kwargs(network_disabled="true", network_mode="none").network_disabled is True
    with pytest.raises(ValidationError, match="keep one of them"):
        kwargs(network="a", network_mode="b")
