"""Hypothesis for all unit tests: no deadline, since a busy machine is no bug."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("millstream", deadline=None)
settings.load_profile("millstream")
