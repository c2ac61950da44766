"""What tests that start processes of their own share."""

from __future__ import annotations

import os


def untraced_environment() -> dict[str, str]:
    """Return the environment for a child that a KeyboardInterrupt may hit anywhere: coverage is not measured in it.

    Coverage takes a lock while it looks at a file for the first time. A KeyboardInterrupt that is raised right there
    leaves the lock taken, and the child hangs for ever.
    """
    return {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_PROCESS")}
