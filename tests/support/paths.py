"""Folders that tests look into."""

from __future__ import annotations

from pathlib import Path

__all__ = ["DATA_FOLDER", "PROJECT", "TESTS"]

TESTS = Path(__file__).parents[1]
PROJECT = TESTS.parent
DATA_FOLDER = TESTS / "data"
