"""Kafka Streams, in Java."""
