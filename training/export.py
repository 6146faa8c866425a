"""`training export`: a diffusion run -> one folder that stock diffusers loads.

    export(ExportConfig(model="out/demo/runs/diffusion", output="out/demo/export"))
    DiffusionPipeline.from_pretrained("out/demo/export", trust_remote_code=True)

The folder holds all weights and its own pipeline.py: the pipeline's module after those of ours that it
imports. `open_pipeline` is how every command opens a model. Nothing is uploaded.
"""

import json
import logging
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
from PIL import Image

from cluster.dataset import Dataset
from cluster.learnt import INDEX, PROVENANCE, PartRecord, Provenance, published
from cluster.scratch import scratch_folder
from configs.load import StoppedError, UserError
from training.audioldm_folder import AUDIOLDM, check_audioldm, write_audioldm
from training.data.pinned import check_codec
from training.model_card import (
    ATTRIBUTION,
    ModelFacts,
    PartFacts,
    card_text,
    find_scores,
    read_scores,
    write_sources,
)
from training.pipeline.codec import BadMelError, Processor
from training.pipeline.mel import MelConfig
from training.pipeline.pipeline import SOUND_TOKENS, Conditioning, StillsoundPipeline
from training.pretrained import (
    RUN,
    fetch_models,
    find_model,
    folder_sha256,
    is_finished,
    load_autoencoder,
    load_conditioner,
    load_image_encoder,
    load_network,
    load_scheduler,
    load_vocoder,
    local_copy,
    plain_processor,
    read_processor,
    scheduler_of,
)
from training.priors import check_prior, load_pinned_prior, open_prior
from training.provenance import merged, of_model, of_source, removed_since
from training.recipes import diffusion
from training.recipes.published import CONDITIONING
from training.shipped import ROOT, requirements, shipped_source
from training.sounds import voice_of
from training.text_encoders import PHONEMES, TEXT
from training.weights_license import UNKNOWN, demands_of, license_text, model_license, stated_code

log = logging.getLogger(__name__)
OWN_CLASSES = {
    "IstftVocoder": "training/networks/istft_vocoder.py",
    "Conditioner": "training/networks/conditioner.py",
    "EfficientNetLite": "training/networks/efficientnet_lite.py",
    "TokenPrior": "training/networks/prior.py",
    "MapTower": "training/networks/map_tower.py",
}
PARTS = diffusion.PARTS  # the names of its folders, in a run as in an export
# a sequence that precompute writes, and the model that made it
MADE_BY = {SOUND_TOKENS: SOUND_TOKENS, "text": TEXT, "phonemes": PHONEMES}
CHECK_STEPS = 2  # enough to pass through every part


@dataclass
class PartLicenses:
    """`unet`, `autoencoder`, `image_encoder`, `vocoder`, `prior`, `audiomae`, `text_encoder`,
    `phoneme_encoder`: license of the part's first weights, where nothing beside them or in its record states
    one.
    """

    unet: str = ""
    autoencoder: str = ""
    image_encoder: str = ""
    vocoder: str = ""
    prior: str = ""
    audiomae: str = ""
    text_encoder: str = ""
    phoneme_encoder: str = ""


@dataclass
class ExportConfig:
    """What is exported, with which parts, under which license."""

    model: str  # a finished diffusion run, or an exported folder
    output: str  # the folder to write to
    latents: str = ""  # where the latents are now, for runs of before models carried their codec
    # a finished run, a save_pretrained folder or hub:owner/name; without one it is Griffin-Lim
    vocoder: str = ""
    prior: str = ""  # a finished run or exported folder, for a model that attends to tokens of AudioMAE
    sampler: str = ""  # ddim, euler, dpmsolver or unipc in place of the model's own
    license: str = ""  # of the model; by default as strict as what it was made from demands
    init_license: PartLicenses = field(default_factory=PartLicenses)
    scores: str = ""  # what evaluate wrote; by default that of this model beside its run
    audioldm: bool = False  # also a folder of this name inside, which stock AudioLDMPipeline loads
    name: str = ""  # of the model, for its card


class Exported(TypedDict):
    """What export did; `output`: the folder; `license`: of the weights."""

    output: str
    license: str


PipelineArguments = dict[str, Any]
"""Named arguments of `StillsoundPipeline`: models by the names of their folders, and `conditioning`."""


