"""After a scrape that kept nothing, or little: why, and which setting would change that.

    advice = advice_after(Dataset.open(output, "clips"), summary)     # of the run that has just ended
    summary = scrape_and_advise(config)                               # both

The words for each reason are those of `ingest show` (`ingest.sample.MEANINGS`).
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from typing import NamedTuple

from cluster.dataset import Dataset
from cluster.jsonl import JsonObject
from cluster.progress import RunSummary
from ingest.sample import MEANINGS, Reason
from ingest.scrape import ScrapeConfig, scrape

# what is kept of all rows; below it, people wonder
LITTLE = 0.2
REASONS_SHOWN = 3


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
        lines = [f"{num_kept} of {num_rows} are kept:", *why(summary.counts)]
        return Advice(False, lines if num_kept < LITTLE * num_rows else [])
    counts: Counter[str] = Counter()
    for commit in dataset.iter_commits():
        counts.update(commit.counts)
        # what was removed since had been kept: no setting is at fault
        if any(not name.startswith("refused:") for name in commit.counts):
            return Advice(False, [])
    fix = "other settings need another output="
    return Advice(True, [f"nothing is kept in {dataset.uri}:", *why(counts), fix])


def why(counts: Mapping[str, int]) -> list[str]:
    """The most frequent reasons, each with its meaning and the setting that decides.

    >>> why({"kept": 1, "refused:silent": 4})
    ['4 silent: quieter than filter.min_rms_dbfs']
    """
    prefix = "refused:"
    refused = Counter({name.removeprefix(prefix): n for name, n in counts.items() if name.startswith(prefix)})
    return [f"{n} {name}: {MEANINGS[Reason(name)]}" for name, n in refused.most_common(REASONS_SHOWN)]
