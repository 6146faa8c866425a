"""From fetched media to audio-frame pairs: the settings of cutting, and the `Clipper`, owner of the decoder.

    with Clipper(ClipConfig(), AudioConfig(), FrameConfig(), MediaLimits()) as clipper:
        clips = clipper.cut(media)      # raises Refused

All decoding happens in `ingest.clip.process`, inside an `ingest.child`; this process only takes the finished
samples and JPEG bytes, and checks their form. It judges no content (ingest.clip.filter does).

What crosses the pipe first is one `windows.Settings`, so a new setting of cutting is changed in two places:
here (the user's dataclass and `decoder_settings`), and there.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from configs.load import UserError, at_least, operational, positive
from ingest.child import Launch, WarmChild
from ingest.clip.windows import Settings
from ingest.sample import Clip, Media, Reason, Refused

DECODER = Launch(
    timed_out=Reason.DECODER_TIMEOUT,
    crashed=Reason.DECODER_CRASHED,
    environment={
        "HOME": "/",
        "PYTHONDONTWRITEBYTECODE": "1",
        # one item, one core: workers are counted in cores, and BLAS threads would multiply the memory
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    },
)
MODES = ("keyframe", "grid")
SHORT = ("refuse", "pad", "loop")
MIN_MEMORY_MB = 512  # address space that the interpreter, av and numpy take before the first packet
MAX_EVIDENCE_CHARS = 1000  # of what a file says of machine use: it goes into every row of the index


@dataclass
class ClipConfig:
    """How windows are laid.

    `keyframe`: around keyframes, the frame is the exact middle; `grid`: back to back from 0.
    Where keyframe windows are fewer than a third of the grid's, or none fits, the gaps are filled as by
    `grid`, at its cost; a sample's `mode` says how it was laid. `short`: what a medium gives that is shorter
    than a clip: nothing, or one clip that ends in silence (`pad`) or repeats itself (`loop`); the sample's
    `valid_s` says how much of it is the medium's.
    """

    duration_s: float = 10.24  # length of every clip
    mode: str = "keyframe"  # keyframe: windows around keyframes, or grid: back to back from 0
    max_clips_per_media: int = 0  # 0 = all; else that many, spread evenly over the media
    scene_cut: float = 0.0  # 0 = off; else no window spans a cut above this score; +0.3 to 0.5 CPU-s a minute
    short: str = "refuse"  # media shorter than a clip: refuse, pad with silence, or loop

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise UserError(f"clip.mode={self.mode}: give one of {', '.join(MODES)}")
        if self.short not in SHORT:
            raise UserError(f"clip.short={self.short}: give one of {', '.join(SHORT)}")
        at_least(self, 0, "max_clips_per_media", section="clip.", meaning="all")
        if not 0 <= self.scene_cut < 1:
            raise UserError(f"clip.scene_cut={self.scene_cut}: give 0 (off) or a score below 1, such as 0.1")


@dataclass
class AudioConfig:
    """Every clip is mono 16-bit at this rate."""

    sample_rate_hz: int = 16000  # of every clip

    def __post_init__(self) -> None:
        if not 4000 <= self.sample_rate_hz <= 192000:
            raise UserError(f"audio.sample_rate_hz={self.sample_rate_hz}: give 4000 to 192000")


@dataclass
class FrameConfig:
    """Frames are scaled down to this short side and stored as JPEG; smaller pictures are refused."""

    short_side_px: int = 256  # to which frames are scaled down; smaller pictures are refused
    quality: int = 92  # of the JPEG, 1 to 100

    def __post_init__(self) -> None:
        at_least(self, 16, "short_side_px", section="frame.")
        # above 95, Pillow's JPEGs grow fast and look no better
        if not 1 <= self.quality <= 95:
            raise UserError(f"frame.quality={self.quality}: give a JPEG quality of 1 to 95")


@dataclass
class MediaLimits:
    """What media may cost: beyond these it is refused as too_long, too_large or decoder_timeout."""

    max_duration_s: float = 3600.0  # longer media are refused
    max_pixels: int = 36_000_000  # of one picture; 8K video has 33 million
    max_memory_mb: int = operational(3072)  # address space of the decoder child
    timeout_s: float = operational(300.0)  # wall clock of one item
    recycle_items: int = operational(200)  # items after which the child is replaced

    def __post_init__(self) -> None:
        positive(self, *asdict(self), section="limits.")
        if self.max_memory_mb < MIN_MEMORY_MB:
            raise UserError(
                f"limits.max_memory_mb={self.max_memory_mb}: the decoder itself needs {MIN_MEMORY_MB}"
            )


def decoder_settings(
    clip: ClipConfig, audio: AudioConfig, frame: FrameConfig, limits: MediaLimits
) -> Settings:
    """What the decoder needs of the user's settings. `UserError` for clips without a sample."""
    num_samples = round(clip.duration_s * audio.sample_rate_hz)
    if num_samples < 1:
        raise UserError(f"clip.duration_s={clip.duration_s}: give a positive number of seconds")
    return Settings(
        num_samples=num_samples,
        mode=clip.mode,
        max_clips=clip.max_clips_per_media,
        sample_rate_hz=audio.sample_rate_hz,
        short_side_px=frame.short_side_px,
        quality=frame.quality,
        max_duration_s=limits.max_duration_s,
        max_pixels=limits.max_pixels,
        max_memory_bytes=limits.max_memory_mb << 20,
        scene_cut=clip.scene_cut,
        short=clip.short,
    )


