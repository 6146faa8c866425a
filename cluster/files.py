"""Local files that appear whole: written beside their place, then renamed.

    with replacing(path) as partial:        # "partial-NAME" beside it: the suffix stays, encoders go by it
        partial.write_text(text)

Nobody reads half a file, and a crash leaves the old one. Objects of a dataset or run go through
cluster.storage.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives a path beside `path` to write to; renames it over `path` at the end, or deletes it after an error."""
    partial = path.with_name(f"partial-{path.name}")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)  # after an error; once renamed, nothing is there
