"""Settings that hold for every test."""

from __future__ import annotations

import signal

import pytest
from background import MARKER, Background, Command
from hypothesis import settings

# How long an example takes says nothing on a busy machine; what matters is that runs repeat.
settings.register_profile("default", deadline=None, derandomize=True)
settings.load_profile("default")

# A shell that runs the tests in the background has them ignore SIGINT, and a child inherits that from them.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", f"{MARKER}(*arguments): a command for python that runs beside the other tests")
    config.pluginmanager.register(Background(), MARKER)


@pytest.fixture
def background(request: pytest.FixtureRequest) -> Command:
    """The command of the test's marker, which may be running still."""
    plugin = request.config.pluginmanager.get_plugin(MARKER)
    assert isinstance(plugin, Background)
    return plugin.command_of(request.node)
