"""Excludes the batcher's requests from tracing: otherwise each would create a span, which would cause a request.

OpenTelemetry's instrumentations look in the current context for a key that suppresses them. There are three, as the
convention has changed: the API's key for everything, its key for HTTP, and a plain string, which packages from before
2021 look for and current ones still do.
"""

from __future__ import annotations

from typing import Final

_PLAIN_KEY: Final = "suppress_instrumentation"
_API_KEYS: Final = ("_SUPPRESS_INSTRUMENTATION_KEY", "_SUPPRESS_HTTP_INSTRUMENTATION_KEY")


def suppress_instrumentation() -> None:
    """Suppress automatic tracing in the current context (`contextvars`) and its copies from now on.

    Without OpenTelemetry's API there is nothing to suppress. If it is installed, it is imported here, as the program
    may instrument itself later.
    """
    try:
        from opentelemetry import context as api
    except ImportError:
        return
    suppressed = api.set_value(_PLAIN_KEY, True)
    for name in _API_KEYS:
        # The names are private, so one may be missing: older versions of the API have no key for HTTP.
        key = getattr(api, name, None)
        if isinstance(key, str):
            suppressed = api.set_value(key, True, suppressed)
    api.attach(suppressed)
