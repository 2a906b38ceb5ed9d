"""The Parquet sink under kill -9, SIGSTOP and rivals."""
