"""One service before one chaos Dify for all cases that do it no harm; others start their own."""

import json
import signal
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import FrameType

import pytest

from tests.faults.chaos import READ_TIMEOUT, Chaos
from tests.support import service

CASE_SECONDS = 90

Starting = Callable[..., AbstractContextManager[service.Service]]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.faults)


@pytest.fixture(autouse=True)
def bounded() -> Iterator[None]:
    """No case lasts longer, whatever it waits for."""

    def give_up(number: int, frame: FrameType | None) -> None:
        raise AssertionError(f"the case took more than {CASE_SECONDS} s")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(CASE_SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="session")
def chaos() -> Iterator[Chaos]:
    chaos = Chaos()
    yield chaos
    chaos.dify.close()


@pytest.fixture(scope="session")
def shared(chaos: Chaos, tmp_path_factory: pytest.TempPathFactory) -> Iterator[service.Service]:
    """The service that cases share, with one worker and short patience."""
    with started(tmp_path_factory.mktemp("shared"), chaos) as running:
        yield running


@contextmanager
def started(folder: Path, chaos: Chaos, **variables: str) -> Iterator[service.Service]:
    """A service with all the models of the chaos Dify."""
    settings = {
        "GUNICORN_WORKERS": "1",
        "GUNICORN_THREADS": "48",
        "DIFY_READ_TIMEOUT": str(READ_TIMEOUT),
        "MAX_ANSWER_MB": "1",
        "MODEL_CONFIG": json.dumps(chaos.models()),
        **variables,
    }
    with service.running(folder, service.free_variables(chaos.dify.base) | settings) as running:
        yield running


@pytest.fixture
def user() -> str:
    """Somebody who asks in this case only."""
    return f"user-{uuid.uuid4().hex[:12]}"
