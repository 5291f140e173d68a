"""What a flow may ask of Docker: an allow-list of docker-py's ``containers.create``, each key with its type.

What a site may add to the list is in ``allowable_kwargs``.
"""

from __future__ import annotations

import difflib
import re
import shlex
from pathlib import PurePosixPath
from typing import Annotated, Any, Final, Self

from pydantic import BeforeValidator, ConfigDict, Field, field_validator, model_validator

from flows_engine.definition.allowable_kwargs import ALLOWABLE, GPU_HINT, SETTING, AllowableKwargs
from flows_engine.definition.leniency import Text, as_text, without_nul
from flows_engine.definition.text_forms import LARGEST, Amount, Processors, Signed, Size, SizeOrUnlimited, User

_ONLY_OUR_MOUNTS: Final = "a container sees its input, its output and static_mounts, and nothing else of the host"
_NO_DEVICES: Final = f"a container may not have the host's devices; {GPU_HINT}"
_NO_PRIVILEGES: Final = "a container cannot gain privileges"
_NO_HOST_NETWORK: Final = (
    "a container shares no network with the host; for a network of its own write `network_disabled: false`"
)
_NO_VISITORS: Final = "nothing may connect to a container: a port of the host is one run's at a time, and runs overlap"
_OF_OLD_ENGINES: Final = "the engine no longer knows it"
_OWN_CGROUP: Final = "a container stays in its own control group"
_OUR_LOG: Final = "DicomFlow reads the container's log"
_WE_REMOVE: Final = "DicomFlow removes containers"

_OF_WINDOWS: Final = "the engines of Windows know it, and no other"

NEVER_ALLOWED: Final = {
    "volumes": _ONLY_OUR_MOUNTS,
    "mounts": _ONLY_OUR_MOUNTS,
    "volumes_from": _ONLY_OUR_MOUNTS,
    "volume_driver": _ONLY_OUR_MOUNTS,
    "device_requests": GPU_HINT,
    "gpus": GPU_HINT,
    "cpus": "write `nano_cpus: 2000000000` for two processors",
    "ports": _NO_VISITORS,
    "publish_all_ports": _NO_VISITORS,
    "links": _NO_VISITORS,
    "networking_config": "an address of its own is one run's at a time, and runs overlap",
    "stdout": _OUR_LOG,
    "stderr": _OUR_LOG,
    "stream": _OUR_LOG,
    "tty": _OUR_LOG,
    "log_config": _OUR_LOG,
    "stdin_open": "nobody types at a container",
    "healthcheck": "nobody asks for a container's health; it ends, or its timeout does",
    "name": "DicomFlow names containers, to find them again",
    "detach": "DicomFlow starts containers, and waits for them",
    "auto_remove": _WE_REMOVE,
    "remove": _WE_REMOVE,
    "restart_policy": "DicomFlow starts containers, and decides whether again",
    "use_config_proxy": "a container with a network has the proxies of the worker's ~/.docker/config.json anyway",
    "blkio_weight_device": "DicomFlow has no form for it; write blkio_weight",
    "version": "DicomFlow and the engine agree on the version of its API",
    "init_path": _OF_OLD_ENGINES,
    "kernel_memory": _OF_OLD_ENGINES,
    "lxc_conf": _OF_OLD_ENGINES,
    "cpu_count": _OF_WINDOWS,
    "cpu_percent": _OF_WINDOWS,
    "isolation": _OF_WINDOWS,
}
"""What no flow may ask for, and no site may allow, with the reason: DicomFlow could not keep what it promises."""

