"""Scores where nobody knows the true answer: of real media, by judges that learnt from other data.

    judges = open_judges(config, pipeline, dataset)            # refused before any work
    judged = judge_clips(folder, clips, generated, codec, rate_hz, judges, config)
    judged = score_folders(EvaluateConfig(generated="a", reference="b", judge="runs/other", output="out"))

`judge=` contrastive models (of pictures: correspondence and retrieval; of captions: CLAP score),
`classifier=` of audio (Frechet distance, KL, inception score), `embedder=` (Frechet distance), `onsets=`. All
sounds are files first, as another system's are: judged from a folder they get the same figures. Written are
judged.json, judged.md, pairs.json, a page and, on demand, av-benchmark's layout; training.judging has the
figures.
"""

import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import numpy as np
import soundfile
import torch

from cluster.dataset import Dataset
from cluster.files import replacing
from configs.load import UserError, at_least
from ingest.photos import find_photos
from training.evaluation import EvaluateConfig, HeldOut
from training.export import make_folder, open_pipeline
from training.judging import av_benchmark, frechet, onsets
from training.judging.av_benchmark import Layout
from training.judging.classifier import Classifier
from training.judging.embedder import Embedder, open_embedder
from training.judging.figures import Figure, Pair, best_first, judge_pairs
from training.judging.independence import check_independent, check_unseen
from training.judging.intervals import DIGITS, NUM_RESAMPLED
from training.judging.opening import open_pair_judge
from training.judging.page import JUDGED, MARK, MARKDOWN, shown_pairs, write_markdown, write_pages
from training.judging.sound import SUFFIXES, JudgeFacts
from training.judging.towers import PairJudge
from training.listening import INDEX, check_page
from training.recipes.captions import text_of

log = logging.getLogger(__name__)
PAIRS = "pairs.json"
GENERATED, REFERENCE, CODEC, PICTURES = "generated", "reference", "codec", "pictures"
# what moves a figure, by its package
PACKAGES = ("numpy", "scipy", "torch", "torchaudio", "transformers")


class Judged(TypedDict):
    """judged.json. `generated`, `reference`: what was judged against what; `left_out`: files without a
    partner; `order`: the figure by which pairs are sorted on the page; `guidance` and `steps` of sounds that
    evaluate made. pairs.json has what is said of each pair.
    """

    generated: str
    reference: str
    figures: list[Figure]
    judges: list[JudgeFacts]
    num_pairs: int
    num_media: int
    left_out: int
    seed: int
    resampled: int
    resampled_frechet: int
    order: str
    page: str
    versions: dict[str, str]
    guidance: NotRequired[float | None]
    steps: NotRequired[int | str]
    av_benchmark: NotRequired[Layout]


class Known(TypedDict, total=False):
    """An entry of pairs.json, by the name of a pair; what judges say of it is beside these."""

    medium: str
    caption: str


@dataclass(frozen=True)
class Judges:
    """The judges of an evaluation, opened."""

    pair_judges: list[PairJudge]
    classifiers: list[Classifier]
    embedders: list[Embedder]
    onsets: bool

    @property
    def facts(self) -> list[JudgeFacts]:
        facts = [judge.facts for judge in self.pair_judges]
        facts += [judge.facts for judge in self.classifiers]
        facts += [judge.facts for judge in self.embedders]
        return facts + ([onsets.FACTS] if self.onsets else [])


def names_judges(config: EvaluateConfig) -> bool:
    """Whether anybody is to judge, here or by the layout that is written."""
    return bool(config.judge or config.classifier or config.embedder or config.onsets or config.av_benchmark)


def open_judges(config: EvaluateConfig, pipeline: Any, dataset: Dataset | None) -> Judges:
    """All judges that are asked for; `pipeline`: of the model that is judged, and `dataset`: of clips; None
    where these are not known.

    `UserError` for what is none, and for one that the model learnt from or that learnt from the clips.
    """
    if not names_judges(config):
        raise UserError(
            "judge=: nobody judges; give judge= (a contrastive run that the model was not trained with, or a "
            "ClapModel), classifier= or embedder= (audio models of transformers), onsets=true, or truth= "
            "where answers are known"
        )
    _videos(config.videos)  # refused before any work, too
    pair_judges = [open_pair_judge(path) for path in _listed(config.judge)]
    classifiers = [Classifier(path) for path in _listed(config.classifier)]
    for judge in pair_judges:
        check_independent(judge.facts, judge.image_tower, pipeline, config.own_judge)
        if dataset is not None and not config.own_judge:
            check_unseen(judge.facts["name"], judge.home, dataset, config.split)
    embedders = [open_embedder(path) for path in _listed(config.embedder)]
    for facts in [each.facts for each in classifiers] + [each.facts for each in embedders]:
        check_independent(facts, None, pipeline, config.own_judge)
    return Judges(pair_judges, classifiers, embedders, config.onsets)


