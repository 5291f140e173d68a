"""ContainerRunner on a Docker engine, of this host or of another."""

from __future__ import annotations

import queue
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import docker
from docker.errors import APIError, ImageNotFound, NotFound
from docker.types import DeviceRequest, LogConfig, Mount

from flows_engine.attached import frames
from flows_engine.bound_folders import bind_mounts, take_over
from flows_engine.container_end import ContainerEnd
from flows_engine.copied_folders import COPIES_LABEL, CopiedFolders, copy_folders, remove_copies
from flows_engine.disk_reserve import DiskReserve
from flows_engine.docker_connection import NO_SPACE, UNREACHABLE, connected, explanation, one_line
from flows_engine.docker_removal import remove_container, remove_volumes
from flows_engine.errors import (
    ContainerRefusedError,
    DiskFilledError,
    ImagePullFailedError,
    ImageUnavailableError,
    ModelTimedOutError,
    NoSpaceError,
    RunHaltedError,
)
from flows_engine.gpu_request import gpu_request, why_refused
from flows_engine.handoff.engine_address import EngineAddress
from flows_engine.interfaces import ContainerResult, ContainerSpec
from flows_engine.log_lines import LogLines
from flows_engine.registry_silence import RegistrySilence

_STOP_SECONDS: Final = 5
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

# What stdout and stderr have said; None is the end of both.
_Chunk = tuple[bytes | None, bytes | None] | None


@dataclass(frozen=True, kw_only=True)
class DockerRunner:
    """Runs containers on an engine: with folders of this host where it is this host's, else with copies of them."""

    silence: RegistrySilence
    disk_reserve_bytes: int = 0
    """What is to stay free where an engine of this host keeps its containers, and where copies from another come to."""
    find_engine: Callable[[], EngineAddress] = EngineAddress
    """Tells where the engine is, when it is needed. Raises an ``EngineError``."""

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
                    copies = self._copies(client, spec, is_halted)
                    self._create(client, spec, copies=copies)
                    result = self._follow(
                        client,
                        spec,
                        image_digest=image_digest,
                        engine_version=engine_version,
                        on_line=on_line,
                        is_halted=is_halted,
                        watch=watch,
                    )
                    if copies is not None:
                        copies.bring_back(
                            reserve_bytes=self.disk_reserve_bytes, on_notice=on_notice, is_halted=is_halted
                        )
                    return result
            except (ModelTimedOutError, DiskFilledError):
                raise  # it is killed by its removal: nobody waits for what it does when it is asked to end
            except BaseException:
                # A cancelled run arrives here as an exception that a signal handler raised: the model may end properly.
                self._stop(spec.name)
                raise
            finally:
                if not self.find_engine().is_remote:  # what is copied belongs to who copies it
                    take_over(client, spec)
                self._remove(spec.name)

    def find_all(self, *, label: str, value: str) -> tuple[Mapping[str, str], ...]:
        """Return all labels of each container that carries ``label=value``, whether it runs or not."""
        with self._engine() as client:
            found = client.api.containers(all=True, filters={"label": f"{label}={value}"})
        return tuple(container["Labels"] for container in found if COPIES_LABEL not in container["Labels"])

    def remove_all(self, *, label: str, value: str) -> int:
        """Kill and remove every container that carries ``label=value``, and its copies; return how many there were."""
        with self._engine() as client:
            found = client.api.containers(all=True, filters={"label": f"{label}={value}"})
            for container in found:
                remove_container(client, container["Id"])
            if self.find_engine().is_remote:
                remove_volumes(client, label=label, value=value)
        return sum(COPIES_LABEL not in container["Labels"] for container in found)

    @contextmanager
    def _engine(self) -> Iterator[docker.DockerClient]:
        with connected(self.find_engine()) as client:
            yield client

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
                return one_line(getattr(event, "explanation", None) or event)
            if "error" in event:
                return one_line(event["error"])
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

    def _copies(
        self, client: docker.DockerClient, spec: ContainerSpec, is_halted: Callable[[], bool]
    ) -> CopiedFolders | None:
        return copy_folders(client, spec, is_halted=is_halted) if self.find_engine().is_remote else None

    def _mounts(self, client: docker.DockerClient, spec: ContainerSpec, copies: CopiedFolders | None) -> list[Mount]:
        if copies is not None:
            return copies.mounts
        return bind_mounts(client, spec, engine_url=self.find_engine().url)

    def _create(self, client: docker.DockerClient, spec: ContainerSpec, *, copies: CopiedFolders | None) -> None:
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
            mounts=self._mounts(client, spec, copies),
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
        attached = client.api.attach_socket(spec.name, params={"stdout": 1, "stderr": 1, "stream": 1})
        end = ContainerEnd(client, spec.name)
        chunks: queue.Queue[_Chunk] = queue.Queue(maxsize=_QUEUED_CHUNKS)
        abandoned = threading.Event()
        reader = threading.Thread(target=_read, args=(attached, chunks, abandoned), daemon=True)
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
            end.confirm()
            duration_seconds = time.monotonic() - clock
            for line in log.end():
                on_line(line)
        finally:
            abandoned.set()
            end.close()
        return ContainerResult(
            exit_code=exit_code,
            image_digest=image_digest,
            started_at=started_at,
            duration_seconds=duration_seconds,
            log_tail=log.tail,
            engine_version=engine_version,
            peak_memory_bytes=memory.peak_bytes,
        )

    def _storage(self, client: docker.DockerClient) -> DiskReserve:
        """Return what is to stay free where the engine keeps containers, as far as this process sees that place."""
        is_here = self.disk_reserve_bytes and not self.find_engine().is_remote
        folder = Path(str(client.info().get("DockerRootDir") or "") if is_here else "")
        return DiskReserve(folder=folder, reserve_bytes=self.disk_reserve_bytes if folder.is_absolute() else 0)

    def _stop(self, name: str) -> None:
        with self._engine() as client, suppress(NotFound, APIError):
            client.api.stop(name, timeout=_STOP_SECONDS)

    def _remove(self, name: str) -> None:
        with self._engine() as client:
            remove_container(client, name)
            if self.find_engine().is_remote:
                remove_copies(client, name=name)


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


