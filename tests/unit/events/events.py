"""Events for tests, made by hand or by Hypothesis."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from hypothesis import strategies as st

from schemas.events import CREATED, DELETED, UPDATED, Event
from schemas.events.envelope import STAGE_STATUS, VIDEO_STATUS, format_time

START = datetime(2026, 1, 31, 12, 0, 0, 1, tzinfo=UTC)


def uuid(number: int) -> str:
    """A UUID out of a number."""
    return str(UUID(int=number))


def event(event_type: str, version: int, number: int | None = None, video: int = 1, **payload: Any) -> Event:
    """An event of a video; `number` makes its id, by default its version."""
    return Event(
        event_id=uuid((version if number is None else number) << 32 | video),
        event_type=event_type,
        aggregate_id=uuid(video),
        version=version,
        occurred_at=START + timedelta(seconds=version % 1_000_000),
        payload=payload,
    )


text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)
_always = {
    "title": text,
    "description": text,
    "duration_micros": st.integers(0, (1 << 63) - 1),
    "status": st.sampled_from(VIDEO_STATUS),
    "media_status": st.sampled_from(STAGE_STATUS),
    "analysis_status": st.sampled_from(STAGE_STATUS),
}
_updated = _always | {
    "thumbnail_url": text,
    "summary": text,
    "tags": st.lists(text, max_size=3),
    "published_at": st.datetimes(timezones=st.just(UTC)).map(format_time),
}


def payloads(event_type: str) -> st.SearchStrategy[dict[str, Any]]:
    """Payloads of a type; nulls among them for updates, where null is not absent."""
    if event_type == CREATED:
        return st.fixed_dictionaries({}, optional=_always | {"uploader_id": st.integers(0, 9).map(uuid)})
    if event_type == UPDATED:
        return st.fixed_dictionaries({}, optional={k: st.none() | v for k, v in _updated.items()})
    return st.fixed_dictionaries({}, optional={"reason": text})


types = st.sampled_from((CREATED, UPDATED, UPDATED, DELETED))


def history(rng: random.Random, video: int, length: int) -> list[Event]:
    """Events of one video in the order of their versions, as its writer would tell them."""
    found = [
        event(CREATED, 1, None, video, title=f"video {video}", status="pending_upload", uploader_id=uuid(video % 7))
    ]
    for version in range(2, length + 1):
        if rng.random() < 0.05:
            found.append(event(DELETED, version, None, video, reason="asked"))
            continue
        choice: dict[str, Any] = {
            "title": f'{version} "\u4e2d\U0001f600',
            "description": rng.choice([None, "", f"d{version}"]),
            "duration_micros": rng.choice([None, rng.randrange(1 << 62)]),
            "status": rng.choice(VIDEO_STATUS),
            "media_status": rng.choice(STAGE_STATUS),
            "tags": rng.choice([None, [], ["a", 'b"c'], [str(version)]]),
            "published_at": rng.choice([None, format_time(START + timedelta(seconds=version))]),
        }
        names = rng.sample(sorted(choice), rng.randint(0, 3))
        kind = CREATED if rng.random() < 0.03 else UPDATED
        allowed = ("tags", "published_at") if kind == CREATED else ()
        payload = {n: choice[n] for n in names if n not in allowed and (kind == UPDATED or choice[n] is not None)}
        found.append(event(kind, version, None, video, **payload))
    return found
