"""The engine as a Faust transport, under the URL scheme `millstream`."""

from __future__ import annotations

from faust.auth import Credentials, SASLCredentials, SSLCredentials
from faust.transport.drivers import TRANSPORTS
from faust.transport.drivers import aiokafka as driver

from millstream.kafka_security import ssl_context
from millstream.settings import Settings
from streams.engine.consumer import Consumer
from streams.engine.producer import Producer


class Transport(driver.Transport):
    """aiokafka's transport with our consumer and producer."""

    Consumer = Consumer
    Producer = Producer


def register() -> None:
    """Make `millstream://` known to Faust, as a broker and as a table store."""
    from faust.stores import STORES

    TRANSPORTS.aliases["millstream"] = "streams.engine.transport:Transport"
    STORES.aliases["millstream"] = "tables.store:Store"


def credentials(settings: Settings) -> Credentials | None:
    """What aiokafka shows to the broker; None in plaintext. Raises ConfigError for files that cannot be used."""
    context = ssl_context(settings)
    if settings.uses_sasl:
        assert settings.sasl_password is not None
        return SASLCredentials(
            username=settings.sasl_username,
            password=settings.sasl_password.get_secret_value(),
            mechanism=settings.sasl_mechanism,
            ssl_context=context,
        )
    return SSLCredentials(context) if context is not None else None
