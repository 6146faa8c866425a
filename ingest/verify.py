"""`ingest verify DATASET`: reads everything that is committed and says of every flipped byte where it is.

`verify(uri)` yields one line per problem; none means the dataset is whole. It changes nothing.
"""

import hashlib
from collections.abc import Iterator

from cluster.dataset import Commit, Dataset, Part
from cluster.shards import verify_member


def verify(uri: str) -> Iterator[str]:
    """Problems of the dataset at `uri`: missing or damaged objects, wrong counts, keys kept twice."""
    dataset = Dataset.open(uri)
    seen: dict[str, str] = {}
    for name in dataset.commit_names():
        try:
            commit = dataset.read_commit(name)
        except OSError as error:
            yield str(error)
            continue
        problems = [_damage(dataset, part) for part in (commit.index, commit.tar) if part]
        yield from (problem for problem in problems if problem)
        if problems[0] is None:
            yield from _rows(dataset, commit, seen, check_members=any(problems[1:]))


def _damage(dataset: Dataset, part: Part) -> str | None:
    try:
        data = dataset.store.read(part.name)
    except FileNotFoundError:
        return f"{part.name}: missing"
    if len(data) != part.size:
        return f"{part.name}: {len(data)} bytes, committed were {part.size}"
    if hashlib.sha256(data).hexdigest() != part.sha256:
        return f"{part.name}: other bytes than committed (sha256 differs)"
    return None


def _rows(dataset: Dataset, commit: Commit, seen: dict[str, str], check_members: bool) -> Iterator[str]:
    """Checks counts and keys; where the tar is damaged, names the members hit."""
    rows = dataset.read_index(commit).to_pylist()
    kept = [row for row in rows if row["status"] == "kept"]
    if len(kept) != commit.counts.get("kept", 0) or len(rows) != sum(commit.counts.values()):
        yield f"{commit.index.name}: {len(kept)} kept of {len(rows)} rows, the commit says {commit.counts}"
    for row in kept:
        if row["key"] in seen:
            yield f"{row['key']}: kept twice, in {seen[row['key']]} and {commit.unit}"
        seen[row["key"]] = commit.unit
        if not (check_members and commit.tar):
            continue
        for member in row["members"]:
            start = member["offset"]
            try:
                data = dataset.store.read_range(commit.tar.name, start, start + member["size"])
            except FileNotFoundError:
                return
            if not verify_member(data, member["crc32"]):
                yield f"{commit.tar.name}: damaged in member {row['key']}.{member['ext']} (bytes {start} to {start + member['size']})"
