"""After a scrape that kept nothing, or little: why, and which setting would change that.

    advice = advice_after(Dataset.open(output, "clips"), summary)     # of the run that has just ended
    summary = scrape_and_advise(config)                               # both

The words for each reason are those of `ingest show` (`ingest.sample.MEANINGS`).
"""

import itertools
import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, NamedTuple

from cluster.dataset import Dataset
from cluster.jsonl import JsonObject
from cluster.progress import RunSummary
from cluster.shards import Status
from configs.load import SettingsTree
from ingest.sample import MEANINGS, Reason, without_tokens
from ingest.scrape import ScrapeConfig, scrape

# what is kept of all rows; below it, people wonder
LITTLE = 0.2
REASONS_SHOWN = 3
UNITS_LOOKED_AT = 16  # for examples
# what a filter measures of a clip, by the reason it refuses for
SCORES: dict[str, str] = {
    Reason.SILENT: "rms_dbfs",
    Reason.CLIPPED: "clipped_share",
    Reason.CONSTANT: "spectral_change",
    Reason.DARK: "brightness",
    Reason.BLANK: "contrast",
    Reason.BLURRED: "sharpness",
}
# a setting of a section, where a meaning names it without a value
SETTING = re.compile(r"\b(?:clip|frame|filter|license|limits|audio)\.\w+(?![\w=])")


class Advice(NamedTuple):
    """`kept_nothing`: the dataset has no sample at all. `lines` for a person; none where all is well."""

    kept_nothing: bool
    lines: list[str]


def scrape_and_advise(config: ScrapeConfig, progress: bool = True) -> JsonObject:
    """What a scrape did, with `kept_nothing` and the lines of `advice`."""
    report = scrape(config, progress)
    advice = advice_after(Dataset.open(config.output, "clips"), report)
    return {**asdict(report), "kept_nothing": advice.kept_nothing, "advice": advice.lines}


def advice_after(dataset: Dataset, summary: RunSummary) -> Advice:
    """What to say after a run. Commits are read only where it kept nothing itself."""
    num_kept = summary.counts.get("kept", 0)
    # what failed or waits may still be kept: that is said by itself
    if summary.failed or summary.deferred:
        return Advice(False, [])
    if num_kept:
        num_rows = sum(summary.counts.values())
        if num_kept >= LITTLE * num_rows:
            return Advice(False, [])
        reasons = why(summary.counts, dataset.meta["config"], examples_in(dataset))
        return Advice(False, [f"{num_kept} of {num_rows} are kept:", *reasons])
    counts: Counter[str] = Counter()
    for commit in dataset.iter_commits():
        counts.update(commit.counts)
        # what was removed since had been kept: no setting is at fault
        if any(not name.startswith("refused:") for name in commit.counts):
            return Advice(False, [])
    fix = "run it again with other settings: nothing is stored yet, so that any may change"
    reasons = why(counts, dataset.meta["config"], examples_in(dataset))
    return Advice(True, [f"nothing is kept in {dataset.uri}:", *reasons, fix])


def why(counts: Mapping[str, int], settings: SettingsTree, examples: Mapping[str, str]) -> list[str]:
    """The most frequent reasons, each with its meaning, the setting that decides, as it was, and an example.

    >>> why({"kept": 1, "refused:silent": 4}, {"filter": {"min_rms_dbfs": -60.0}}, {"silent": "a: -71.5"})
    ['4 silent: quieter than filter.min_rms_dbfs=-60.0 (a: -71.5)']
    """
    prefix = "refused:"
    refused = Counter({name.removeprefix(prefix): n for name, n in counts.items() if name.startswith(prefix)})
    lines: list[str] = []
    for name, count in refused.most_common(REASONS_SHOWN):
        meaning = MEANINGS[Reason(name)]
        with_values = SETTING.sub(lambda found: found[0] + _value(settings, found[0]), meaning)
        example = f" ({examples[name]})" if name in examples else ""
        lines.append(f"{count} {name}: {with_values}{example}")
    return lines


def examples_in(dataset: Dataset) -> dict[str, str]:
    """By reason, an item of the first few units that was refused for it, and what was found of it."""
    examples: dict[str, str] = {}
    for commit in itertools.islice(dataset.iter_commits(), UNITS_LOOKED_AT):
        for row in dataset.read_index(commit).to_pylist():
            found = _found(row) if row["status"] == Status.REFUSED else ""
            if found and row["reason"] not in examples:
                examples[row["reason"]] = f"{without_tokens(row['item_id'])}: {found}"
    return examples


def _found(row: JsonObject) -> str:
    """What of a refused item or clip was not right; "" where its row does not say."""
    score = SCORES.get(row["reason"])
    if score and row.get("scores"):
        return f"{json.loads(row['scores'])[score]:g}"
    return str(row["detail"] or "")


def _value(settings: SettingsTree, name: str) -> str:
    """How a setting was, as it is typed; "" for one that changes no bytes, and so is not kept."""
    value: Any = settings
    for part in name.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    listed = f"[{','.join(map(str, value))}]" if isinstance(value, list) else value
    return "" if value is None else f"={listed}"
