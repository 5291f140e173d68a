"""Definitions on a real Prefect server: what is made, what is changed, and what is left alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from uuid import UUID

import httpx
import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import DeploymentUpdate
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.responses import DeploymentResponse
from prefect.context import refresh_global_settings_context
from prefect.exceptions import PrefectHTTPStatusError
from prefect.states import Completed, Failed

from deployments.apply import apply, bring_into_step, plan_changes
from deployments.deploy import deploy_definitions
from deployments.parameter_schemas import process_study_schema
from deployments.plan import ENTRYPOINT, REPROCESS_ENTRYPOINT
from flows_engine.definition.naming import REPROCESS_DEPLOYMENT_NAME, instance_tag
from flows_engine.definition.schema import FlowDefinition
from flows_engine.handoff.installation import instance_id
from flows_engine.handoff.site_settings import SiteSettings
from tests import services
from tests.factories import run_parameters
from tests.fakes.interrupted_server import InterruptedServer
from tests.fakes.tcp_door import TcpDoor
from tests.services import wait_until

pytestmark = pytest.mark.prefect

SMALLEST = "triggers: [{Modality: CT}]\nmodels: [{docker_kwargs: {image: hello-world}}]\n"


@pytest.fixture
def client(empty_prefect: str) -> Iterator[SyncPrefectClient]:
    with get_client(sync_client=True) as client:
        yield client


@pytest.fixture
def no_pools(empty_prefect: str) -> None:
    services.empty_prefect_server(empty_prefect, pools=True)


@pytest.fixture
def site(tmp_path: Path) -> SiteSettings:
    settings = SiteSettings(data_dir=tmp_path / "data", flow_directory=tmp_path / "flows")
    settings.flow_directory.mkdir()
    return settings


@pytest.fixture
def deploy(site: SiteSettings, client: SyncPrefectClient, capsys: pytest.CaptureFixture[str]):
    """Deploy the site's folder; give exit status, lines of stdout, lines of stderr."""

    def run(*, dry_run: bool = False) -> tuple[int, list[str], list[str]]:
        capsys.readouterr()
        status = deploy_definitions(site, dry_run=dry_run)
        out, err = capsys.readouterr()
        return status, out.splitlines(), err.splitlines()

    return run


def definition(name: str, **values: object) -> FlowDefinition:
    document = {"name": name, "triggers": [{"Modality": "CT"}], "models": [{"docker_kwargs": {"image": "busybox"}}]}
    return FlowDefinition.model_validate({**document, **values})


def deployed(client: SyncPrefectClient) -> dict[str, DeploymentResponse]:
    """Return all deployments by name, but for the one that processes again, which every installation has."""
    found = client.read_deployments()
    return {deployment.name: deployment for deployment in found if deployment.entrypoint != REPROCESS_ENTRYPOINT}


def queues(client: SyncPrefectClient, pool: str) -> list[str]:
    """Return the queues of a pool, the one that is served first at the front."""
    found = client.read_work_queues(work_pool_name=pool)
    return [f"{queue.priority} {queue.name}" for queue in sorted(found, key=lambda queue: queue.priority or 0)]


def waiting_run(client: SyncPrefectClient, name: str) -> FlowRun:
    return client.create_flow_run_from_deployment(
        deployed(client)[name].id,
        parameters=run_parameters(),
    )


def test_pools_have_queues_in_the_order_of_our_priorities_and_prefects_own_last(
    no_pools: None, client: SyncPrefectClient
):
    bring_into_step(client, [definition("A", models=[{"docker_kwargs": {"image": "a"}, "gpu": "a100"}])])

    pools = {pool.name: pool for pool in client.read_work_pools()}
    assert sorted(pools) == ["cpu", "gpu", "gpu-a100"]
    for name, pool in pools.items():
        assert pool.type == "dicomflow"
        assert queues(client, name) == [
            *(f"{number} priority-{priority}" for number, priority in enumerate((5, 4, 3, 2, 1, 0), start=1)),
            "7 background",
            "8 default",
        ]


