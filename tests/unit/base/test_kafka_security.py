"""SASL and TLS towards Kafka: what clients are given, what contradicts itself, what a refusal means."""

from __future__ import annotations

import re
import ssl
import traceback
from pathlib import Path
from typing import Any

import confluent_kafka as ck
import pytest

from millstream.cluster import client_config
from millstream.errors import ConfigError
from millstream.kafka_security import refusal, ssl_context, unanswered
from millstream.secrets import scrub
from millstream.settings import Settings
from streams.engine.transport import credentials
from tests.support.secured import TLS

SECRET = "s3cr3t-Passw0rd"
KAFKA = {"bootstrap_servers": "kafka:9093"}
USER = {"sasl_mechanism": "SCRAM-SHA-512", "sasl_username": "me", "sasl_password": SECRET}
CA = str(TLS / "ca.pem")
CERTIFICATE = {"ssl_certificate_location": str(TLS / "client.pem"), "ssl_key_location": str(TLS / "client.key")}
ENCRYPTED = CERTIFICATE | {"ssl_key_location": str(TLS / "client.encrypted.key")}


def made(**values: Any) -> Settings:
    return Settings(**KAFKA | values)


def test_by_default_kafka_is_spoken_to_in_plaintext() -> None:
    assert client_config(made()) == {"bootstrap.servers": "kafka:9093", "log_level": 2}
    assert ssl_context(made()) is None
    assert credentials(made()) is None


