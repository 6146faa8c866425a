"""Which files of a place are photos, and what each is called: for everything that makes one output per photo.

    photos = find_photos("holiday/")       # {"2024/beach": Path("holiday/2024/beach.jpg"), …}, in order

Opens none of them (ingest.pixels does).
"""

import glob
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from configs.load import UserError

COMMON_SUFFIXES = ".jpg .jpeg .jpe .jfif .png .webp .bmp .gif .tif .tiff"
RARER_SUFFIXES = ".avif .avifs .heic .heif .jp2 .j2k .ppm .pgm"
SUFFIXES = frozenset(f"{COMMON_SUFFIXES} {RARER_SUFFIXES}".split())


def find_photos(images: str) -> dict[str, Path]:
    """The photos of a file, a folder with all below it, or a glob, by a name of their own, sorted.

    A name is the path below the folder (of a glob, below its part without wildcards), without the suffix
    unless two would be called alike. A file that is named itself needs no suffix; hidden files are left out.
    `UserError` where there is none.
    """
    path = Path(images)
    root = root_of(images)
    if path.is_dir():
        files = sorted(_below(images))
    elif os.path.lexists(path):
        files = [path]
    else:
        files = sorted(map(Path, glob.glob(images, recursive=True)))
    named_itself = files == [path]  # whoever names a file means it, whatever its suffix
    photos = [file for file in files if named_itself or (_looks_like_photo(file) and not file.is_dir())]
    if not photos:
        exists = bool(files) or path.exists()
        state = f"no picture ({', '.join(sorted(SUFFIXES))}) there" if exists else "does not exist"
        raise UserError(f"images={images}: {state}; give a picture, a folder or a glob")
    return dict(zip(_names([path.relative_to(root) for path in photos]), photos, strict=True))


def root_of(images: str) -> Path:
    """The folder that names are below: a folder itself, a file's folder, of a glob its part without
    wildcards.
    """
    path = Path(images)
    if path.is_dir():
        return path
    fixed = path.parent
    while not os.path.lexists(path) and glob.has_magic(str(fixed)):
        fixed = fixed.parent
    return fixed


def _below(folder: str) -> Iterator[Path]:
    """All files below a folder.

    Linked folders are followed, each folder once, so that a link in a circle ends.
    """
    seen: set[str] = set()
    for parent, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(parent, name) for name in files)


def _looks_like_photo(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def _names(paths: list[Path]) -> list[str]:
    """A name each, no two alike: without suffix, and with it for all that would share one (also with a name
    that has it).
    """
    names = [path.with_suffix("").as_posix() for path in paths]
    full_names = [path.as_posix() for path in paths]
    while True:
        counts = Counter(names)
        shared = [counts[name] > 1 and name != full for name, full in zip(names, full_names, strict=True)]
        if not any(shared):
            return names
        names = [
            full if changes else name for name, full, changes in zip(names, full_names, shared, strict=True)
        ]
