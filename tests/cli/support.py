"""Helpers for tests of the command line: OTLP JSON, and running the command in a process or a thread."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import attrs
import pytest
import trio
from click.testing import CliRunner, Result
from databricks.sdk._base_client import _BaseClient

from trio_spanbatch.cli.circuit_breaker import CircuitBreaker
from trio_spanbatch.cli.commands import cli


def span_document(number: int, *, tenant: object = None, **fields: Any) -> dict[str, Any]:
    """Return a span as OTLP JSON, with ``tenant`` as an attribute if it is given."""
    document: dict[str, Any] = {
        "traceId": f"{1:032x}",
        "spanId": f"{number:016x}",
        "name": f"step {number}",
        "startTimeUnixNano": "1",
        "endTimeUnixNano": "2",
    }
    if tenant is not None:
        document["attributes"] = [{"key": "tenant", "value": _value(tenant)}]
    return {**document, **fields}


def request_document(*spans: Any, tenant: object = None) -> dict[str, Any]:
    """Return a request as OTLP JSON, with ``tenant`` as an attribute of the resource if it is given."""
    resource = {} if tenant is None else {"attributes": [{"key": "tenant", "value": _value(tenant)}]}
    return {"resourceSpans": [{"resource": resource, "scopeSpans": [{"spans": list(spans)}]}]}


def request_line(*spans: Any, tenant: object = None) -> bytes:
    """Return a request as one line of OTLP JSON."""
    return json.dumps(request_document(*spans, tenant=tenant)).encode() + b"\n"


def _value(value: object) -> dict[str, object]:
    if isinstance(value, bool):
        return {"boolValue": value}
    return {"intValue": str(value)} if isinstance(value, int) else {"stringValue": value}


@attrs.frozen
class Ended:
    """The outcome of a command."""

    exit_code: int
    out: str
    err: str

    @property
    def document(self) -> dict[str, Any]:
        """The one JSON document on stdout."""
        document: dict[str, Any] = json.loads(self.out)
        return document


def clean_environment(environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment without variables that configure an exporter or a proxy."""
    kept = {name: value for name, value in os.environ.items() if not name.upper().startswith("OTEL_")}
    kept = {name: value for name, value in kept.items() if not name.upper().endswith("_PROXY")}
    return {**kept, **(environ or {})}


def command(*arguments: object) -> list[str]:
    """Return the command line of ``trio-spanbatch`` with ``arguments``."""
    return [sys.executable, "-m", "trio_spanbatch", *map(str, arguments)]


async def run_command(
    *arguments: object, stdin: bytes = b"", environ: Mapping[str, str] | None = None, program: Sequence[str] = ()
) -> Ended:
    """Run ``trio-spanbatch`` in a child process, and wait for its end."""
    process = await trio.run_process(
        [*program, *map(str, arguments)] if program else command(*arguments),
        stdin=stdin,
        capture_stdout=True,
        capture_stderr=True,
        check=False,
        env=clean_environment(environ),
    )
    return Ended(process.returncode, process.stdout.decode(), process.stderr.decode())


async def run_in_process(*arguments: object, environ: Mapping[str, str] | None = None) -> Ended:
    """Run ``trio-spanbatch`` in a thread of this process. This is much faster, but signals cannot be sent to it."""
    result = await trio.to_thread.run_sync(_invoke, [str(argument) for argument in arguments], environ or {})
    return Ended(result.exit_code, result.stdout, result.stderr)


def _invoke(arguments: Sequence[str], environ: Mapping[str, str]) -> Result:
    cleared = dict.fromkeys(os.environ.keys() - clean_environment().keys())
    return CliRunner(env={**cleared, **environ}).invoke(cli, arguments, prog_name="trio-spanbatch")


async def start_command(
    nursery: trio.Nursery, *arguments: object, environ: Mapping[str, str] | None = None
) -> trio.Process:
    """Start ``trio-spanbatch`` with pipes for its three streams. It is killed if the nursery is cancelled."""
    run = partial(
        trio.run_process,
        command(*arguments),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        check=False,
        env=clean_environment(environ),
    )
    process: trio.Process = await nursery.start(run)
    return process


class Lines:
    """Reads the lines that a process writes."""

    def __init__(self, stream: trio.abc.ReceiveStream | None) -> None:
        assert stream is not None
        self._stream = stream
        self._data = bytearray()

    async def next(self) -> str:
        """Return the next line without its end, and ``""`` at the end of the stream."""
        while b"\n" not in self._data:
            data = await self._stream.receive_some()
            if not data:
                break
            self._data += data
        line, _, rest = bytes(self._data).partition(b"\n")
        self._data = bytearray(rest)
        return line.decode()

    async def rest(self) -> str:
        """Return everything up to the end of the stream."""
        while data := await self._stream.receive_some():
            self._data += data
        return self._data.decode()


def give_up_after_the_first_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have ``send`` give up after the first failure, and databricks-sdk after its first."""

    async def give_up_after_a_failure(self: CircuitBreaker) -> None:
        while not self.failure:  # noqa: ASYNC110  # there is no event for it
            await trio.sleep(0.001)
        self.give_up()

    monkeypatch.setattr(CircuitBreaker, "wait_to_give_up", give_up_after_a_failure)
    monkeypatch.setattr(_BaseClient, "_is_retryable", staticmethod(lambda error: None))
