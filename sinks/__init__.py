"""How data leaves: one folder per sink, each with the same few files, and one wrapper that owns retry and metrics."""
