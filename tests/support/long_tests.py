"""Long tests: they run first, and the summary shows the text that they record as ``said``.

``make test`` leaves them out. ``make test-all`` runs the tests in several processes with pytest-xdist, which gives each
process a share of them in order; a process that has finished its share takes over tests of another. So the longest
tests come first: if they came last, the other processes would have to wait for them.
"""

from __future__ import annotations

import sys

import pytest

from tests.support.processes import run_to_end

__all__ = ["MARKER", "SAID", "LongTests", "run_long"]

MARKER = "long"
# The name of a property (pytest's `record_property`) to show at the end of the run.
SAID = "said"


class LongTests:
    """A pytest plugin."""

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Put the marked tests first, after other plugins have shuffled them."""
        items.sort(key=lambda item: item.get_closest_marker(MARKER) is None)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Show the recorded text of tests that passed; failures show theirs anyway."""
        for report in terminalreporter.getreports("passed"):
            for said in (value for name, value in report.user_properties if name == SAID):
                terminalreporter.section(report.nodeid, "-")
                terminalreporter.line(str(said))


def run_long(*arguments: object) -> str:
    """Run ``python <arguments>`` without coverage. Return its output."""
    ended = run_to_end([sys.executable, *arguments], together=True)
    assert ended.returncode == 0, ended.stdout[-20_000:]
    return ended.stdout.strip()