_WHY_NOT_BY_ITSELF: Final = {
    "privileged": "a container may not rule the host",
    "devices": _NO_DEVICES,
    "device_cgroup_rules": _NO_DEVICES,
    "runtime": GPU_HINT,
    "cap_add": _NO_PRIVILEGES,
    "security_opt": _NO_PRIVILEGES,
    "group_add": _NO_PRIVILEGES,
    "cgroup_parent": _OWN_CGROUP,
    "cgroupns": _OWN_CGROUP,
    "network_mode": _NO_HOST_NETWORK,
    "network": _NO_HOST_NETWORK,
    "pid_mode": "a container does not see the host's processes",
    "ipc_mode": "a container does not see the host's processes; for more shared memory write `shm_size`",
    "userns_mode": "a container does not share the host's users",
    "uts_mode": "a container does not share the host's name",
    "sysctls": "a container may not change the kernel's settings",
    "storage_opt": "the engine decides how containers are stored",
    "pids_limit": "DicomFlow limits the number of processes",
}


def reason_for_refusal(name: str) -> str | None:
    """Return why an argument of docker-py is refused, with the way out; None for what is no argument of it."""
    if name in ALLOWABLE:
        why = _WHY_NOT_BY_ITSELF.get(name, "flows do without it")
        return f"{why}; who looks after this site can allow it, by {SETTING}: [{name}]"
    return NEVER_ALLOWED.get(name)


def allowable(name: str) -> str:
    """Return the name of an argument that a site may allow. Raises ``ValueError`` for any other, with the reason."""
    if name in NEVER_ALLOWED:
        raise ValueError(f"{name} can never be allowed: {NEVER_ALLOWED[name]}; take it out")
    if name not in DockerKwargs.model_fields:
        close = difflib.get_close_matches(name, sorted(ALLOWABLE), n=1)
        hint = f"did you mean {close[0]}?" if close else f"known are {', '.join(sorted(ALLOWABLE))}"
        raise ValueError(f"{name[:60]!r} is no argument of docker-py's containers.create ({hint})")
    return name


# The allowed form of a reference: registry, path, tag, digest (the engine says the rest).
_IMAGE: Final = re.compile(r"[A-Za-z0-9][\w.:/@+-]*")
_TMPFS_OPTION: Final = re.compile(r"rw|ro|(no)?exec|nosuid|nodev|noatime|(size|mode|uid|gid)=[0-9]+[kmgKMG%]?")
# With the NVIDIA runtime as the engine's default, this gives a container GPUs that its run does not hold.
_GPU_VARIABLE: Final = "NVIDIA_VISIBLE_DEVICES"


def _command_line(value: object) -> object:
    if isinstance(value, list | tuple):
        words = tuple(as_text(word) for word in value)
        if not all(isinstance(word, str) for word in words):
            raise ValueError("is a list with items that are no text; write each word of the command as text")
        for word in words:
            without_nul(str(word))
        return words
    text = as_text(value)
    if isinstance(text, str):
        try:
            shlex.split(text)
        except ValueError:
            raise ValueError("has a quote that is not closed, or ends in a backslash") from None
        without_nul(text)
    elif text is not None:
        raise ValueError("is neither a text nor a list of texts")
    return text


CommandLine = Annotated[str | tuple[str, ...] | None, BeforeValidator(_command_line)]


def _environment(value: object) -> object:
    if isinstance(value, list | tuple):
        items = [text for item in value if isinstance(text := as_text(item), str) and "=" in text]
        if len(items) < len(value):
            raise ValueError("an environment written as a list has items of the form NAME=value")
        pairs = [item.partition("=") for item in items]
        if len({name for name, _, _ in pairs}) < len(pairs):
            raise ValueError("names a variable twice")
        return {name: text for name, _, text in pairs}
    return value


def container_folder(written: str) -> str:
    """Return a folder of a container in its shortest form. Raises ``ValueError`` where nothing may be mounted."""
    path = PurePosixPath(written)
    if not path.is_absolute() or ".." in path.parts or not written.isprintable() or ":" in written:
        raise ValueError("is no absolute path without `..` and colons, like /input")
    if path.parts[1:2] in ((), ("proc",), ("sys",), ("dev",)) or "docker.sock" in path.name:
        raise ValueError(f"nothing can be mounted at {path}")
    return "/" + "/".join(path.parts[1:])


