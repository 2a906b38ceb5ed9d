"""A broker with TLS, users and rights.

PLAINTEXT is as in every other test: whoever comes that way is a superuser. SECURED takes users by SASL over TLS, MUTUAL
certificates of clients. Nobody else may do anything but what ACLs allow.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from confluent_kafka.admin import (
    AdminClient,
    ScramCredentialInfo,
    ScramMechanism,
    UserScramCredentialUpsertion,
)

from millstream.broker import EmbeddedBroker
from millstream.errors import BrokerError
from tests.support.cluster import free_ports
from tests.support.waiting import wait_until

TLS = Path(__file__).resolve().parents[1] / "fixtures" / "tls"
PASSWORDS = {"worker": 'worker-"s3cr3t" ü;', "feeder": "feeder-s3cr3t"}
"""Password of each user. The worker comes by SCRAM, the feeder by PLAIN."""
CERTIFIED = "CN=client"
"""Name of the user with the certificate client.pem."""


@dataclass(frozen=True)
class Secured:
    """Addresses of the listeners, and the settings of those who may use them."""

    plaintext: str
    secured: str
    mutual: str

    def user(self, name: str = "worker", mechanism: str = "SCRAM-SHA-512") -> dict[str, str]:
        """Settings of a user over TLS, names in upper case."""
        if name == "feeder":
            mechanism = "PLAIN"
        return {
            "BOOTSTRAP_SERVERS": self.secured,
            "SECURITY_PROTOCOL": "SASL_SSL",
            "SASL_MECHANISM": mechanism,
            "SASL_USERNAME": name,
            "SASL_PASSWORD": PASSWORDS[name],
            "SSL_CA_LOCATION": str(TLS / "ca.pem"),
        }

    def certified(self) -> dict[str, str]:
        """Settings of a client with a certificate, whose key is encrypted."""
        return {
            "BOOTSTRAP_SERVERS": self.mutual,
            "SECURITY_PROTOCOL": "SSL",
            "SSL_CA_LOCATION": str(TLS / "ca.pem"),
            "SSL_CERTIFICATE_LOCATION": str(TLS / "client.pem"),
            "SSL_KEY_LOCATION": str(TLS / "client.encrypted.key"),
            "SSL_KEY_PASSWORD": "opensesame",
        }


@contextmanager
def secured_broker(directory: Path) -> Iterator[Secured]:
    """Start one; the users are known."""
    directory.mkdir(parents=True, exist_ok=True)
    store = directory / "server.pem"
    store.write_text((TLS / "server.pkcs8.key").read_text() + (TLS / "server.pem").read_text())
    for attempt in range(3):
        try:
            broker, addresses = _start(directory / str(attempt), store)
            break
        except BrokerError as exc:  # somebody else took one of the ports meanwhile
            if "Address already in use" not in str(exc) or attempt == 2:
                raise
    with broker:
        _make_user(AdminClient({"bootstrap.servers": addresses.plaintext, "log_level": 2}), "worker")
        yield addresses


def _start(data: Path, store: Path) -> tuple[EmbeddedBroker, Secured]:
    plaintext, controller, secured, mutual = (f"127.0.0.1:{port}" for port in free_ports(4))
    listeners = f"PLAINTEXT://{plaintext},SECURED://{secured},MUTUAL://{mutual}"
    jaas = "org.apache.kafka.common.security.{}LoginModule required"
    properties = {
        "listeners": f"{listeners},CONTROLLER://{controller}",
        "advertised.listeners": listeners,
        "controller.quorum.voters": f"1@{controller}",
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SECURED:SASL_SSL,MUTUAL:SSL",
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": str(store),
        "ssl.truststore.type": "PEM",
        "ssl.truststore.location": str(TLS / "ca.pem"),
        "listener.name.mutual.ssl.client.auth": "required",
        "sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-256,SCRAM-SHA-512",
        "listener.name.secured.plain.sasl.jaas.config": (
            f'{jaas.format("plain.Plain")} user_feeder="{PASSWORDS["feeder"]}";'
        ),
        "listener.name.secured.scram-sha-256.sasl.jaas.config": f"{jaas.format('scram.Scram')};",
        "listener.name.secured.scram-sha-512.sasl.jaas.config": f"{jaas.format('scram.Scram')};",
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "super.users": "User:ANONYMOUS",
    }
    broker = EmbeddedBroker(data, int(plaintext.rpartition(":")[2]), heap_mib=384, properties=properties)
    broker.start()
    return broker, Secured(plaintext, secured, mutual)


def _make_user(admin: AdminClient, name: str) -> None:
    """Its SCRAM credentials, and wait until the broker has them."""
    password = PASSWORDS[name].encode()
    mechanisms = (ScramMechanism.SCRAM_SHA_256, ScramMechanism.SCRAM_SHA_512)
    for mechanism in mechanisms:  # Kafka takes one at a time
        wanted = UserScramCredentialUpsertion(name, ScramCredentialInfo(mechanism, 4096), password)
        admin.alter_user_scram_credentials([wanted])[name].result(30)

    def known() -> bool:
        found = admin.describe_user_scram_credentials([name])[name].result(30)
        return len(found.scram_credential_infos) == len(mechanisms)

    wait_until(known, 30, f"credentials of {name}")
