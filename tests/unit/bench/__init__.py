"""The benchmark's own judgement: a result that is wrong or missed must not look good."""
