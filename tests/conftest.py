"""Hypothesis profiles: a fixed, quick one by default, and a thorough one for hunting."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

settings.register_profile(
    "default", deadline=None, max_examples=200, derandomize=True, suppress_health_check=list(HealthCheck)
)
settings.register_profile("thorough", deadline=None, max_examples=20_000, suppress_health_check=list(HealthCheck))
settings.load_profile("default")
