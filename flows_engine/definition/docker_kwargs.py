"""What a flow may ask of Docker: an allow-list of docker-py's ``containers.create``, each key with its type."""

from __future__ import annotations

import re
from typing import Annotated, Any, Final

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator

from flows_engine.definition.leniency import Text, as_text

REASONS_FOR_REFUSAL: Final = {
    "privileged": "a container may not rule the host",
    "volumes": "a container sees its input, its output and static_mounts, and nothing else of the host",
    "mounts": "a container sees its input, its output and static_mounts, and nothing else of the host",
    "volumes_from": "a container sees its input, its output and static_mounts, and nothing else of the host",
    "volume_driver": "a container sees its input, its output and static_mounts, and nothing else of the host",
    "devices": "a container may not have the host's devices; for a GPU write `gpu: true` beside docker_kwargs",
    "device_requests": "for a GPU write `gpu: true` beside docker_kwargs",
    "device_cgroup_rules": "a container may not have the host's devices; for a GPU write `gpu: true` beside docker_kwargs",
    "runtime": "for a GPU write `gpu: true` beside docker_kwargs",
    "cap_add": "a container cannot gain privileges",
    "security_opt": "a container cannot gain privileges",
    "group_add": "a container cannot gain privileges",
    "cgroup_parent": "a container stays in its own control group",
    "network_mode": "a container shares no network with the host; for a network of its own write `network_disabled: false`",
    "network": "a container shares no network with the host; for a network of its own write `network_disabled: false`",
    "ports": "nothing may connect to a container",
    "links": "nothing may connect to a container",
    "pid_mode": "a container does not see the host's processes",
    "ipc_mode": "a container does not see the host's processes; for more shared memory write `shm_size`",
    "userns_mode": "a container does not share the host's users",
    "uts_mode": "a container does not share the host's name",
    "sysctls": "a container may not change the kernel's settings",
    "name": "DicomFlow names containers, to find them again",
    "detach": "DicomFlow starts containers, and waits for them",
    "auto_remove": "DicomFlow removes containers",
    "remove": "DicomFlow removes containers",
    "restart_policy": "DicomFlow starts containers, and decides whether again",
    "log_config": "DicomFlow reads the container's log",
}
# The allowed form of a reference: registry, path, tag, digest (the engine says the rest).
_IMAGE: Final = re.compile(r"[A-Za-z0-9][\w.:/@+-]*")
_SIZE: Final = re.compile(r"\d+(\.\d+)?\s*([bkmgtBKMGT][bB]?)?")


def _environment(value: Any) -> Any:
    if isinstance(value, list | tuple):
        pairs = [str(as_text(item)).partition("=") for item in value]
        if not all(separator for _, separator, _ in pairs):
            raise ValueError("an environment written as a list has items of the form NAME=value")
        return {name: text for name, _, text in pairs}
    return {} if value is None else value


def _size(value: Any) -> Any:
    if value is not None and not isinstance(value, bool) and not _SIZE.fullmatch(str(value).strip()):
        raise ValueError("is no size; write a number of bytes, or one with a unit, like 8g or 512m")
    return value if value is None else str(value).strip()


Size = Annotated[str, BeforeValidator(_size)]


class DockerKwargs(BaseModel):
    """The allowed arguments of docker-py's ``containers.create``. What is not set is Docker's, or DicomFlow's, default."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    image: Text
    command: Text | tuple[Text, ...] | None = None
    entrypoint: Text | tuple[Text, ...] | None = None
    environment: Annotated[dict[str, Text], BeforeValidator(_environment)] = {}
    labels: dict[str, Text] = {}
    user: Text | None = None
    working_dir: Text | None = None
    network_disabled: bool = True
    read_only: bool | None = None
    tmpfs: dict[str, Text] | None = None
    shm_size: Size | None = None
    mem_limit: Size | None = None
    mem_reservation: Size | None = None
    memswap_limit: Size | None = None
    mem_swappiness: Annotated[int, Field(ge=0, le=100)] | None = None
    nano_cpus: Annotated[int, Field(gt=0)] | None = None
    cpu_period: Annotated[int, Field(ge=0)] | None = None
    cpu_quota: int | None = None
    cpu_shares: Annotated[int, Field(ge=0)] | None = None
    cpuset_cpus: Text | None = None
    cpu_rt_period: int | None = None
    cpu_rt_runtime: int | None = None

    @field_validator("image")
    @classmethod
    def _plausible_image(cls, image: str) -> str:
        if not _IMAGE.fullmatch(image):
            raise ValueError("is no image reference like busybox, or registry.example/team/model:1.2")
        return image

    @field_validator("labels")
    @classmethod
    def _foreign_labels(cls, labels: dict[str, str]) -> dict[str, str]:
        if any(name.startswith("dicomflow") for name in labels):
            raise ValueError("labels that begin with dicomflow are DicomFlow's own")
        return labels

    def create_options(self) -> dict[str, object]:
        """Return what was set, for docker-py, without the image and the network, which the runner decides on."""
        options = self.model_dump(exclude_unset=True, exclude={"image", "network_disabled"}, exclude_none=True)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in options.items()}
