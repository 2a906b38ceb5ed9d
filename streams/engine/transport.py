"""The engine as a Faust transport, under the URL scheme `millstream`."""

from __future__ import annotations

from faust.transport.drivers import TRANSPORTS
from faust.transport.drivers import aiokafka as driver

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