class Clipper:
    """Cuts media into clips with a warm decoder child. Not for several threads at once."""

    def __init__(self, clip: ClipConfig, audio: AudioConfig, frame: FrameConfig, limits: MediaLimits):
        settings = decoder_settings(clip, audio, frame, limits)
        self.num_samples = settings.num_samples
        self.duration_s = clip.duration_s
        self.sample_rate_hz = audio.sample_rate_hz
        self.lost: list[Refused] = []  # segments of the last medium that gave no clip
        self.embedded = ""  # what the last medium says of machine use within itself
        self.sandbox = WarmChild(
            "ingest.clip.process", asdict(settings), limits.timeout_s, limits.recycle_items, DECODER
        )

    def __enter__(self) -> "Clipper":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the decoder child, if one runs."""
        self.sandbox.close()

    def cut(self, media: Media) -> list[Clip]:
        """The clips of `media` in order of time; none where no window fits.

        What gave no clip is in `lost`. Raises `Refused`.
        """
        self.lost = []
        request = {
            "picture": str(media.picture.resolve()),
            "sound": str(media.sound.resolve()),
            "still": media.still,
            "start_s": media.start_s,
            "end_s": media.end_s,
        }
        header, blobs = self.sandbox.ask(request)
        try:
            clips = [self._clip(entry, blobs) for entry in header["clips"]]
            # where nothing was cut, the caller refuses the whole medium: losses would count it twice
            self.lost = self._losses(header) if clips else []
            self.embedded = str(header["embedded"])[:MAX_EVIDENCE_CHARS]
            return clips
        except (KeyError, IndexError, TypeError, ValueError) as error:
            self.close()
            raise Refused(Reason.DECODER_CRASHED, f"a reply of the wrong form: {error!r}") from None

    def _losses(self, header: Mapping[str, Any]) -> list[Refused]:
        """One refusal for all windows without a picture, one for all stretches without a window."""
        unseen = self._loss(header["unseen"], Reason.CORRUPT, "no whole picture for a window")
        empty = self._loss(header["empty"], Reason.TOO_SHORT, "no window where the clock restarts")
        return [*unseen, *empty]

    def _loss(self, starts: list[int], reason: Reason, message: str) -> list[Refused]:
        """The refusal of what begins at these samples; [] where there are none."""
        times = [f"{int(start) / self.sample_rate_hz:.3f}" for start in starts]
        return [Refused(reason, f"{message} at {', '.join(times)} s")] if times else []

    def _clip(self, entry: Mapping[str, Any], blobs: list[bytes]) -> Clip:
        """One clip of the child's reply. The child read hostile bytes: nothing in it is taken unchecked."""
        audio = np.frombuffer(blobs[int(entry["audio"])], dtype="<i2")
        if len(audio) != self.num_samples:
            raise ValueError(f"{len(audio)} samples, not {self.num_samples}")
        num_valid = int(entry["valid"])
        mode = str(entry["mode"])
        if not 0 < num_valid <= self.num_samples or mode not in (*MODES, "still"):
            raise ValueError(f"{num_valid} valid samples, laid as {mode[:20]!r}")
        start_s = int(entry["start"]) / self.sample_rate_hz
        # a full clip has exactly the configured duration, which need not be a whole number of samples
        valid_s = self.duration_s if num_valid == self.num_samples else num_valid / self.sample_rate_hz
        frame_time_s = round(float(entry["frame_time_s"]), 6)
        frame_offset_s = round(frame_time_s - (start_s + valid_s / 2), 6)
        return Clip(
            start_s=start_s,
            duration_s=self.duration_s,
            sample_rate_hz=self.sample_rate_hz,
            audio=audio,
            image=blobs[int(entry["image"])],
            width_px=int(entry["width_px"]),
            height_px=int(entry["height_px"]),
            frame_time_s=frame_time_s,
            frame_offset_s=frame_offset_s + 0.0,  # never -0.0
            valid_s=valid_s,
            mode=mode,
        )
