"""Kafka with TLS, users and rights."""