def test_a_deployment_is_what_its_definition_says(client: SyncPrefectClient):
    wanted = definition(
        "Thorax",
        version="1.02",
        priority=4,
        models=[{"docker_kwargs": {"image": "seg:1", "environment": {"N": 0}}, "gpu": True}],
        destinations=[{"host": "pacs", "port": 104, "ae_title": "PACS"}],
    )

    bring_into_step(client, [wanted])

    (found,) = client.read_deployments()
    assert (found.name, found.version, found.entrypoint, found.paused) == ("Thorax", "1.02", ENTRYPOINT, False)
    assert sorted(found.tags) == ["dicomflow", "priority:4", "version:1.02"]
    assert (found.work_pool_name, found.work_queue_name) == ("gpu", "priority-4")
    assert "some instance has `Modality` matches `CT`" in (found.description or "")
    assert "1. `seg:1`" in (found.description or "")
    assert FlowDefinition.model_validate(found.parameters["definition"]) == wanted
    assert found.parameter_openapi_schema == process_study_schema()
    assert found.enforce_parameter_schema
    assert client.read_flow(found.flow_id).name == "process-study"


NAMES = ["two words", "Kopf-Hals 🩻", "頭頸部", "x" * 200, 'it\'s "A"', "a+b;c=d@e:f", "A", "a"]


def test_any_name_is_made_left_alone_changed_and_deleted(client: SyncPrefectClient):
    bring_into_step(client, [definition(name) for name in NAMES], instance_id="this")

    assert sorted(deployed(client)) == sorted(NAMES)
    assert plan_changes(client, [definition(name) for name in NAMES], instance_id="this") == ()

    left = [definition(name, version="2") for name in NAMES[1:]]
    changed = bring_into_step(client, left, instance_id="this")
    assert [str(change) for change in changed] == [
        *(f"update {name}: version, tags, parameters" for name in NAMES[1:]),
        f"pause {NAMES[0]}: its definition is gone; a later deploy deletes it, unless runs turn up",
    ]
    assert deployed(client)[NAMES[0]].paused
    assert [str(change) for change in bring_into_step(client, left, instance_id="this")] == [
        f"delete {NAMES[0]}: its definition is gone; the history of its runs stays"
    ]
    assert {found.version for found in deployed(client).values()} == {"2"}
    assert sorted(deployed(client)) == sorted(NAMES[1:])


def test_a_second_run_changes_nothing_and_says_so(
    no_pools: None, deploy, site: SiteSettings, client: SyncPrefectClient
):
    (site.flow_directory / "a.yaml").write_text(SMALLEST)
    (site.flow_directory / "b.yaml").write_text(SMALLEST + "priority: 5\n")

    status, out, err = deploy()
    assert (status, err) == (0, [])
    assert out[0] == "create pool cpu"
    assert out[-3:] == [
        "create a: pool cpu, queue priority-0",
        "create b: pool cpu, queue priority-5",
        "create reprocess/study: pool gateway, queue default",
    ]
    before = deployed(client)

    assert deploy() == (0, ["all 2 deployments are as their definitions say"], [])
    assert {name: found.updated for name, found in deployed(client).items()} == {
        name: found.updated for name, found in before.items()
    }


def everything(client: SyncPrefectClient) -> object:
    """Return all that a deploy could change: of runs the tags, for their states change with the time."""
    kinds = ("deployments", "work_pools", "work_queues", "v2/concurrency_limits", "flows")
    runs = {run.id: run.tags for run in client.read_flow_runs()}
    return runs, [client.request("POST", f"/{kind}/filter", json={}).json() for kind in kinds]


