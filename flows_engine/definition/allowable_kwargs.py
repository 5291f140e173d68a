"""What a flow may ask of Docker only where its site says so: ``DOCKER_KWARGS_ALLOWED`` names the arguments."""

from __future__ import annotations

import re
from collections.abc import Collection
from ipaddress import ip_address
from pathlib import PurePosixPath
from typing import Annotated, Any, Final, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from flows_engine.definition.leniency import Text, as_list
from flows_engine.definition.text_forms import LARGEST, Processors, Size, User, matching

SETTING: Final = "DOCKER_KWARGS_ALLOWED"
ALLOWED_HERE: Final = "docker_kwargs_allowed"
"""The key of pydantic's context under which a reader says what the site allows. Without it nothing is asked: a run
keeps its definition, and whether its host allows it is asked where it runs."""
NOT_ALLOWED: Final = "not_allowed"
"""The type of the finding about an argument that the site does not allow."""
GPU_HINT: Final = "for a GPU write `gpu: true` beside docker_kwargs"

_Kind = TypeVar("_Kind")

_CAPABILITY: Final = re.compile(r"(CAP_)?[A-Z][A-Z0-9_]{1,40}")
_DEVICE: Final = re.compile(r"/[^:]+(:/[^:]+)?(:(?=[rwm])r?w?m?)?")
_DEVICE_RULE: Final = re.compile(r"[bc] [0-9]{1,7}:([0-9]{1,7}|\*) (?=[rwm])r?w?m?")
_HOST_NAME: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]{0,62}[A-Za-z0-9])?(\.[A-Za-z0-9][A-Za-z0-9-]{0,62})*")
_WORD: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,254}")
_MODE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}(:[A-Za-z0-9][A-Za-z0-9_.-]{0,254})?")
_MAC_ADDRESS: Final = re.compile(r"[0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){5}")
_SIGNAL: Final = re.compile(r"SIG[A-Z0-9+-]{2,12}|[0-9]{1,2}")
_PLATFORM: Final = re.compile(r"[a-z0-9_]+(/[a-z0-9_]+){0,2}")
_KERNEL_SETTING: Final = re.compile(r"[a-z0-9_]+(\.[A-Za-z0-9_*-]+)+")
_CGROUP: Final = re.compile(r"[A-Za-z0-9/][A-Za-z0-9_./:@-]{0,254}")
_DNS_OPTION: Final = re.compile(r"[a-z0-9-]+(:[0-9]+)?")
# The kernel's number for the devices of NVIDIA's driver.
_NVIDIA_MAJOR: Final = "195"


def _is_none(value: object) -> bool:
    return value is None


def _device(written: str) -> str:
    if not _DEVICE.fullmatch(written) or ".." in PurePosixPath(written).parts or not written.isprintable():
        raise ValueError("is no device like /dev/fuse, or /dev/fuse:/dev/fuse:rwm")
    device = PurePosixPath("/" + written.partition(":")[0].lstrip("/"))
    if device in (PurePosixPath("/"), PurePosixPath("/dev")):
        raise ValueError("is the folder of all devices; name the one that is meant, like /dev/fuse")
    if len(device.parts) > 2 and device.parts[1] == "dev" and device.parts[2].startswith("nvidia"):
        raise ValueError(f"takes a GPU that other runs may hold; {GPU_HINT}")
    return written


def _device_rule(written: str) -> str:
    if not _DEVICE_RULE.fullmatch(written):
        raise ValueError("is no rule like `c 10:229 rwm`: c or b, a device's numbers (the second may be *), r, w, m")
    if written.split()[1].partition(":")[0] == _NVIDIA_MAJOR:
        raise ValueError(f"takes GPUs that other runs may hold; {GPU_HINT}")
    return written


def _address(written: str) -> str:
    try:
        return str(ip_address(written))
    except ValueError:
        raise ValueError("is no address like 10.0.0.5") from None


def _hosts(hosts: dict[str, str]) -> dict[str, str]:
    for name, address in hosts.items():
        if len(name) > 253 or not _HOST_NAME.fullmatch(name):
            raise ValueError(f"{name[:80]!r} is no name of a host")
        if address != "host-gateway":
            try:
                _address(address)
            except ValueError as error:
                raise ValueError(f"what stands for {name} {error}") from None
    return hosts


def _kernel_settings(values: dict[str, str]) -> dict[str, str]:
    for name in values:
        if not _KERNEL_SETTING.fullmatch(name):
            raise ValueError(f"{name[:80]!r} is no setting of the kernel like net.core.somaxconn")
    return values


def _storage(options: dict[str, str]) -> dict[str, str]:
    if options.keys() != {"size"}:
        raise ValueError("is not {size: 10g}, the one thing that can be said of it")
    return options


def _security_option(written: str) -> str:
    if not written.isprintable():
        raise ValueError("holds characters that cannot be seen")
    return written


def _upper(value: object) -> object:
    return value.upper() if isinstance(value, str) else value


class Ulimit(BaseModel):
    """A limit of a container's processes; -1 is none."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Literal[
        "core",
        "cpu",
        "data",
        "fsize",
        "locks",
        "memlock",
        "msgqueue",
        "nice",
        "nofile",
        "nproc",
        "rss",
        "rtprio",
        "rttime",
        "sigpending",
        "stack",
    ]
    soft: int = Field(ge=-1, le=LARGEST)
    hard: int = Field(ge=-1, le=LARGEST)

    @model_validator(mode="after")
    def _soft_within_hard(self) -> Ulimit:
        if self.hard != -1 and not 0 <= self.soft <= self.hard:
            raise ValueError(f"has a soft limit above the hard one, {self.hard}")
        return self


class Rate(BaseModel):
    """How much of a device of the host a container may use: bytes or operations a second."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    Path: Annotated[Text, AfterValidator(_device)]
    Rate: Annotated[int, Field(gt=0, le=LARGEST)]


