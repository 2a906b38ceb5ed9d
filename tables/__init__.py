"""State: the transactional RocksDB store and the tables kept in it."""
