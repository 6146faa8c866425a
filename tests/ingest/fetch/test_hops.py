"""Decompression piece by piece, and proxies for named hosts only. The web's claims are in test_web_claims."""

import gzip
import io
import urllib.request
import zlib

import pytest

from ingest.fetch.guard import Abort
from ingest.fetch.hops import Inflated, Peeked, ProxyAllowlistHandler
from ingest.sample import Reason

TEXT = b"rain in the forest " * 5000


def bare(data: bytes) -> bytes:
    return zlib.compress(data, wbits=-zlib.MAX_WBITS)


@pytest.mark.parametrize("pack", [gzip.compress, zlib.compress, bare])
def test_each_encoding_is_undone(pack) -> None:  # type: ignore[no-untyped-def]
    assert Inflated(Peeked(io.BytesIO(pack(TEXT)))).read() == TEXT


def test_a_read_holds_no_more_than_it_returns() -> None:
    body = Inflated(Peeked(io.BytesIO(gzip.compress(bytes(10 << 20)))))
    assert len(body.read(1000)) == 1000


def test_a_cut_stream_is_the_networks_fault() -> None:
    with pytest.raises(Abort) as caught:
        Inflated(Peeked(io.BytesIO(gzip.compress(TEXT)[:-20]))).read()
    assert caught.value.reason == Reason.NETWORK


def test_peeked_bytes_are_read_again() -> None:
    body = Peeked(io.BytesIO(b"0123456789"))
    assert (body.peek(4), body.read(2), body.read()) == (b"0123", b"01", b"23456789")


def test_a_host_that_is_not_named_goes_through_no_proxy() -> None:
    handler = ProxyAllowlistHandler({"all": "http://127.0.0.1:1"}, lambda url: "not named")
    with pytest.raises(Abort):
        handler.proxy_open(urllib.request.Request("http://a.example/"))
