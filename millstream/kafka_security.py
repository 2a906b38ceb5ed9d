"""Who we are to Kafka and how we know that it is Kafka: TLS and SASL of every client, and what a refusal means.

The settings are librdkafka's, under its names (`ssl.ca.location` is MILLSTREAM_SSL_CA_LOCATION). aiokafka takes the
same as an SSLContext. Broker certificates and host names are always checked.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import confluent_kafka as ck

from millstream.errors import ConfigError
from millstream.settings import PREFIX, Settings

_AFTER = re.compile(r" \(after \d+ms in state \w+(, \d+ identical error\(s\) suppressed)?\)")
_FILES = ("ssl_ca_location", "ssl_certificate_location", "ssl_key_location")


def librdkafka(settings: Settings) -> dict[str, Any]:
    """librdkafka's settings. Raises ConfigError for files that cannot be used: its own words name no setting."""
    ssl_context(settings)
    config: dict[str, Any] = {}
    if settings.security_protocol != "PLAINTEXT":
        config["security.protocol"] = settings.security_protocol
    if settings.uses_sasl:
        assert settings.sasl_password is not None
        config["sasl.mechanism"] = settings.sasl_mechanism
        config["sasl.username"] = settings.sasl_username
        config["sasl.password"] = settings.sasl_password.get_secret_value()
    if settings.uses_tls:
        for name in _FILES:
            if (path := getattr(settings, name)) is not None:
                config[name.replace("_", ".")] = str(path)
        if settings.ssl_key_password is not None:
            config["ssl.key.password"] = settings.ssl_key_password.get_secret_value()
    return config


def ssl_context(settings: Settings) -> ssl.SSLContext | None:
    """For aiokafka; None without TLS. Blocking. Raises ConfigError, which names setting and file."""
    if not settings.uses_tls:
        return None
    for name in _FILES:
        if (path := getattr(settings, name)) is not None:
            _readable(name, path)
    ca, certificate = settings.ssl_ca_location, settings.ssl_certificate_location
    try:
        context = ssl.create_default_context(cafile=ca)
    except ssl.SSLError as exc:
        raise ConfigError(f"{_named('ssl_ca_location', ca)}: holds no certificates in PEM form ({_why(exc)})") from None
    if certificate is not None:
        # Without a text here OpenSSL would ask for one at the terminal.
        password = settings.ssl_key_password.get_secret_value() if settings.ssl_key_password is not None else ""
        try:
            context.load_cert_chain(certificate, settings.ssl_key_location, password)
        except (ssl.SSLError, ValueError) as exc:  # ValueError: a password that is too long for OpenSSL
            raise ConfigError(
                f"{_named('ssl_certificate_location', certificate)} and "
                f"{_named('ssl_key_location', settings.ssl_key_location)} cannot be used ({_why(exc)}): they must be a "
                "certificate and its key in PEM form; a key that is encrypted takes its password in "
                f"{PREFIX}SSL_KEY_PASSWORD"
            ) from None
    return context


class Refusal(NamedTuple):
    """What is wrong where a broker is there, but will not talk with us or we not with it."""

    why: str
    """Goes on from "Kafka at …"; names the setting to look at."""
    sure: bool
    """False: it looks like that, but a broker that is starting or stopping looks the same for a moment."""
    vague: bool = False
    """Anything else that was found says more."""


def refusal(config: Mapping[str, Any], errors: Iterable[ck.KafkaError]) -> Refusal | None:
    """What a client's errors mean; None if nothing in them speaks of authentication or TLS."""
    found = [r for error in errors if (r := _refusal(config, error)) is not None]
    return min(found, key=lambda r: (not r.sure, r.vague), default=None)


def unanswered(config: Mapping[str, Any], errors: Iterable[ck.KafkaError]) -> str:
    """What to tell of a broker that cannot be used: why, and which setting to look at."""
    errors = list(errors)
    servers = f"{PREFIX}BOOTSTRAP_SERVERS = {config['bootstrap.servers']!r}"
    if (refused := refusal(config, errors)) is not None:
        return f"Kafka at {servers} {refused.why}"
    told = [e for e in errors if e.code() != ck.KafkaError._ALL_BROKERS_DOWN] or errors
    why = "; ".join(dict.fromkeys(_AFTER.sub("", error.str()) for error in told))
    return f"no Kafka broker answers at {servers}{why and f' ({why})'}. Start it, or correct the setting"


def _refusal(config: Mapping[str, Any], error: ck.KafkaError) -> Refusal | None:
    code, text = error.code(), _AFTER.sub("", error.str())
    setting = f"{PREFIX}SECURITY_PROTOCOL = {config.get('security.protocol', 'PLAINTEXT')}"
    if code == ck.KafkaError._AUTHENTICATION:
        why = (
            f"refuses the user {config.get('sasl.username')!r} by {config.get('sasl.mechanism')}: correct "
            f"{PREFIX}SASL_USERNAME, {PREFIX}SASL_PASSWORD or {PREFIX}SASL_MECHANISM"
        )
        return Refusal(f"{why} ({text})", sure=True)
    if "certificate verify failed" in text:
        why = (
            f"shows a certificate that is not trusted: {PREFIX}SSL_CA_LOCATION "
            f"({config.get('ssl.ca.location') or 'unset: the authorities of the system'}) must hold the authority that "
            "signed it, and it must be for the host name given and not have expired"
        )
        return Refusal(f"{why} ({text})", sure=True)
    if "SSL routines" in text and "alert" in text:
        why = (
            f"does not accept our certificate, or wants one: correct {PREFIX}SSL_CERTIFICATE_LOCATION and "
            f"{PREFIX}SSL_KEY_LOCATION"
        )
        return Refusal(f"{why} ({text})", sure=True)
    if "PLAINTEXT broker listener" in text:
        return Refusal(f"does not speak TLS: correct {setting}, or the port ({text})", sure=False)
    if "Disconnected" in text:
        why = f"hangs up on us: probably its port wants TLS or SASL otherwise than {setting} says, or is another one"
        return Refusal(f"{why} ({text})", sure=False, vague=True)
    if code == ck.KafkaError._SSL:
        return Refusal(f"and we do not agree on TLS ({text})", sure=True)
    return None


def _readable(name: str, path: Path) -> None:
    try:
        with path.open("rb"):
            pass
    except OSError as exc:
        raise ConfigError(f"{_named(name, path)}: cannot be read ({exc.strerror})") from None


def _named(name: str, path: Path | None) -> str:
    return f"{PREFIX}{name.upper()} = '{path}'"


def _why(exc: Exception) -> str:
    return (exc.reason or exc.strerror or str(exc)) if isinstance(exc, ssl.SSLError) else str(exc)