def export(config: ExportConfig) -> Exported:
    """Writes the folder, opens it again and compares what it gives.

    `UserError` for a model that is not finished, a license that is unknown or too weak, or an output not
    writable; `StoppedError` where what was written gives another sound.
    """
    # --- All that can be refused ----------------------------------------------------------------------------
    source = local_copy(config.model)
    pipeline = open_pipeline(str(source), config.latents, config.vocoder, config.sampler, config.prior)
    present = [name for name in PARTS.weights if getattr(pipeline, name, None) is not None]
    log.info("reading what it was trained on, for its license and its list of sources")
    provenance = provenance_of(source, pipeline, present, config)
    parts = {name: provenance["parts"][name] for name in (*present, *unshipped(pipeline))}
    datasets = merged([record for part in parts.values() for record in part["learnt_from"]])
    demands = demands_of(parts, datasets)
    license = model_license(demands, config.license)
    scores = read_scores(config.scores) if config.scores else find_scores(source, given_parts(config))
    if config.audioldm:
        check_audioldm(pipeline)
    folder = make_folder(config.output)

    # --- The models and what runs them ----------------------------------------------------------------------
    log.info("writing %s to %s", ", ".join(present), folder)
    sha256 = write_pipeline(pipeline, folder, present)
    if config.audioldm:
        write_audioldm(pipeline, folder / AUDIOLDM)

    # --- What a stranger has to know ------------------------------------------------------------------------
    provenance["parts"] = {name: published(part) for name, part in parts.items()}
    (folder / PROVENANCE).write_text(json.dumps(provenance))
    (folder / "LICENSE").write_text(license_text(license, demands))
    # transformers loads a tower of timm by it, and does not bring it
    is_timm = type(pipeline.image_encoder).__name__.startswith("Timm")
    needed = requirements(shipped_source(), *(("timm",) if is_timm else ()))
    (folder / "requirements.txt").write_text(needed)
    facts = ModelFacts(
        name=config.name or folder.absolute().name,
        duration_s=pipeline.mel.num_samples / pipeline.sample_rate_hz,
        sample_rate_hz=pipeline.sample_rate_hz,
        parts=[part_facts(name, pipeline, sha256, parts[name]) for name in parts],
        datasets=datasets,
        license=license,
        demands=demands,
        removed=removed_since(datasets),
        sources=write_sources(datasets, folder / ATTRIBUTION),
        scores=scores,
        vocoder=voice_of(pipeline),
        has_audioldm=config.audioldm,
        steps=pipeline.usual_steps,
        step=provenance.get("step"),
    )
    (folder / "README.md").write_text(card_text(facts), encoding="utf-8")
    log.info("opening what was written, to compare a sound of both")
    check_written(pipeline, folder)
    return {"output": str(folder), "license": license}


def write_pipeline(pipeline: StillsoundPipeline, folder: Path, present: list[str]) -> dict[str, str]:
    """The parts, pipeline.py and model_index.json; the sha256 of each part as written."""
    if (folder / INDEX).is_file():
        # of an older export into this folder: they would be opened with this one
        for name in (PARTS.vocoder, PARTS.conditioner, PARTS.prior, AUDIOLDM):
            shutil.rmtree(folder / name, ignore_errors=True)
    pipeline.save_pretrained(folder)
    (folder / "pipeline.py").write_text(shipped_source())
    index = json.loads((folder / INDEX).read_text())
    # stock diffusers takes the class from the file pipeline.py of the folder, where it is trusted
    index["_class_name"] = ["pipeline", StillsoundPipeline.__name__]
    # of the files as written here: whoever opens the folder can tell a part that was exchanged
    sha256 = {name: folder_sha256(folder / name) for name in present}
    index["conditioning"]["exported_sha256"] = sha256
    for name, part in pipeline.components.items():
        source = OWN_CLASSES.get(type(part).__name__)
        if source:
            # stock diffusers takes a class that it does not have from a file beside its weights
            index[name] = [Path(source).stem, type(part).__name__]
            (folder / name / Path(source).name).write_text((ROOT / source).read_text())
    (folder / INDEX).write_text(json.dumps(index, indent=1))
    return sha256


def provenance_of(
    source: Path, pipeline: StillsoundPipeline, present: list[str], config: ExportConfig
) -> Provenance:
    """Where each part is from. `UserError` where the license of one is neither known nor stated."""
    conditioning = pipeline.config.conditioning
    is_run = (source / RUN).is_file() or (source / "model" / CONDITIONING).is_file()
    folder = source / "model" if is_run else source
    run = source if is_run else source.parent
    # the network first: what an older run.json says is of it
    names = [PARTS.network, PARTS.codec, *PARTS.encoders, *unshipped(pipeline)]
    given = given_parts(config)
    names += [name for name, path in given.items() if name in present and not path]
    found = of_model(folder, run, config.latents, names, conditioning.get("sha256", {}))
    for name, path in given.items():
        if path:
            found["parts"][name] = of_source(path, find_model(path, name, name), name)
    for name, part in found["parts"].items():
        # of an AudioMAE whose tokens the model does not take, nothing is asked
        if name in (*names, *given):
            part["license"] = _license_of_part(name, part, getattr(config.init_license, name, ""))
    # trained with the network, and begun with its weights
    found["parts"][PARTS.conditioner] = found["parts"][PARTS.network]
    return found


