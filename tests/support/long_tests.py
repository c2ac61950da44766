"""Tests that take long: they come first, and what they record as ``said`` is shown at the end.

``make test`` leaves them out. ``make test-all`` runs the tests in several processes, by pytest-xdist. It gives each
process a share of them in their order, and a process that has done its share takes over some of another's. So the ones
that take longest come first: at the end they would be waited for by processes with nothing to do.
"""

from __future__ import annotations

import sys

import pytest

from tests.support.processes import run_to_end

__all__ = ["MARKER", "SAID", "LongTests", "run_long"]

MARKER = "long"
# What a test gives to pytest's `record_property`, to be shown at the end of the run.
SAID = "said"


class LongTests:
    """A plugin of pytest's."""

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Put the marked tests first, whatever shuffled them before."""
        items.sort(key=lambda item: item.get_closest_marker(MARKER) is None)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Show what tests that passed have said; of others it stands in their failures."""
        for report in terminalreporter.getreports("passed"):
            for said in (value for name, value in report.user_properties if name == SAID):
                terminalreporter.section(report.nodeid, "-")
                terminalreporter.line(str(said))


def run_long(*arguments: object) -> str:
    """Run ``python <arguments>`` without coverage. Return what it says."""
    ended = run_to_end([sys.executable, *arguments], together=True)
    assert ended.returncode == 0, ended.stdout[-20_000:]
    return ended.stdout.strip()
