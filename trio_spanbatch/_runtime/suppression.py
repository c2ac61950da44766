"""The batcher's own requests are not to be traced: each would make a span, which would make a request, and so on.

OpenTelemetry's instrumentation of a library looks in the current context for a key that says to keep still. There are
three, as the convention has changed: the API's key for everything and the one for HTTP, and a plain string, which
packages of before 2021 look at and today's still do.
"""

from __future__ import annotations

from typing import Final

__all__ = ["suppress_instrumentation"]

_PLAIN_KEY: Final = "suppress_instrumentation"
_API_KEYS: Final = ("_SUPPRESS_INSTRUMENTATION_KEY", "_SUPPRESS_HTTP_INSTRUMENTATION_KEY")


def suppress_instrumentation() -> None:
    """Have nothing traced automatically in the current context (`contextvars`) and its copies, from now on.

    Without OpenTelemetry's API there is nothing to suppress. It may be installed and not imported yet: the program
    may instrument itself later.
    """
    try:
        from opentelemetry import context as api
    except ImportError:
        return
    suppressed = api.set_value(_PLAIN_KEY, True)
    for name in _API_KEYS:
        # They are private, so that one may be missing: older versions of the API have no key for HTTP.
        key = getattr(api, name, None)
        if isinstance(key, str):
            suppressed = api.set_value(key, True, suppressed)
    api.attach(suppressed)
