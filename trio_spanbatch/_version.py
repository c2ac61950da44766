"""The version of this package; the one in pyproject.toml is tested against it."""

__version__ = "0.1.0"
