"""What the data looks like: chunks, batches, records, control records, names, wire codecs."""
