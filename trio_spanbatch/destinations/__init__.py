"""Functions that return an exporter for one kind of server. Importing them does not import any vendor's library."""

from __future__ import annotations

from .mlflow import mlflow
from .unity_catalog import unity_catalog
from .zerobus import zerobus

__all__ = ["mlflow", "unity_catalog", "zerobus"]
