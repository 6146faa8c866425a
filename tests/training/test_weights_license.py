"""Licenses of weights: what states them, and that no demand gets lost on the way to an export."""

from pathlib import Path

import pytest

from cluster.learnt import LearntFrom, PartRecord
from configs.load import UserError
from tests.fakes.chain import Chain
from training.weights_license import (
    Demand,
    conflicts,
    demands_of,
    license_beside,
    license_of,
    license_text,
    model_license,
)


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """What a publisher puts beside weights."""
    folder = tmp_path / "published"
    folder.mkdir()
    (folder / "README.md").write_text("---\ntags: [audio]\nlicense: cc-by-nc-sa-4.0\n---\n# A vocoder\n")
    return folder


# --- What states it -----------------------------------------------------------------------------------------


def test_a_run_from_random_weights_is_its_operators(chain: Chain) -> None:
    assert license_of(chain.vocoder, "") == "own"


def test_what_the_user_states_comes_first(published: Path) -> None:
    assert license_of(str(published), "apache-2.0") == "Apache-2.0"
    with pytest.raises(UserError, match="init_license=free: is no license"):
        license_of(str(published), "free")


@pytest.mark.parametrize(
    "name,text,code",
    [
        ("README.md", '---\nlicense: "mit"\n---\n', "MIT"),
        ("LICENSE", "MIT License\n\nCopyright (c) 2020 Jungil Kong\n", "MIT"),
    ],
)
def test_a_card_or_a_license_file_is_read(published: Path, name: str, text: str, code: str) -> None:
    (published / "README.md").unlink()
    (published / name).write_text(text)
    assert license_of(str(published), "") == code


def test_a_card_that_says_other_leaves_it_to_the_license_file(published: Path) -> None:
    (published / "README.md").write_text("---\nlicense: other\nlicense_name: own\n---\n")
    (published / "LICENSE").write_text("CC-BY-SA-4.0\n\nand so on\n")
    assert license_of(str(published), "") == "CC-BY-SA-4.0"


@pytest.mark.parametrize("text", ["", "---\nlicense: other\n---\n", "# license: mit\n---\n"])
def test_an_unknown_license_is_refused_with_the_way_out(published: Path, text: str) -> None:
    (published / "README.md").write_text(text)
    with pytest.raises(UserError, match="nothing beside these weights states their license.*init_license="):
        license_of(str(published), "")


# --- What is demanded ---------------------------------------------------------------------------------------


def part(code: str) -> dict[str, PartRecord]:
    return {"unet": {"sources": ["hub:owner/name"], "license": code, "learnt_from": []}}


def data(**licenses: int) -> LearntFrom:
    counts = {code.replace("_", "-").replace("-0", ".0"): count for code, count in licenses.items()}
    return {
        "name": "clips",
        "kind": "clips",
        "semantic_hash": "",
        "snapshot": "a",
        "split": "train",
        "units": [],
        "samples": sum(counts.values()),
        "licenses": counts,
    }


def result(weights: str, stated: str = "", **licenses: int) -> str:
    return model_license(demands_of(part(weights), [data(**licenses)]), stated)


@pytest.mark.parametrize(
    ("weights", "licenses", "code"),
    [
        ("own", {}, "own"),
        # attribution of data is given by the list of sources
        ("own", {"CC_BY_4_0": 5, "CC0_1_0": 1, "own": 3}, "own"),
        ("own", {"CC_BY_4_0": 5, "CC_BY_SA_4_0": 1}, "CC-BY-SA-4.0"),
        ("own", {"CC_BY_NC_4_0": 1}, "CC-BY-NC-4.0"),
        # whether a model is a derivative of a sample is not decided here
        ("own", {"CC_BY_NC_ND_4_0": 1}, "CC-BY-NC-4.0"),
        ("own", {"CC_BY_ND_4_0": 1}, "own"),
        ("Apache-2.0", {}, "Apache-2.0"),
        ("Apache-2.0", {"CC_BY_SA_4_0": 1}, "CC-BY-SA-4.0"),
        ("CC-BY-NC-SA-4.0", {"CC_BY_SA_4_0": 1}, "CC-BY-NC-SA-4.0"),
        ("CC-BY-NC-4.0", {"CC_BY_SA_3_0": 1}, "CC-BY-NC-SA-4.0"),
        ("CC0-1.0", {}, "own"),
        ("all-rights-reserved", {"CC_BY_SA_4_0": 1}, "all-rights-reserved"),
        ("custom:https://example.org/rail", {}, "custom:https://example.org/rail"),
    ],
)
def test_the_strictest_demand_is_the_models_license(
    weights: str, licenses: dict[str, int], code: str
) -> None:
    assert result(weights, **licenses) == code


