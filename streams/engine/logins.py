"""A login that Kafka refuses while the worker runs: aiokafka says so and tries again; what to do is said here."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from aiokafka.errors import SaslAuthenticationFailed

from millstream.logs import get_logger
from millstream.settings import PREFIX, Settings

EVERY_SECONDS = 60.0
"""Between two lines: aiokafka tries again several times a second."""
_AIOKAFKA = logging.getLogger("aiokafka")

log = get_logger(__name__)


class RefusedLogins(logging.Filter):
    """Lets every line pass, and adds one of ours a minute to those of a login that failed."""

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._user, self._mechanism, self._clock = settings.sasl_username, settings.sasl_mechanism, clock
        self._silent_until = 0.0

    def filter(self, record: logging.LogRecord) -> bool:
        """See above."""
        given = record.args if isinstance(record.args, tuple) else ()
        if any(isinstance(arg, SaslAuthenticationFailed) for arg in given) and self._clock() >= self._silent_until:
            self._silent_until = self._clock() + EVERY_SECONDS
            log.error(
                "login_refused",
                user=self._user,
                mechanism=self._mechanism,
                description=f"Kafka no longer takes what this process was started with, which goes on trying: if user "
                f"or password were changed there, correct {PREFIX}SASL_USERNAME, {PREFIX}SASL_PASSWORD or "
                f"{PREFIX}SASL_MECHANISM and start it again",
            )
        return True


def watch(settings: Settings) -> None:
    """Begin to listen to aiokafka, in the place of a watch that was before."""
    for before in [found for found in _AIOKAFKA.filters if isinstance(found, RefusedLogins)]:
        _AIOKAFKA.removeFilter(before)
    if settings.uses_sasl:
        _AIOKAFKA.addFilter(RefusedLogins(settings))
