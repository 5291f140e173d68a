"""ContainerRunner on a Docker engine; the only importer of docker."""

from __future__ import annotations

import os
import queue
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final, TypeVar

import docker
import requests
from docker.errors import APIError, DockerException, ImageNotFound, NotFound
from docker.types import DeviceRequest, LogConfig, Mount

from flows_engine.disk_reserve import DiskReserve
from flows_engine.errors import (
    ContainerRefusedError,
    DiskFilledError,
    EngineUnavailableError,
    ImagePullFailedError,
    ImageUnavailableError,
    ModelTimedOutError,
    NoSpaceError,
    RunHaltedError,
)
from flows_engine.folder_tree import remove_tree
from flows_engine.gpu_request import gpu_request, why_refused
from flows_engine.host_paths import EngineMount, HostPaths
from flows_engine.interfaces import BindMount, ContainerResult, ContainerSpec
from flows_engine.log_lines import LogLines
from flows_engine.ownership import handing_over, strangers
from flows_engine.registry_silence import RegistrySilence

DEFAULT_ENGINE_URL: Final = "unix:///var/run/docker.sock"

_ENGINE_TIMEOUT_SECONDS: Final = 60.0
_STOP_SECONDS: Final = 5
_REMOVAL_SECONDS: Final = 30.0
# A registry that cannot be reached usually says so at once; where a name server or a firewall swallows packets the
# engine takes 15 to 60 seconds to give up, for every container.
_FIRST_WORD_SECONDS: Final = 60.0
_FIRST_WORD_SECONDS_IF_PRESENT: Final = 8.0
_PULL_SILENCE_SECONDS: Final = 300.0
_QUEUED_CHUNKS: Final = 256
# A fast disk takes half a gigabyte meanwhile.
_LOOK_SECONDS: Final = 0.2
"""How often a thread that waits looks whether its run ends, or a disk is full."""

_Item = TypeVar("_Item")

# The engine hands on what a registry says in many words, and its own errors in others.
_FROM_A_REGISTRY_THAT_ANSWERS: Final = re.compile(
    r"not found|unknown|denied|unauthorized|forbidden|does not exist|no matching manifest|invalid reference", re.I
)
_NO_SPACE: Final = "no space left on device"

# What stdout and stderr have said; None is the end of both.
_Chunk = tuple[bytes | None, bytes | None] | None

_UNREACHABLE: Final = (requests.exceptions.ConnectionError, requests.exceptions.Timeout)


