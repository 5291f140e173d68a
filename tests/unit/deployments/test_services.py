from __future__ import annotations

import os
import ssl
import sys
from pathlib import Path

import pytest
from prefect.settings.models.results import ResultsSettings

from deployments.services import HostFacts, HostPlan, host_plan

DATA = Path("/srv/ward 3 100%/data")


def planned(environ: dict[str, str] | None = None, **values: object) -> HostPlan:
    facts = {
        "data_dir": DATA,
        "host_name": "gpu-host",
        "cpu_slots": 2,
        "gpus": (),
        "gpu_slots": 1,
        "gpu_kind": None,
        "environ": environ or {},
        "settings_environment": {"DATA_DIR": str(DATA), "AE_PORT": "10000"},
    }
    return host_plan(HostFacts(**{**facts, **values}))


def names(plan: HostPlan) -> list[str]:
    return [service.name for service in sorted(plan.services, key=lambda service: service.rank)]


def test_a_host_without_configuration_runs_everything_in_the_order_of_need():
    plan = planned()

    assert names(plan) == ["postgres", "prefect-server", "gateway", "worker-cpu", "worker-gateway"]
    assert plan.api_url == "http://127.0.0.1:4200/api"
    assert plan.ui_url == "http://127.0.0.1:4200"


def test_gpus_bring_a_worker_with_the_slots_that_are_set():
    plan = planned(gpus=("0", "2"), gpu_slots=6)

    (worker,) = (service for service in plan.services if service.name.startswith("worker-gpu"))
    assert worker.command[-6:] == ("--pool", "gpu", "--name", "gpu-host-gpu", "--slots", "6")


def test_a_kind_of_gpu_brings_a_second_worker_beside_that_of_any_gpu():
    plan = planned(gpus=("0",), gpu_slots=3, gpu_kind="a100")

    workers = {service.name: service.command[-6:] for service in plan.services if "gpu" in service.name}
    assert workers == {
        "worker-gpu": ("--pool", "gpu", "--name", "gpu-host-gpu", "--slots", "3"),
        "worker-gpu-a100": ("--pool", "gpu-a100", "--name", "gpu-host-gpu-a100", "--slots", "3"),
    }


def test_a_kind_without_gpus_brings_no_worker():
    assert not any("gpu" in service.name for service in planned(gpu_kind="a100").services)


def test_a_site_with_its_own_server_gets_neither_server_nor_database():
    plan = planned({"PREFECT_API_URL": "http://prefect.hospital:4200/api"})

    assert names(plan) == ["gateway", "worker-cpu", "worker-gateway"]
    assert plan.environment["PREFECT_API_URL"] == plan.api_url == "http://prefect.hospital:4200/api"
    assert "PREFECT_API_DATABASE_CONNECTION_URL" not in plan.environment


def test_a_site_with_its_own_database_gets_a_server_that_does_not_wait_for_ours():
    database = "postgresql+asyncpg://prefect@db/prefect"

    plan = planned({"PREFECT_API_DATABASE_CONNECTION_URL": database})

    assert names(plan) == ["prefect-server", "gateway", "worker-cpu", "worker-gateway"]
    assert plan.environment["PREFECT_API_DATABASE_CONNECTION_URL"] == database
    (server,) = (service for service in plan.services if service.name == "prefect-server")
    assert "deployments.when_ready" not in server.command


def test_the_server_listens_on_the_loopback_interface_alone_at_the_port_that_the_site_names():
    plan = planned({"PREFECT_SERVER_API_PORT": "4711"})

    (server,) = (service for service in plan.services if service.name == "prefect-server")
    assert server.command[-4:] == ("--host", "127.0.0.1", "--port", "4711")
    assert plan.api_url == "http://127.0.0.1:4711/api"


def test_a_worker_waits_until_its_pool_is_whole():
    (worker,) = (service for service in planned().services if service.name == "worker-cpu")

    waits_for = worker.command[worker.command.index("deployments.when_ready") + 1]
    assert waits_for == "http://127.0.0.1:4200/api/work_pools/cpu/queues/background"


