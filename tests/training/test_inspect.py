"""`training inspect` notices every damage."""

from pathlib import Path

from tests.fakes.runs import settings
from training.inspect import inspect
from training.train import train


def test_every_flipped_byte_is_noticed(data: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(settings(data, run, steps=4))
    files = [path for path in (run / "checkpoints").rglob("*") if path.is_file()]
    assert len(files) == 6
    assert not any(line["problem"] for line in inspect(str(run)))
    for path in files:
        content = path.read_bytes()
        for offset in (0, len(content) // 3, len(content) - 1):
            flipped = bytes([content[offset] ^ 4])
            path.write_bytes(content[:offset] + flipped + content[offset + 1 :])
            (line,) = inspect(str(run))
            assert line["problem"], (path, offset)
        path.write_bytes(content)
