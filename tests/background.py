"""Long commands that run beside the other tests, on a core of their own.

pytest runs one test after the other in one process, while the simulation, the cancels at every step and the planted
faults are processes that need minutes of a processor and nothing else. A test marked ``background(*arguments)`` names
such a command, ``python <arguments>`` in the folder of the tests. All of them that were selected run in a row while
the other tests do; the marked tests come last, and get what their command has said from the fixture `background`.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable
from pathlib import Path

import pytest
from process_support import untraced_environment

MARKER = "background"


class Command:
    """One command, which runs once the one before it has ended.

    Attributes:
        arguments: What Python is called with.
    """

    def __init__(self, arguments: Iterable[object]) -> None:
        self.arguments = [str(argument) for argument in arguments]
        self._ended = threading.Event()
        self._process: subprocess.Popen[str] | None = None
        self._said = ""

    def run(self) -> None:
        """Run the command and keep what it says."""
        try:
            with self._start() as self._process:
                self._said, _ = self._process.communicate()
        finally:
            self._ended.set()

    def wait(self) -> tuple[int, str]:
        """Return the exit code and what the command said on both its streams, once it has ended."""
        self._ended.wait()
        assert self._process is not None, f"{self.arguments} did not start"
        return self._process.returncode, self._said

    def stop(self) -> None:
        """End the command and its children if it runs."""
        if self._process is not None and not self._ended.is_set():
            os.killpg(self._process.pid, signal.SIGKILL)

    def _start(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, *self.arguments],
            cwd=Path(__file__).parent,
            env=untraced_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            # A group of its own, so that it can be ended with its children.
            start_new_session=True,
        )


class Background:
    """The commands of the tests that were selected."""

    def __init__(self) -> None:
        self._commands: dict[str, Command] = {}
        self._stopped = False

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Put the marked tests last, whatever shuffled them before."""
        items.sort(key=lambda item: item.get_closest_marker(MARKER) is not None)

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Start the commands of the tests that were selected."""
        if session.config.option.collectonly:
            return
        for item in session.items:
            marker = item.get_closest_marker(MARKER)
            if marker is not None:
                self._commands[item.nodeid] = Command(marker.args)
        threading.Thread(target=self._run_all, daemon=True).start()

    def pytest_sessionfinish(self) -> None:
        """Leave no command running."""
        self._stopped = True
        for command in self._commands.values():
            command.stop()

    def command_of(self, item: pytest.Item) -> Command:
        return self._commands[item.nodeid]

    def _run_all(self) -> None:
        for command in self._commands.values():
            if not self._stopped:
                command.run()