def test_requests_to_process_again_have_a_worker_of_their_own_with_some_slots():
    (worker,) = (service for service in planned().services if service.name == "worker-gateway")

    assert worker.command[-6:] == ("--pool", "gateway", "--name", "gpu-host-gateway", "--slots", "8")
    waits_for = worker.command[worker.command.index("deployments.when_ready") + 1]
    assert waits_for == "http://127.0.0.1:4200/api/work_pools/gateway/queues/default"


def test_postgres_is_stopped_by_the_signal_that_does_not_wait_for_its_clients():
    (postgres,) = (service for service in planned().services if service.name == "postgres")

    assert (postgres.stop_signal, postgres.command[-1]) == ("INT", str(DATA / "postgres"))


@pytest.mark.parametrize(
    ("name", "value"), [("DO_NOT_TRACK", "1"), ("PREFECT_SERVER_ANALYTICS_ENABLED", "false")], ids=str
)
def test_nothing_is_reported_to_anyone_unless_the_site_says_so(name: str, value: str):
    assert planned().environment[name] == value
    assert planned({name: "other"}).environment[name] == "other"


def test_settings_win_over_what_the_environment_held():
    plan = planned({"AE_PORT": "104", "HOME": "/home/admin"})

    assert plan.environment["AE_PORT"] == "10000"
    assert plan.environment["HOME"] == "/home/admin"


def test_runs_are_started_by_this_interpreter():
    first, *others = planned({"PATH": "/usr/bin:/bin"}).environment["PATH"].split(os.pathsep)

    assert Path(first) == Path(sys.executable).parent
    assert others == ["/usr/bin", "/bin"]


def test_prefect_keeps_its_own_files_in_the_data_folder_unless_the_site_says_where():
    assert planned().environment["PREFECT_HOME"] == str(DATA / "prefect")
    assert planned({"PREFECT_HOME": "/var/prefect"}).environment["PREFECT_HOME"] == "/var/prefect"


def test_results_lie_in_the_data_folder_wherever_prefect_keeps_its_own_files():
    results = str(DATA / "prefect" / "storage")
    assert planned().environment["PREFECT_RESULTS_LOCAL_STORAGE_PATH"] == results
    assert planned({"PREFECT_HOME": "/var/prefect"}).environment["PREFECT_RESULTS_LOCAL_STORAGE_PATH"] == results


@pytest.mark.parametrize("name", ["PREFECT_RESULTS_LOCAL_STORAGE_PATH", "PREFECT_LOCAL_STORAGE_PATH"])
def test_where_a_site_says_where_results_lie_by_either_of_prefects_names_they_lie_there(monkeypatch, name):
    for known in ("PREFECT_RESULTS_LOCAL_STORAGE_PATH", "PREFECT_LOCAL_STORAGE_PATH"):
        monkeypatch.delenv(known, raising=False)
    planned_for = planned({name: "/of/the/site"}).environment
    for variable in planned_for.keys() & {"PREFECT_RESULTS_LOCAL_STORAGE_PATH", "PREFECT_LOCAL_STORAGE_PATH"}:
        monkeypatch.setenv(variable, planned_for[variable])
    assert ResultsSettings().local_storage_path == Path("/of/the/site")


def test_clients_of_our_own_server_read_no_certificates_which_it_does_not_use():
    named = planned().environment["PREFECT_API_SSL_CERT_FILE"]

    (only,) = ssl.create_default_context(cafile=named).get_ca_certs()
    assert ssl.cert_time_to_seconds(only["notAfter"]) < ssl.cert_time_to_seconds(only["notBefore"])
    assert "PREFECT_API_SSL_CERT_FILE" not in planned({"PREFECT_API_URL": "https://prefect.hospital/api"}).environment
    assert planned({"PREFECT_API_SSL_CERT_FILE": "/a.pem"}).environment["PREFECT_API_SSL_CERT_FILE"] == "/a.pem"


def test_whoever_asks_a_protected_server_of_ours_has_its_credentials():
    plan = planned({"PREFECT_SERVER_API_AUTH_STRING": "admin:secret"})
    other = planned({"PREFECT_SERVER_API_AUTH_STRING": "admin:secret", "PREFECT_API_AUTH_STRING": "me:mine"})

    assert plan.environment["PREFECT_API_AUTH_STRING"] == "admin:secret"
    assert other.environment["PREFECT_API_AUTH_STRING"] == "me:mine"
    assert "PREFECT_API_AUTH_STRING" not in planned().environment
