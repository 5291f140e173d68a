"""An engine on another host: what containers are given of ours, and what comes back, whatever happens meanwhile."""

from __future__ import annotations

import contextlib
import logging
import signal
import socket
import stat
import tarfile
import threading
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flows_engine.container_spec import RUN_LABEL
from flows_engine.definition.schema import FlowDefinition
from flows_engine.disk_reserve import DiskReserve
from flows_engine.docker_connection import connected
from flows_engine.docker_runner import DockerRunner
from flows_engine.errors import (
    DiskFilledError,
    EngineMisconfiguredError,
    EngineUnavailableError,
    ModelFailedError,
    ModelTimedOutError,
    NoSpaceError,
    NotAllowedError,
    RunHaltedError,
    WorkspaceError,
)
from flows_engine.handoff.engine_address import EngineAddress
from tests.factories import leaked_canaries
from tests.integration.one_study import STUDY, engine_with_one_study
from tests.integration.remote_site import RemoteSite, flow
from tests.remote_engine import RemoteEngine, make_certificates, remote_engine
from tests.services import unused_port, wait_until

pytestmark = [pytest.mark.docker, pytest.mark.dockerd]
MB = 1_000_000


@pytest.fixture(scope="module")
def remote() -> Iterator[RemoteEngine]:
    with remote_engine("busybox", "hello-world", with_tls=True) as engine:
        yield engine


@pytest.fixture
def site(tmp_path: Path, remote: RemoteEngine) -> Iterator[RemoteSite]:
    before = remote.left()
    yield RemoteSite(tmp_path, remote.address)
    assert remote.left() == before


@contextlib.contextmanager
def when_it_says(message: str) -> Iterator[threading.Event]:
    """Set an event as soon as a container's log has ``message``."""
    said = threading.Event()

    class Listening(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.getMessage() == message:
                said.set()

    handler = Listening()
    logging.getLogger("test").addHandler(handler)
    try:
        yield said
    finally:
        logging.getLogger("test").removeHandler(handler)


@pytest.fixture(autouse=True)
def _everything_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="test")


def test_the_smallest_flow(site: RemoteSite, caplog: pytest.LogCaptureFixture) -> None:
    smallest = {"triggers": [{"Modality": "CT"}], "models": [{"docker_kwargs": {"image": "hello-world"}}]}
    result = site.run(FlowDefinition.model_validate({"name": "smallest", "destinations": [], **smallest}))
    assert (result.exit_code, result.file_count) == (0, 0)
    assert any("Hello from Docker" in message for message in caplog.messages)


def test_two_models_with_all_that_is_mounted(
    site: RemoteSite, remote: RemoteEngine, caplog: pytest.LogCaptureFixture
) -> None:
    static = site.settings.static_dir
    (static / "weights").mkdir(parents=True)
    (static / "weights" / "a.bin").write_bytes(b"a" * 1000)
    (static / "b.bin").write_bytes(b"b")
    with tarfile.open(static / "more.tar.gz", "w:gz") as archive:
        archive.add(static / "b.bin", "b.bin")
    definition = flow(
        "cat /input/slice /model/a.bin > /output/joined; cat /other/b.bin /config/config.yaml;"
        " echo; ls -A /output; touch /input/x; touch /model/x; touch /x; id -u; mkdir -p /output/deep; umask 077;"
        " echo secret > /output/deep/secret",
        "cp -r /input/* /output/; cat /input/deep/secret; id -u",
        docker_kwargs={"user": "1000", "read_only": True},
        static_mounts=["weights:/model", "more:/other"],
        config={"threshold": 0.5},
    )
    assert site.run(definition).file_count == 2
    said = caplog.messages
    assert {"b{", '  "threshold": 0.5'} <= set(said)
    assert "1000" in said
    assert [line for line in said if "Read-only file system" in line] == [
        f"touch: {place}: Read-only file system" for place in ("/input/x", "/model/x", "/x")
    ]
    assert "joined" in said
    assert (site.output() / "joined").read_bytes() == b"pixels" + b"a" * 1000
    caplog.clear()
    assert site.run(definition, 1).file_count == 2
    assert "secret" in caplog.messages
    assert (site.output(1) / "deep" / "secret").read_text() == "secret\n"
    assert stat.S_IMODE(site.output(1).stat().st_mode) == 0o777
    # Next to the output nothing is left of how it came.
    assert sorted(path.name for path in site.output().parent.iterdir()) == ["config", "output", "record.json"]