def _license_of_part(name: str, part: PartRecord, stated: str) -> str:
    """`UserError` where it is unknown, or stated against what is recorded."""
    setting = f"init_license.{name}"
    code = stated_code(setting, stated) if stated else part["license"]
    if code in UNKNOWN:
        weights = ", made from ".join(part["sources"])
        raise UserError(
            f"model: nothing states the license of its {name} (weights: {weights}); "
            f"state it: {setting}=apache-2.0, or what their publisher says, or own if you trained them"
        )
    if part["license"] not in UNKNOWN and code != part["license"]:
        raise UserError(f"{setting}={stated}: its license is recorded as {part['license']}; leave it out")
    return code


def given_parts(config: ExportConfig) -> dict[str, str]:
    """Where the parts are from that the user may give beside the model; "" for its own, if it has one."""
    return {PARTS.vocoder: config.vocoder, PARTS.prior: config.prior}


def unshipped(pipeline: StillsoundPipeline) -> list[str]:
    """Models that parts have learnt from what they made, and that do not ship: those behind sequences."""
    conditioning = pipeline.config.conditioning
    attended = [each["name"] for each in conditioning.get("sequences", ())]
    models = [MADE_BY[name] for name in attended if name in MADE_BY]
    # a text.npy may be one that precompute did not write
    return [name for name in models if name == SOUND_TOKENS or name in conditioning.get("sha256", {})]


def part_facts(
    name: str, pipeline: StillsoundPipeline, shipped: dict[str, str], record: PartRecord
) -> PartFacts:
    """What the model card says of a part. `shipped`: sha256 of those that are in the folder."""
    if name not in shipped:
        sha256 = pipeline.config.conditioning.get("sha256", {}).get(name, "")
        return PartFacts(name, "not in this folder: made sequences to learn from", 0, sha256, record)
    part: Any = getattr(pipeline, name)
    parameters = sum(parameter.numel() for parameter in part.parameters())
    return PartFacts(name, type(part).__name__, parameters, shipped[name], record)


def check_written(pipeline: StillsoundPipeline, folder: Path) -> None:
    """`StoppedError` unless the folder, opened, gives the same sound of a grey picture, bit for bit."""
    grey = Image.new("RGB", (64, 64), "grey")
    sounds: list[np.ndarray] = []
    for pipe in (pipeline, open_pipeline(str(folder))):
        try:
            sounds += pipe(image=grey, num_inference_steps=CHECK_STEPS, guidance_scale=1.0, return_dict=False)
        except BadMelError as error:
            # no fault of the export: generate and evaluate refuse such a model
            log.warning("model of output=%s gives no sound: %s", folder, error)
            return
    if not np.array_equal(sounds[0], sounds[1]):
        difference = float(np.abs(sounds[0] - sounds[1]).max())
        raise StoppedError(
            f"output={folder}: what was written gives another sound (by {difference:.3g}); "
            "check the disk, and export again"
        )


def open_pipeline(
    model: str, latents: str = "", vocoder: str = "", sampler: str = "", prior: str = ""
) -> StillsoundPipeline:
    """The pipeline behind an exported folder or a diffusion run, on the GPU where there is one.

    `UserError` where its codec or image tower is not the one it was trained with, the vocoder is one of
    other spectrograms, or the prior one of other tokens or missing; `latents` to `sampler` as in
    `ExportConfig`.
    """
    folder = local_copy(model)
    if not folder.exists():
        raise UserError(f"model={model}: does not exist; give a finished diffusion run or an exported folder")
    exported = (folder / INDEX).is_file()
    arguments = _of_export(folder, model) if exported else _of_run(folder, model, latents)
    arguments[PARTS.scheduler] = scheduler_of(sampler, arguments[PARTS.scheduler])
    if vocoder:
        mel = MelConfig(**arguments["conditioning"]["mel"])
        arguments[PARTS.vocoder] = load_vocoder(find_model(vocoder, "vocoder", PARTS.vocoder), mel)
    if prior:
        arguments[PARTS.prior] = open_prior(prior)
    check_prior(arguments.get(PARTS.prior), arguments["conditioning"], model, prior)
    if arguments.get(PARTS.vocoder) is None:
        log.warning("model=%s has no vocoder: Griffin-Lim makes the sound; give one by vocoder=…", model)
    pipeline = StillsoundPipeline(**arguments)
    if pipeline.shortcut and sampler not in ("", "euler"):
        raise UserError(f"sampler={sampler}: cannot sample a shortcut model; give euler, or leave it out")
    pipeline.set_progress_bar_config(disable=True)
    pipeline.to("cuda" if torch.cuda.is_available() else "cpu")
    return pipeline


