"""Settings that hold for every test."""

from __future__ import annotations

import gc
import re
import signal

import pytest
from hypothesis import settings

from tests.support.long_tests import MARKER, LongTests
from tests.support.orphans import Watcher
from trio_spanbatch._settings.environment import forget_warnings

# How long an example takes says nothing on a busy machine; what matters is that runs repeat.
settings.register_profile("default", deadline=None, derandomize=True)
settings.register_profile("short", settings.get_profile("default"), max_examples=25)
settings.load_profile("default")

# A shell that runs the tests in the background has them ignore SIGINT, and a child inherits that from them.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def nothing_was_warned_of() -> None:
    """What is warned of once in a process is warned of once in a test."""
    forget_warnings()


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", f"{MARKER}: make test leaves it out; make test-all runs it before all others")
    config.pluginmanager.register(LongTests(), MARKER)
    if config.option.markexpr == f"not {MARKER}":
        settings.load_profile("short")
    config.add_cleanup(Watcher().end)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Refuse names with addresses in them: each worker would have other tests."""
    named_by_address = [item.nodeid for item in items if re.search(r"0x[0-9a-f]{6,}", item.nodeid)]
    if named_by_address:
        raise pytest.UsageError(f"names of tests with addresses in memory: {named_by_address}")


def pytest_collection_finish() -> None:
    """Spare the garbage collector, which some tests call, a look at all modules and tests each time."""
    gc.collect()
    gc.freeze()