def test_a_model_with_two_outputs_and_one_with_three_inputs(site: RemoteSite) -> None:
    one, two = (
        model.model_dump(exclude_unset=True)
        for model in flow(
            "echo a > /first/a; echo b > /second/b", "cat /in/1/a /in/2/b /in/study/slice > /output/joined"
        ).models
    )
    one |= {"input_mounts": {"src": "/in"}, "output_mounts": {"a": "/first", "b": "/second"}}
    two |= {"input_mounts": {"a": "/in/1", "b": "/in/2", "src": "/in/study"}, "output_mounts": {"dst": "/output"}}
    definition = FlowDefinition.model_validate({"name": "graph", "triggers": [], "models": [one, two]})
    assert site.run(definition).file_count == 2
    assert site.run(definition, 1).file_count == 1
    assert (site.output(1) / "joined").read_bytes() == b"a\nb\npixels"


def test_nothing_of_ours_is_mounted_there(site: RemoteSite, remote: RemoteEngine) -> None:
    mounts: list[Mapping[str, object]] = []
    with when_it_says("runs") as said:

        def look() -> bool:
            if said.is_set() and not mounts:
                with remote.client() as client:
                    for container in client.containers.list(all=True, filters={"label": f"{RUN_LABEL}={site.run_id}"}):
                        mounts.extend(container.attrs["Mounts"])
                    volumes = client.volumes.list(filters={"label": f"{RUN_LABEL}={site.run_id}"})
                    assert len(volumes) == 2
            return bool(mounts)

        with pytest.raises(RunHaltedError):
            site.run(flow("trap exit TERM; echo runs; while :; do sleep 0.1; done"), is_halted=look)
    assert [mount["Type"] for mount in mounts] == ["volume"] * 4
    # A folder of ours would be another one there.
    with connected(remote.address) as client:
        client.containers.create("busybox", "true", volumes=[f"{site.input}:/x"], name=site.run_id)
        (chunks, _) = client.api.get_archive(site.run_id, "/x")
        assert b"slice" not in b"".join(chunks)
        client.api.remove_container(site.run_id)


def test_a_copy_that_may_be_written_to_and_the_study_stays_as_it_is(site: RemoteSite) -> None:
    definition = flow("echo more >> /input/slice && cp /input/slice /output/", input_writable=True)
    assert site.run(definition).file_count == 1
    assert (site.output() / "slice").read_bytes() == b"pixelsmore\n"
    assert (site.input / "slice").read_bytes() == b"pixels"


def test_what_a_failed_model_left_comes_back(site: RemoteSite) -> None:
    with pytest.raises(ModelFailedError):
        site.run(flow("echo half > /output/report; exit 3"))
    assert (site.output() / "report").read_text() == "half\n"


def test_lines_come_while_it_runs(site: RemoteSite) -> None:
    with when_it_says("one") as said, pytest.raises(RunHaltedError):
        # Were the line kept back until the next one comes, the model would end by its timeout.
        site.run(flow("trap exit TERM; echo one; sleep 60 & wait", timeout=30), is_halted=said.is_set)


def test_big_files_take_time_and_no_memory(site: RemoteSite) -> None:
    with (site.input / "big").open("wb") as file:
        for number in range(200):
            file.write(bytes([number]) * MB)
    process = site.start(flow("cp /input/big /output/big"))
    grown_kb, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    assert int(grown_kb) < 50_000
    assert (site.output() / "big").read_bytes() == (site.input / "big").read_bytes()