def _of_export(folder: Path, model: str) -> PipelineArguments:
    """What an exported folder holds."""
    conditioning = json.loads((folder / INDEX).read_text())["conditioning"]
    _check_carried(folder, conditioning.get("exported_sha256", {}), model)
    conditioning["processor"] = _processor(conditioning["processor"], conditioning)
    parts = {**_load_network(folder), **_load_ends(folder), "conditioning": conditioning}
    if (folder / PARTS.vocoder).is_dir():
        parts[PARTS.vocoder] = load_vocoder(folder / PARTS.vocoder, MelConfig(**conditioning["mel"]))
    if (folder / PARTS.prior).is_dir():
        parts[PARTS.prior] = load_pinned_prior(folder / PARTS.prior)
    return parts


def _of_run(run: Path, model: str, latents: str) -> PipelineArguments:
    """A run's network, codec and encoders; older runs have the last two beside their latents."""
    folder = run if (run / CONDITIONING).is_file() else run / "model"
    if not (folder / CONDITIONING).is_file() or not is_finished(run):
        raise UserError(
            f"model={model}: holds no finished diffusion model; "
            "train it to the end, or give an exported folder"
        )
    conditioning = json.loads((folder / CONDITIONING).read_text())
    with scratch_folder("models") as scratch:
        carried = (folder / PARTS.codec).is_dir()
        source = folder if carried else scratch
        if carried:
            _check_carried(folder, conditioning.get("sha256", {}), model)
        else:
            fetch_models(_older_latents(folder, conditioning, model, latents), scratch)
        ends = _load_ends(source)
        processor = read_processor(source / PARTS.encoders[0])
    # where the latents are is of this machine and does not ship
    shipped = {name: value for name, value in conditioning.items() if name != "latents"}
    shipped["processor"] = _processor(processor, conditioning)
    return {**_load_network(folder), **ends, "conditioning": shipped}


def _processor(settings: Processor, conditioning: Conditioning) -> Processor:
    """What made the pictures of a model: its processor, or of latents from before processors were honoured,
    the plain one.
    """
    return settings if conditioning.get("pictures", 1) > 1 else plain_processor(settings)


def _check_carried(folder: Path, recorded: dict[str, str], model: str) -> None:
    """`UserError` where a model folder holds another codec, tower or network than was recorded."""
    for name, sha256 in recorded.items():
        actual = folder_sha256(folder / name)
        if actual != sha256:
            raise UserError(
                f"model={model}: its {name} (sha256 {actual[:12]}) is not the one it was made with "
                f"({sha256[:12]}); restore it from a copy"
            )


def _older_latents(folder: Path, conditioning: Conditioning, model: str, latents: str) -> Dataset:
    """The dataset of latents of a model that carries no codec.

    `UserError` where it is gone, or was made anew by other models.
    """
    uri = latents or conditioning["latents"]
    fix = "give their new place: python -m training export model=… latents=…"
    try:
        dataset = Dataset.open(uri, "latents")
    except UserError as error:
        reason = f"its codec is stored beside its latents, which are not at {uri} ({error})"
        raise UserError(f"model={model}: {reason}; {fix}") from error
    check_codec("latents", dataset, conditioning.get("sha256", {}))
    pinned = _pinned_hashes(folder)
    current = dataset.meta["semantic_hash"]
    if pinned and current not in pinned:
        raise UserError(
            f"model={model}: was trained on latents made with other settings or models ({min(pinned)[:12]}) "
            f"than those now at {uri} ({current[:12]}); restore them, or {fix}"
        )
    return dataset


def _pinned_hashes(folder: Path) -> set[str]:
    """Semantic hashes of the commits that a model learnt from; none where its run.json is missing."""
    for run in (folder / RUN, folder.parent / RUN):
        if run.is_file():
            snapshots = json.loads(run.read_text())["snapshots"]
            return {commit["semantic_hash"] for snapshot in snapshots for commit in snapshot["commits"]}
    return set()


def _load_network(folder: Path) -> PipelineArguments:
    """What was trained, and what samples it."""
    parts: PipelineArguments = {
        PARTS.network: load_network(folder / PARTS.network),
        PARTS.scheduler: load_scheduler(folder / PARTS.scheduler),
    }
    if (folder / PARTS.conditioner).is_dir():
        parts[PARTS.conditioner] = load_conditioner(folder / PARTS.conditioner)
    return parts


def _load_ends(folder: Path) -> PipelineArguments:
    """What stands before and behind the network: the encoders and the codec."""
    encoders = {name: load_image_encoder(folder / name) for name in PARTS.encoders}
    return {PARTS.codec: load_autoencoder(folder / PARTS.codec), **encoders}


def make_folder(path: str) -> Path:
    """The output folder, created. `UserError` where that is not possible."""
    if "://" in path:
        raise UserError(f"output={path}: give a folder of this machine; nothing is uploaded")
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"output={path}: not writable ({error.strerror}); choose another folder") from error
    return folder