def _listed(paths: str) -> list[str]:
    return [path.strip() for path in paths.split(",") if path.strip()]


# --- A model on clips ---------------------------------------------------------------------------------------


def judge_clips(
    folder: Path,
    clips: Sequence[HeldOut],
    generated: Sequence[np.ndarray],
    codec: Sequence[np.ndarray],
    rate_hz: int,
    judges: Judges,
    config: EvaluateConfig,
) -> Judged:
    """Scores of a model's sounds of clips, which are written first: as files they are judged again alike."""
    _forget(folder)
    pairs: list[Pair] = []
    for clip, made, through in zip(clips, generated, codec, strict=True):
        files = {GENERATED: made, REFERENCE: clip.wav, CODEC: through}
        paths = {name: folder / name / f"{clip.key}.wav" for name in files}
        for name, wav in files.items():
            paths[name].parent.mkdir(exist_ok=True)
            soundfile.write(paths[name], wav, rate_hz, subtype="PCM_16")
        picture = folder / PICTURES / f"{clip.key}.jpg"
        picture.parent.mkdir(exist_ok=True)
        picture.write_bytes(clip.jpeg)
        caption = text_of(clip.metadata, config.caption)
        files_of = (paths[GENERATED], paths[REFERENCE], paths[CODEC])
        pairs.append(Pair(clip.key, *files_of, picture, caption, clip.media_id))
    sources = {"generated": config.model, "reference": f"{config.data} ({config.split})"}
    sampling = {"guidance": config.guidance, "steps": config.steps}
    return _judge(folder, pairs, judges, config, {**sources, **sampling}, left_out=0)


def _forget(folder: Path) -> None:
    """Removes the scores that are there and the sounds that belong to them, and nothing else."""
    try:
        names = list(json.loads((folder / PAIRS).read_text()))
    except (OSError, ValueError):
        names = []
    for name in (JUDGED, MARKDOWN, PAIRS):
        (folder / name).unlink(missing_ok=True)
    for name in names:
        if "/" in name:  # a file that anybody may have changed: delete nothing elsewhere
            continue
        for place in (GENERATED, REFERENCE, CODEC):
            (folder / place / f"{name}.wav").unlink(missing_ok=True)
        (folder / PICTURES / f"{name}.jpg").unlink(missing_ok=True)


# --- Folder against folder ----------------------------------------------------------------------------------


def score_folders(config: EvaluateConfig) -> Judged:
    """`generated` against `reference`, two folders of sounds that are called alike: of any system.

    With `pictures` and `pairs` (captions and media, as evaluate writes them) judged by these, too; with
    `model`, a judge that it learnt from is refused. `UserError` before any work.
    """
    at_least(config, 1, "batch")
    at_least(config, 0, "seed")
    for name in ("truth", "data"):
        if getattr(config, name):
            raise UserError(f"{name}={getattr(config, name)}: is of a model; leave it out with generated=")
    pairs, left_out = find_pairs(config)
    pipeline = open_pipeline(config.model) if config.model else None
    judges = open_judges(config, pipeline, None)
    del pipeline
    folder = make_folder(config.output)
    check_page(folder, MARK)
    torch.set_num_threads(config.threads or os.cpu_count() or 1)
    sources = {"generated": config.generated, "reference": config.reference}
    return _judge(folder, pairs, judges, config, sources, left_out)


def find_pairs(config: EvaluateConfig) -> tuple[list[Pair], int]:
    """What has the same name in both folders, and how many files have no partner. `UserError` for fewer than
    two pairs.
    """
    generated = _sounds_below(config.generated, "generated")
    reference = _sounds_below(config.reference, "reference")
    names = sorted(generated.keys() & reference.keys())
    left_out = len(generated.keys() ^ reference.keys())
    if len(names) < 2:
        raise UserError(
            f"generated={config.generated}: {len(names)} of {len(generated)} sounds are called as one of "
            f"reference={config.reference}; need 2 or more of the same names"
        )
    if left_out:
        log.warning("%d sounds have no partner of their name and are left out", left_out)
    pictures = find_photos(config.pictures) if config.pictures else {}
    known = _known(config.pairs)
    pairs = [
        Pair(
            name,
            generated[name],
            reference[name],
            picture=pictures.get(name),
            caption=known.get(name, {}).get("caption", ""),
            medium=known.get(name, {}).get("medium", name),
        )
        for name in names
    ]
    return pairs, left_out


