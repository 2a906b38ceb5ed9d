"""Verify: what a sink holds against its source and its topic, by checksums per range of keys, and repair.

Keys are dealt into ranges by a hash. Of each range the two sides give a count and a sum of hashes, computed where the
rows are; keys are only looked at in ranges that differ.
"""
