"""Bodies in pieces, and bounded."""

from __future__ import annotations

import gzip
import zlib

import pytest

from trio_spanbatch.otlp.body import BoundedBody


def test_a_body_up_to_the_limit_is_collected_and_one_byte_more_is_too_much() -> None:
    body = BoundedBody("", 10)
    body.feed(b"12345")
    body.feed(b"67890")
    assert (body.content, body.exceeded) == (b"1234567890", False)
    body.feed(b"!")
    body.feed(b"?")
    assert body.exceeded


def test_the_limit_counts_after_decompression() -> None:
    just = BoundedBody("gzip", 1000)
    just.feed(gzip.compress(b"x" * 1000) + b"trailing bytes are ignored")
    assert (just.content, just.exceeded) == (b"x" * 1000, False)
    over = BoundedBody(" GZIP ", 1000)
    over.feed(gzip.compress(b"x" * 1001))
    assert over.exceeded


def test_deflate_comes_in_two_formats() -> None:

    raw = zlib.compressobj(wbits=-15)
    for data in (zlib.compress(b"abc"), raw.compress(b"abc") + raw.flush()):
        body = BoundedBody("deflate", 1000)
        for byte in range(0, len(data), 4):
            body.feed(data[byte : byte + 4])
        assert body.content == b"abc"


@pytest.mark.parametrize(
    ("encoding", "data"), [("br", b"abc"), ("gzip", b"not gzip"), ("deflate", b"\xff\xff"), ("gzip, gzip", b"")]
)
def test_a_body_that_cannot_be_decompressed_is_not_readable(encoding: str, data: bytes) -> None:
    body = BoundedBody(encoding, 1000)
    body.feed(data)
    body.feed(b"more")
    assert body.content is None
    assert not body.readable
