"""`millstream demo-changefeed` from the outside: what it shows, and that it leaves nothing behind."""

from __future__ import annotations

import re
from pathlib import Path

from confluent_kafka.admin import AdminClient

from tests.acceptance.cli import Cli
from tests.support.waiting import wait_until


def test_it_shows_both_lines_of_work_with_their_trouble_and_how_to_go_on(
    kafka: str, admin: AdminClient, tmp_path: Path
) -> None:
    cli = Cli(kafka, tmp_path, POSTGRES_URL="postgresql://me@127.0.0.1:1/not-to-be-touched")
    cli.environment["COLUMNS"] = "200"
    done = cli("demo-changefeed", "--dir", tmp_path / "demo", "--videos", "40", "--products", "400")
    assert done.returncode == 0, done.stdout + done.stderr
    said = [re.sub(r"[│┃ ]+", " ", line).strip() for line in done.stdout.splitlines()]
    for expected in (
        r"1\. Outbox: 40 videos are created, .*",
        r"164 events in .* s, from the first commit to the last row",
        r"every event once more 164 known by its id; the projection is the same",
        r"versions 1 and 3, then 2 3 title 'third' of version 3 stays, description 'of version 2' is taken",
        r"a schema_version v2 1 1 in catalog\.projection_errors, with its bytes",
        r"poison: no event at all 2 2 in \S+\.dlq, with the reason; the stream goes on",
        r"\d+:\d+: UndecodableEventError: .*",
        r"GET /videos/\S+\?min_version=1 200 ahead",
        r"GET /videos/\S+\?min_version=4 200 equal",
        r"GET /videos/\S+\?min_version=5 409 behind",
        r"GET /videos/\S+\?min_version=1 410 deleted",
        r"GET /videos/\S+\?min_version=1 404 never_existed",
        r"2\. Product ETL: 400 staged rows .*",
        r"all rows, new 400 400 0 400 .* s",
        r"every tenth with another price (\d+) 0 \1 \1 .* s",
        r"every tenth touched, its content the same [1-9]\d* 0 0 0 .* s",
        r"watermark: 20\d\d-.*",
        r"Try next:",
        r"millstream outbox relay",
    ):
        assert any(re.fullmatch(expected, line) for line in said), (expected, done.stdout)
    assert all(name in done.stderr for name in ("written", "published", "projected"))  # the bars
    namespaces = set(re.findall(r"demo-[0-9a-f]{8,}", done.stdout))  # other demos may be under way
    assert namespaces

    def left() -> list[str]:
        return [name for name in admin.list_topics(timeout=30).topics if name.startswith(tuple(namespaces))]

    wait_until(lambda: not left(), 30, "the demo's topics to be gone")
    assert list((tmp_path / "data").glob("logs/*")) == []
