"""Validate `SpanBatcher`'s arguments and fill in defaults from the environment."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from typing import TypeVar

from ._exporter import LimitsItsAttempts, SpanExporter
from ._settings import environment
from ._settings.policies import BatchPolicy, Limits, RetryPolicy
from ._spans.checks import shown
from ._values import is_number

_T = TypeVar("_T")

# Seconds by which the default time limit of an attempt is longer than the exporter's.
_LATER_THAN_THE_EXPORTER = 1.0


def checked(name: str, value: _T | None, kind: type[_T]) -> _T | None:
    if value is not None and not isinstance(value, kind):
        raise TypeError(f"{name} is {value!r}; it must be of type {kind.__name__}")
    return value


def checked_function(name: str, value: _T | None) -> _T | None:
    if value is not None and not callable(value):
        raise TypeError(f"{name} is {value!r}; it must be a function")
    if inspect.iscoroutinefunction(value):
        raise TypeError(f"{name} is {value!r}, which is async; it must be a synchronous function")
    return value


def checked_level(value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"log_level is {value!r}; it must be an int, for instance logging.INFO")
    return value


def checked_timeout(value: float) -> float:
    if not is_number(value):
        raise TypeError(f"shutdown_timeout is {shown(value)}; it must be a number of seconds, 0 or more")
    if not value >= 0:
        raise ValueError(f"shutdown_timeout is {value!r}; it must be 0 or more seconds (math.inf means no limit)")
    return value


def exporter_or_default(exporter: SpanExporter | None) -> SpanExporter:
    if exporter is None:
        from ._http.exporter import OTLPExporter

        return OTLPExporter.from_env()
    # Without a type checker, the mistake would otherwise show only in the first export.
    given: object = exporter
    if isinstance(given, type) or not all(callable(getattr(given, name, None)) for name in ("export", "aclose")):
        # The value is not shown, as it may be a URL with a password in it.
        kind = f"the class {given.__name__}" if isinstance(given, type) else f"of type {type(given).__name__}"
        raise TypeError(
            f"exporter is {kind}; it must be a SpanExporter, for instance "
            "OTLPExporter('http://localhost:4318/v1/traces')"
        )
    return exporter


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