def test_librdkafka_gets_every_setting_under_its_own_name() -> None:
    tls = {"ssl_ca_location": CA, "ssl_key_password": "opensesame"} | ENCRYPTED
    assert client_config(made(security_protocol="sasl_ssl", **USER, **tls)) == {
        "bootstrap.servers": "kafka:9093",
        "log_level": 2,
        "security.protocol": "SASL_SSL",
        "sasl.mechanism": "SCRAM-SHA-512",
        "sasl.username": "me",
        "sasl.password": SECRET,
        "ssl.ca.location": CA,
        "ssl.certificate.location": str(TLS / "client.pem"),
        "ssl.key.location": str(TLS / "client.encrypted.key"),
        "ssl.key.password": "opensesame",
    }


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"])
def test_aiokafka_gets_the_same(mechanism: str) -> None:
    given: Any = credentials(
        made(security_protocol="SASL_SSL", ssl_ca_location=CA, **USER | {"sasl_mechanism": mechanism})
    )
    assert (given.protocol.value, given.mechanism.value) == ("SASL_SSL", mechanism)
    assert (given.username, given.password) == ("me", SECRET)
    checks: ssl.SSLContext = given.ssl_context
    assert checks.verify_mode is ssl.CERT_REQUIRED
    assert checks.check_hostname
    plain: Any = credentials(made(security_protocol="SASL_PLAINTEXT", **USER))
    assert (plain.protocol.value, plain.ssl_context) == ("SASL_PLAINTEXT", None)
    certified: Any = credentials(made(security_protocol="SSL", ssl_ca_location=CA, **CERTIFICATE))
    assert certified.protocol.value == "SSL"
    assert SECRET not in repr(given) + repr(plain)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        (
            {"security_protocol": "SASL_SSL"},
            "MILLSTREAM_SECURITY_PROTOCOL = SASL_SSL: needs MILLSTREAM_SASL_MECHANISM and MILLSTREAM_SASL_USERNAME and "
            "MILLSTREAM_SASL_PASSWORD",
        ),
        (
            {"security_protocol": "SASL_PLAINTEXT"} | USER | {"sasl_password": ""},
            "MILLSTREAM_SECURITY_PROTOCOL = SASL_PLAINTEXT: needs MILLSTREAM_SASL_PASSWORD",
        ),
        (
            USER,
            "MILLSTREAM_SASL_MECHANISM and MILLSTREAM_SASL_USERNAME and MILLSTREAM_SASL_PASSWORD: no user is told to "
            "Kafka with MILLSTREAM_SECURITY_PROTOCOL = PLAINTEXT; set that to SASL_SSL or SASL_PLAINTEXT, or unset",
        ),
        (
            {"security_protocol": "SSL", "sasl_username": "me"},
            "MILLSTREAM_SASL_USERNAME: no user is told to Kafka with MILLSTREAM_SECURITY_PROTOCOL = SSL; set that to "
            "SASL_SSL, or unset",
        ),
        (
            {"ssl_ca_location": CA},
            "MILLSTREAM_SSL_CA_LOCATION: no TLS is spoken with MILLSTREAM_SECURITY_PROTOCOL = PLAINTEXT; set that to "
            "SSL or SASL_SSL, or unset",
        ),
        (
            {"security_protocol": "SSL", "ssl_certificate_location": "a"},
            "MILLSTREAM_SSL_CERTIFICATE_LOCATION: needs MILLSTREAM_SSL_KEY_LOCATION too",
        ),
        (
            {"security_protocol": "SSL", "ssl_key_location": "a"},
            "MILLSTREAM_SSL_KEY_LOCATION: needs MILLSTREAM_SSL_CERTIFICATE_LOCATION too",
        ),
        (
            {"security_protocol": "SSL", "ssl_key_password": SECRET},
            "MILLSTREAM_SSL_KEY_PASSWORD: there is no MILLSTREAM_SSL_KEY_LOCATION",
        ),
        (
            {"security_protocol": "SSL", "bootstrap_servers": None},
            "MILLSTREAM_SECURITY_PROTOCOL = SSL: set MILLSTREAM_BOOTSTRAP_SERVERS too",
        ),
        ({"security_protocol": "TLS"}, "MILLSTREAM_SECURITY_PROTOCOL = 'TLS': input should be 'PLAINTEXT', 'SSL', "),
        (
            {"sasl_mechanism": "GSSAPI"},
            "MILLSTREAM_SASL_MECHANISM = 'GSSAPI': input should be 'PLAIN', 'SCRAM-SHA-256'",
        ),
    ],
)
def test_contradictions_name_the_variable_and_what_to_do(values: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError) as raised:
        made(**values)
    assert str(raised.value).startswith(told)
    assert "\n" not in str(raised.value)
    assert SECRET not in "".join(traceback.format_exception(raised.value))  # T42


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"ssl_ca_location": "/none/ca.pem"}, "SSL_CA_LOCATION = '/none/ca.pem': cannot be read (No such file or dir"),
        ({"ssl_ca_location": "/"}, "SSL_CA_LOCATION = '/': cannot be read (Is a directory)"),
        ({"ssl_ca_location": str(TLS / "make.sh")}, "make.sh': holds no certificates in PEM form (NO_CERTIFICATE_OR"),
        (CERTIFICATE | {"ssl_key_location": "/none/k"}, "SSL_KEY_LOCATION = '/none/k': cannot be read (No such file"),
        (
            CERTIFICATE | {"ssl_key_location": str(TLS / "server.key")},
            "cannot be used (KEY_VALUES_MISMATCH): they must",
        ),
        (ENCRYPTED, "a key that is encrypted takes its password in MILLSTREAM_SSL_KEY_PASSWORD"),
        (ENCRYPTED | {"ssl_key_password": SECRET}, "a key that is encrypted takes its password in MILLSTREAM_SSL_KEY"),
        (ENCRYPTED | {"ssl_key_password": SECRET * 200}, "takes its password in MILLSTREAM_SSL_KEY_PASSWORD"),
    ],
)
def test_files_that_cannot_be_used_are_told_with_their_setting(values: dict[str, Any], told: str) -> None:
    settings = made(security_protocol="SSL", **values)  # the operator, say, has no such files
    for use in (client_config, credentials):
        with pytest.raises(ConfigError) as raised:
            use(settings)
        assert told in str(raised.value)
        assert str(raised.value).startswith("MILLSTREAM_SSL_")
        assert SECRET not in "".join(traceback.format_exception(raised.value))  # T42


def test_passwords_are_masked_in_settings_and_in_whatever_is_logged(tmp_path: Path) -> None:  # T42
    password, key_password = 'quo"ted ü\\pass', "key-s3cr3t"
    settings = made(
        security_protocol="SASL_SSL", **USER | {"sasl_password": password}, **ENCRYPTED, ssl_key_password=key_password
    )
    for shown in (repr(settings), str(settings), settings.model_dump_json()):
        assert "quo" not in shown
        assert key_password not in shown
    for text in (password, repr(password), '"quo\\"ted \\u00fc\\\\pass"', '"quo\\"ted ü\\\\pass"', key_password):
        assert "quo" not in scrub(f"config {text} end")
        assert "s3cr3t" not in scrub(f"config {text} end")


