"""Bodies in pieces, and bounded."""

from __future__ import annotations

import gzip
import zlib

import pytest

from trio_spanbatch._http.body import BoundedBody


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


@pytest.mark.parametrize("encoding", ["br", "gzip", "gzip, gzip", "nonsense"])
def test_an_empty_body_is_readable_in_any_encoding(encoding: str) -> None:
    body = BoundedBody(encoding, 1000)
    body.feed(b"")
    assert (body.content, body.cut_off) == (b"", False)


@pytest.mark.parametrize("encoding", ["identity, gzip", "gzip,identity", " , gzip,", "IDENTITY,GZIP"])
def test_the_encoding_identity_is_skipped_in_a_list(encoding: str) -> None:
    body = BoundedBody(encoding, 1000)
    body.feed(gzip.compress(b"abc"))
    assert body.content == b"abc"


ENCODED = {
    "one member": ("gzip", gzip.compress(b"abcdef")),
    "two members": ("gzip", gzip.compress(b"abc") + gzip.compress(b"def")),
    "an empty member first": ("gzip", gzip.compress(b"") + gzip.compress(b"abcdef")),
    "members, then something else": ("x-gzip", gzip.compress(b"abc") + gzip.compress(b"def") + b"\x1f\x00 else"),
    "zlib's format": ("deflate", zlib.compress(b"abcdef")),
    "zlib's format, then something else": ("deflate", zlib.compress(b"abcdef") + zlib.compress(b"ghi")),
    "raw": ("deflate", zlib.compress(b"abcdef", wbits=-15)),
}


@pytest.mark.parametrize("size", [1, 2, 3, 1000])
@pytest.mark.parametrize(("encoding", "data"), ENCODED.values(), ids=list(ENCODED))
def test_a_compressed_body_is_read_to_its_end_in_pieces_of_any_size(encoding: str, data: bytes, size: int) -> None:
    body = BoundedBody(encoding, 1000)
    for start in range(0, len(data), size):
        body.feed(data[start : start + size])
    assert (body.content, body.cut_off) == (b"abcdef", False)


@pytest.mark.parametrize("wbits", [31, 15, -15])
@pytest.mark.parametrize("size", [64 * 1024 - 1, 64 * 1024, 64 * 1024 + 100, 3 * 64 * 1024 + 257])
def test_data_beyond_the_size_of_a_piece_comes_with_the_next_piece(size: int, wbits: int) -> None:
    # The last input is consumed while more output is left than one piece.
    body = BoundedBody("gzip" if wbits == 31 else "deflate", size)
    body.feed(zlib.compress(bytes(size), 9, wbits))
    assert (body.content, body.exceeded, body.cut_off) == (bytes(size), False, False)


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_a_compressed_body_that_ends_early_is_cut_off(encoding: str) -> None:
    data = gzip.compress(b"abc") if encoding == "gzip" else zlib.compress(b"abc")
    for length in range(1, len(data)):
        body = BoundedBody(encoding, 1000)
        body.feed(data[:length])
        assert body.cut_off, length
    second_member = BoundedBody("gzip", 1000)
    second_member.feed(gzip.compress(b"abc") + gzip.compress(b"def")[:-1])
    assert second_member.cut_off
    for encoding_of_nothing in ("", encoding):
        assert not BoundedBody(encoding_of_nothing, 1000).cut_off


def test_the_limit_counts_over_all_members() -> None:
    body = BoundedBody("gzip", 1000)
    body.feed(gzip.compress(b"x" * 1000) + gzip.compress(b"y"))
    assert body.exceeded


def test_a_body_of_nothing_but_empty_members_is_read_up_to_the_limit() -> None:
    data = gzip.compress(b"") * 200_000
    body = BoundedBody("gzip", len(data))
    body.feed(data)
    assert (body.content, body.exceeded, body.cut_off) == (b"", False, False)
    body.feed(b"\x1f")
    assert body.exceeded


@pytest.mark.parametrize("encoding", ["", "gzip"])
def test_the_limit_counts_on_the_wire_too(encoding: str) -> None:
    body = BoundedBody(encoding, 100)
    body.feed(gzip.compress(b"") * 5)
    assert not body.exceeded
    body.feed(b"\x1f")
    assert body.exceeded
