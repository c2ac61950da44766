"""The levels of gzip: the cost and the output of each, with spans recorded from agents."""

from __future__ import annotations

import gzip
import json
import zlib
from pathlib import Path

from bench.harness import Bar, Case, Figures, Plot, Round, Row, Setup, watch
from trio_spanbatch import EncodedSpan, InvalidSpanError, SpanBatch
from trio_spanbatch._http.body import GZIP_LEVEL
from trio_spanbatch._spans.encoder import SpanEncoder
from trio_spanbatch.cli.otlp_json import read_request

__all__ = ["CASE"]

_RECORDED = Path(__file__).parents[1] / "data" / "agent-traces.jsonl.gz"
_LEVELS = (1, 3, 4, 5, 6, 9)
_BATCH = 512


def _prepared(setup: Setup) -> Round:
    encoded = _recorded()[: setup.size(1_000_000, 512)]
    requests = [SpanBatch("all", encoded[at : at + _BATCH]).to_request() for at in range(0, len(encoded), _BATCH)]
    size = sum(map(len, requests))

    def run_round() -> Figures:
        figures: Figures = {}
        for level in _LEVELS:
            with watch() as seen:
                compressed = [_compressed(request, level) for request in requests]
            figures[f"CPU {level}"] = seen.cpu / size * 2**20 * 1e3
            figures[f"size {level}"] = sum(map(len, compressed)) / size * 100
            if list(map(gzip.decompress, compressed)) != requests:
                raise AssertionError("decompressing does not restore the requests")
        return figures

    return run_round


def _compressed(request: bytes, level: int) -> bytes:
    return zlib.compress(request, level, 16 + zlib.MAX_WBITS)


def _recorded() -> list[EncodedSpan]:
    encoder = SpanEncoder()
    encoded: list[EncodedSpan] = []
    with gzip.open(_RECORDED, "rt", encoding="utf-8") as lines:
        for line in lines:
            for span in read_request(json.loads(line)):
                assert not isinstance(span, InvalidSpanError), "they were valid when they were recorded"
                encoded.append(encoder.encode(span))
    return encoded


_OURS = f"trio-spanbatch: CPU {GZIP_LEVEL}"

CASE = Case(
    name="gzip_levels",
    title="The levels of gzip",
    about=(
        "4,707 spans recorded from a running agent program, 150 bytes to 130 KB each, in requests of 512: the cost of "
        f"each level of zlib, and the size of its output. The comparison is level {GZIP_LEVEL}, which `compression=` "
        "uses. OpenTelemetry's exporter uses level 9."
    ),
    sides={"trio-spanbatch": _prepared},
    rows=tuple(
        row
        for level in _LEVELS
        for row in (
            Row(f"Level {level}: CPU per MiB", f"CPU {level}", "ms", _OURS),
            Row(f"Level {level}: size", f"size {level}", "%", f"trio-spanbatch: size {GZIP_LEVEL}"),
        )
    ),
    plots=(
        Plot("gzip: CPU time per MiB", "ms", tuple(Bar(f"level {n}", f"trio-spanbatch: CPU {n}") for n in _LEVELS)),
        Plot("gzip: remaining size", "%", tuple(Bar(f"level {n}", f"trio-spanbatch: size {n}") for n in _LEVELS)),
    ),
)
