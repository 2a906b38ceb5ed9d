"""What the attacks on brokers and networks share with those of tests/chaos."""

from tests.chaos.conftest import home, seed

__all__ = ["home", "seed"]
