"""Settings that hold for every test."""

from __future__ import annotations

from hypothesis import settings

# How long an example takes says nothing on a busy machine; what matters is that runs repeat.
settings.register_profile("default", deadline=None, derandomize=True)
settings.load_profile("default")