@dataclass(frozen=True, kw_only=True)
class DockerRunner:
    """Runs containers on the engine at ``engine_url``; its folders must be this host's (see ``host_paths``)."""

    silence: RegistrySilence
    disk_reserve_bytes: int = 0
    """What a container has to leave free where the engine keeps its containers."""
    engine_url: str = DEFAULT_ENGINE_URL

    def run(
        self,
        spec: ContainerSpec,
        *,
        on_line: Callable[[str], None],
        on_notice: Callable[[str], None],
        is_halted: Callable[[], bool] = lambda: False,
        watch: Callable[[], None] = lambda: None,
    ) -> ContainerResult:
        """Run a container and return how it ended; see ``ContainerRunner`` for what is promised."""
        with self._engine() as client:
            engine_version = str(client.version().get("Version", ""))
            image_digest = self._image(client, spec, on_notice, is_halted)
            self._remove(spec.name)
            try:
                with _refusals(spec):
                    self._create(client, spec)
                    return self._follow(
                        client,
                        spec,
                        image_digest=image_digest,
                        engine_version=engine_version,
                        on_line=on_line,
                        is_halted=is_halted,
                        watch=watch,
                    )
            except (ModelTimedOutError, DiskFilledError):
                raise  # it is killed by its removal: nobody waits for what it does when it is asked to end
            except BaseException:
                # A cancelled run arrives here as an exception that a signal handler raised: the model may end properly.
                self._stop(spec.name)
                raise
            finally:
                self._take_over(client, spec)
                self._remove(spec.name)

    def find_all(self, *, label: str, value: str) -> tuple[Mapping[str, str], ...]:
        """Return all labels of each container that carries ``label=value``, whether it runs or not."""
        with self._engine() as client:
            found = client.api.containers(all=True, filters={"label": f"{label}={value}"})
        return tuple(container["Labels"] for container in found)

    def remove_all(self, *, label: str, value: str) -> int:
        """Kill and remove every container that carries ``label=value``; return how many there were."""
        with self._engine() as client:
            found = client.api.containers(all=True, filters={"label": f"{label}={value}"})
        for container in found:
            self._remove(container["Id"])
        return len(found)

    @contextmanager
    def _engine(self) -> Iterator[docker.DockerClient]:
        try:
            client = docker.DockerClient(base_url=self.engine_url, version="auto", timeout=_ENGINE_TIMEOUT_SECONDS)
        except (DockerException, *_UNREACHABLE) as error:
            raise self._unavailable(error) from error
        try:
            yield client
        except _UNREACHABLE as error:
            raise self._unavailable(error) from error
        finally:
            client.close()

    def _unavailable(self, error: Exception) -> EngineUnavailableError:
        if "Permission denied" in str(error):
            return EngineUnavailableError(
                f"no permission to use the Docker engine at {self.engine_url}: add this worker's user to the group"
                " docker (usermod -aG docker <user>) and log in again"
            )
        return EngineUnavailableError(
            f"no Docker engine answers at {self.engine_url}: start it (systemctl start docker) or set DOCKER_HOST"
        )

    def _image(
        self,
        client: docker.DockerClient,
        spec: ContainerSpec,
        on_notice: Callable[[str], None],
        is_halted: Callable[[], bool],
    ) -> str:
        present = _digest(client, spec.image)
        if not spec.pull:
            if present is None:
                raise ImageUnavailableError(
                    f"image {spec.image} is not in the engine and pull_before_exec is false:"
                    " docker pull or docker load it"
                )
            return present
        reason = self._pull(spec, is_present=present is not None, is_halted=is_halted)
        if reason is None:
            present = _digest(client, spec.image)
        elif present is not None:
            on_notice(f"image {spec.image} could not be pulled; the one in the engine is used: {reason}")
        if present is None:
            sentence = f"image {spec.image} is not in the engine and cannot be pulled"
            if reason is None or _FROM_A_REGISTRY_THAT_ANSWERS.search(reason):
                raise ImageUnavailableError(f"{sentence}: {reason or 'the registry has no such image'}")
            raise ImagePullFailedError(f"{sentence}: {reason}")
        return present

    def _pull(self, spec: ContainerSpec, *, is_present: bool, is_halted: Callable[[], bool]) -> str | None:
        """Pull the image; return None, or in a few words why it could not be."""
        if is_present and self.silence.is_silent(spec.image):
            return "its registry did not answer a short while ago"
        events: queue.Queue[dict[str, Any] | Exception | None] = queue.Queue()
        platform = spec.options.get("platform")
        # A thread, because the engine says nothing, not even a header, until the registry has answered.
        threading.Thread(target=self._pull_events, args=(spec.image, platform, events), daemon=True).start()

        def look() -> None:
            if is_halted():
                raise RunHaltedError

        patience_seconds = _FIRST_WORD_SECONDS_IF_PRESENT if is_present else _FIRST_WORD_SECONDS
        while True:
            try:
                event = _get(events, patience_seconds, look)
            except queue.Empty:
                self.silence.remember(spec.image)
                return f"its registry did not answer within {patience_seconds:g} seconds"
            look()
            if event is None:
                return None
            if isinstance(event, Exception):
                return _one_line(getattr(event, "explanation", None) or event)
            if "error" in event:
                return _one_line(event["error"])
            patience_seconds = _PULL_SILENCE_SECONDS

    def _pull_events(
        self, image: str, platform: object, events: queue.Queue[dict[str, Any] | Exception | None]
    ) -> None:
        try:
            with self._engine() as client:
                for event in client.api.pull(image, stream=True, decode=True, platform=platform):
                    events.put(event)
        except Exception as error:  # noqa: BLE001 - the outer edge of a thread: whoever waits has to be told
            events.put(error)
        else:
            events.put(None)

    def _create(self, client: docker.DockerClient, spec: ContainerSpec) -> None:
        paths = HostPaths(engine_url=self.engine_url, mounts_of=lambda number: _mounts(client, number))
        options = dict(spec.options)
        log_config = options.pop("log_config", None)
        if isinstance(log_config, dict):
            options["log_config"] = LogConfig(**log_config)
        if not spec.network:
            options["network_mode"] = "none"
        if spec.gpu_ids:
            options["device_requests"] = [_device_request(spec.gpu_ids, client.info())]
        client.containers.create(
            spec.image,
            name=spec.name,
            labels=spec.labels,
            mounts=[_mount(mount, paths) for mount in spec.mounts],
            **options,
        )

    def _follow(
        self,
        client: docker.DockerClient,
        spec: ContainerSpec,
        *,
        image_digest: str,
        engine_version: str,
        on_line: Callable[[str], None],
        is_halted: Callable[[], bool],
        watch: Callable[[], None],
    ) -> ContainerResult:
        # Attached before the start: not a line of a short-lived container is lost, whatever the log driver keeps.
        stream = client.api.attach(spec.name, stdout=True, stderr=True, stream=True, demux=True)
        chunks: queue.Queue[_Chunk] = queue.Queue(maxsize=_QUEUED_CHUNKS)
        abandoned = threading.Event()
        reader = threading.Thread(target=_read, args=(stream, chunks, abandoned), daemon=True)
        reader.start()
        try:
            started_at, clock = time.time(), time.monotonic()
            client.api.start(spec.name)
            memory = _PeakMemory()
            threading.Thread(target=memory.watch, args=(client, spec.name), daemon=True).start()
            deadline = clock + spec.timeout_seconds
            storage = self._storage(client)
            if shortage := storage.shortage():  # after milliseconds: it was so before
                raise NoSpaceError(f"it is not run, since {shortage}")

            def look() -> None:
                if is_halted():
                    raise RunHaltedError
                watch()
                if shortage := storage.shortage():
                    raise DiskFilledError(shortage)

            log = LogLines()
            while (chunk := _next(chunks, deadline, spec, look)) is not None:
                look()
                for number, data in enumerate(chunk):
                    for line in log.feed(data or b"", stream=number):
                        on_line(line)
            exit_code = _exit_code(client, spec, deadline, look)
            if exit_code != 0:
                look()  # it may have ended because a disk was full, between two looks
            duration_seconds = time.monotonic() - clock
            for line in log.end():
                on_line(line)
        finally:
            abandoned.set()
        return ContainerResult(
            exit_code=exit_code,
            image_digest=image_digest,
            started_at=started_at,
            duration_seconds=duration_seconds,
            log_tail=log.tail,
            engine_version=engine_version,
            peak_memory_bytes=memory.peak_bytes,
        )

    def _take_over(self, client: docker.DockerClient, spec: ContainerSpec) -> None:
        """Make what the container wrote this process's own, where that is not root: to be read, and to be removed.

        Where it cannot be done, who reads it or removes it says so.
        """
        user = os.geteuid()
        if user == 0:
            return
        with suppress(DockerException, OSError):
            with suppress(APIError):  # it has ended, as a rule
                client.api.kill(spec.name)
            client.api.wait(spec.name, timeout=_REMOVAL_SECONDS)
            for mount in spec.mounts:
                if not mount.read_only:
                    _hand_over(client, spec.name, mount, user=user)

    def _storage(self, client: docker.DockerClient) -> DiskReserve:
        """Return what is to stay free where the engine keeps containers, as far as this process sees that place."""
        is_here = self.disk_reserve_bytes and self.engine_url.startswith("unix:")
        folder = Path(str(client.info().get("DockerRootDir") or "") if is_here else "")
        return DiskReserve(folder=folder, reserve_bytes=self.disk_reserve_bytes if folder.is_absolute() else 0)

    def _stop(self, name: str) -> None:
        with self._engine() as client, suppress(NotFound, APIError):
            client.api.stop(name, timeout=_STOP_SECONDS)

    def _remove(self, name: str) -> None:
        with self._engine() as client:
            try:
                client.api.remove_container(name, force=True, v=True)
            except NotFound:
                return
            except APIError as error:
                if error.status_code != HTTPStatus.CONFLICT:
                    raise ContainerRefusedError(f"container {name} cannot be removed: {_explanation(error)}") from error
                # Somebody else is removing it.
                with suppress(NotFound):
                    client.api.wait(name, timeout=_REMOVAL_SECONDS, condition="removed")


