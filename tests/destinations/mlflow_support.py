"""An MLflow server in another process, the traces that tests send to it, and those that it returns."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import trio
from google.protobuf import json_format
from opentelemetry.proto.trace.v1.trace_pb2 import Span as SpanMessage

from tests.cli.support import clean_environment
from tests.support.paths import PROJECT

PROJECT = PROJECT
# To use another version's environment: TEST_MLFLOW_VENV=.venv-mlflow-3.18.
MLFLOW = PROJECT / os.environ.get("TEST_MLFLOW_VENV", ".venv-mlflow") / "bin" / "mlflow"

# Seconds. It starts in 5 to 10, or later on a busy machine.
START_TIMEOUT = 180


class MLflowServer:
    """``mlflow server`` on SQLite, which can be killed and started again.

    Attributes:
        uri: Its tracking URI. The port stays the same.
    """

    def __init__(self, directory: Path) -> None:
        if not MLFLOW.exists():
            raise FileNotFoundError(f"{MLFLOW} is not there: `make test` makes it")
        self._directory = directory
        self._log = directory / "server.log"
        self._port = _free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self.uri: str = f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Start the server unless it runs, without waiting for it."""
        if self._process is not None:
            return
        command: list[str | Path] = [
            MLFLOW,
            "server",
            "--host",
            "127.0.0.1",
            "--port",
            str(self._port),
            "--workers",
            "1",
        ]
        command += ["--backend-store-uri", f"sqlite:///{self._directory}/mlflow.db"]
        command += ["--artifacts-destination", str(self._directory / "artifacts")]
        environ = {name: value for name, value in clean_environment().items() if not name.startswith("MLFLOW_")}
        environ |= {
            "HOME": str(self._directory),
            "MLFLOW_DISABLE_TELEMETRY": "true",
            # Requests without a workspace use the workspace "default".
            "MLFLOW_ENABLE_WORKSPACES": "true",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        }
        # Coverage must not measure the server.
        environ = {name: value for name, value in environ.items() if not name.startswith(("COV_", "COVERAGE_"))}
        with self._log.open("ab") as log:
            # In a new session, so that its workers can be killed with it.
            self._process = subprocess.Popen(
                command, cwd=self._directory, env=environ, stdout=log, stderr=log, start_new_session=True
            )

    def kill(self) -> None:
        """Kill the server and its workers with SIGKILL."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def wait_ready(self) -> None:
        """Return once the server answers."""
        give_up_at = time.monotonic() + START_TIMEOUT
        while not self.is_ready():
            assert self._process is not None
            assert self._process.poll() is None, f"the server ended:\n{self._log.read_text()[-4000:]}"
            assert time.monotonic() < give_up_at, f"the server does not start:\n{self._log.read_text()[-4000:]}"
            # Polling is the only way to learn that it is ready; its end is noticed immediately.
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(0.1)

    def is_ready(self) -> bool:
        """Return whether the server answers."""
        try:
            return httpx.get(f"{self.uri}/health", timeout=10, trust_env=False).is_success
        except httpx.TransportError:
            return False

    def create_workspace(self, name: str) -> None:
        """Create a workspace, in which experiments can be."""
        self._call("POST", "api/3.0/mlflow/workspaces", json={"name": name})

    def create_experiment(self, name: str, workspace: str = "default") -> str:
        """Create an experiment and return its id."""
        headers = {"X-MLFLOW-WORKSPACE": workspace}
        answer = self._call("POST", "api/2.0/mlflow/experiments/create", json={"name": name}, headers=headers)
        return str(answer["experiment_id"])

    def delete_experiment(self, experiment_id: str) -> None:
        """Move an experiment to MLflow's trash."""
        self._call("POST", "api/2.0/mlflow/experiments/delete", json={"experiment_id": experiment_id})

    def trace(self, trace_id: int, workspace: str = "default") -> dict[str, Any]:
        """Return the parts of a trace that MLflow has stored."""
        headers = {"X-MLFLOW-WORKSPACE": workspace}
        params = {"trace_id": f"tr-{trace_id:032x}"}
        trace: dict[str, Any] = self._call("GET", "api/3.0/mlflow/traces/get", params=params, headers=headers)["trace"]
        return trace

    def _call(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        response = httpx.request(method, f"{self.uri}/{path}", timeout=120, trust_env=False, **options)
        assert response.is_success, response.text
        document: dict[str, Any] = response.json()
        return document


@contextmanager
def running_mlflow(directory: Path) -> Iterator[MLflowServer]:
    """Run an MLflow server that is ready, and stop it at the end."""
    server = MLflowServer(directory)
    try:
        server.start()
        server.wait_ready()
        yield server
    finally:
        server.kill()


def stored_spans(trace: dict[str, Any]) -> list[SpanMessage]:
    """Return the spans of an answer as messages. MLflow writes protobuf's JSON, but ids as base64."""
    return [json_format.ParseDict(span, SpanMessage()) for span in trace.get("spans", [])]


def experiment_of(trace: dict[str, Any]) -> str:
    """Return the id of the experiment that a trace is in."""
    return str(trace["trace_info"]["trace_location"]["mlflow_experiment"]["experiment_id"])


async def wait_in_real_time(condition: Callable[[], bool]) -> None:
    """Return once ``condition()`` holds, which depends on other processes."""
    with trio.fail_after(START_TIMEOUT):
        while not condition():  # noqa: ASYNC110  # nobody can notify
            await trio.sleep(0.05)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
