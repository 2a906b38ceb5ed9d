"""Parquet files on a local disk: one per chunk of a stream, or one per instance of a published dump."""

from sinks.parquet.config import Compression, ParquetConfig
from sinks.parquet.encode import record_to_columns
from sinks.parquet.service import ParquetBatches, ParquetStream

__all__ = ["Compression", "ParquetBatches", "ParquetConfig", "ParquetStream", "record_to_columns"]
