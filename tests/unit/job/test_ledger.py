"""The rules by which facts change the state of batches, in every order and with every repetition."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.batch import Batch
from schemas.control import AbortBatch, Begun, Fact, InstanceDone, InstanceFailed, Progress, Where
from streams.ledger import (
    ABORTED,
    DONE,
    FAILED,
    KEEP_MS,
    PUBLISHED,
    RUNNING,
    AbortRun,
    Effect,
    Ledger,
    Publish,
    batch_of,
    instance_key,
)

KEY = Batch("c", 1_795_000_000_000_000_000).key
ALL = ["a", "b", "c"]


def where(instance: str, begin: int = 0, done: int = -1) -> Where:
    return Where(topic=f"t.{instance}", topic_id=f"id-{instance}", epoch=1, partition=0, begin=begin, done=done)


def begun(instance: str, run: str = "1", begin: int = 0, instances: list[str] | None = None) -> Begun:
    return Begun(run=run, instance=instance, instances=instances or ALL, where=where(instance, begin))


def progress(instance: str, first: int, rows: int = 10, run: str = "1", dead: int = 0) -> Progress:
    return Progress(
        run=run, instance=instance, first=first, last=first + 4, rows=rows, dead_letters=dead, messages=1, digest=7
    )


def done(instance: str, chunks: int, run: str = "1", **others: Any) -> InstanceDone:
    fields: dict[str, Any] = {
        "stored": 10 * chunks,
        "rows": 10 * chunks,
        "messages": chunks,
        "digest": 7 * chunks,
        "where": where(instance, 0, 100),
    }
    return InstanceDone(run=run, instance=instance, **(fields | others))


def life(instance: str, chunks: int = 2, run: str = "1", begin: int = 0) -> list[Fact]:
    steps = [progress(instance, begin + 1 + 5 * i, run=run) for i in range(chunks)]
    return [begun(instance, run, begin), *steps, done(instance, chunks, run)]


class Job:
    """A ledger with sinks that do what they are told."""

    def __init__(self, **options: Any) -> None:
        self.store: dict[bytes, bytes] = {}
        self.ledger = Ledger(self.store, **options)
        self.published: list[Publish] = []
        self.aborted: list[str] = []
        self.at = 1_000_000

    def take(self, *facts: Fact) -> list[Effect]:
        told: list[Effect] = []
        for fact in facts:
            self.at += 10
            for effect in self.ledger.apply(KEY, fact, self.at):
                told.append(effect)
                if isinstance(effect, Publish):
                    self.published.append(effect)
                    told += self.ledger.published(KEY, self.at)
                elif isinstance(effect, AbortRun):
                    self.aborted.append(f"{effect.run.instance}{effect.run.run_id}")
        return told

    @property
    def batch(self) -> Any:
        return self.ledger.batch(KEY)


def test_a_batch_is_published_when_its_last_instance_is_done() -> None:
    job = Job()
    job.take(*life("a"), *life("b", 0))  # T25, T27: an empty instance counts
    assert (job.batch.state, job.batch.done, job.published) == (RUNNING, 2, [])
    told = job.take(*life("c", 3))
    assert (job.batch.state, job.batch.done, job.batch.rows) == (PUBLISHED, 3, 50)
    (publish,) = job.published
    assert {i: (r.run_id, w.topic_id, w.done) for i, (r, w) in publish.runs.items()} == {
        i: ("1", f"id-{i}", 100) for i in ALL
    }
    assert [t.operation for t in told if hasattr(t, "operation")] == [
        "instance_completed",
        "batch_finalized",
        "dump_completed",
    ]


@st.composite
def histories(draw: st.DrawFn) -> list[Fact]:
    """Facts of three instances mixed in any way that keeps each one's order; the log may be read again from anywhere.

    Instance a is fed twice: its first run is void.
    """
    voided = life("a", 2, "0")[: draw(st.integers(0, 3))]
    logs = {"a": [*voided, *life("a", 3, "1", begin=50)], "b": life("b", 1), "c": life("c", 0)}
    at = dict.fromkeys(logs, 0)
    mixed: list[Fact] = []
    while left := [i for i in logs if at[i] < len(logs[i])]:
        instance = draw(st.sampled_from(left))
        if mixed and draw(st.integers(0, 4)) == 0:
            at[instance] -= draw(st.integers(0, min(2, at[instance])))  # read again from an earlier place
        mixed.append(logs[instance][at[instance]])
        at[instance] += 1
    for fact in draw(st.lists(st.sampled_from(mixed), max_size=6)):
        mixed.append(fact)  # and stray duplicates of anything at the end
    return mixed


@settings(max_examples=300)
@given(histories())
def test_in_every_order_and_with_every_repetition_a_batch_is_published_once(facts: list[Fact]) -> None:
    job = Job()  # T33
    for fact in facts:
        job.take(fact)
        assert job.batch.done <= len(ALL)
    assert len(job.published) == 1
    assert job.batch.state == PUBLISHED
    assert job.batch.rows == 40
    assert job.published[0].runs["a"][0].run_id == "1"


@given(st.permutations([life("a"), life("b"), life("c")]), st.integers(0, 2), st.integers(0, 3))
def test_a_batch_with_a_missing_fact_is_never_published(lives: list[list[Fact]], which: int, cut: int) -> None:
    job = Job()
    for i, facts in enumerate(lives):
        job.take(*[f for j, f in enumerate(facts) if i != which or j != cut])
    assert job.published == []
    assert job.batch.state in (RUNNING, FAILED)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"stored": 10}, "the sinks hold 10 rows, 20 were reported"),
        ({"rows": 21}, "21 rows were announced, 20 are stored"),
        ({"messages": 3}, "3 messages with digest 14 were announced"),
        ({"digest": 15}, "digest 15"),
    ],
)
def test_a_count_that_does_not_match_fails_the_batch(wrong: dict[str, int], says: str) -> None:
    job = Job()  # T26
    *before, _ = life("a")
    job.take(*before, done("a", 2, **wrong), *life("b"), *life("c"))
    assert (job.batch.state, job.published) == (FAILED, [])
    assert says in job.batch.reason
    assert "instance a" in job.batch.reason


@pytest.mark.parametrize("allowed", [False, True])
def test_dead_letters_block_the_batch_unless_they_are_allowed(allowed: bool) -> None:
    job = Job(allow_dead_letters=allowed)
    end = done("a", 1, rows=13, messages=1, digest=7)
    job.take(*life("b"), *life("c"), begun("a"), progress("a", 1, dead=3), end)
    assert job.batch.state == (PUBLISHED if allowed else FAILED)
    assert job.batch.dead_letters == 3
    if not allowed:
        assert "3 of 13 rows could not be decoded: see topic t.a.dlq" in job.batch.reason


def test_a_failed_instance_fails_the_batch_and_feeding_it_again_revives_it() -> None:
    job = Job()  # RU-68, T28
    told = job.take(begun("a"), progress("a", 1), InstanceFailed(run="1", instance="a", reason="is corrupt"))
    assert "producers_failed" in [getattr(t, "operation", "") for t in told]
    assert (job.batch.state, job.batch.reason) == (FAILED, "instance a is corrupt")
    job.take(*life("b"), *life("c"))
    assert (job.batch.state, job.published) == (FAILED, [])
    job.take(*life("a", 4, "2", begin=60))
    assert (job.batch.state, job.batch.rows, len(job.published)) == (PUBLISHED, 80, 1)


def test_an_aborted_batch_stays_aborted_whatever_arrives() -> None:
    job = Job()
    job.take(*life("a"), begun("b"), AbortBatch(reason="host is gone"))
    assert (job.batch.state, job.batch.reason) == (ABORTED, "host is gone")
    assert job.aborted == ["a1", "b1"]
    job.take(progress("b", 1), done("b", 1), *life("c"), AbortBatch(reason="again"))
    assert (job.batch.state, job.batch.reason, job.published) == (ABORTED, "host is gone", [])
    assert job.aborted == ["a1", "b1", "b1", "c1", "c1"]


def test_a_published_batch_cannot_be_aborted() -> None:
    job = Job()
    job.take(*life("a"), *life("b"), *life("c"), AbortBatch(reason="too late"))
    assert (job.batch.state, job.aborted) == (PUBLISHED, [])


def test_a_sink_that_refuses_to_publish_fails_the_batch() -> None:
    job = Job()
    job.take(*life("a"), *life("b"), *life("c"))
    job.ledger.refused(KEY, "published by somebody else", 9)
    assert (job.batch.state, job.batch.reason) == (FAILED, "published by somebody else")


def test_a_manifest_that_lists_an_instance_twice_fails_with_its_name_and_a_new_run_repairs_the_batch() -> None:
    job = Job()  # U8: a batch of ["a", "b", "b"] waited for a third instance for ever
    job.take(begun("a", instances=["a", "b", "b"]), progress("a", 1), done("a", 1))
    assert job.batch.state == FAILED
    assert "lists b twice: feed it again" in job.batch.reason
    for instance in ("a", "b"):
        again = begun(instance, "2", 50, instances=["a", "b"])
        job.take(again, progress(instance, 51, run="2"), done(instance, 1, "2"))
    assert [p.runs.keys() for p in job.published] == [{"a", "b"}]


def test_another_set_of_expected_instances_fails_the_instance_and_names_the_difference() -> None:
    job = Job()
    job.take(begun("a"), begun("b", instances=["a", "b"]))
    assert job.batch.state == FAILED
    assert "they differ in: c" in job.batch.reason


def test_facts_about_a_batch_that_never_began_change_nothing() -> None:
    job = Job()
    job.take(progress("a", 1), done("a", 1), AbortBatch(reason=""))
    assert job.store == {}


def test_values_stay_small_however_many_chunks_there_are() -> None:
    job = Job()
    job.take(begun("a"), *[progress("a", 1 + 5 * i) for i in range(2000)])
    assert len(job.store) == 2
    assert max(map(len, job.store.values())) < 600


def test_finished_batches_are_forgotten_by_the_time_of_records() -> None:
    job = Job()
    job.take(*life("a"), *life("b"), *life("c"))
    other = Batch("c", 1_796_000_000_000_000_000).key
    job.ledger.apply(other, begun("a"), job.at + KEEP_MS)
    assert job.batch is not None
    third = Batch("d", 1_797_000_000_000_000_000).key
    job.ledger.apply(third, begun("a"), job.at + KEEP_MS + 1)
    assert {batch_of(k) for k in job.store} == {other, third}  # the running one stays


@given(st.text(), st.text(), st.text(), st.text())
def test_no_two_names_share_a_key(b1: str, i1: str, b2: str, i2: str) -> None:
    texts = [t.encode("utf-8", "replace").decode() for t in (b1, i1, b2, i2)]
    same = instance_key(texts[0], texts[1]) == instance_key(texts[2], texts[3])
    assert same == (texts[:2] == texts[2:])
    assert batch_of(instance_key(texts[0], texts[1])) == texts[0]


def test_states_have_the_words_the_list_shows() -> None:
    assert (RUNNING, PUBLISHED, FAILED, ABORTED, DONE) == ("running", "published", "failed", "aborted", "done")
