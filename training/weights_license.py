"""The license of weights: what states it, what a model made of others' weights and data must demand.

    code = license_of("hub:owner/name", stated="")                     # as published; `UserError` for unknown
    demands = demands_of(parts, datasets)                               # who demands what, for the model card
    license = model_license(demands, stated="")                         # at least as strict as all of them

Weights hand on all that their license demands. Of data only share-alike and non-commercial are handed on:
attribution is given by the list of sources, and nothing else is decided here. What a license says is
`ingest.licenses`'s; this is no law, it only keeps what was demanded from getting lost.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce
from pathlib import Path

from cluster.learnt import LearntFrom, PartRecord, public_source
from configs.load import UserError
from ingest.licenses import combined, is_code, license_code, properties, strictness, suggestion, url_of
from training.pretrained import RUN, local_copy

ORIGIN = "origin.json"
# what was made from nothing of others is its operator's
OWN = "own"
UNKNOWN = ("", "unknown")
LICENSE_FILES = ("LICENSE", "LICENSE.txt", "LICENSE.md")
HANDED_ON_BY_DATA = frozenset({"share-alike", "non-commercial"})
RESERVED = "all-rights-reserved"


# --- What states it -----------------------------------------------------------------------------------------


def license_of(source: str, stated: str) -> str:
    """The code of the license of weights: as stated by the user, else by what is beside them.

    `UserError` where neither says one that is understood.
    """
    if stated:
        return stated_code("init_license", stated)
    folder = local_copy(source)
    code = license_beside((folder, folder / "model", folder.parent))
    if code in UNKNOWN:
        raise UserError(
            f"init_from={source}: nothing beside these weights states their license; state it: "
            "init_license=apache-2.0, or what their publisher says"
        )
    return code


def stated_code(setting: str, stated: str) -> str:
    """The code of a license that the user typed. `UserError` where it is none."""
    code = license_code(stated)
    if code in UNKNOWN:
        raise UserError(f"{setting}={stated}: is no license{suggestion(stated)}")
    return code


def license_beside(folders: Iterable[Path]) -> str:
    """What the first of these folders that says it says; "unknown" where none does."""
    folders = list(folders)
    # first of all what a run of ours recorded: such a run is as restricted as what it began with
    for read in (_recorded, _stated):
        for candidate in folders:
            code = read(candidate)
            if code not in UNKNOWN:
                return code
    return "unknown"


def _recorded(folder: Path) -> str:
    """The license of the origin of a finished model of ours; "" for none."""
    path = folder / ORIGIN
    return str(json.loads(path.read_text())["license"]) if path.is_file() else ""


def _stated(folder: Path) -> str:
    """What run.json, a model card or a license file of a folder states; "" for nothing."""
    if (folder / RUN).is_file():
        return OWN
    card = folder / "README.md"
    code = _of_card(card.read_text(errors="replace")) if card.is_file() else ""
    for name in LICENSE_FILES:
        # a card may say `other`, and leave the license to its file
        if code in UNKNOWN and (folder / name).is_file():
            lines = (folder / name).read_text(errors="replace").split("\n\n")[0].split()
            code = license_code(" ".join(lines))
    return code


def _of_card(text: str) -> str:
    """`license` in the front matter of a model card; "" for none."""
    front, _, _ = text.partition("\n---")
    for line in front.splitlines() if front.startswith("---") else ():
        if line.startswith("license:"):
            return license_code(line.partition(":")[2].strip().strip("\"'"))
    return ""


# --- What is demanded ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Demand:
    """What the license `code` of `whose` (weights, or samples of a dataset) asks of the model: `asks`, of the
    classes of `ingest.licenses`. A license that asks for nothing of the model has none.
    """

    whose: str
    code: str
    asks: frozenset[str]

    @property
    def text(self) -> str:
        """For people: what is asked."""
        credit = "credit, in the list of sources" if "attribution" in properties(self.code) else "nothing"
        return ", ".join(sorted(self.asks)) or credit


def demands_of(parts: dict[str, PartRecord], datasets: Iterable[LearntFrom]) -> list[Demand]:
    """Of each part's first weights, then of each license in each dataset, the most samples first."""
    demands: list[Demand] = []
    for name, part in parts.items():
        asks = frozenset() if part["license"] == OWN else properties(part["license"]) - {"public-domain"}
        source = public_source(part["sources"][-1]) if part["sources"] else "random weights"
        demands.append(Demand(f"weights of {name} (from {source})", part["license"], asks))
    for record in datasets:
        # not counted: whatever they are, nobody knows
        counts = record.get("licenses", {"unknown": record.get("samples", 0)})
        for code, count in sorted(counts.items(), key=lambda entry: -entry[1]):
            whose = f"{count:,} samples of {record['name']}" if count else f"samples of {record['name']}"
            demands.append(Demand(whose, code, properties(code) & HANDED_ON_BY_DATA))
    return demands


