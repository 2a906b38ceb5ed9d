"""What stands in the spec of a MillstreamWorker, checked beyond what the schema of its CRD can say."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from millstream.errors import ConfigError, MillstreamError
from millstream.settings import Settings

RESERVED = ("worker_slot", "data_dir", "parquet_dir", "web_bind", "web_port")
"""Settings that follow from how pods are made; neither the chart nor the operator takes them from the user."""

WEB_PORT = 6066
COMMAND = ("faust", "-A", "streams", "worker")
_UNSEEN = "\0"
"""In the place of a password, which only the pods see; too short to be looked for in texts."""
_NAME = re.compile(r"[a-z]([-a-z0-9]{0,50}[a-z0-9])?")
_QUANTITY = re.compile(r"([0-9]+(?:\.[0-9]+)?)([EPTGMk]i?|Ki|m)?")
_UNITS = {"": Decimal(1), "m": Decimal("0.001"), "Ki": Decimal(1024)}
for _power, _letter in enumerate("kMGTPE", start=1):
    _UNITS |= {_letter: Decimal(1000) ** _power, f"{_letter}i": Decimal(1024) ** _power}


class InvalidSpecError(MillstreamError):
    """The spec cannot be carried out. The text says what to change; what runs already goes on as it is."""


@dataclass(frozen=True, slots=True)
class Storage:
    """A volume per worker for the data directory."""

    size: str
    storage_class: str | None = None


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """One checked MillstreamWorker."""

    name: str
    namespace: str
    uid: str
    image: str
    replicas: int = 1
    settings: Mapping[str, str] = field(default_factory=dict)
    """Variable -> value."""
    secret: str | None = None
    storage: Storage | None = None
    parquet_claim: str | None = None
    certificates: tuple[str, ...] = ()
    """Secrets whose files are mounted."""
    grace: int = 90
    command: tuple[str, ...] = COMMAND
    pod: Mapping[str, Any] = field(default_factory=dict)
    """Further fields of the pod: nodeSelector, tolerations, imagePullSecrets, …"""
    container: Mapping[str, Any] = field(default_factory=dict)
    """Further fields of the container: resources, imagePullPolicy."""


def parse(worker: Mapping[str, Any]) -> WorkerSpec:
    """The spec of a MillstreamWorker. Raises InvalidSpecError with all that is wrong, a line each."""
    metadata, spec = worker["metadata"], worker.get("spec") or {}
    problems = _name_problems(metadata["name"])
    if not str(spec.get("image") or "").strip():
        problems.append("spec.image: required, such as registry.example.com/millstream:0.1.0")
    replicas = spec.get("replicas", 1)
    if not isinstance(replicas, int) or replicas < 0:
        problems.append(f"spec.replicas = {replicas!r}: must be a number, 0 or more")
    elif spec.get("parquetClaim") and replicas > 1:
        problems.append(
            f"spec.replicas = {replicas}: with spec.parquetClaim there can be one worker, as the Parquet directory is "
            "one file system of one host"
        )
    storage = spec.get("storage")
    if storage is not None and not _QUANTITY.fullmatch(str(storage.get("size"))):
        problems.append(f"spec.storage.size = {storage.get('size')!r}: must be a quantity such as 10Gi")
    settings, wrong = _settings(spec.get("settings") or {}, spec.get("secretName"))
    problems += wrong
    grace, wrong = _grace(spec, settings)
    problems += wrong
    if problems:
        raise InvalidSpecError("\n".join(problems))
    return WorkerSpec(
        name=metadata["name"],
        namespace=metadata["namespace"],
        uid=metadata["uid"],
        image=spec["image"],
        replicas=replicas,
        settings=variables(spec["settings"]),
        secret=spec.get("secretName"),
        storage=Storage(str(storage["size"]), storage.get("storageClassName")) if storage is not None else None,
        parquet_claim=spec.get("parquetClaim"),
        certificates=tuple(spec.get("certificateSecrets") or ()),
        grace=grace,
        command=tuple(spec.get("command") or COMMAND),
        pod={k: spec[k] for k in ("imagePullSecrets", "nodeSelector", "tolerations") if spec.get(k)},
        container={k: spec[k] for k in ("imagePullPolicy", "resources") if spec.get(k)},
    )


def variables(settings: Mapping[str, Any]) -> dict[str, str]:
    """Variables of the environment for settings: lists with commas, mappings as a=b,c=d; empty ones are left out."""
    texts = {f"MILLSTREAM_{name.upper()}": _text(value) for name, value in settings.items() if value is not None}
    return {name: text for name, text in sorted(texts.items()) if text}


def quantity(text: str) -> Decimal:
    """What Kubernetes understands by `10Gi`. Raises InvalidSpecError."""
    match = _QUANTITY.fullmatch(text)
    if match is None:
        raise InvalidSpecError(f"{text!r} is no quantity such as 10Gi")
    return Decimal(match[1]) * _UNITS[match[2] or ""]


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(map(str, value))
    if isinstance(value, dict):
        return ",".join(f"{name}={given}" for name, given in value.items())
    return str(value).lower() if isinstance(value, bool) else str(value)


def _name_problems(name: str) -> list[str]:
    if _NAME.fullmatch(name):
        return []
    return [
        f"metadata.name = {name!r}: pods and Services are named after it, so it must be at most 52 lower-case letters, "
        "digits and '-', and begin with a letter"
    ]


def _settings(given: Mapping[str, Any], secret: str | None) -> tuple[Settings | None, list[str]]:
    problems = []
    for name in given:
        field_info = Settings.model_fields.get(name)
        if name in RESERVED:
            problems.append(f"spec.settings.{name}: is set by the operator; leave it out")
        elif field_info is not None and "SecretStr" in str(field_info.annotation):
            problems.append(
                f"spec.settings.{name}: may hold a password; put MILLSTREAM_{name.upper()} into a Secret and name it "
                "in spec.secretName"
            )
    if not given.get("bootstrap_servers"):
        problems.append("spec.settings.bootstrap_servers: required, host:port of Kafka")
    logs_in = str(given.get("security_protocol", "")).upper().startswith("SASL_")
    if logs_in and not secret:
        problems.append(
            "spec.secretName: required with settings.security_protocol = SASL_…, a Secret with MILLSTREAM_SASL_PASSWORD"
        )
    if problems:
        return None, problems
    unseen = {"sasl_password": _UNSEEN} if logs_in else {}
    try:
        return Settings(**{name: None if value == "none" else value for name, value in given.items()}, **unseen), []
    except ConfigError as exc:
        return None, [f"spec.settings: {line}" for line in str(exc).splitlines()]


def _grace(spec: Mapping[str, Any], settings: Settings | None) -> tuple[int, list[str]]:
    """Seconds from SIGTERM to SIGKILL: above the bound within which a worker ends by itself."""
    if settings is None:
        return 0, []
    bound = 2 * settings.shutdown_timeout + 10
    grace = spec.get("terminationGracePeriodSeconds") or math.ceil(bound + 20)
    if grace > bound:
        return grace, []
    return 0, [
        f"spec.terminationGracePeriodSeconds = {grace}: must be above {bound:g}, within which a worker ends by itself "
        "(twice settings.shutdown_timeout, and 10 s)"
    ]