def test_a_plan_is_printed_and_nothing_is_changed(
    no_pools: None, deploy, site: SiteSettings, client: SyncPrefectClient
):
    for name in ("kept", "changed", "removed", "busy", "moved"):
        (site.flow_directory / f"{name}.yaml").write_text(SMALLEST)
    fresh = everything(client)
    status, planned, _ = deploy(dry_run=True)
    assert (status, everything(client)) == (0, fresh)
    assert not site.data_dir.exists()
    assert deploy()[1] == planned

    waiting_run(client, "busy")
    for name in ("removed", "busy"):
        (site.flow_directory / f"{name}.yaml").unlink()
    (site.flow_directory / "changed.yaml").write_text(SMALLEST + "concurrency_limit: 2\nversion: 7\n")
    (site.flow_directory / "moved.yaml").write_text(SMALLEST.replace("}}]", "}, gpu: a100}]") + "priority: 3\n")
    (site.flow_directory / "new.yaml").write_text(SMALLEST)
    before = everything(client)

    status, planned, err = deploy(dry_run=True)

    assert (status, err, everything(client)) == (0, [], before)
    assert planned == [
        "create pool gpu-a100",
        *(
            f"create queue gpu-a100/priority-{priority}: Prefect priority {6 - priority}"
            for priority in (5, 4, 3, 2, 1, 0)
        ),
        "create queue gpu-a100/background: Prefect priority 7",
        "update changed: version, tags, parameters, concurrency_limit, collision_strategy",
        "update moved: version, tags, work_pool, work_queue, parameters",
        "create new: pool cpu, queue priority-0",
        "pause busy: its definition is gone; it has runs that are not over",
        "pause removed: its definition is gone; a later deploy deletes it, unless runs turn up",
    ]
    assert deploy()[1] == planned
    assert deploy(dry_run=True)[1] == ["delete removed: its definition is gone; the history of its runs stays"]


def test_what_changed_in_a_file_is_changed_and_printed(deploy, site: SiteSettings, client: SyncPrefectClient):
    file = site.flow_directory / "a.yaml"
    file.write_text(SMALLEST)
    deploy()
    before = deployed(client)["a"]

    file.write_text("version: 2\npriority: 3\n" + SMALLEST)

    assert deploy() == (0, ["update a: version, tags, work_queue, parameters"], [])
    after = deployed(client)["a"]
    assert (after.id, after.version, after.work_queue_name) == (before.id, "2", "priority-3")
    assert sorted(after.tags) == ["dicomflow", instance_tag(instance_id(site.data_dir)), "priority:3", "version:2"]


def test_what_was_changed_by_hand_is_set_right_but_for_a_pause(client: SyncPrefectClient):
    bring_into_step(client, [definition("A")])
    client.update_deployment(deployed(client)["A"].id, DeploymentUpdate(paused=True, description="by hand"))

    (change,) = bring_into_step(client, [definition("A")])

    assert str(change) == "update A: description"
    assert deployed(client)["A"].paused


def test_a_deployment_without_definition_is_paused_while_a_run_waits_and_then_deleted(
    deploy, site: SiteSettings, client: SyncPrefectClient
):
    for name in ("busy", "idle", "kept"):
        (site.flow_directory / f"{name}.yaml").write_text(SMALLEST)
    deploy()
    run = waiting_run(client, "busy")
    for name in ("busy", "idle"):
        (site.flow_directory / f"{name}.yaml").unlink()

    assert deploy()[1] == [
        "pause busy: its definition is gone; it has runs that are not over",
        "pause idle: its definition is gone; a later deploy deletes it, unless runs turn up",
    ]
    assert deployed(client)["busy"].paused
    assert client.read_flow_run(run.id).state_name == "Scheduled"
    assert deploy()[1] == ["delete idle: its definition is gone; the history of its runs stays"]
    assert deploy()[1] == ["all 1 deployments are as their definitions say"]

    client.set_flow_run_state(run.id, Failed(), force=True)
    assert deploy()[1] == ["all 1 deployments are as their definitions say"]

    client.set_flow_run_state(run.id, Completed(), force=True)
    assert deploy()[1] == ["delete busy: its definition is gone; the history of its runs stays"]
    assert list(deployed(client)) == ["kept"]
    assert client.read_flow_run(run.id).state_name == "Completed"


