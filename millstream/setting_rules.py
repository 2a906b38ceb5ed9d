"""What settings must be to one another. Each function gives what is wrong, a line each, naming the variables."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from millstream.settings import Settings


def contradictions(prefix: str, settings: Settings) -> list[str]:
    """All of them."""
    return _timeouts(prefix, settings) + _kafka_security(prefix, settings)


def _timeouts(prefix: str, s: Settings) -> list[str]:
    problems = []
    if s.heartbeat_interval * 3 > s.session_timeout:
        problems.append(
            f"{prefix}HEARTBEAT_INTERVAL = {s.heartbeat_interval:g}: must be at most a third of "
            f"{prefix}SESSION_TIMEOUT = {s.session_timeout:g}"
        )
    if not 2 <= s.outbox_publish_timeout <= s.outbox_lease / 2:  # a new producer is ready after 0.5 to 1 s
        problems.append(
            f"{prefix}OUTBOX_PUBLISH_TIMEOUT = {s.outbox_publish_timeout:g}: must be at least 2, and at most "
            f"half of {prefix}OUTBOX_LEASE = {s.outbox_lease:g}"
        )
    if s.outbox_poll_min > s.outbox_poll_max:
        problems.append(
            f"{prefix}OUTBOX_POLL_MIN = {s.outbox_poll_min:g}: must be at most "
            f"{prefix}OUTBOX_POLL_MAX = {s.outbox_poll_max:g}"
        )
    if s.partition_fetch_bytes > s.fetch_max_bytes:
        problems.append(
            f"{prefix}PARTITION_FETCH_BYTES = {int(s.partition_fetch_bytes)}: must be at most "
            f"{prefix}FETCH_MAX_BYTES = {int(s.fetch_max_bytes)}"
        )
    return problems


def _kafka_security(prefix: str, settings: Settings) -> list[str]:
    protocol = settings.security_protocol

    def given(*names: str) -> list[str]:
        return [prefix + name.upper() for name in names if getattr(settings, name)]

    def missing(*names: str) -> list[str]:
        return [prefix + name.upper() for name in names if not getattr(settings, name)]

    own = f"{prefix}SECURITY_PROTOCOL = {protocol}"
    sasl, tls = ("sasl_mechanism", "sasl_username", "sasl_password"), ("ssl_certificate_location", "ssl_key_location")
    problems = []
    if protocol != "PLAINTEXT" and not settings.bootstrap_servers:
        problems.append(
            f"{own}: set {prefix}BOOTSTRAP_SERVERS too; the broker that is started without it has neither TLS nor users"
        )
    if settings.uses_sasl and (names := missing(*sasl)):
        problems.append(f"{own}: needs {' and '.join(names)}")
    if not settings.uses_sasl and (names := given(*sasl)):
        right = "SASL_SSL" if settings.uses_tls else "SASL_SSL or SASL_PLAINTEXT"
        problems.append(
            f"{' and '.join(names)}: no user is told to Kafka with {own}; set that to {right}, or unset what it has no "
            "use for"
        )
    if not settings.uses_tls and (names := given("ssl_ca_location", *tls, "ssl_key_password")):
        right = "SASL_SSL" if settings.uses_sasl else "SSL or SASL_SSL"
        problems.append(
            f"{' and '.join(names)}: no TLS is spoken with {own}; set that to {right}, or unset what it has no use for"
        )
    if settings.uses_tls and given(*tls) and (names := missing(*tls)):
        problems.append(f"{given(*tls)[0]}: needs {names[0]} too; a certificate and its key go together")
    if settings.uses_tls and settings.ssl_key_password and not settings.ssl_key_location:
        problems.append(f"{prefix}SSL_KEY_PASSWORD: there is no {prefix}SSL_KEY_LOCATION that it could be for")
    return problems
