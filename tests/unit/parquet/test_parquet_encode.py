"""Dump records to the 14 published columns (RP-20 to RP-38)."""

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from millstream.errors import ConfigError, SinkError
from schemas.records import PARQUET
from sinks.parquet import ParquetConfig, record_to_columns
from sinks.parquet.encode import to_part
from tests.integration.parquet.data import BATCH, INSTANCE, table


def columns(*rows: dict) -> pa.Table:
    return record_to_columns(pa.Table.from_batches([to_part(table(rows))]), BATCH, INSTANCE)


def test_the_columns_have_the_given_names_and_order() -> None:  # RP-20 to RP-34
    assert columns({}).column_names == PARQUET.names


def test_the_original_instance_stands_in_its_column_not_the_file_name() -> None:  # RP-22, RP-71
    assert columns({}, {})["instance"].to_pylist() == [INSTANCE, INSTANCE]


def test_a_batch_time_keeps_its_nanoseconds() -> None:  # T36, RP-36
    assert columns({})["batch"].type == pa.timestamp("ns", tz="UTC")
    assert columns({})["batch"].cast(pa.int64()).to_pylist() == [1691999696123456789]


@pytest.mark.parametrize("ms", [0, -1, 1, 253402300800000, 2**63 - 1])
def test_an_expiry_stays_exact_also_past_year_9999(ms: int) -> None:  # T35, RP-37
    expire_at = columns({"expire_at_ms": ms})["expire_at"]
    assert expire_at.type == pa.timestamp("ms", tz="UTC")
    assert pc.cast(expire_at, pa.int64()).to_pylist() == [ms]


def test_keys_are_bytes_as_they_are() -> None:  # T34, RP-35
    keys = [b"", b"\x00\n'\"", b"\xff\xfe", b"42", b"x" * 1_000_000]
    assert columns(*({"key": k} for k in keys))["key"].to_pylist() == keys


def test_optional_fields_that_are_none_become_null() -> None:  # RP-38
    row = columns({}).to_pylist()[0]
    assert [n for n, v in row.items() if v is None] == [
        "expire_at", "idle_seconds", "freq", "codis_slot", "redis_slot",
    ]  # fmt: skip


def test_words_of_any_dictionary_or_none_come_out_the_same() -> None:
    wire = table([{"type": "hash", "encoding": "list_pack_ex"}, {"type": "set", "encoding": "int_set"}])
    plain = wire.set_column(2, "type", wire["type"].cast(pa.utf8()))
    own = plain.set_column(2, "type", plain["type"].dictionary_encode())
    both = pa.concat_tables([plain, plain])
    assert to_part(own).equals(to_part(wire))
    assert to_part(both)["type"].to_pylist() == [4, 2, 4, 2]


def test_a_word_that_the_record_model_does_not_know_is_named() -> None:
    wire = table([{}])
    strange = wire.set_column(2, "type", pa.array(["bitmap"]))
    with pytest.raises(SinkError, match="type 'bitmap' is not one of string, list"):
        to_part(strange)


def test_missing_fields_and_nulls_where_none_may_be_are_named() -> None:
    with pytest.raises(SinkError, match="without the fields key, freq"):
        to_part(table([{}]).drop_columns(["key", "freq"]))
    with pytest.raises(SinkError, match="'key' with null values"):
        to_part(table([{}]).set_column(1, "key", pa.array([None], pa.binary())))


def test_values_that_do_not_fit_their_type_are_an_error() -> None:
    with pytest.raises(SinkError, match="do not fit the record model"):
        to_part(table([{}]).set_column(8, "freq", pa.array([2**40])))


@pytest.mark.parametrize("options", [{"compression": "gzip"}, {"owner": ""}])
def test_wrong_options_are_named(tmp_path, options: dict) -> None:  # RP-3, RP-5
    with pytest.raises(ConfigError, match=next(iter(options))):
        ParquetConfig(tmp_path, **options)