class _PeakMemory:
    """Listens to what the engine tells of a container, once a second."""

    def __init__(self) -> None:
        self.peak_bytes: int | None = None

    def watch(self, client: docker.DockerClient, name: str) -> None:
        # How a container ends is not asked here; and what its memory was is not worth an error.
        with suppress(Exception):
            for told in client.api.stats(name, stream=True, decode=True):
                memory = told.get("memory_stats") or {}
                # Control groups of version 1 keep the peak themselves.
                if seen := max(memory.get("max_usage", 0), memory.get("usage", 0)):
                    self.peak_bytes = max(self.peak_bytes or 0, seen)
                elif self.peak_bytes is not None:
                    return  # it is over


def engine_url() -> str:
    """Return where the Docker engine of this environment listens: ``DOCKER_HOST``, or the local socket."""
    return os.environ.get("DOCKER_HOST") or DEFAULT_ENGINE_URL


def _hand_over(client: docker.DockerClient, name: str, mount: BindMount, *, user: int) -> None:
    before = None
    # Each time a folder may be seen into that could not be before.
    while (found := strangers(mount.source, user=user)) and found != before:
        names_folder = f"names-{uuid.uuid4().hex}"
        archive = handing_over(found, user=user, group=os.getegid(), names_folder=names_folder)
        try:
            client.api.put_archive(name, mount.target, archive)
        finally:
            remove_tree(mount.source / names_folder)
        before = found


