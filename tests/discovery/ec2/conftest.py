"""Fixtures: a fake of EC2's API, and sources that list the instances of one test."""

import itertools
import socket
from collections.abc import Callable, Iterator
from unittest import mock

import pytest
from botocore.config import Config as BotoConfig
from botocore.loaders import create_loader

from lab.ec2 import Ec2Service
from tunnelmgr.discovery import aws_clients
from tunnelmgr.discovery.ec2 import Ec2Config, Ec2Source

HOSTS = itertools.count(10)


@pytest.fixture(scope="session", autouse=True)
def _models_read_once() -> Iterator[None]:
    """Read AWS's models of its APIs once, and not for the source of each test, which would take most of its time."""
    loader = create_loader()
    with mock.patch("botocore.session.create_loader", return_value=loader):
        yield


@pytest.fixture(scope="session")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ec2Service]:
    """Run one fake API for all tests of this folder."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with Ec2Service(None, port, tmp_path_factory.mktemp("cloud")) as cloud:
        yield cloud


@pytest.fixture
def cloud(api: Ec2Service, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ec2Service]:
    """Return the fake API without faults, with credentials for it in the environment."""
    for name, value in api.environment.items():
        monkeypatch.setenv(name, value)
    yield api
    api.clear_faults()
    api.page_size(0)


@pytest.fixture
def launch(cloud: Ec2Service, request: pytest.FixtureRequest) -> Callable[..., str]:
    """Return a function that launches an instance which only this test's source lists."""

    def launched(region: str = "eu-west-1", *, public: bool = False, **tags: str) -> str:
        own = {"test": request.node.name, **tags}
        return cloud.launch(f"10.77.0.{next(HOSTS)}", own, region=region, public=public)

    return launched


@pytest.fixture
def source(cloud: Ec2Service, request: pytest.FixtureRequest) -> Callable[..., Ec2Source]:
    """Return a function that makes a source which lists this test's instances."""

    def made(**facts: object) -> Ec2Source:
        usual = {
            "name": "jenkins",
            "type": "ec2",
            "group": "ci",
            "regions": ["eu-west-1"],
            "filters": {"tag:test": [request.node.name]},
            "endpoint_url": cloud.endpoint,
        }
        return Ec2Source(Ec2Config.model_validate(usual | facts))

    return made


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give up after one attempt of a third of a second."""
    hasty = BotoConfig(read_timeout=0.3, retries={"mode": "adaptive", "total_max_attempts": 1})
    monkeypatch.setattr(aws_clients, "_CLIENT", aws_clients._CLIENT.merge(hasty))