def _each_limit_once(limits: tuple[Ulimit, ...]) -> tuple[Ulimit, ...]:
    if len({limit.name for limit in limits}) < len(limits):
        raise ValueError("names a limit twice")
    return limits


# What is not set is left out of what is dumped, so that definitions without it keep their digest.
_Maybe = Annotated[_Kind | None, Field(exclude_if=_is_none)]
_Listed = Annotated[tuple[_Kind, ...], BeforeValidator(as_list)]
_Capability = Annotated[Text, BeforeValidator(_upper), matching(_CAPABILITY, "is no capability like SYS_NICE, or ALL")]
_HostName = Annotated[Text, Field(max_length=253), matching(_HOST_NAME, "is no name of a host like model1")]
_Mode = Annotated[Text, matching(_MODE, "is no mode like host, private or container:NAME")]
_Word = Annotated[Text, matching(_WORD, "is no name: letters, digits, _, . and -")]
_Rates = _Listed[Rate]


class AllowableKwargs(BaseModel):
    """Arguments of docker-py's ``containers.create`` that are for those flows whose site allows them.

    Read with ``ALLOWED_HERE`` in pydantic's context, others are refused.
    """

    blkio_weight: _Maybe[Annotated[int, Field(ge=10, le=1000)]] = None
    cap_add: _Maybe[_Listed[_Capability]] = None
    cap_drop: _Maybe[_Listed[_Capability]] = None
    cgroup_parent: _Maybe[Annotated[Text, matching(_CGROUP, "is no control group like /models")]] = None
    cgroupns: _Maybe[Annotated[Text, matching(re.compile("host|private"), "is neither host nor private")]] = None
    cpuset_mems: _Maybe[Processors] = None
    device_cgroup_rules: _Maybe[_Listed[Annotated[Text, AfterValidator(_device_rule)]]] = None
    device_read_bps: _Maybe[_Rates] = None
    device_read_iops: _Maybe[_Rates] = None
    device_write_bps: _Maybe[_Rates] = None
    device_write_iops: _Maybe[_Rates] = None
    devices: _Maybe[_Listed[Annotated[Text, AfterValidator(_device)]]] = None
    dns: _Maybe[_Listed[Annotated[Text, AfterValidator(_address)]]] = None
    dns_opt: _Maybe[_Listed[Annotated[Text, matching(_DNS_OPTION, "is no option like ndots:2")]]] = None
    dns_search: _Maybe[_Listed[_HostName]] = None
    domainname: _Maybe[_HostName] = None
    extra_hosts: _Maybe[Annotated[dict[str, Text], AfterValidator(_hosts)]] = None
    group_add: _Maybe[_Listed[User]] = None
    hostname: _Maybe[_HostName] = None
    init: _Maybe[bool] = None
    ipc_mode: _Maybe[_Mode] = None
    mac_address: _Maybe[Annotated[Text, matching(_MAC_ADDRESS, "is no address like 02:42:ac:11:00:02")]] = None
    network: _Maybe[_Word] = None
    network_mode: _Maybe[_Mode] = None
    oom_kill_disable: _Maybe[bool] = None
    oom_score_adj: _Maybe[Annotated[int, Field(ge=-1000, le=1000)]] = None
    pid_mode: _Maybe[_Mode] = None
    pids_limit: _Maybe[Annotated[int, Field(ge=-1, le=LARGEST)]] = None
    platform: _Maybe[Annotated[Text, matching(_PLATFORM, "is no platform like linux/amd64")]] = None
    privileged: _Maybe[bool] = None
    runtime: _Maybe[_Word] = None
    security_opt: _Maybe[_Listed[Annotated[Text, AfterValidator(_security_option)]]] = None
    stop_signal: _Maybe[Annotated[Text, matching(_SIGNAL, "is no signal like SIGINT")]] = None
    storage_opt: _Maybe[Annotated[dict[str, Size], AfterValidator(_storage)]] = None
    sysctls: _Maybe[Annotated[dict[str, Text], AfterValidator(_kernel_settings)]] = None
    ulimits: _Maybe[Annotated[_Listed[Ulimit], AfterValidator(_each_limit_once)]] = None
    userns_mode: _Maybe[_Mode] = None
    uts_mode: _Maybe[_Mode] = None

    @field_validator("*", mode="before")
    @classmethod
    def _allowed_here(cls, value: Any, info: ValidationInfo) -> Any:  # noqa: ANN401 - whatever stands in the file
        allowed = info.context.get(ALLOWED_HERE) if isinstance(info.context, dict) else None
        if allowed is not None and info.field_name in ALLOWABLE and info.field_name not in allowed:
            raise PydanticCustomError(NOT_ALLOWED, "is not allowed")
        return value

    def not_among(self, allowed: Collection[str]) -> list[str]:
        """Return the names of those arguments that are set here and are for sites that allow them, and not allowed."""
        return sorted(name for name in ALLOWABLE if getattr(self, name) is not None and name not in allowed)


ALLOWABLE: Final = frozenset(AllowableKwargs.model_fields)
"""The names that ``DOCKER_KWARGS_ALLOWED`` may hold."""