def model_license(demands: list[Demand], stated: str) -> str:
    """The license of a model: the stated one, which must be as strict as all demands, else the strictest.

    `own` where nothing is demanded. `UserError` for a weaker one, where no license says all, and where one of
    the demands is not known and none is stated.
    """
    binding = [demand for demand in demands if demand.asks]
    unknown = next((demand for demand in demands if demand.code in UNKNOWN), None)
    if unknown and not stated:
        raise UserError(
            f"license: that of the {unknown.whose} is not known; restore the dataset, "
            "or state a license that you may give: license=…"
        )
    if stated:
        code = stated_code("license", stated)
        for demand in binding:
            if not _covers(code, demand):
                asks = ", ".join(sorted(demand.asks))
                raise UserError(
                    f"license={stated}: is weaker than {demand.code} of the {demand.whose}, "
                    f"which asks for {asks}; give one that is as strict, or none"
                )
        return code
    # a notice is kept by the model card: what asks for no more does not stand against another license
    strict = [demand for demand in binding if demand.asks != {"attribution"}] or binding
    codes = sorted({_as_asked(demand) for demand in strict}, key=lambda code: (-strictness(code), code))
    code = reduce(combined, codes) if codes else OWN
    if code in UNKNOWN:
        raise UserError(
            f"license: no license says all that {', '.join(codes)} demand; "
            "state one that you may give: license=…"
        )
    return code


def _as_asked(demand: Demand) -> str:
    """The code without what it does not ask of the model: of data, that nothing may be derived."""
    plain = demand.code.replace("-ND", "")
    leaves_out = "no-derivatives" in properties(demand.code) - demand.asks
    return plain if leaves_out and is_code(plain) else demand.code


def _covers(code: str, demand: Demand) -> bool:
    """Whether a license asks for all that is demanded."""
    if code == demand.code:
        return True
    # terms of their own can only be met by themselves, or by terms that the operator wrote to meet them
    if "other-terms" in demand.asks:
        return code.startswith("custom:") and demand.code != RESERVED
    # who gives no license at all permits nothing that others forbid; but sharing alike is a permission
    if code == RESERVED:
        return "share-alike" not in demand.asks
    return demand.asks <= properties(code)


def conflicts(demands: list[Demand]) -> list[str]:
    """The share-alike licenses among the demands, where there are several kinds; else none."""
    codes = {demand.code for demand in demands if "share-alike" in demand.asks}
    limits = {demand.code for demand in demands if "non-commercial" in demand.asks}
    kinds = {(code.split("-")[0], "non-commercial" in properties(code)) for code in codes}
    freely_shared = {code for code in codes if "non-commercial" not in properties(code)}
    return sorted(codes | limits) if len(kinds) > 1 or (freely_shared and limits) else []


def license_text(code: str, demands: list[Demand]) -> str:
    """The LICENSE of an exported folder. It begins with the code alone, as `license_beside` reads it."""
    url = url_of(code)
    where = f"Its text: {url}" if url else "No text of it is published."
    meaning = {
        OWN: "Own terms of whoever publishes it: no license was stated, and nothing in it demands one.",
        RESERVED: "All rights are reserved: no license is given.",
    }.get(code, f"The weights in this folder are given under {code}. {where}")
    lines = [code, "", meaning, "", "What it was made from, and what that asks of the model:", ""]
    for demand in demands:
        link = f" <{url_of(demand.code)}>" if url_of(demand.code) else ""
        lines.append(f"- {demand.whose}: {demand.code}{link}: {demand.text}")
    lines += ["", "Files that end in .py are code of Stillsound, under Apache-2.0.", ""]
    return "\n".join(lines)
