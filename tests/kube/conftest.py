"""One API server for all tests here, and the operator as deploy/operator installs it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests.kube.cluster import Api, Kubelet, Operator, api_server, until
from tests.unit.kube.chart import DEPLOY, documents

GROUP = "/apis/millstream.dev/v1alpha1"


@pytest.fixture(scope="session")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with api_server(tmp_path_factory.mktemp("cluster")) as made:
        yield made


@pytest.fixture(scope="session")
def kubelet(api: Api) -> Iterator[Kubelet]:
    with Kubelet(api) as made:
        yield made


@pytest.fixture(scope="session")
def command() -> list[str]:
    """What the operator's pod runs, with the interpreter of the tests and no port."""
    (deployment,) = (d for d in documents(DEPLOY / "operator" / "operator.yaml") if d["kind"] == "Deployment")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert container["command"][0] == "python"
    return [sys.executable, *(word for word in container["command"][1:] if not word.startswith("--liveness"))]


@pytest.fixture(scope="session")
def operator(api: Api, command: list[str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operator]:
    api.kubectl("apply", "-f", str(DEPLOY / "operator" / "crd.yaml"), "-f", str(DEPLOY / "operator" / "operator.yaml"))
    until(lambda: api.get(GROUP + "/millstreamworkers"), "the API server knows MillstreamWorker")
    made = Operator(api, tmp_path_factory.mktemp("operator") / "operator.log")
    made.start(command)
    yield made
    made.stop()
    text = made.log.read_text("utf-8")
    assert "forbidden" not in text, text
    assert "Traceback" not in text, text


class Space:
    """A namespace of a test's own."""

    def __init__(self, api: Api, name: str) -> None:
        self.api, self.name = api, name
        api.kubectl("create", "namespace", name)

    def worker(self, name: str) -> dict[str, Any] | None:
        return self.api.get(f"{GROUP}/namespaces/{self.name}/millstreamworkers/{name}")

    def status(self, name: str) -> dict[str, Any]:
        found = self.worker(name)
        assert found is not None
        return dict(found.get("status") or {})

    def stateful_set(self, name: str) -> dict[str, Any] | None:
        return self.api.get(f"/apis/apps/v1/namespaces/{self.name}/statefulsets/{name}")

    def items(self, plural: str, group: str = "/api/v1") -> list[dict[str, Any]]:
        return self.api.items(f"{group}/namespaces/{self.name}/{plural}")

    def apply(self, worker: dict[str, Any]) -> str:
        worker["metadata"] = {"name": worker["metadata"]["name"], "namespace": self.name}
        return self.api.kubectl("apply", "-f", "-", given=worker)

    def kubectl(self, *words: str) -> str:
        return self.api.kubectl("-n", self.name, *words)

    def until_phase(self, name: str, phase: str, **fields: Any) -> dict[str, Any]:
        def reached() -> dict[str, Any] | None:
            worker = self.worker(name)
            status = (worker or {}).get("status") or {}
            assert worker is not None, "it is gone"
            assert status.get("observedGeneration") == worker["metadata"]["generation"], status
            assert {"phase": phase, **fields}.items() <= status.items(), status
            return status

        return dict(until(reached, f"{name} is {phase} {fields}"))


@pytest.fixture
def space(api: Api, kubelet: Kubelet, operator: Operator, request: pytest.FixtureRequest) -> Iterator[Space]:
    made = Space(api, f"t{abs(hash(request.node.name)) % 10**8}")
    yield made
    made.kubectl("delete", "millstreamworkers", "--all", "--wait=false")
    kubelet.broken.clear()
