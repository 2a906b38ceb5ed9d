"""deploy/manifests out of what `helm template` gives: for kubectl, so without what only Helm understands.

`python -m tests.kube.render` writes them; `make helm` does so, and fails if a committed one was another one.
"""

from __future__ import annotations

import subprocess
from typing import Any

import yaml

from tests.kube.tools import KUBERNETES, tool
from tests.unit.kube.chart import CHART, CI, DEPLOY, MANIFESTS, RENDERED, digest

HEAD = """\
# Rendered from deploy/helm/millstream with ci/{name}-values.yaml, release `millstream`, by `make helm`. Do not edit.
# chart: {digest}
# Change image, names and kafka:9092, and make the Secrets that it names; docs/deployment.md tells how.
"""


def template(name: str | None, *options: str) -> str:
    """What `helm template` gives for one of the examples, or for the defaults."""
    values = ["--values", str(CI[name])] if name else []
    place = ["--namespace", "default", "--kube-version", KUBERNETES]
    command = [tool("helm"), "template", "millstream", str(CHART), *place, *values, *options]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def plain(name: str, rendered: str) -> str:
    """The same objects without labels and annotations of Helm, in the order in which kubectl should apply them."""
    found = sorted((one for one in yaml.safe_load_all(rendered) if one), key=_rank)
    for one in found:
        for metadata in (
            one["metadata"],
            one["spec"]["template"]["metadata"] if "template" in one.get("spec", {}) else {},
        ):
            _clean(metadata)
    text = yaml.safe_dump_all(found, sort_keys=False, width=120, explicit_start=True)
    return HEAD.format(name=name, digest=digest(name)) + text


def _rank(one: dict[str, Any]) -> int:
    """What others refer to comes first."""
    order = ["ServiceAccount", "ConfigMap", "Secret", "PersistentVolumeClaim", "NetworkPolicy", "Service", "Job"]
    return order.index(one["kind"]) if one["kind"] in order else len(order)


def _clean(metadata: dict[str, Any]) -> None:
    for labels in (metadata.get("labels", {}), metadata.get("annotations", {})):
        for name in [name for name in labels if "helm.sh/" in name or name.startswith("checksum/")]:
            del labels[name]
        labels.pop("app.kubernetes.io/managed-by", None)
    if metadata.get("annotations") == {}:
        del metadata["annotations"]


def main() -> None:
    """Write all of them."""
    MANIFESTS.mkdir(exist_ok=True)
    for name in RENDERED:
        path = MANIFESTS / f"{name}.yaml"
        path.write_text(plain(name, template(name, "--skip-tests")), "utf-8")
        print(path.relative_to(DEPLOY.parent))


if __name__ == "__main__":
    main()