def _device_request(gpu_ids: tuple[str, ...], engine_info: Mapping[str, Any]) -> DeviceRequest:
    request = gpu_request(gpu_ids, engine_info=engine_info)
    return DeviceRequest(
        driver=request.driver,
        device_ids=list(request.device_ids),
        capabilities=[list(each) for each in request.capabilities],
    )


def _mount(mount: BindMount, paths: HostPaths) -> Mount:
    return Mount(target=mount.target, source=str(paths.of(mount.source)), type="bind", read_only=mount.read_only)


def _mounts(client: docker.DockerClient, container_id: str) -> list[EngineMount]:
    try:
        found = client.api.inspect_container(container_id)
    except NotFound:
        return []
    return [
        EngineMount(source=Path(mount["Source"]), destination=Path(mount["Destination"]))
        for mount in found.get("Mounts") or ()
        if mount.get("Source")
    ]


def _digest(client: docker.DockerClient, image: str) -> str | None:
    """Return what names the image for good: its digest in a registry, else its id; None where it is missing."""
    try:
        found = client.api.inspect_image(image)
    except ImageNotFound:
        return None
    except APIError as error:
        raise ImageUnavailableError(f"image {image} cannot be looked up: {_explanation(error)}") from error
    return str(next(iter(found.get("RepoDigests") or ()), found["Id"]))


def _read(
    stream: Iterator[tuple[bytes | None, bytes | None]], chunks: queue.Queue[_Chunk], abandoned: threading.Event
) -> None:
    # The end of the stream looks like an error where the engine goes away; how the container ended is asked afterwards.
    with suppress(OSError, DockerException):
        for chunk in stream:
            if not _put(chunks, chunk, abandoned):
                return
    _put(chunks, None, abandoned)


def _put(chunks: queue.Queue[_Chunk], chunk: _Chunk, abandoned: threading.Event) -> bool:
    while not abandoned.is_set():
        with suppress(queue.Full):
            chunks.put(chunk, timeout=0.5)
            return True
    return False


def _next(chunks: queue.Queue[_Chunk], deadline: float, spec: ContainerSpec, look: Callable[[], None]) -> _Chunk:
    with suppress(queue.Empty):
        return _get(chunks, deadline - time.monotonic(), look)
    raise _timed_out(spec)


def _get(items: queue.Queue[_Item], seconds: float, look: Callable[[], None]) -> _Item:
    """Return the next item. Raises ``queue.Empty`` after ``seconds``, and what ``look`` raises while none comes."""
    deadline = time.monotonic() + seconds
    while (remaining_seconds := deadline - time.monotonic()) > 0:
        with suppress(queue.Empty):
            return items.get(timeout=min(remaining_seconds, _LOOK_SECONDS))
        look()
    raise queue.Empty


def _exit_code(client: docker.DockerClient, spec: ContainerSpec, deadline: float, look: Callable[[], None]) -> int:
    # It ends at once, as a rule. One that closed its log and goes on is still looked after.
    ended: queue.Queue[int | Exception] = queue.Queue()
    threading.Thread(target=_await_end, args=(client, spec, deadline, ended), daemon=True).start()
    try:
        end = _get(ended, max(0.1, deadline - time.monotonic()) + _LOOK_SECONDS, look)
    except queue.Empty:
        raise _timed_out(spec) from None
    if isinstance(end, _UNREACHABLE) and time.monotonic() >= deadline:
        raise _timed_out(spec) from end
    if isinstance(end, Exception):
        raise end
    return end


def _await_end(
    client: docker.DockerClient, spec: ContainerSpec, deadline: float, ended: queue.Queue[int | Exception]
) -> None:
    try:
        found = client.api.wait(spec.name, timeout=max(0.1, deadline - time.monotonic()))
        ended.put(int(found["StatusCode"]))
    except Exception as error:  # noqa: BLE001 - the outer edge of a thread: whoever waits has to be told
        ended.put(error)


def _timed_out(spec: ContainerSpec) -> ModelTimedOutError:
    return ModelTimedOutError(f"it ran longer than its timeout of {spec.timeout_seconds:g} seconds and was killed")


@contextmanager
def _refusals(spec: ContainerSpec) -> Iterator[None]:
    try:
        yield
    except ImageNotFound as error:
        raise ImageUnavailableError(f"image {spec.image} was removed from the engine a moment ago") from error
    except APIError as error:
        explanation = _explanation(error)
        if _NO_SPACE in explanation.lower():
            raise NoSpaceError(f"the Docker engine has no room left: {explanation}") from error
        known = why_refused(explanation) if spec.gpu_ids else None
        raise ContainerRefusedError(known or f"the Docker engine refuses it: {explanation}") from error


def _explanation(error: APIError) -> str:
    return _one_line(error.explanation or error)


def _one_line(text: object) -> str:
    return " ".join(str(text).split())[:400]
