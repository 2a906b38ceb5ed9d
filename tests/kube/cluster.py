"""A cluster without nodes: etcd, kube-apiserver and the controllers that matter here, and a kubelet that we play."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx2
import yaml

from tests.kube.tools import tool

ADMIN = "admin-token"
CONTROLLERS = (
    *("statefulset-controller", "deployment-controller", "replicaset-controller", "disruption-controller"),
    *("garbage-collector-controller", "namespace-controller", "persistentvolumeclaim-protection-controller"),
)


def until(condition: Callable[[], Any], what: str, seconds: float = 60.0) -> Any:
    """What `condition` gives as soon as it is true. Errors of the API on the way there do not count."""
    deadline, last = time.monotonic() + seconds, None
    while time.monotonic() < deadline:
        try:
            if found := condition():
                return found
        except (httpx2.HTTPError, AssertionError, KeyError, subprocess.CalledProcessError) as exc:
            last = exc
        time.sleep(0.1)
    raise AssertionError(f"not within {seconds:g} s: {what}" + (f" ({last})" if last else ""))


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


class Api:
    """The API server, by paths and dictionaries, as an administrator."""

    def __init__(self, url: str, directory: Path) -> None:
        self.url, self._directory = url, directory
        self._http = httpx2.Client(base_url=url, verify=False, headers={"Authorization": f"Bearer {ADMIN}"}, timeout=30)

    def call(self, method: str, path: str, body: Any = None, **options: Any) -> dict[str, Any]:
        """JSON of the answer. Raises httpx2.HTTPStatusError."""
        answer = self._http.request(method, path, json=body, **options)
        answer.raise_for_status()
        return dict(answer.json())

    def get(self, path: str) -> dict[str, Any] | None:
        """An object, or None."""
        answer = self._http.get(path)
        if answer.status_code == 404:
            return None
        answer.raise_for_status()
        return dict(answer.json())

    def items(self, path: str) -> list[dict[str, Any]]:
        """Of a list."""
        return list(self.call("GET", path)["items"])

    def merge(self, path: str, body: Any) -> dict[str, Any]:
        """A merge patch."""
        return self.call("PATCH", path, body, headers={"Content-Type": "application/merge-patch+json"})

    def close(self) -> None:
        """Its connections."""
        self._http.close()

    def healthy(self) -> bool:
        """Whether it is ready."""
        return self._http.get("/readyz").text == "ok"

    def kubeconfig(self, token: str = ADMIN) -> Path:
        """A kubeconfig file for a token."""
        path = self._directory / f"kubeconfig-{abs(hash(token))}"
        document = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "c", "cluster": {"server": self.url, "insecure-skip-tls-verify": True}}],
            "users": [{"name": "u", "user": {"token": token}}],
            "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u", "namespace": "default"}}],
            "current-context": "x",
        }
        path.write_text(yaml.safe_dump(document), "utf-8")
        return path

    def kubectl(self, *words: str, given: Any = None) -> str:
        """Output of kubectl. Raises AssertionError with what it said."""
        command = [tool("kubectl"), f"--kubeconfig={self.kubeconfig()}", *words]
        text = None if given is None else json.dumps(given)
        done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout


@contextmanager
def _process(log: Path, command: list[str]) -> Iterator[None]:
    """A child until the end of the block; then SIGTERM, and SIGKILL if that is not enough."""
    with log.open("wb") as out:
        child = subprocess.Popen(command, stdout=out, stderr=out)
    try:
        yield
    finally:
        child.terminate()
        try:
            child.wait(10)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


@contextmanager
def api_server(directory: Path) -> Iterator[Api]:
    """Empty, with RBAC, in `directory`."""
    program, etcd = tool("kube-cluster"), tool("etcd")
    store, peer, port = _free_port(), _free_port(), _free_port()
    key, tokens = directory / "sa.key", directory / "tokens.csv"
    subprocess.run(["openssl", "genrsa", "-out", key, "2048"], check=True, capture_output=True)
    tokens.write_text(f"{ADMIN},admin,admin,system:masters\n", "utf-8")
    with ExitStack() as stack:
        api = Api(f"https://127.0.0.1:{port}", directory)
        stack.callback(api.close)
        run = lambda name, *command: stack.enter_context(_process(directory / f"{name}.log", list(command)))  # noqa: E731
        run(
            "etcd",
            etcd,
            f"--data-dir={directory / 'etcd'}",
            f"--listen-client-urls=http://127.0.0.1:{store}",
            f"--advertise-client-urls=http://127.0.0.1:{store}",
            f"--listen-peer-urls=http://127.0.0.1:{peer}",
            "--unsafe-no-fsync",
        )
        run(
            "apiserver",
            program,
            "apiserver",
            f"--etcd-servers=http://127.0.0.1:{store}",
            "--bind-address=127.0.0.1",
            f"--secure-port={port}",
            f"--cert-dir={directory / 'certs'}",
            f"--token-auth-file={tokens}",
            "--authorization-mode=RBAC",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-signing-key-file={key}",
            f"--service-account-key-file={key}",
            "--service-cluster-ip-range=10.96.0.0/24",
            "--disable-admission-plugins=ServiceAccount",
        )
        until(api.healthy, f"the API server is ready ({directory / 'apiserver.log'})", 120)
        until(lambda: api.get("/api/v1/namespaces/default"), "there is a namespace", 60)
        run(
            "controllers",
            program,
            "controllers",
            f"--kubeconfig={api.kubeconfig()}",
            f"--controllers={','.join(CONTROLLERS)}",
            "--leader-elect=false",
            f"--secure-port={_free_port()}",
            "--bind-address=127.0.0.1",
        )
        yield api


class Kubelet:
    """Says of every pod that it is ready, or what `broken` says of it. Pods are on no node, so they end at once."""

    def __init__(self, api: Api) -> None:
        self._api, self._ended = api, threading.Event()
        self.broken: dict[str, dict[str, Any]] = {}
        """Name of a pod -> its container's state."""
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Kubelet:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(0.1):
            with suppress(httpx2.HTTPError):
                for pod in self._api.items("/api/v1/pods"):
                    self._tell(pod)

    def _tell(self, pod: dict[str, Any]) -> None:
        name, namespace = pod["metadata"]["name"], pod["metadata"]["namespace"]
        states = self.broken.get(name)
        status = "False" if states else "True"
        shown = {c["type"]: c["status"] for c in pod["status"].get("conditions", [])}
        if shown.get("Ready") == status:
            return
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        container = {
            "name": pod["spec"]["containers"][0]["name"],
            "image": pod["spec"]["containers"][0]["image"],
            "imageID": "",
            "ready": not states,
            "restartCount": 1 if states else 0,
            **(states or {"state": {"running": {"startedAt": now}}}),
        }
        body = {
            "phase": "Running",
            "conditions": [{"type": "Ready", "status": status, "lastTransitionTime": now}],
            "containerStatuses": [container],
        }
        with suppress(httpx2.HTTPStatusError):
            self._api.merge(f"/api/v1/namespaces/{namespace}/pods/{name}/status", {"status": body})


class Operator:
    """`python -m kopf run …` as in deploy/operator/operator.yaml, with the rights of its service account."""

    def __init__(self, api: Api, log: Path) -> None:
        self._api, self.log = api, log
        self._child: subprocess.Popen[bytes] | None = None

    def start(self, command: list[str]) -> None:
        """With a token as a pod of it would have."""
        path = "/api/v1/namespaces/millstream-operator/serviceaccounts/millstream-operator/token"
        request = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": {"expirationSeconds": 3600},
        }
        token = self._api.call("POST", path, request)["status"]["token"]
        environment = os.environ | {"KUBECONFIG": str(self._api.kubeconfig(token))}
        with self.log.open("ab") as out:
            self._child = subprocess.Popen(command, stdout=out, stderr=out, env=environment)

    def stop(self) -> None:
        """SIGTERM."""
        if self._child is not None:
            self._child.terminate()
            try:
                self._child.wait(20)
            except subprocess.TimeoutExpired:
                self._child.kill()
                self._child.wait()
        self._child = None