@pytest.mark.parametrize(
    ("weights", "licenses", "stated"),
    [
        ("own", {"CC_BY_SA_4_0": 1}, "cc-by-nc-sa-4.0"),
        ("own", {"CC_BY_NC_4_0": 1}, "all-rights-reserved"),
        ("Apache-2.0", {}, "mit"),
        ("own", {}, "mit"),
        ("custom:https://example.org/rail", {"CC_BY_NC_4_0": 1}, "custom:https://example.org/mine"),
    ],
)
def test_one_as_strict_may_be_stated(weights: str, licenses: dict[str, int], stated: str) -> None:
    if "custom" in stated:
        # terms of one's own are no known promise: data's demands are not met by them
        with pytest.raises(UserError, match="weaker than CC-BY-NC-4.0"):
            result(weights, stated, **licenses)
        assert result(weights, stated) == stated
    else:
        assert result(weights, stated, **licenses).lower() == stated


@pytest.mark.parametrize(
    ("weights", "licenses", "stated"),
    [
        ("own", {"CC_BY_SA_4_0": 1}, "cc-by-4.0"),
        ("own", {"CC_BY_SA_4_0": 1}, "own"),
        # who permits nothing cannot share alike
        ("own", {"CC_BY_SA_4_0": 1}, "all-rights-reserved"),
        ("CC-BY-NC-4.0", {}, "cc-by-4.0"),
        ("Apache-2.0", {}, "cc0-1.0"),
        ("all-rights-reserved", {}, "custom:https://example.org/mine"),
        ("custom:https://example.org/rail", {}, "mit"),
    ],
)
def test_a_weaker_one_is_refused_with_the_reason(weights: str, licenses: dict[str, int], stated: str) -> None:
    with pytest.raises(UserError, match="is weaker than .* of the .*, which asks for"):
        result(weights, stated, **licenses)


def test_licenses_that_no_other_says_together_must_be_settled_by_a_person() -> None:
    with pytest.raises(UserError, match="no license says all that .*rail, CC-BY-SA-4.0 demand.*license="):
        result("custom:https://example.org/rail", CC_BY_SA_4_0=1)


def test_kinds_of_sharing_alike_that_meet_are_pointed_out() -> None:
    def demands(*codes: str) -> list[Demand]:
        found: list[Demand] = []
        for code in codes:
            found += demands_of(part(code), [])
        return found

    assert conflicts(demands("CC-BY-SA-4.0", "CC-BY-SA-3.0", "Apache-2.0")) == []
    assert conflicts(demands("CC-BY-SA-4.0", "GPL-3.0-only")) == ["CC-BY-SA-4.0", "GPL-3.0-only"]
    assert conflicts(demands("CC-BY-SA-4.0", "CC-BY-NC-4.0")) == ["CC-BY-NC-4.0", "CC-BY-SA-4.0"]


@pytest.mark.parametrize(
    "code", ["own", "CC-BY-NC-SA-4.0", "all-rights-reserved", "custom:https://example.org/rail"]
)
def test_the_license_file_is_read_back_as_what_it_says(tmp_path: Path, code: str) -> None:
    demands = demands_of(part("CC-BY-SA-4.0"), [data(CC_BY_4_0=7)])
    (tmp_path / "LICENSE").write_text(license_text(code, demands))
    assert license_beside([tmp_path]) == code
    text = (tmp_path / "LICENSE").read_text()
    assert "CC-BY-SA-4.0 <https://creativecommons.org/licenses/by-sa/4.0/>: attribution, share-alike" in text
    assert "7 samples of clips: CC-BY-4.0" in text and "credit, in the list of sources" in text