def test_runs_that_wait_say_that_their_definition_is_gone_until_it_comes_back(client: SyncPrefectClient):
    bring_into_step(client, [definition("A"), definition("B")], instance_id="this")
    description = deployed(client)["A"].description
    waiting, over, others = waiting_run(client, "A"), waiting_run(client, "A"), waiting_run(client, "B")
    client.set_flow_run_state(over.id, Completed(), force=True)

    bring_into_step(client, [definition("B")], instance_id="this")

    gone = deployed(client)["A"]
    late = waiting_run(client, "A")  # of a study that had matched a moment before
    assert "definition-gone" in gone.tags
    assert (gone.description or "").startswith("**The definition of this flow is gone.**")
    says_so = {run.id: "definition-gone" in client.read_flow_run(run.id).tags for run in (waiting, late, over, others)}
    assert says_so == {waiting.id: True, late.id: True, over.id: False, others.id: False}
    assert "priority:0" in client.read_flow_run(waiting.id).tags

    (back,) = bring_into_step(client, [definition("A"), definition("B")], instance_id="this")

    assert str(back) == "update A: description, tags, paused"
    assert (deployed(client)["A"].description, deployed(client)["A"].paused) == (description, False)
    for run in (waiting, late):
        assert "definition-gone" not in client.read_flow_run(run.id).tags
        assert client.read_flow_run(run.id).state_name == "Scheduled"


def test_where_a_plain_request_fails_prefects_own_client_does_the_rest(
    deploy, site: SiteSettings, client: SyncPrefectClient, empty_prefect: str, monkeypatch: pytest.MonkeyPatch
):
    (site.flow_directory / "A.yaml").write_text(SMALLEST)
    (site.flow_directory / "B.yaml").write_text(SMALLEST)
    with Refusing(empty_prefect, "python-httpx", "/api/deployments/") as front, monkeypatch.context() as environment:
        environment.setenv("PREFECT_API_URL", front.url)
        refresh_global_settings_context()

        status, told, _ = deploy()
    refresh_global_settings_context()

    assert status == 0
    assert sorted(deployed(client)) == ["A", "B"]
    assert {"create A: pool cpu, queue priority-0", "create B: pool cpu, queue priority-0"} <= set(told)
    assert len(told) == len(set(told))
    assert front.refused == 1


def test_what_only_prefects_client_knows_of_reaches_the_server(
    deploy, site: SiteSettings, empty_prefect: str, monkeypatch: pytest.MonkeyPatch
):
    """A proxy that wants a header: it is set as Prefect's settings have it, once for all of its clients."""
    (site.flow_directory / "A.yaml").write_text(SMALLEST)
    with Refusing(empty_prefect, "python-httpx", "/") as front, monkeypatch.context() as environment:
        environment.setenv("PREFECT_API_URL", front.url)
        environment.setenv("PREFECT_CLIENT_CUSTOM_HEADERS", '{"X-Site": "here"}')
        refresh_global_settings_context()

        status, _, _ = deploy()
    refresh_global_settings_context()

    assert (status, front.refused) == (0, 0)


class Refusing(InterruptedServer):
    """Answers 503 to what ``agent`` sends to ``path``, or to any path below it where that is the root."""

    def __init__(self, url: str, agent: str, path: str) -> None:
        super().__init__(url)
        self._agent, self._path = agent, path
        self.refused = 0

    def _refuses(self, agent: str, path: str) -> bool:
        refuses = agent.startswith(self._agent) and self._path in ("/", path)
        self.refused += refuses
        return refuses


def test_wherever_a_deploy_is_cut_off_another_one_gets_everything_right(
    client: SyncPrefectClient, empty_prefect: str, monkeypatch: pytest.MonkeyPatch
):
    """Each try is let through one request more than the last, then answered 503."""
    bring_into_step(client, [definition(name) for name in ("changed", "gone", "back")], instance_id="this")
    runs = {name: waiting_run(client, name) for name in ("gone", "back")}
    bring_into_step(client, [definition("changed"), definition("gone")], instance_id="this")
    wanted = [definition(name, version="2") for name in ("changed", "new", "back")]
    wanted.append(definition("elsewhere", version="2", models=[{"docker_kwargs": {"image": "a"}, "gpu": "a100"}]))

    with InterruptedServer(empty_prefect) as front, monkeypatch.context() as environment:
        environment.setenv("PREFECT_API_URL", front.url)
        refresh_global_settings_context()
        for tries in range(1, 100):
            front.requests_left = tries
            try:
                with get_client(sync_client=True) as interrupted:
                    bring_into_step(interrupted, wanted, instance_id="this")
            except PrefectHTTPStatusError:
                continue
            break
    refresh_global_settings_context()

    assert tries > 10
    assert plan_changes(client, wanted, instance_id="this") == ()
    found = deployed(client)
    right = {name for name, one in found.items() if (one.version, one.paused) == ("2", False)}
    assert right == {"changed", "new", "back", "elsewhere"}
    assert found["gone"].paused
    tags = {name: client.read_flow_run(run.id).tags for name, run in runs.items()}
    assert "definition-gone" in tags["gone"]
    assert "definition-gone" not in tags["back"]
    assert queues(client, "gpu-a100") == queues(client, "cpu")


