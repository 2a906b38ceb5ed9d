"""The staging table of products: read by a cursor, in batches, into `products.staging.rows`."""

from sources.staging.feed import Fed, StagingFeeder
from sources.staging.preflight import check_staging
from sources.staging.reader import BEGIN, Batch, StagingReader

__all__ = ["BEGIN", "Batch", "Fed", "StagingFeeder", "StagingReader", "check_staging"]