def test_hostile_output_harms_nobody(site: RemoteSite, caplog: pytest.LogCaptureFixture) -> None:
    definition = flow(
        "cd /output; ln -s /etc/passwd absolute; ln -s ../../../../../../etc/passwd up; ln -s / root; mknod null c 1 3;"
        " mkfifo fifo; echo x > file; ln file again; chmod 4777 file; mkdir closed; echo y > closed/z; chmod 0 closed;"
        " echo z > \"$(printf 'a\\nb')\"; mkdir -p ..x/...; echo w > ..x/.../w"
    )
    result = site.run(definition)
    assert "1 entries of kind device in the output are left on the Docker engine" in caplog.messages
    assert result.file_count == 5
    found = {str(path.relative_to(site.output())): path.lstat().st_mode for path in site.output().rglob("*")}
    assert {name for name, mode in found.items() if stat.S_ISLNK(mode)} == {"absolute", "up", "root"}
    assert {name for name, mode in found.items() if stat.S_ISREG(mode)} == {
        "file",
        "again",
        "closed/z",
        "a\nb",
        "..x/.../w",
    }
    assert not found["file"] & stat.S_ISUID


def test_a_file_larger_than_our_disk_is_not_fetched(site: RemoteSite) -> None:
    with pytest.raises(NoSpaceError, match="1099511627776 bytes"):
        site.run(flow("truncate -s 1099511627776 /output/sparse"))
    assert list(site.output().iterdir()) == []


def test_what_is_to_stay_free_here_says_whether_an_output_is_fetched(
    site: RemoteSite, caplog: pytest.LogCaptureFixture
) -> None:
    engine = site.engine
    assert isinstance(engine.runner, DockerRunner)
    strict = replace(engine, runner=replace(engine.runner, disk_reserve_bytes=1 << 60))
    # It runs, since nobody here sees the disk of that engine; were this one short all the time, it would not.
    with pytest.raises(NoSpaceError, match=r"on the Docker engine is not fetched, since only .* DISK_RESERVE_BYTES"):
        site.run(flow("echo ran; touch /output/x"), engine=strict)
    assert "ran" in caplog.messages
    assert [path.name for path in site.output().parent.iterdir()] == ["output"]
    assert list(site.output().iterdir()) == []


def test_a_model_is_killed_where_our_disk_becomes_full(site: RemoteSite) -> None:
    with when_it_says("runs") as said:

        class Filling(DiskReserve):
            def shortage(self) -> str:
                return "too little is free" if said.is_set() else ""

        disk = Filling(folder=site.folder, reserve_bytes=1)
        full = replace(site.engine, host=replace(site.engine.host, disk=disk))
        with pytest.raises(DiskFilledError) as caught:
            site.run(flow("echo runs; while :; do sleep 0.1; done", timeout=30), engine=full)
    assert str(caught.value) == "model 1 (busybox): too little is free; it was killed, and its output removed"


def test_what_the_site_allows_is_given_to_the_model_and_not_to_the_carrier(
    site: RemoteSite, remote: RemoteEngine
) -> None:
    asked = {"cap_add": ["SYS_NICE"], "devices": ["/dev/zero:/dev/nothing:r"], "ipc_mode": "host"}
    with pytest.raises(NotAllowedError, match="cap_add, devices, ipc_mode"):
        site.run(flow("true", docker_kwargs=asked))
    site.settings = site.settings.model_copy(update={"docker_kwargs_allowed": tuple(asked)})
    found: dict[str, Mapping[str, Any]] = {}
    with when_it_says("runs") as said:

        def look() -> bool:
            if said.is_set() and not found:
                with remote.client() as client:
                    for container in client.containers.list(all=True, filters={"label": f"{RUN_LABEL}={site.run_id}"}):
                        found[container.name] = container.attrs["HostConfig"]
            return bool(found)

        with pytest.raises(RunHaltedError):
            site.run(
                flow("trap exit TERM; echo runs; while :; do sleep 0.1; done", docker_kwargs=asked), is_halted=look
            )
    model, carrier = (found[f"dicomflow-{site.run_id}-1{suffix}"] for suffix in ("", "-carrier"))
    assert (model["CapAdd"], model["IpcMode"], len(model["Devices"])) == (["SYS_NICE"], "host", 1)
    assert (carrier["CapAdd"], carrier["IpcMode"], carrier["Devices"] or None) == (None, "private", None)
    assert (carrier["Privileged"], carrier["NetworkMode"]) == (False, "none")