def test_a_server_that_is_killed_in_mid_deploy_and_started_again_has_everything_in_the_end(
    site: SiteSettings, tmp_path: Path
):
    flows = {f"flow {number:02}" for number in range(40)}
    for name in flows:
        (site.flow_directory / f"{name}.yaml").write_text(SMALLEST)
    names = {*flows, REPROCESS_DEPLOYMENT_NAME}
    log, port = tmp_path / "gateway.log", services.unused_port()

    def held(url: str) -> list[str]:
        answer = httpx.post(f"{url}/deployments/filter", json={}, timeout=30)
        return [found["name"] for found in answer.raise_for_status().json()]

    with (
        services.postgres(tmp_path) as database,
        services.prefect_server_on(database, folder=tmp_path, port=port) as (url, server),
        gateway(site, url, log) as keeper,
    ):
        wait_until(lambda: bool(held(url)), seconds=120, what="the first deployment")
        server.kill()
        server.wait()
        wait_until(lambda: "cannot be brought into step" in log.read_text(), seconds=30, what="a try in vain")
        with services.prefect_server_on(database, folder=tmp_path, port=port):
            before = set(held(url))
            wait_until(lambda: set(held(url)) == names, seconds=180, what="all deployments")
            assert before < names
            assert len(held(url)) == len(names)
            assert keeper.poll() is None


def test_a_run_that_was_made_after_the_plan_keeps_its_deployment(client: SyncPrefectClient):
    bring_into_step(client, [definition("A")], instance_id="this")
    bring_into_step(client, [], instance_id="this")
    (planned,) = plan_changes(client, [], instance_id="this")
    assert planned.action == "delete"
    run = waiting_run(client, "A")

    apply(client, [planned])

    assert list(deployed(client)) == ["A"]
    assert client.read_flow_run(run.id).state_name == "Scheduled"


def test_installations_do_not_delete_each_others_deployments(client: SyncPrefectClient):
    bring_into_step(client, [definition("A")], instance_id="this")
    bring_into_step(client, [definition("B")], instance_id="other")

    for _ in range(2):
        assert bring_into_step(client, [], instance_id="third") == ()
        bring_into_step(client, [], instance_id="other")

    assert list(deployed(client)) == ["A"]


def test_a_deployment_that_is_not_ours_is_left_alone(client: SyncPrefectClient):
    flow_id = client.create_flow_from_name("somebody-elses")
    client.create_deployment(flow_id=flow_id, name="nightly", tags=["theirs"])

    for definitions in ([definition("A")], [], []):
        bring_into_step(client, definitions, instance_id="this")

    assert list(deployed(client)) == ["nightly"]


def test_several_deploys_at_once_end_right(no_pools: None, client: SyncPrefectClient):
    wanted = [definition(f"flow {priority}", priority=priority) for priority in (0, 3, 5)]

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(bring_into_step_with_a_client_of_its_own, [wanted] * 3))

    assert plan_changes(client, wanted, instance_id="this") == ()
    assert queues(client, "cpu") == queues(client, "gpu")
    assert queues(client, "cpu")[0] == "1 priority-5"
    assert queues(client, "cpu")[-2:] == ["7 background", "8 default"]

    for _ in range(2):
        with ThreadPoolExecutor(3) as pool:
            list(pool.map(bring_into_step_with_a_client_of_its_own, [[]] * 3))
    assert deployed(client) == {}