def _device_request(gpu_ids: tuple[str, ...], engine_info: Mapping[str, Any]) -> DeviceRequest:
    request = gpu_request(gpu_ids, engine_info=engine_info)
    return DeviceRequest(
        driver=request.driver,
        device_ids=list(request.device_ids),
        capabilities=[list(each) for each in request.capabilities],
    )


def _digest(client: docker.DockerClient, image: str) -> str | None:
    """Return what names the image for good: its digest in a registry, else its id; None where it is missing."""
    try:
        found = client.api.inspect_image(image)
    except ImageNotFound:
        return None
    except APIError as error:
        raise ImageUnavailableError(f"image {image} cannot be looked up: {explanation(error)}") from error
    return str(next(iter(found.get("RepoDigests") or ()), found["Id"]))


def _read(attached: socket.SocketIO | socket.socket, chunks: queue.Queue[_Chunk], abandoned: threading.Event) -> None:
    # ``attached`` is a file made of the socket where there is no TLS; the connection lasts as long as it.
    connection: socket.socket = getattr(attached, "_sock", attached)  # type: ignore[arg-type]
    # The end of the stream looks like an error where the engine goes away; how the container ended is asked afterwards.
    with suppress(OSError):
        connection.settimeout(None)
        for chunk in frames(connection):
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
    if isinstance(end, UNREACHABLE) and time.monotonic() >= deadline:
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
        reason = explanation(error)
        if NO_SPACE in reason.lower():
            raise NoSpaceError(f"the Docker engine has no room left: {reason}") from error
        known = why_refused(reason) if spec.gpu_ids else None
        raise ContainerRefusedError(known or f"the Docker engine refuses it: {reason}") from error