def test_instances_that_match_are_sent_as_the_flow_lays_them_out(site: RemoteSite, tmp_path: Path) -> None:
    engine = replace(engine_with_one_study(tmp_path / "other" / "data"), runner=site.engine.runner)
    definition = FlowDefinition.model_validate(
        {
            **flow("cd /input; find . -type f | sort > /output/given.txt; cp CT/1.dcm /output").model_dump(),
            "triggers": [{"Modality": "CT", "InstanceNumber": "1|2"}],
            "input": "matched",
            "tar_subdir": ["Modality"],
        }
    )
    result = engine.run_step(definition, step=0, run_id=site.run_id, study_id=STUDY, logger=logging.getLogger("test"))
    output = Path(result.output_dir)
    assert (output / "given.txt").read_text().split() == ["./CT/1.dcm", "./CT/2.dcm"]
    study = tmp_path / "other" / "data" / "studies" / STUDY / "input"
    assert (output / "1.dcm").read_bytes() == (study / "1.dcm").read_bytes()


def test_folders_in_folders_come_to_an_end(site: RemoteSite) -> None:
    deep = "p=$(printf 'd/%.0s' $(seq 500)); cd /output; for i in $(seq {times}); do mkdir -p $p; cd -P $p; done"
    for times in (1, 5):  # the latter is longer than any path can be
        with pytest.raises(WorkspaceError, match="more than 250 folders in each other"):
            site.run(flow(deep.replace("{times}", str(times))))
    assert site.run(flow("cp /input/* /output/")).file_count == 1
    assert sorted(path.name for path in site.output().parent.iterdir()) == ["output", "record.json"]


def test_a_model_that_takes_too_long_is_killed(site: RemoteSite) -> None:
    with pytest.raises(ModelTimedOutError):
        site.run(flow("sleep 100", timeout=1))
    assert list(site.output().iterdir()) == []


def test_a_run_that_ends_while_its_input_is_sent(site: RemoteSite) -> None:
    site.make_huge_input()
    asked = iter(range(200))
    with pytest.raises(RunHaltedError):
        site.run(flow("true"), is_halted=lambda: next(asked, None) is None)


def test_a_run_that_ends_while_its_output_comes_has_none(site: RemoteSite) -> None:
    def comes() -> bool:
        return any(path.stat().st_size for path in site.output().parent.glob(".output-*/big"))

    with pytest.raises(RunHaltedError):
        site.run(flow("truncate -s 4G /output/big; echo x > /output/a"), is_halted=comes)
    assert [path.name for path in site.output().parent.iterdir()] == ["output"]
    assert list(site.output().iterdir()) == []


def test_a_process_that_is_killed_while_it_sends_leaves_nothing_that_stays(
    site: RemoteSite, remote: RemoteEngine
) -> None:
    before = remote.left()
    site.make_huge_input()
    process = site.start(flow("true"))
    try:
        wait_until(lambda: remote.left() == (before[0] + 1, before[1] + 2), seconds=30, what="an input is sent")
    finally:
        process.kill()
        process.communicate()
    assert remote.left() != before
    (site.input / "huge").unlink()
    assert site.run(flow("cp /input/* /output/")).file_count == 1