def _not_prefects(name: str) -> None:
    # In a run's parameters Prefect would take what stands beside it for a template, and the run would get another text.
    if name == "__prefect_kind":
        raise ValueError(f"{name!r} is a name that Prefect keeps for itself; take another one")


class DockerKwargs(AllowableKwargs):
    """Arguments of docker-py's ``containers.create``: those that every flow may have, and those that a site may allow.

    What is not set is the default.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    image: Text
    command: CommandLine = None
    entrypoint: CommandLine = None
    environment: Annotated[dict[str, Text], BeforeValidator(_environment)] = Field(default={})
    labels: dict[str, Text] = Field(default={})
    user: User | None = None
    working_dir: Text | None = None
    network_disabled: bool = True
    read_only: bool | None = None
    tmpfs: dict[str, Text] | None = None
    shm_size: Size | None = None
    mem_limit: Size | None = None
    mem_reservation: Size | None = None
    memswap_limit: SizeOrUnlimited | None = None
    mem_swappiness: Annotated[int, Field(ge=0, le=100)] | None = None
    nano_cpus: Annotated[int, Field(gt=0, le=LARGEST)] | None = None
    cpu_period: Amount | None = None
    cpu_quota: Signed | None = None
    cpu_shares: Amount | None = None
    cpuset_cpus: Processors | None = None
    cpu_rt_period: Amount | None = None
    cpu_rt_runtime: Signed | None = None

    @field_validator("image")
    @classmethod
    def _plausible_image(cls, image: str) -> str:
        if not _IMAGE.fullmatch(image):
            raise ValueError("is no image reference like busybox, or registry.example/team/model:1.2")
        return image

    @field_validator("environment")
    @classmethod
    def _variables(cls, environment: dict[str, str]) -> dict[str, str]:
        for name in environment:
            if not name or "=" in name or " " in name or not name.isprintable():
                raise ValueError(f"{name!r} is no name of a variable")
            _not_prefects(name)
        if _GPU_VARIABLE in environment:
            raise ValueError(f"{_GPU_VARIABLE} takes GPUs that other runs may hold; {GPU_HINT}")
        return environment

    @field_validator("labels", "tmpfs")
    @classmethod
    def _names(cls, named: dict[str, str] | None) -> dict[str, str] | None:
        for name in named or {}:
            _not_prefects(name)
        return named

    @field_validator("working_dir")
    @classmethod
    def _absolute(cls, folder: str | None) -> str | None:
        if folder is not None and not (folder.startswith("/") and folder.isprintable()):
            raise ValueError("is no absolute path of the container, like /app")
        return folder

    @field_validator("tmpfs")
    @classmethod
    def _memory_folders(cls, folders: dict[str, str] | None) -> dict[str, str] | None:
        for folder, options in (folders or {}).items():
            container_folder(folder)
            if options and not all(_TMPFS_OPTION.fullmatch(option) for option in options.split(",")):
                raise ValueError(f"{options!r} are no options of a memory folder, like size=1g,mode=1777")
        return folders

    @field_validator("labels")
    @classmethod
    def _foreign_labels(cls, labels: dict[str, str]) -> dict[str, str]:
        if any(name.startswith("dicomflow") for name in labels):
            raise ValueError("labels that begin with dicomflow are DicomFlow's own")
        return labels

    @model_validator(mode="after")
    def _one_network_if_any(self) -> Self:
        if self.network is not None and self.network_mode is not None:
            raise ValueError("has network and network_mode, which are the same; keep one of them")
        if self.network_disabled and (self.network is not None or self.network_mode not in (None, "none")):
            raise ValueError("names a network, and has none; write `network_disabled: false` beside it")
        return self

    def create_options(self) -> dict[str, Any]:
        """Return what was set, for docker-py, without the image and whether it has a network, which others decide."""
        options = self.model_dump(exclude_unset=True, exclude={"image", "network_disabled"}, exclude_none=True)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in options.items()}
