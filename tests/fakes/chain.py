"""The chain of models, each made from the one before, in one process: too small to sound right.

chain = make_chain(tmp_path)        # or the fixture `chain`, once per test session
chain.clips, chain.diffusion        # paths, as text
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.dataset import Dataset
from ingest.clip.clipper import ClipConfig, FrameConfig
from ingest.scrape import ScrapeConfig, SplitConfig, scrape
from ingest.sources.settings import SourceConfig
from ingest.synth import SynthConfig, synth
from training.networks.discriminators import DiscriminatorConfig
from training.networks.vocoders import VocoderConfig
from training.precompute import PrecomputeConfig, precompute
from training.recipes import audiomae, autoencoder, contrastive, diffusion, prior, vocoder
from training.settings import TrainConfig
from training.train import train

TOWER = contrastive.ImageTowerConfig(
    kind="resnet", widths=[8, 16], depths=[1, 1], stem=8, norm_groups=4, size_px=32
)


@dataclass
class Chain:
    root: Path

    def __getattr__(self, name: str) -> str:
        return str(self.root / name)


def make_chain(root: Path) -> Chain:
    """world, clips, contrastive, autoencoder, audiomae, vocoder, latents, prior, diffusion below `root`."""
    chain = Chain(root)
    synth(
        SynthConfig(
            path=chain.world,
            videos=6,
            webm=0,
            hls=0,
            dash=0,
            stills=0,
            silent=1,
            scenes_per_video=4,
            size_px=64,
        )
    )
    source = SourceConfig(path=f"{chain.world}/media", license="own")
    scrape_config = ScrapeConfig(
        output=chain.clips,
        source=source,
        workers=0,
        unit_size=2,
        clip=ClipConfig(duration_s=1.6),
        frame=FrameConfig(short_side_px=32),
        split=SplitConfig(validation=0.4),
    )
    scrape(scrape_config, progress=False)
    shared = {"workers": 0, "steps": 2, "global_batch": 4, "lanes": 4, "checkpoint_every": 2, "zero_stage": 0}
    audio_tower = contrastive.AudioTowerConfig(width=16, depths=[1])
    towers = contrastive.Config(image=TOWER, audio=audio_tower, embedding_dim=8)
    train(
        TrainConfig(
            data=chain.clips, output=chain.contrastive, recipe="contrastive", contrastive=towers, **shared
        )
    )
    codec = autoencoder.Config(
        channels=[8, 8, 16], layers_per_block=1, norm_groups=4, attention=False, crop_frames=32
    )
    train(
        TrainConfig(
            data=chain.clips, output=chain.autoencoder, recipe="autoencoder", autoencoder=codec, **shared
        )
    )
    maker = vocoder.Config(
        generator=VocoderConfig(channels=64, block_kernels=[3], dilations=[1]),
        discriminators=DiscriminatorConfig(
            periods=[2], period_channels=[4, 8], num_scales=1, scale_channels=[4, 4, 8, 8, 8, 8, 8]
        ),
        crop_frames=16,
    )
    train(TrainConfig(data=chain.clips, output=chain.vocoder, recipe="vocoder", vocoder=maker, **shared))
    models = {"autoencoder": chain.autoencoder, "image_encoder": chain.contrastive}
    precompute(PrecomputeConfig(data=chain.clips, output=chain.latents, workers=0, **models), progress=False)
    _make_prior(chain, models, shared)
    unet = diffusion.Config(
        channels=[8, 16], head_counts=[2, 2], layers_per_block=1, attention=False, norm_groups=4
    )
    train(TrainConfig(data=chain.latents, output=chain.diffusion, diffusion=unet, **shared))
    return chain


def _make_prior(chain: Chain, models: dict[str, str], shared: dict[str, Any]) -> None:
    """An AudioMAE, latents with its tokens, and what predicts them."""
    patches = audiomae.Config(
        width=16, layers=1, heads=2, decoder_width=16, decoder_layers=1, decoder_heads=2
    )
    train(TrainConfig(data=chain.clips, output=chain.audiomae, recipe="audiomae", audiomae=patches, **shared))
    with_tokens = {**models, "audiomae": chain.audiomae, "output": chain.token_latents}
    precompute(PrecomputeConfig(data=chain.clips, workers=0, **with_tokens), progress=False)
    sequence = prior.Config(width=16, layers=1, heads=2)
    train(TrainConfig(data=chain.token_latents, output=chain.prior, recipe="prior", prior=sequence, **shared))


def frames_of(chain: Chain, folder: Path, count: int = 4) -> list[Path]:
    """The first frames of the dataset, as files."""
    dataset = Dataset.open(chain.clips)
    folder.mkdir(exist_ok=True)
    commits = dataset.commits()
    clips = [row for row in dataset.iter_rows() if row["status"] == "kept"]
    for row in clips[:count]:
        (member,) = [member for member in row["members"] if member["ext"] == "jpg"]
        tar = commits[row["unit"]].tar
        assert tar
        data = dataset.store.read_range(tar.name, member["offset"], member["offset"] + member["size"])
        (folder / f"{row['key']}.jpg").write_bytes(data)
    return sorted(folder.iterdir())