def test_a_process_that_is_killed_while_it_fetches_leaves_nothing_that_counts(
    site: RemoteSite, remote: RemoteEngine
) -> None:
    process = site.start(flow("truncate -s 8G /output/big"))

    def comes() -> bool:
        return any(path.stat().st_size for path in site.output().parent.glob(".output-*/big"))

    try:
        wait_until(comes, seconds=60, what="an output is fetched")
    finally:
        process.kill()
        process.communicate()
    assert list(site.output().iterdir()) == []
    # What a host that starts again does.
    assert site.engine.remove_all_containers() == 1
    assert site.run(flow("echo x > /output/small")).file_count == 1
    assert sorted(path.name for path in site.output().parent.iterdir()) == ["output", "record.json"]


def test_a_signal_ends_a_transfer(site: RemoteSite, remote: RemoteEngine) -> None:
    before = remote.left()
    site.make_huge_input()
    process = site.start(flow("true"))
    try:
        wait_until(lambda: remote.left() == (before[0] + 1, before[1] + 2), seconds=30, what="an input is sent")
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
    finally:
        process.kill()
    assert remote.left() == before


def test_a_host_that_lost_its_power_is_noticed_by_its_silence(remote: RemoteEngine) -> None:
    with connected(remote.address) as client:
        client.containers.create("busybox", "true", name="silent")
        attached = client.api.attach_socket("silent", params={"stdout": 1, "stream": 1})
        assert attached.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert attached.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 30
        client.api.remove_container("silent")


def test_an_engine_that_nobody_reaches_may_come_back(tmp_path: Path) -> None:
    address = EngineAddress(url=f"tcp://127.0.0.1:{unused_port()}")
    with pytest.raises(EngineUnavailableError, match=f"no Docker engine answers at {address.url}: see that it runs"):
        RemoteSite(tmp_path, address).run(flow("true"))


@pytest.fixture(scope="module")
def mortal() -> Iterator[RemoteEngine]:
    """An engine that a test may end, if it is there again afterwards."""
    with remote_engine("busybox") as engine:
        yield engine


def test_an_engine_that_ends_while_a_model_runs(tmp_path: Path, mortal: RemoteEngine) -> None:
    site = RemoteSite(tmp_path, mortal.address)
    with when_it_says("runs") as said:

        def end_it() -> bool:
            if said.is_set():
                mortal.stop()
                said.clear()
            return False

        with pytest.raises(EngineUnavailableError):
            site.run(flow("trap exit TERM; echo runs; sleep 1000 & wait"), is_halted=end_it)
    mortal.start()
    assert mortal.left() != (0, 0)
    assert site.run(flow("cp /input/* /output/")).file_count == 1
    assert mortal.left() == (0, 0)


@pytest.mark.parametrize("silent", [False, True], ids=["ends", "falls silent"])
def test_an_engine_that_is_gone_while_an_output_comes(
    tmp_path: Path, mortal: RemoteEngine, monkeypatch: pytest.MonkeyPatch, silent: bool
) -> None:
    monkeypatch.setattr("flows_engine.docker_connection._TIMEOUT_SECONDS", 3.0)
    site = RemoteSite(tmp_path, mortal.address)
    gone: list[bool] = []

    def end_it() -> bool:
        if not gone and any(site.output().parent.glob(".output-*/big")):
            gone.append(True)
            if silent:
                mortal.send_signal(signal.SIGSTOP)
            else:
                mortal.stop()
        return False

    try:
        with pytest.raises(EngineUnavailableError):
            site.run(flow("truncate -s 1G /output/big"), is_halted=end_it)
    finally:
        if silent:
            mortal.send_signal(signal.SIGCONT)
        else:
            mortal.start()
    assert list(site.output().iterdir()) == []
    assert site.run(flow("cp /input/* /output/")).file_count == 1
    assert mortal.left() == (0, 0)