CONFIG = client_config(Settings(**KAFKA, security_protocol="SASL_SSL", **USER))
SURE, PERHAPS, NOT = "sure", "perhaps", "not"


def test_no_client_is_configured_past_the_one_place() -> None:
    """Whoever writes an address of his own would speak plaintext, as nobody."""
    root = Path(__file__).resolve().parents[3]
    code = [p for name in ("millstream", "sources", "sinks", "tables", "streams") for p in (root / name).rglob("*.py")]
    found = {str(p.relative_to(root)) for p in code if re.search(r"""["']bootstrap\.servers["']""", p.read_text())}
    assert found == {
        "millstream/cluster.py",  # the one place
        "millstream/broker/embedded.py",  # asks its own plaintext listener
        "millstream/kafka_security.py",  # reads it, as the next one does
        "streams/engine/app.py",
    }


@pytest.mark.parametrize(
    ("code", "text", "told", "how"),
    [
        (ck.KafkaError._AUTHENTICATION, "SASL authentication error: Invalid", "refuses the user 'me' by SCRAM", SURE),
        (ck.KafkaError._SSL, "SSL handshake failed: certificate verify failed", "MILLSTREAM_SSL_CA_LOCATION", SURE),
        (
            ck.KafkaError._TRANSPORT,
            "Receive failed: error:0A000412:SSL routines::ssl/tls alert bad certificate",
            "MILLSTREAM_SSL_CERTIFICATE_LOCATION",
            SURE,
        ),
        (ck.KafkaError._SSL, "SSL handshake failed: no protocols available", "do not agree on TLS", SURE),
        (
            ck.KafkaError._TRANSPORT,
            "SSL handshake failed: Disconnected: connecting to a PLAINTEXT broker listener?",
            "does not speak TLS: correct MILLSTREAM_SECURITY_PROTOCOL = SASL_SSL",
            PERHAPS,
        ),
        (ck.KafkaError._TRANSPORT, "Disconnected: connection closed by peer", "MILLSTREAM_SECURITY_PROTOCOL", PERHAPS),
        (ck.KafkaError._TRANSPORT, "Connect to ipv4#127.0.0.1:1 failed: Connection refused", "", NOT),
        (ck.KafkaError._ALL_BROKERS_DOWN, "1/1 brokers are down", "", NOT),
    ],
)
def test_a_refusal_names_the_setting_to_look_at(code: int, text: str, told: str, how: str) -> None:
    errors = [ck.KafkaError(ck.KafkaError._ALL_BROKERS_DOWN, "1/1 brokers are down"), ck.KafkaError(code, text)]
    found = refusal(CONFIG, errors)
    assert (found is None) == (how == NOT)
    assert found is None or found.sure == (how == SURE)
    message = unanswered(CONFIG, errors)
    assert told in message
    assert text in message
    assert "MILLSTREAM_BOOTSTRAP_SERVERS = 'kafka:9093'" in message
    assert message.startswith("no Kafka broker answers" if how == NOT else "Kafka at")
    assert SECRET not in message


def test_what_is_sure_goes_before_what_is_likely_and_no_reason_is_told_twice() -> None:
    hung_up = ck.KafkaError(ck.KafkaError._TRANSPORT, "Disconnected: x (after 1ms in state APIVERSION_QUERY)")
    wrong = ck.KafkaError(ck.KafkaError._AUTHENTICATION, "Authentication failed")
    found = refusal(CONFIG, [hung_up, wrong])
    assert found is not None
    assert found.sure
    no_tls = ck.KafkaError(
        ck.KafkaError._SSL, "handshake failed: Disconnected: connecting to a PLAINTEXT broker listener?"
    )
    assert "does not speak TLS" in unanswered(CONFIG, [hung_up, no_tls, hung_up])
    refused = [ck.KafkaError(ck.KafkaError._TRANSPORT, f"a: refused (after {n}ms in state CONNECT)") for n in (0, 1)]
    assert unanswered(CONFIG, refused) == (
        "no Kafka broker answers at MILLSTREAM_BOOTSTRAP_SERVERS = 'kafka:9093' (a: refused). Start it, or correct the "
        "setting"
    )
