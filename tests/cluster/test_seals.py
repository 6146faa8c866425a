"""Any changed byte of a sealed object is noticed."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.seals import open_json, open_table, seal_json, seal_table


def test_every_flipped_byte_of_sealed_json_is_noticed() -> None:
    data = seal_json({"kind": "clips", "rate": 1})
    assert open_json(data) == {"kind": "clips", "rate": 1}
    for index in range(len(data)):
        with pytest.raises(ValueError):
            open_json(data[:index] + bytes([data[index] ^ 1]) + data[index + 1 :])


def test_every_flipped_byte_of_a_sealed_table_is_noticed() -> None:
    table = pa.table({"key": ["a", "b"]})
    data = seal_table(table)
    assert open_table(data).read().equals(table)
    for index in range(len(data)):
        with pytest.raises(ValueError):
            open_table(data[:index] + bytes([data[index] ^ 1]) + data[index + 1 :])


def test_stock_readers_read_a_sealed_table(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(seal_table(pa.table({"key": ["a", "b"]})))
    assert pq.ParquetFile(path).read()["key"].to_pylist() == ["a", "b"]
