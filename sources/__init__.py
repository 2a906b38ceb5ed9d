"""How data gets into Kafka: one module or folder per source."""