def bring_into_step_with_a_client_of_its_own(definitions: list[FlowDefinition]) -> None:
    with get_client(sync_client=True) as own:
        bring_into_step(own, definitions, instance_id="this")


def test_a_pool_that_was_made_half_way_is_completed(client: SyncPrefectClient):
    bring_into_step(client, [])
    for name in ("priority-5", "priority-3", "priority-0"):
        client.delete_work_queue_by_id(_queue_id(client, name))

    bring_into_step(client, [])

    assert [line.split()[1] for line in queues(client, "cpu")] == [
        *(f"priority-{priority}" for priority in (5, 4, 3, 2, 1, 0)),
        "background",
        "default",
    ]


def _queue_id(client: SyncPrefectClient, name: str) -> UUID:
    (queue,) = (queue for queue in client.read_work_queues(work_pool_name="cpu") if queue.name == name)
    return queue.id


def test_a_bad_file_is_reported_and_the_others_are_deployed(deploy, site: SiteSettings, client: SyncPrefectClient):
    (site.flow_directory / "bad.yaml").write_text('version: "1.02\n' + SMALLEST)
    (site.flow_directory / "good.yaml").write_text(SMALLEST)

    status, out, err = deploy()

    assert status == 1
    assert any(line.startswith(f"{site.flow_directory}/bad.yaml:") for line in err)
    assert "create good: pool cpu, queue priority-0" in out
    assert list(deployed(client)) == ["good"]


def test_a_file_that_becomes_bad_keeps_its_deployment(deploy, site: SiteSettings, client: SyncPrefectClient):
    file = site.flow_directory / "a.yaml"
    file.write_text(SMALLEST)
    deploy()

    file.write_text(SMALLEST + "priority: 9\n")
    status, out, err = deploy()

    assert (status, out) == (1, ["all 1 deployments are as their definitions say"])
    assert any("priority" in line for line in err)
    assert list(deployed(client)) == ["a"]


@contextmanager
def gateway(site: SiteSettings, api_url: str, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    environment = {
        **services.prefect_environment(site.data_dir, api_url=api_url),
        **site.as_environment(),
        "AE_HOSTNAME": "127.0.0.1",
        "AE_PORT": "0",
    }
    command = [sys.executable, "-m", "deployments.cli", "gateway"]
    with services.running(command, log=log, environment=environment) as process:
        yield process


def test_the_gateway_keeps_deployments_in_step_with_the_folder_and_waits_for_prefect(
    site: SiteSettings, client: SyncPrefectClient, empty_prefect: str, tmp_path: Path
):
    log = tmp_path / "gateway.log"
    (site.flow_directory / "a.yaml").write_text(SMALLEST)

    with TcpDoor(empty_prefect) as door, gateway(site, door.url, log) as process:
        wait_until(lambda: "cannot be brought into step" in log.read_text(), seconds=30, what="a try without Prefect")
        door.open()
        wait_until(lambda: "a" in deployed(client), seconds=15, what="the first deployment")

        (site.flow_directory / "b.yaml").write_text(SMALLEST)
        wait_until(lambda: "b" in deployed(client), seconds=15, what="a file that was added")
        (site.flow_directory / "a.yaml").write_text("version: 2\n" + SMALLEST)
        wait_until(lambda: deployed(client)["a"].version == "2", seconds=15, what="a file that was changed")
        (site.flow_directory / "b.yaml").unlink()
        wait_until(lambda: "b" not in deployed(client), seconds=30, what="a file that was removed")

        door.shut()
        (site.flow_directory / "c.yaml").write_text(SMALLEST)
        tries = log.read_text().count("cannot be brought into step")
        wait_until(
            lambda: log.read_text().count("cannot be brought into step") > tries,
            seconds=15,
            what="a try while Prefect is away",
        )
        began = time.monotonic()
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait(timeout=20) == 0
        assert time.monotonic() - began < 10
    assert "Traceback" not in log.read_text()
    assert deployed(client).keys() == {"a"}
