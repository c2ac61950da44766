"""Validate `SpanBatcher`'s arguments and fill in defaults from the environment."""

from __future__ import annotations

import inspect
import math
import os
import time
from collections.abc import Callable
from contextvars import ContextVar
from threading import get_ident
from typing import Any, TypeAlias, TypeVar

from ._exporter import LimitsItsAttempts, SpanExporter
from ._reporting.log import Log
from ._reporting.throttle import Throttle
from ._settings import environment
from ._settings.policies import BatchPolicy, Limits, RetryPolicy
from ._spans.checks import shown
from ._spans.encoder import SpanEncoder
from ._values import is_number

_T = TypeVar("_T")

# Seconds by which the default time limit of an attempt is longer than the exporter's.
_LATER_THAN_THE_EXPORTER = 1.0

# The places in `redact` of which an exception was logged recently, and is not logged again.
_PLACES = 100
# What `testing.exporting_to` sets: a function that makes the exporter of a batcher to which none is given.
ExporterFor: TypeAlias = Callable[[object], SpanExporter]
exporter_in_tests: ContextVar[ExporterFor | None] = ContextVar("exporter_in_tests", default=None)
# The same for threads that were started without their starter's context, with the threads that set it.
exporters_for_threads: list[tuple[int, ExporterFor]] = []


def checked(name: str, value: _T | None, kind: type[_T]) -> _T | None:
    if value is not None and not isinstance(value, kind):
        raise TypeError(f"{name} is {shown(value)}; it must be of type {kind.__name__}")
    return value


def checked_function(name: str, value: _T | None) -> _T | None:
    if value is not None and not callable(value):
        raise TypeError(f"{name} is {shown(value)}; it must be a function")
    if inspect.iscoroutinefunction(value):
        raise TypeError(f"{name} is {shown(value)}, which is async; it must be a synchronous function")
    return value


def checked_bool(name: str, value: bool) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{name} is {shown(value)}; it must be True or False")
    return value


def checked_level(value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"log_level is {shown(value)}; it must be an int, for instance logging.INFO")
    return value


def checked_timeout(value: float) -> float:
    if not is_number(value):
        raise TypeError(f"shutdown_timeout is {shown(value)}; it must be a number of seconds, 0 or more")
    if not value >= 0:
        raise ValueError(f"shutdown_timeout is {value!r}; it must be 0 or more seconds (math.inf means no limit)")
    return value


def exporter_or_default(exporter: SpanExporter | None, batcher: object) -> SpanExporter:
    if exporter is None:
        make = exporter_in_tests.get()
        if make is None and exporters_for_threads and exporters_for_threads[-1][0] != get_ident():
            make = exporters_for_threads[-1][1]
        if make is None:
            from ._http.exporter import OTLPExporter

            return OTLPExporter.from_env()
        exporter = make(batcher)
    # Without a type checker, the mistake would otherwise show only in the first export.
    given: object = exporter
    if isinstance(given, type) or not all(callable(getattr(given, name, None)) for name in ("export", "aclose")):
        # The value is not shown, as it may be a URL with a password in it.
        kind = f"the class {given.__name__}" if isinstance(given, type) else f"of type {type(given).__name__}"
        is_of_the_sdk = all(hasattr(given, name) for name in ("export", "shutdown", "force_flush"))
        raise TypeError(
            f"exporter is {kind}{', an exporter of OpenTelemetry, which blocks' if is_of_the_sdk else ''}; it must be "
            "a SpanExporter, for instance OTLPExporter('http://localhost:4318/v1/traces')"
        )
    for name in ("export", "aclose"):
        if _is_synchronous(getattr(exporter, name)):
            raise TypeError(
                f"exporter.{name} of {type(exporter).__name__} is a synchronous function; it must be async, as in "
                f"`async def {name}`: call code that blocks with trio.to_thread.run_sync"
            )
    return exporter


def _is_synchronous(method: object) -> bool:
    """Return whether ``method`` is a plain function, which cannot be awaited; a wrapper may return an awaitable."""
    return inspect.isroutine(method) and not inspect.iscoroutinefunction(method) and not hasattr(method, "__wrapped__")


def policy_function(batch: BatchPolicy | Callable[[str], BatchPolicy] | None) -> Callable[[str], BatchPolicy]:
    if isinstance(batch, type):
        raise TypeError(f"batch is {batch!r}; it must be a BatchPolicy, or a function of the location that returns one")
    if callable(batch):
        return batch
    policy = checked("batch", batch, BatchPolicy) or BatchPolicy(**environment.batch_options(os.environ))
    return lambda location: policy


def limits_or_default(limits: Limits | None) -> Limits:
    return checked("limits", limits, Limits) or Limits(**environment.queue_options(os.environ))


def retry_or_default(retry: RetryPolicy | None, exporter: SpanExporter) -> RetryPolicy:
    """Return ``retry``, or a policy whose time limit for attempts is from the environment or suits the exporter."""
    if (given := checked("retry", retry, RetryPolicy)) is not None:
        return given
    default = RetryPolicy().attempt_timeout
    if isinstance(exporter, LimitsItsAttempts) and default <= exporter.timeout:
        # Longer than the exporter's own limit, because the exporter gives a more precise reason.
        default = exporter.timeout + _LATER_THAN_THE_EXPORTER
    return RetryPolicy(attempt_timeout=environment.export_timeout(os.environ, default))


def encoder_for(redact: Callable[[str, Any], Any] | None, max_attribute_bytes: int | None, log: Log) -> SpanEncoder:
    """Return an encoder that applies ``redact`` and ``max_attribute_bytes``, if there are any."""
    if checked_function("redact", redact) is not None:
        _check_takes_two(redact)
    if max_attribute_bytes is not None:
        if isinstance(max_attribute_bytes, bool) or not isinstance(max_attribute_bytes, int):
            raise TypeError(
                f"max_attribute_bytes is {shown(max_attribute_bytes)}; it must be an int, or None for no limit"
            )
        if max_attribute_bytes < 1:
            raise ValueError(
                f"max_attribute_bytes is {max_attribute_bytes}; it must be at least 1, or None for no limit"
            )
    resource = environment.default_resource(os.environ)
    units = Throttle(time.monotonic, interval=math.inf)

    def warn_of_unit(problem: str, unit: str) -> None:
        if units.allows():
            log.warning("%s: times are in nanoseconds, as time.time_ns() returns them; is this in %s?", problem, unit)

    if redact is None and max_attribute_bytes is None:
        return SpanEncoder(resource, warn_of_unit)
    from ._spans.redaction import RedactingEncoder, Redactor

    throttle = Throttle(time.monotonic, max_keys=_PLACES)

    def log_error(place: str, message: str, *args: object) -> None:
        if throttle.allows(place):
            log.error(message, *args)

    return RedactingEncoder(resource, warn_of_unit, Redactor(redact, max_attribute_bytes, log_error))


def _check_takes_two(redact: Any) -> None:
    try:
        inspect.signature(redact).bind("key", "value")
    except ValueError:
        pass  # some builtin functions have no signature
    except TypeError:
        raise TypeError(
            f"redact is {shown(redact)}; it must be a function of two arguments, a key and a value"
        ) from None