def _sounds_below(folder: str, setting: str) -> dict[str, Path]:
    """Paths by their names below the folder, without suffix."""
    if not folder or not Path(folder).is_dir():
        raise UserError(f"{setting}={folder}: no such folder; give one of sounds, called alike in both")
    files = sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in SUFFIXES)
    return {str(path.relative_to(folder).with_suffix("")): path for path in files if path.is_file()}


def _known(path: str) -> Mapping[str, Known]:
    """Media and captions by name."""
    if not path:
        return {}
    try:
        content = json.loads(Path(path).read_text())
        if not all(isinstance(entry, dict) for entry in content.values()):
            raise ValueError("its entries are no objects")
    except (OSError, ValueError, AttributeError) as error:
        example = '{"name": {"medium": "…", "caption": "…"}}'
        raise UserError(f"pairs={path}: cannot be read ({error}); give JSON such as {example}") from error
    entries: Mapping[str, Known] = content
    return entries


# --- Judging and writing ------------------------------------------------------------------------------------


def _judge(
    folder: Path,
    pairs: Sequence[Pair],
    judges: Judges,
    config: EvaluateConfig,
    sources: Mapping[str, Any],
    left_out: int,
) -> Judged:
    """Judges, and writes pairs.json, judged.md, the page, and judged.json last."""
    videos = _videos(config.videos)
    models = (judges.pair_judges, judges.classifiers)
    figures, by_pair = judge_pairs(pairs, *models, config.seed, config.batch, judges.embedders, judges.onsets)
    if not figures and not config.av_benchmark:
        raise UserError("judge=: sees no pair; give pictures= or captions, or classifier=")
    order, ranked = best_first(by_pair)
    judged: Judged = {
        **sources,  # type: ignore[typeddict-item]
        "figures": figures,
        "judges": judges.facts,
        "num_pairs": len(pairs),
        "num_media": len({pair.medium for pair in pairs}),
        "left_out": left_out,
        "seed": config.seed,
        "resampled": NUM_RESAMPLED,
        "resampled_frechet": frechet.NUM_RESAMPLED,
        "order": order,
        "page": str(folder / INDEX),
        "versions": dict(_versions()),
    }
    layout = folder / av_benchmark.FOLDER
    # of other sounds one is worse than none
    av_benchmark.forget_layout(layout)
    if config.av_benchmark:
        judged["av_benchmark"] = av_benchmark.write_layout(layout, pairs, videos)
    _write_pairs(folder / PAIRS, pairs, by_pair)
    write_markdown(folder, judged)
    write_pages(folder, judged, shown_pairs(pairs, by_pair, order, ranked, folder))
    with replacing(folder / JUDGED) as partial:
        partial.write_text(json.dumps(judged, indent=1))
    return judged


def _videos(folder: str) -> dict[str, Path]:
    """Paths by their names below the folder, without suffix."""
    if folder and not Path(folder).is_dir():
        raise UserError(f"videos={folder}: no such folder; give one of .mp4, called as the sounds")
    files = sorted(Path(folder).rglob("*.mp4")) if folder else []
    return {str(path.relative_to(folder).with_suffix("")): path for path in files}


def _write_pairs(path: Path, pairs: Sequence[Pair], by_pair: Mapping[str, np.ndarray]) -> None:
    entries: dict[str, dict[str, str | float]] = {}
    for index, pair in enumerate(pairs):
        said = {name: round(float(values[index]), DIGITS) for name, values in by_pair.items()}
        entries[pair.name] = {"medium": pair.medium, "caption": pair.caption, **said}
    with replacing(path) as partial:
        partial.write_text(json.dumps(entries, indent=1))


def _versions() -> Iterator[tuple[str, str]]:
    """Of the packages that are installed: with torchaudio, AST's features are computed by it."""
    for name in PACKAGES:
        try:
            yield name, version(name)
        except PackageNotFoundError:
            continue
