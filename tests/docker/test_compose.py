"""What docker/ promises, as far as it can be seen without an engine; scenario.sh tries it with one."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from annotated_types import Le

from service.config import Config

PROJECT = Path(__file__).parents[2]
DOCKER = PROJECT / "docker"
COMPOSE = yaml.safe_load((DOCKER / "compose.yaml").read_text(encoding="utf-8"))
DOCKERFILE = (DOCKER / "Dockerfile").read_text(encoding="utf-8")
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
SERVERS = sorted(SERVICES.keys() - {"secrets"})
APP_USER = "10001:10001"

every_service = pytest.mark.parametrize("name", sorted(SERVICES))
every_server = pytest.mark.parametrize("name", SERVERS)


def environment(name: str) -> dict[str, str]:
    """The variables of a service; those that are passed on have no value."""
    return {variable: str(value or "") for variable, value in SERVICES[name].get("environment", {}).items()}


@every_service
def test_a_container_may_do_no_more_than_it_has_to(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["init"] is True
    assert not {"privileged", "devices", "pid", "ipc", "userns_mode"} & service.keys()


@every_service
def test_what_a_container_logs_is_bounded(name: str) -> None:
    assert SERVICES[name]["logging"] == {"driver": "json-file", "options": {"max-size": "10m", "max-file": "5"}}


@every_server
def test_a_server_is_kept_up_and_watched_and_may_finish_its_work(name: str) -> None:
    service = SERVICES[name]
    assert service["restart"] == "unless-stopped"
    assert service["stop_grace_period"] == "45s"
    assert service["healthcheck"]["test"][0] in ("CMD", "CMD-SHELL")
    assert "cap_add" not in service


def test_servers_do_not_run_as_root_and_nginx_has_the_uid_of_the_app() -> None:
    assert re.findall(r"^USER (.*)$", DOCKERFILE, re.MULTILINE) == [APP_USER]
    assert SERVICES["nginx"]["user"] == APP_USER
    assert SERVICES["postgres"]["user"] == "postgres"
    assert SERVICES["redis"]["user"] == "redis"


def test_the_only_container_of_root_ends_and_can_reach_nobody() -> None:
    service = SERVICES["secrets"]
    assert service["restart"] == "no"
    assert service["network_mode"] == "none"
    assert service["cap_add"] == ["CHOWN"]


def test_only_nginx_is_published_and_only_to_this_machine() -> None:
    ports = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert ports == {"nginx": ["127.0.0.1:${FILE_STORAGE_PORT:-9000}:9000"]}


def test_databases_can_be_reached_from_the_app_alone() -> None:
    members: dict[str, set[str]] = {network: set() for network in COMPOSE["networks"]}
    for name in SERVERS:
        for network in SERVICES[name]["networks"]:
            members[network].add(name)
    assert members == {"public": {"nginx"}, "database": {"app", "postgres"}, "cache": {"app", "redis"}}
    assert COMPOSE["networks"]["database"] == COMPOSE["networks"]["cache"] == {"internal": True}


@every_service
def test_nothing_of_this_folder_is_needed_at_run_time(name: str) -> None:
    volumes = [volume.split(":")[0] for volume in SERVICES[name].get("volumes", [])]
    assert set(volumes) <= COMPOSE["volumes"].keys()
    assert "env_file" not in SERVICES[name]


@every_service
def test_secrets_are_not_in_the_environment(name: str) -> None:
    for variable, value in environment(name).items():
        is_secret = re.search(r"PASSWORD|SECRET|DATABASE_URL", variable)
        assert not is_secret or variable.endswith("_FILE"), variable
        assert not re.search(r"://[^/]*@", value), variable


def test_secrets_are_mounted_where_they_are_needed_and_cannot_be_written_to() -> None:
    mounts = {(volume, name) for name in SERVERS for volume in SERVICES[name].get("volumes", [])
              if "secrets" in volume}
    assert mounts == {("app-secrets:/run/secrets:ro", "app"),
                      ("postgres-secrets:/docker-entrypoint-initdb.d:ro", "postgres")}


@pytest.mark.parametrize("image", [
    *(service["image"] for service in SERVICES.values() if "image" in service),
    *re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE)])
def test_images_have_a_version(image: str) -> None:
    assert re.fullmatch(r"[a-z]+:\d+(\.\d+)*(-slim)?", image)


def test_every_setting_is_passed_on_but_those_that_belong_to_the_containers() -> None:
    names = {variable.removeprefix("FILE_STORAGE_").removesuffix("_FILE").lower() for variable in environment("app")}
    assert names == Config.model_fields.keys() - {"data_root", "database_pool_size", "nginx"}


def test_postgres_has_a_connection_for_each_that_the_workers_may_open() -> None:
    found = re.search(r"max_connections=(\d+)", " ".join(SERVICES["postgres"]["command"]))
    most_workers = next(rule.le for rule in Config.model_fields["workers"].metadata if isinstance(rule, Le))
    assert found and int(found[1]) > most_workers * Config.model_fields["database_pool_size"].default


def test_only_what_is_named_gets_into_the_image() -> None:
    rules = [line for line in (PROJECT / ".dockerignore").read_text(encoding="utf-8").splitlines()
             if line and not line.startswith("#")]
    assert rules[0] == "*"
    sources = re.findall(r"^COPY ([^-\s]\S*) ", DOCKERFILE, re.MULTILINE)
    assert {rule[1:] for rule in rules if rule.startswith("!")} == set(sources)
    assert all((PROJECT / source).exists() for source in sources)


@pytest.mark.parametrize("name", ["scenario.sh", "client.sh"])
def test_the_scenario_is_a_valid_script(name: str) -> None:
    subprocess.run(["bash", "-n", Path(__file__).with_name(name)], check=True)