def test_an_engine_without_room_is_told(tmp_path: Path) -> None:
    with remote_engine("busybox", data_size="64m") as engine:
        site = RemoteSite(tmp_path, engine.address)
        (site.input / "CANARYSURNAME").mkdir()
        with (site.input / "CANARYSURNAME" / "big").open("wb") as file:
            file.truncate(200 * MB)
        with pytest.raises(NoSpaceError, match="the Docker engine has no room left") as told:
            site.run(flow("true"))
        assert not leaked_canaries(str(told.value))
        assert engine.left() == (0, 0)


class TestTls:
    """What is wrong with certificates is told by the file that has to be put right."""

    @pytest.mark.parametrize("file", ["ca.pem", "cert.pem", "key.pem"])
    def test_a_file_that_is_not_there(self, remote: RemoteEngine, tmp_path: Path, file: str) -> None:
        folder = self.copy(remote, tmp_path)
        (folder / file).unlink()
        self.assert_told(remote, folder, f"DOCKER_CERT_PATH: {folder / file} cannot be read: No such file")

    def test_an_authority_that_did_not_sign_the_engines(self, remote: RemoteEngine, tmp_path: Path) -> None:
        folder = self.copy(remote, tmp_path)
        other = make_certificates(tmp_path / "others", address="192.0.2.1")
        (folder / "ca.pem").write_bytes((other / "ca.pem").read_bytes())
        self.assert_told(remote, folder, f"{folder / 'ca.pem'} \\(DOCKER_CERT_PATH\\) does not vouch for it")

    def test_a_certificate_that_the_engine_does_not_know(self, remote: RemoteEngine, tmp_path: Path) -> None:
        folder = self.copy(remote, tmp_path)
        other = make_certificates(tmp_path / "others", address="192.0.2.1")
        for name in ("cert.pem", "key.pem"):
            (folder / name).write_bytes((other / name).read_bytes())
        self.assert_told(remote, folder, f"it does not accept {folder / 'cert.pem'} \\(DOCKER_CERT_PATH\\)")

    @pytest.mark.parametrize("file", ["ca.pem", "cert.pem", "key.pem"])
    def test_a_file_that_is_no_certificate(self, remote: RemoteEngine, tmp_path: Path, file: str) -> None:
        folder = self.copy(remote, tmp_path)
        (folder / file).write_text("nothing")
        self.assert_told(remote, folder, f"{folder} \\(DOCKER_CERT_PATH\\) has a ca.pem")

    def test_an_engine_that_wants_tls(self, remote: RemoteEngine) -> None:
        self.assert_told(remote, None, "it wants TLS; set DOCKER_TLS_VERIFY=1")

    def test_an_engine_that_speaks_none(self, remote: RemoteEngine) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:

            def answer() -> None:
                connection, _ = server.accept()
                with connection:
                    connection.recv(1000)
                    connection.sendall(b"HTTP/1.0 400 Bad Request\r\n\r\n")

            threading.Thread(target=answer, daemon=True).start()
            url = f"tcp://127.0.0.1:{server.getsockname()[1]}"
            self.assert_told(remote, remote.address.certificates, "it does not speak TLS", url=url)

    def test_authorities_for_the_internet_have_no_say(
        self, remote: RemoteEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        other = make_certificates(tmp_path / "others", address="192.0.2.1")
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(other / "ca.pem"))
        with connected(remote.address) as client:
            assert client.ping()

    def copy(self, remote: RemoteEngine, folder: Path) -> Path:
        assert remote.address.certificates is not None
        for path in remote.address.certificates.iterdir():
            (folder / path.name).write_bytes(path.read_bytes())
        return folder

    def assert_told(self, remote: RemoteEngine, folder: Path | None, said: str, *, url: str | None = None) -> None:
        address = replace(remote.address, certificates=folder, url=url or remote.address.url)
        with pytest.raises(EngineMisconfiguredError, match=said), connected(address) as client:
            client.ping()
