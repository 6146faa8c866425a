"""What the judge heard of each clip of an evaluation: heard.jsonl, a row per clip, beside scores.json.

    write_heard(folder / HEARD, heard_of(keys, truths, generated, real))

A row says what the picture calls for, what was heard in the generated sound and in the real one through the
codec, and which of that is right: scores.json has the means of these. Reads and judges no sounds.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypedDict

from cluster.files import replacing
from training.judge import Attributes, correct

HEARD = "heard.jsonl"


class HeardClip(TypedDict):
    """A row. `right`, `right_real`: attribute -> whether what was heard agrees with the truth."""

    key: str
    truth: Attributes
    generated: Attributes
    real: Attributes
    right: dict[str, bool]
    right_real: dict[str, bool]


def heard_of(
    keys: Sequence[str],
    truths: Sequence[Attributes],
    generated: Sequence[Attributes],
    real: Sequence[Attributes],
) -> list[HeardClip]:
    """A row for each clip; all four lists are of the same clips, in the same order."""
    return [
        {
            "key": key,
            "truth": truth,
            "generated": made,
            "real": own,
            "right": correct(made, truth),
            "right_real": correct(own, truth),
        }
        for key, truth, made, own in zip(keys, truths, generated, real, strict=True)
    ]


def write_heard(path: Path, rows: Iterable[HeardClip]) -> None:
    """One JSON object a line, whole or not at all."""
    with replacing(path) as partial, open(partial, "w", encoding="utf-8") as file:
        file.writelines(f"{json.dumps(row)}\n" for row in rows)
