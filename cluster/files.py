"""Local files that appear whole: written beside their place, then renamed.

    with replacing(path) as partial:        # path.parent / "partial-NAME"
        partial.write_text(text)

Nobody reads half a file, and a crash leaves the old one. Objects of a dataset or a run go through
cluster.storage.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to; renamed over `path` at the end, deleted after an error."""
    # a prefix, not a suffix: encoders choose the format by the suffix
    partial = path.with_name(f"partial-{path.name}")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)  # after an error; once renamed, nothing is there
