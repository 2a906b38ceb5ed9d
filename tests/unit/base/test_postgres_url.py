"""Commands that need a Postgres say so where none is configured."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from millstream.settings import override_settings
from streams.cli import cli

COMMANDS = ["migrate", "outbox stats", "outbox relay", "etl products"]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_without_its_postgres_names_the_setting(command: str) -> None:
    with override_settings(postgres_url=None, bootstrap_servers="127.0.0.1:1"):
        result = CliRunner().invoke(cli, command.split())
    assert result.exit_code == 1
    assert "MILLSTREAM_POSTGRES_URL is not set: give it a URL such as postgresql://me@db:5432/shop" in result.output
