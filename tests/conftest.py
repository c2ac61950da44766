"""Settings for all tests."""

from __future__ import annotations

import gc
import re
import signal
import sys
from collections.abc import Iterator

import pytest
from hypothesis import settings

from tests.support.long_tests import MARKER, LongTests
from tests.support.orphans import Watcher
from trio_spanbatch._settings import environment

# No deadline, as a busy machine is slow; and the same examples in each run.
settings.register_profile("default", deadline=None, derandomize=True)
settings.register_profile("short", settings.get_profile("default"), max_examples=25)
settings.load_profile("default")

# A shell makes its background processes ignore SIGINT, and child processes inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def no_warnings_so_far() -> None:
    """Have warnings that a process issues once issued once in each test."""
    environment._warnings.clear()


@pytest.fixture
def untraced() -> Iterator[None]:
    """Do not measure coverage in a test whose signal handlers run at any moment.

    Such a handler may raise, or call something, while coverage holds its lock: the lock then stays locked.
    """
    before = sys.gettrace()
    sys.settrace(None)
    yield
    sys.settrace(before)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", f"{MARKER}: make test leaves it out; make test-all runs it before all others")
    config.pluginmanager.register(LongTests(), MARKER)
    if config.option.markexpr == f"not {MARKER}":
        settings.load_profile("short")
    config.add_cleanup(Watcher().end)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Refuse names of tests that contain addresses: they would differ between workers."""
    named_by_address = [item.nodeid for item in items if re.search(r"0x[0-9a-f]{6,}", item.nodeid)]
    if named_by_address:
        raise pytest.UsageError(f"names of tests contain memory addresses: {named_by_address}")


def pytest_collection_finish() -> None:
    """Exempt all modules and tests from garbage collection, since some tests collect often."""
    gc.collect()
    gc.freeze()
