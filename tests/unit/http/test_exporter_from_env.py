from __future__ import annotations

import pytest

from tests.support.batchers import make_span
from trio_spanbatch import OTLPExporter, SpanBatch
from trio_spanbatch._http.exporter import DisabledExporter
from trio_spanbatch._spans.encoder import SpanEncoder
from trio_spanbatch.testing import OTLPReceiver

ENVIRON = {
    "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1",
    "OTEL_EXPORTER_OTLP_TIMEOUT": "3000",
    "OTEL_EXPORTER_OTLP_COMPRESSION": "gzip",
}


@pytest.mark.parametrize(("compression", "sent"), [(None, "gzip"), ("gzip", "gzip"), ("none", None)])
async def test_arguments_of_from_env_replace_the_environment(compression: str | None, sent: str | None) -> None:
    async with OTLPReceiver() as receiver:
        exporter = OTLPExporter.from_env(ENVIRON, endpoint=receiver.url, timeout=7.0, compression=compression)
        assert not isinstance(exporter, DisabledExporter)
        assert (exporter.endpoint, exporter.timeout) == (receiver.url, 7.0)
        await exporter.export(SpanBatch("a", [SpanEncoder().encode(make_span())]))
        await exporter.aclose()
    assert receiver.requests[0].header("content-encoding") == sent


def test_an_unknown_compression_is_an_error_of_from_env() -> None:
    with pytest.raises(ValueError, match="compression is 'zip'; it must be 'gzip' or None"):
        OTLPExporter.from_env(ENVIRON, compression="zip")
