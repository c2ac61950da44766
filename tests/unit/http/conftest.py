"""Fixtures for tests of the HTTP client."""

from __future__ import annotations

import ssl

import pytest

from tests.support.scripted import Tls


@pytest.fixture(params=["TCP", "TLS 1.2", "TLS 1.3"])
def tls(request: pytest.FixtureRequest) -> Tls | None:
    """Both sides of TLS, of each version that is supported; None for plain TCP."""
    if request.param == "TCP":
        return None
    tls = Tls()
    tls.server.maximum_version = getattr(ssl.TLSVersion, request.param.replace(" ", "v").replace(".", "_"))
    return tls
