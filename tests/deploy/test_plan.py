"""What the container of a configuration gets: address, port and limits."""

from dataclasses import replace

import pytest

from opendify.deploy.checking import ValidConfig, check
from opendify.deploy.env_files import parse_as_docker
from opendify.deploy.plan import InvalidAddress, Plan, PlanOptions, make_plan

GOOD = {"DIFY_API_BASE": "https://a.example/v1", "MODEL_CONFIG": '{"m":"app-key-of-this"}'}
NO_OPTIONS = PlanOptions(name="opendify", data="opendify_data", cores="2")


def checked(**values: str) -> ValidConfig:
    return check(GOOD | values, "-", lambda _: "")


def plan(*, values: dict[str, str] | None = None, **options: str) -> Plan:
    return make_plan(checked(**(values or {})), replace(NO_OPTIONS, **options))


def test_the_container_listens_where_it_is_published() -> None:
    made = plan(values={"SERVER_PORT": "5100", "SERVER_HOST": "10.0.0.7"})
    assert (made.bind, made.port) == ("127.0.0.1", 5100)
    assert parse_as_docker(made.raw) == GOOD | {
        "SERVER_HOST": "0.0.0.0",
        "SERVER_PORT": "5000",
        "PUBLISH_ADDRESS": "127.0.0.1",
    }


def test_on_the_hosts_network_it_listens_on_the_address_itself() -> None:
    made = parse_as_docker(plan(bind="::1", port="06001", network="host").raw)
    assert (made["SERVER_HOST"], made["SERVER_PORT"]) == ("::1", "6001")
    assert made["PUBLISH_ADDRESS"] == "[::1]"


@pytest.mark.parametrize(
    ("values", "bind", "address", "is_local_only"),
    [
        ({}, "", "127.0.0.1", True),
        ({"OPENDIFY_API_KEYS": "one"}, "", "0.0.0.0", False),
        ({"DIFY_KEY_PASSTHROUGH": "true"}, "", "0.0.0.0", False),
        ({"PUBLISH_ADDRESS": " 10.0.0.7 "}, "", "10.0.0.7", False),
        ({"PUBLISH_ADDRESS": "[::]"}, "", "[::]", False),
        ({"PUBLISH_ADDRESS": "10.0.0.7"}, "::1", "[::1]", False),
    ],
)
def test_the_address(values: dict[str, str], bind: str, address: str, is_local_only: bool) -> None:
    made = plan(values=values, bind=bind)
    assert (made.bind, made.is_local_only) == (address, is_local_only)


@pytest.mark.parametrize(
    ("values", "bind", "source"),
    [
        ({"PUBLISH_ADDRESS": "localhost"}, "", "PUBLISH_ADDRESS"),
        ({"PUBLISH_ADDRESS": "10.0.0.7"}, "10.0.0", "--bind"),
    ],
)
def test_an_address_that_is_none(values: dict[str, str], bind: str, source: str) -> None:
    with pytest.raises(InvalidAddress) as caught:
        plan(values=values, bind=bind)
    assert caught.value.source == source


@pytest.mark.parametrize(
    ("options", "workers", "memory"),
    [
        ({}, 5, "1g"),
        ({"cores": ""}, 9, "1g"),
        ({"cores": "<no value>"}, 9, "1g"),
        ({"cores": "64"}, 129, "14448m"),
        ({"cores": "64", "memory": "2g"}, 129, "2g"),
        ({"cores": "64", "cpus": "1.5"}, 5, "1g"),
        ({"cpus": "0.5"}, 3, "1g"),
    ],
)
def test_limits_by_the_processors(options: dict[str, str], workers: int, memory: str) -> None:
    made = plan(**options)
    assert (made.pids, made.memory, made.stop) == (workers * 144 + 64, memory, 40)


def test_limits_by_the_settings() -> None:
    values = {"GUNICORN_WORKERS": "20", "GUNICORN_THREADS": "8", "GUNICORN_GRACEFUL_TIMEOUT": "120"}
    made = plan(values=values)
    assert (made.pids, made.memory, made.stop) == (20 * 24 + 64, "2240m", 130)


def test_the_digest_changes_with_everything_that_the_container_gets() -> None:
    plans = [
        plan(),
        plan(values={"LOG_LEVEL": "debug"}),
        plan(values={"SERVER_PORT": "5100"}),
        plan(values={"GUNICORN_GRACEFUL_TIMEOUT": "31"}),
        *(plan(**{option: "9"}) for option in ("name", "data", "memory", "cpus", "network")),
        plan(bind="10.0.0.7"),
        plan(port="5200"),
    ]
    assert len({made.digest for made in plans}) == len(plans)
    assert plan().digest == plan().digest
