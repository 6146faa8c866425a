"""The model card: hubs read its front matter, people what the model was made from, and nothing is glossed over."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import model_index_to_eval_results

from cluster.learnt import LearntFrom, PartRecord, learnt_from
from configs.load import UserError
from tests.fakes.takedown import make, nine_clips
from training.model_card import ModelFacts, PartFacts, card_text, find_scores, read_scores, write_sources
from training.weights_license import demands_of

SCORES: dict[str, Any] = {
    "scores": {
        "timbre": {"generated": 0.7438, "real": 1.0, "chance": 0.2213, "closed": 0.6709},
        "loudness": {"generated": 0.5, "real": 0.9},
    },
    "intervals": {"timbre": {"generated": [0.70, 0.79]}},
    "num_clips": 320,
    "num_media": 20,
    "guidance": 2.0,
    "steps": 25,
    "seed": 0,
}
CLIPS: LearntFrom = {
    "name": "clips",
    "kind": "clips",
    "semantic_hash": "f" * 64,
    "snapshot": "a" * 64,
    "split": "train",
    "units": [],
    "samples": 3000,
    "licenses": {"CC-BY-SA-4.0": 2000, "own": 1000},
    "uri": "/home/me/secret/clips",
}


def facts(code: str = "CC-BY-SA-4.0", **changes: Any) -> ModelFacts:
    sources = ["/home/me/secret/tuned", "hub:owner/codec/vae@main"]
    records: dict[str, PartRecord] = {
        "unet": {"sources": [], "license": "own", "learnt_from": []},
        "autoencoder": {"sources": sources, "license": "Apache-2.0", "learnt_from": [CLIPS]},
    }
    parts = [PartFacts(name, "Net", 1_500_000, "e" * 64, record) for name, record in records.items()]
    plain = ModelFacts("my_model", 1.6, 16000, parts, [CLIPS], code, demands_of(records, [CLIPS]))
    return replace(plain, **changes)


def front_matter(text: str) -> dict[str, Any]:
    return dict(yaml.safe_load(text.split("---")[1]))


# --- Front matter -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "stated"),
    [
        ("CC-BY-SA-4.0", {"license": "cc-by-sa-4.0"}),
        ("Apache-2.0", {"license": "apache-2.0"}),
        ("own", {"license": "other", "license_name": "own", "license_link": "LICENSE"}),
        (
            "CC-BY-NC-SA-2.5",
            {"license": "other", "license_name": "cc-by-nc-sa-2.5", "license_link": "LICENSE"},
        ),
        (
            "custom:https://example.org/rail",
            {"license": "other", "license_name": "custom", "license_link": "LICENSE"},
        ),
    ],
)
def test_hubs_read_the_license(tmp_path: Path, code: str, stated: dict[str, str]) -> None:
    (tmp_path / "README.md").write_text(card_text(facts(code, scores=SCORES)))
    data = ModelCard.load(tmp_path / "README.md").data.to_dict()
    assert {name: data[name] for name in data if name.startswith("license")} == stated
    assert (data["library_name"], data["base_model"]) == ("diffusers", ["owner/codec"])


def test_hubs_read_the_scores() -> None:
    name, results = model_index_to_eval_results(front_matter(card_text(facts(scores=SCORES)))["model-index"])
    assert name == "my_model"
    assert [(each.metric_name, each.metric_value) for each in results] == [
        ("share of sounds with the right timbre", 0.7438),
        ("share of sounds with the right loudness", 0.5),
    ]
    assert "model-index" not in front_matter(card_text(facts()))


# --- What people read ---------------------------------------------------------------------------------------


def test_datasets_licenses_and_origins_are_listed_and_no_place_of_this_machine() -> None:
    text = card_text(facts(sources=12, step=900, date="2026-11-26", removed=Counter()))
    assert "| clips | clips | train | `aaaaaaaaaaaaaaaa` | 3,000 | autoencoder |" in text
    assert "| clips | CC-BY-SA-4.0 | 2,000 | <https://creativecommons.org/licenses/by-sa/4.0/> |" in text
    assert "| clips | own | 1,000 | as stated by the operator |" in text
    origin = "tuned, made from hub:owner/codec/vae@main"
    assert f"| autoencoder | Net | 1,500,000 | {origin} | Apache-2.0 | `{'e' * 64}` |" in text
    assert "| unet | Net | 1,500,000 | random | own |" in text
    assert "names the 12 sources" in text and "trained for 900 steps" in text and "3.0 M parameters" in text
    assert "By 2026-11-26, nothing that it learnt from had been taken down." in text
    assert "secret" not in text


def test_what_was_removed_since_is_said_with_its_reasons() -> None:
    text = card_text(facts(removed=Counter({"take-down": 1200, "opt_out": 3}), date="2026-11-26"))
    assert "By 2026-11-26, 1,203 samples were taken down" in text
    assert "| take-down | 1,200 |" in text and r"| opt\_out | 3 |" in text


def test_what_is_not_known_is_said() -> None:
    uncounted = {name: value for name, value in CLIPS.items() if name not in ("samples", "licenses")}
    text = card_text(facts(datasets=[uncounted]))
    assert "| not counted |" in text and "Who made them is not listed" in text
    assert "Not known: the datasets were not at hand" in text and "None were measured." in text


def test_the_reasons_of_the_license_are_listed() -> None:
    text = card_text(facts())
    assert "The weights are under [CC-BY-SA-4.0](https://creativecommons.org/licenses/by-sa/4.0/)" in text
    assert "| 2,000 samples of clips | CC-BY-SA-4.0 | share-alike |" in text
    assert "| Apache-2.0 | attribution |" in text
    assert "was not decided" not in text
    gpl = {**CLIPS, "licenses": {"GPL-3.0-only": 1, "CC-BY-SA-4.0": 1}}
    assert "can serve CC-BY-SA-4.0, GPL-3.0-only together" in card_text(facts(demands=demands_of({}, [gpl])))


def test_scores_stand_with_their_judges_and_intervals() -> None:
    text = card_text(facts(scores=SCORES))
    judge = "timbre: which of the known timbres it is, by a bank of templates"
    assert f"| {judge} | 0.74 (0.70 to 0.79) | 1.00 | 0.22 | 0.67 |" in text
    assert "| loudness | 0.50 | 0.90 |  |  |" in text
    assert "Of 320 held-out clips of 20 media" in text and "25 steps, guidance 2, seed 0" in text


@pytest.mark.parametrize(
    ("heard", "says"),
    [
        (None, "Which vocoder made these sounds is not recorded."),
        ("Net 0123", "All sounds were made by Net, as this folder makes them."),
        ("Griffin-Lim", "made by Griffin-Lim, **not** as this folder makes them: by Net 0123."),
        ("Net 4567", "made by Net 4567, **not** as this folder makes them: by Net 0123."),
    ],
)
def test_scores_say_through_which_vocoder_they_were_heard(heard: str | None, says: str) -> None:
    scores = {**SCORES, **({"vocoder": heard} if heard else {})}
    assert says in card_text(facts(scores=scores, vocoder="Net 0123"))


def test_names_are_no_markup() -> None:
    record = {**CLIPS, "name": "a|b](http://x) <b>"}
    text = card_text(facts(name="[x]: #", datasets=[record]))
    assert r"a\|b\]\(http://x\) \<b\>" in text
    assert front_matter(text)["model_name"] == "[x]: #" and r"# \[x\]: \#" in text.splitlines()


# --- Attribution --------------------------------------------------------------------------------------------


def test_each_source_is_credited_once_and_what_was_taken_down_not_at_all(tmp_path: Path) -> None:
    clips, _ = make(tmp_path, nine_clips())
    record = learnt_from(clips.snapshot(), "train", clips.uri, "clips")
    clips.bury({"urls_m0_0": "take-down"})
    # two parts learnt from them
    assert write_sources([record, {**record, "snapshot": "other"}], tmp_path / "a.csv") == 7
    text = (tmp_path / "a.csv").read_text()
    # m8 is of the test split
    assert [f"SECRET{index}" in text for index in range(9)] == [False, *[True] * 7, False]


def test_clips_that_are_gone_leave_no_list(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a.csv").write_text("of an older export")
    assert write_sources([CLIPS], tmp_path / "a.csv") is None
    assert not (tmp_path / "a.csv").exists() and "a.csv is left out" in caplog.text


# --- Scores -------------------------------------------------------------------------------------------------


def evaluation(folder: Path, stamp: str, model: str, vocoder: str = "", **changes: Any) -> None:
    record = folder / f"runs/{stamp}-evaluate-1"
    record.mkdir(parents=True)
    (record / "config.yaml").write_text(yaml.safe_dump({"model": model, "vocoder": vocoder}))
    (folder / "scores.json").write_text(json.dumps({**SCORES, **changes}))


def test_scores_of_this_model_and_vocoder_are_found_beside_its_run(tmp_path: Path) -> None:
    run = tmp_path / "demo/runs/diffusion"
    run.mkdir(parents=True)
    assert find_scores(run, {"vocoder": ""}) is None
    # as the demo types it, in another working folder
    evaluation(tmp_path / "demo/evaluation", "20260101T000000", "demo/runs/diffusion", seed=1)
    evaluation(tmp_path / "demo/other", "20260102T000000", "demo/runs/fusion", seed=2)
    evaluation(tmp_path / "demo/voiced", "20260103T000000", str(run), "runs/vocoder", seed=3)
    evaluation(run / "again", "20250101T000000", str(run), seed=4)
    # the newest, by judges alone: it has other scores
    evaluation(tmp_path / "demo/judged", "20260104T000000", str(run), seed=5)
    (tmp_path / "demo/judged/scores.json").unlink()
    for vocoder, seed in (("", 1), ("runs/vocoder", 3)):
        scores = find_scores(run, {"vocoder": vocoder})
        assert scores and scores["seed"] == seed


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"scores": {}}', json.dumps({**SCORES, "steps": "x"})])
def test_other_files_are_no_scores(tmp_path: Path, text: str) -> None:
    (tmp_path / "scores.json").write_text(text)
    with pytest.raises(UserError, match="scores=.*give the output folder of python -m training evaluate"):
        read_scores(str(tmp_path))
