"""`training probe`: a node whose products are off is reported."""

import pytest

from training import probe


def test_a_product_that_is_off_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "_all_reduce", lambda backend: None)
    assert 0 < probe.probe()["matmul_error"] < probe.TOLERANCE
    monkeypatch.setattr(probe, "_matmul_error", lambda device: float("nan"))
    with pytest.raises(RuntimeError, match="a 512 x 512 product on c.* is off by nan"):
        probe.probe()
