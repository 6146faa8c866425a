"""Cutting: sound and frame belong together, and hostile media ends as a refusal, never as a dead worker."""

import io
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from PIL import Image

from configs.load import UserError
from ingest.clip.clipper import AudioConfig, ClipConfig, Clipper, FrameConfig, MediaLimits
from ingest.ffmpeg import ffmpeg_exe
from ingest.sample import Clip, Item, Media, Reason, Refused
from ingest.scenes import Scene, render_audio, render_image, sample_scene
from ingest.scrape import ScrapeConfig, ScrapeStage, scrape_item
from ingest.sources.settings import SourceConfig
from ingest.synth import KINDS, SynthConfig, synth
from tests.fakes.media import film

RATE_HZ = 16000


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Media of three scenes each; hls.mp4 and dash.mp4/.m4a are what a downloader leaves of the streams."""
    root = tmp_path_factory.mktemp("world")
    synth(SynthConfig(str(root), videos=1, webm=1, hls=1, dash=1, stills=1, silent=0, scenes_per_video=3))
    media = root / "media"
    join(media / "hls.mp4", sorted(media.glob("hls0000/*.ts")))
    for stream, name in ((0, "dash.mp4"), (1, "dash.m4a")):
        join(
            media / name,
            [
                media / f"dash0000/init-stream{stream}.m4s",
                *sorted(media.glob(f"dash0000/chunk-stream{stream}-*")),
            ],
        )
    return media


@pytest.fixture(scope="module")
def clipper() -> Iterator[Clipper]:
    with cutter() as clipper:
        yield clipper


def cutter(mode: str = "keyframe", duration_s: float = 1.6, most: int = 0, **limits: float) -> Clipper:
    return Clipper(
        ClipConfig(duration_s, mode, most), AudioConfig(RATE_HZ), FrameConfig(64), MediaLimits(**limits)
    )


def join(path: Path, parts: list[Path]) -> None:
    path.write_bytes(b"".join(part.read_bytes() for part in parts))


def media_of(picture: Path, sound: Path | None = None, still: bool = False) -> Media:
    return Media(picture, sound or picture, still, "own")


def scenes_of(kind: str, count: int) -> tuple[list[Scene], np.ndarray]:
    """The scenes that synth drew for the first medium of a kind, and their sound."""
    rng = np.random.default_rng([0, KINDS.index(kind), 0])
    scenes = [sample_scene(rng) for _ in range(count)]
    return scenes, np.concatenate([render_audio(scene, 2.0, RATE_HZ, rng) for scene in scenes])


def assert_picture(clip: Clip, scenes: list[Scene], number: int) -> None:
    """The frame shows scene `number` and none of the others."""
    frame = np.asarray(Image.open(io.BytesIO(clip.image)), dtype=float)
    gaps = [np.abs(frame - render_image(scene, 64).astype(float)).mean() for scene in scenes]
    assert int(np.argmin(gaps)) == number and gaps[number] < 15


def assert_sound(clip: Clip, truth: np.ndarray, delay: int = 0) -> None:
    """The clip's samples are those of its place in the truth, to the sample; lossy coding leaves a
    correlation.
    """
    truth, first = np.pad(truth, 2000), round(clip.start_s * RATE_HZ) - delay + 2000
    wave, inner = clip.audio / 32768, slice(2000, len(clip.audio) - 2000)
    near = {
        shift: np.corrcoef(wave[inner], truth[first + shift :][inner])[0, 1] for shift in range(-300, 301, 4)
    }
    assert max(near, key=lambda shift: near[shift]) == 0 and near[0] > 0.99


def refusal(clipper: Clipper, media: Media) -> Refused:
    with pytest.raises(Refused) as caught:
        clipper.cut(media)
    return caught.value


def ffmpeg(*arguments: str, stdin: bytes | None = None) -> bytes:
    return subprocess.run(
        [ffmpeg_exe(), "-v", "error", "-y", *arguments], input=stdin, capture_output=True, check=True
    ).stdout


@pytest.mark.parametrize(
    ("kind", "picture", "sound", "delay"),
    [
        ("mp4", "mp40000.mp4", None, 0),
        ("webm", "webm0000.webm", None, 0),
        ("hls", "hls.mp4", None, 1024),  # the encoder's priming delays picture and sound alike
        ("dash", "dash.mp4", "dash.m4a", 0),
    ],
)
def test_one_clip_per_scene_with_its_own_sound_and_frame(
    world: Path, clipper: Clipper, kind: str, picture: str, sound: str | None, delay: int
) -> None:
    scenes, truth = scenes_of(kind, 3)
    clips = clipper.cut(media_of(world / picture, world / sound if sound else None))
    assert len(clips) == 3
    for number, clip in enumerate(clips):
        assert clip.start_s == pytest.approx(2 * number + 0.2 + delay / RATE_HZ, abs=1e-3)
        assert clip.frame_offset_s == pytest.approx(0, abs=1e-4) and len(clip.audio) == 25600
        assert (clip.width_px, clip.height_px) == (64, 64)
        assert_picture(clip, scenes, number)
        assert_sound(clip, truth, delay)


def test_grid_windows_are_back_to_back_with_the_frame_on_screen(world: Path) -> None:
    scenes, truth = scenes_of("mp4", 3)
    with cutter("grid", 0.5) as clipper:
        clips = clipper.cut(media_of(world / "mp40000.mp4"))
    assert [clip.start_s for clip in clips] == [0.5 * place for place in range(12)]
    for place, clip in enumerate(clips):
        assert -0.1 < clip.frame_offset_s <= 0
        assert_picture(clip, scenes, place // 4)
        assert_sound(clip, truth)


def test_grid_finds_the_exact_frame_among_b_frames(tmp_path: Path) -> None:
    frames = b"".join(np.full((64, 64, 3), 20 + 3 * number, np.uint8).tobytes() for number in range(60))
    soundfile.write(tmp_path / "a.wav", np.random.default_rng(0).standard_normal(6 * RATE_HZ) * 0.1, RATE_HZ)
    video = [
        "-f",
        "rawvideo",
        "-pix_fmt",
        "rgb24",
        "-s",
        "64x64",
        "-r",
        "10",
        "-i",
        "pipe:",
        "-i",
        str(tmp_path / "a.wav"),
    ]
    coding = [
        "-c:v",
        "libx264",
        "-bf",
        "3",
        "-b_strategy",
        "0",
        "-g",
        "17",
        "-pix_fmt",
        "yuv420p",
        "-crf",
        "5",
        str(tmp_path / "b.mp4"),
    ]
    ffmpeg(*video, *coding, stdin=frames)
    with cutter("grid", 0.5) as clipper:
        clips = clipper.cut(media_of(tmp_path / "b.mp4"))
    greys = [np.asarray(Image.open(io.BytesIO(clip.image))).mean() for clip in clips]
    assert len(greys) == 12
    assert greys == pytest.approx(
        [20 + 3 * int((0.25 + 0.5 * place) * 10 + 1e-6) for place in range(12)], abs=1.4
    )


def test_a_still_lends_its_picture_to_every_window(world: Path) -> None:
    scenes, truth = scenes_of("still", 1)
    with cutter("keyframe", 0.6) as clipper:
        clips = clipper.cut(media_of(world / "still0000.jpg", world / "still0000.wav", still=True))
    assert [(clip.start_s, clip.frame_time_s, clip.frame_offset_s) for clip in clips] == [
        (0, 0.3, 0),
        (0.6, 0.9, 0),
        (1.2, 1.5, 0),
    ]
    assert len({clip.image for clip in clips}) == 1
    for clip in clips:
        assert_sound(clip, truth)
    assert np.array_equal(
        np.concatenate([clip.audio for clip in clips]),
        soundfile.read(world / "still0000.wav", dtype="int16")[0][:28800],
    )


def test_no_window_where_the_sound_has_not_begun(world: Path, tmp_path: Path, clipper: Clipper) -> None:
    whole = str(world / "mp40000.mp4")
    ffmpeg(
        "-i",
        whole,
        "-itsoffset",
        "0.5",
        "-i",
        whole,
        "-map",
        "0:v",
        "-map",
        "1:a",
        "-c",
        "copy",
        str(tmp_path / "late.mp4"),
    )
    clips = clipper.cut(media_of(tmp_path / "late.mp4"))
    assert [clip.start_s for clip in clips] == pytest.approx([2.2, 4.2])
    _, truth = scenes_of("mp4", 3)
    for clip in clips:
        assert_sound(clip, truth, delay=RATE_HZ // 2)


def test_a_turned_video_comes_out_upright(world: Path, tmp_path: Path, clipper: Clipper) -> None:
    ffmpeg(
        "-display_rotation",
        "90",
        "-i",
        str(world / "mp40000.mp4"),
        "-c",
        "copy",
        str(tmp_path / "turned.mp4"),
    )
    shown = ffmpeg(
        "-ss",
        "3",
        "-i",
        str(tmp_path / "turned.mp4"),
        "-frames:v",
        "1",
        "-f",
        "image2pipe",
        "-c:v",
        "png",
        "pipe:",
    )
    expected = np.asarray(
        Image.open(io.BytesIO(shown)).convert("RGB").resize((64, 64), Image.Resampling.LANCZOS), dtype=float
    )
    frame = np.asarray(
        Image.open(io.BytesIO(clipper.cut(media_of(tmp_path / "turned.mp4"))[1].image)), dtype=float
    )
    assert np.abs(frame - expected).mean() < 6


def test_same_media_same_bytes_and_a_cap_on_clips(world: Path, clipper: Clipper) -> None:
    def content(clips: list[Clip]) -> list[tuple[float, bytes, bytes]]:
        return [(clip.start_s, clip.audio.tobytes(), clip.image) for clip in clips]

    with cutter() as other, cutter(most=1) as capped:
        assert content(other.cut(media_of(world / "webm0000.webm"))) == content(
            clipper.cut(media_of(world / "webm0000.webm"))
        )
        assert [clip.start_s for clip in capped.cut(media_of(world / "mp40000.mp4"))] == pytest.approx([2.2])


def test_a_playlist_under_another_name_is_never_followed(
    world: Path, tmp_path: Path, clipper: Clipper
) -> None:
    secret = world / "hls0000" / "part000.ts"
    text = f"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:6,\nfile:{secret}\n#EXT-X-ENDLIST\n"
    evil = tmp_path / "evil.mp4"
    evil.write_text(text)
    (tmp_path / "evil.m3u8").write_text(text)
    with av.open(
        str(tmp_path / "evil.m3u8"), options={"extension_picky": "0", "allowed_extensions": "ALL"}
    ) as followed:
        assert followed.streams.video  # what the whitelist is there for
    for path in (evil, tmp_path / "evil.m3u8"):
        assert refusal(clipper, media_of(path)).reason in (Reason.CORRUPT, Reason.UNSUPPORTED)
    assert refusal(clipper, media_of(world / "still0000.jpg", evil, still=True)).reason in (
        Reason.CORRUPT,
        Reason.UNSUPPORTED,
    )


def test_damaged_media_is_refused(world: Path, tmp_path: Path, clipper: Clipper) -> None:
    for name in ("mp40000.mp4", "webm0000.webm"):
        data = (world / name).read_bytes()
        (tmp_path / name).write_bytes(data[: len(data) // 2])
        assert refusal(clipper, media_of(tmp_path / name)).reason == Reason.CORRUPT
    (tmp_path / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(100_000))
    assert refusal(clipper, media_of(tmp_path / "noise.mp4")).reason == Reason.CORRUPT
    (tmp_path / "empty.mp4").write_bytes(b"")
    assert refusal(clipper, media_of(tmp_path / "empty.mp4")).reason == Reason.CORRUPT
    (tmp_path / "half.jpg").write_bytes((world / "still0000.jpg").read_bytes()[:2000])
    assert (
        refusal(clipper, media_of(tmp_path / "half.jpg", world / "still0000.wav", still=True)).reason
        == Reason.CORRUPT
    )
    (tmp_path / "text.jpg").write_text("no picture")
    assert (
        refusal(clipper, media_of(tmp_path / "text.jpg", world / "still0000.wav", still=True)).reason
        == Reason.UNSUPPORTED
    )
    assert len(clipper.cut(media_of(world / "mp40000.mp4"))) == 3


def test_flipped_bytes_never_kill_the_worker(world: Path, tmp_path: Path, clipper: Clipper) -> None:
    rng = np.random.default_rng(0)
    for name in ("mp40000.mp4", "webm0000.webm", "hls.mp4"):
        for _ in range(8):
            data = bytearray((world / name).read_bytes())
            for place in rng.integers(0, len(data), 200):
                data[place] = int(rng.integers(256))
            (tmp_path / name).write_bytes(data)
            try:
                clips = clipper.cut(media_of(tmp_path / name))
                assert all(len(clip.audio) == 25600 for clip in clips)
            except Refused as refused:
                assert refused.reason not in (Reason.DECODER_CRASHED, Reason.DECODER_TIMEOUT)


def test_a_missing_half_has_a_name(world: Path, tmp_path: Path, clipper: Clipper) -> None:
    whole = str(world / "mp40000.mp4")
    ffmpeg("-i", whole, "-an", "-c", "copy", str(tmp_path / "mute.mp4"))
    ffmpeg("-i", whole, "-vn", "-c", "copy", str(tmp_path / "blind.mp4"))
    ffmpeg(
        "-i",
        str(world / "still0000.wav"),
        "-i",
        str(world / "still0000.jpg"),
        "-map",
        "0",
        "-map",
        "1",
        str(tmp_path / "cover.mp3"),
    )
    assert refusal(clipper, media_of(tmp_path / "mute.mp4")).reason == Reason.NO_AUDIO
    assert refusal(clipper, media_of(tmp_path / "blind.mp4")).reason == Reason.NO_VIDEO
    assert refusal(clipper, media_of(tmp_path / "cover.mp3")).reason == Reason.NO_VIDEO


def test_small_files_that_would_fill_the_memory_are_refused(world: Path, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "bomb.flac", np.zeros(600 * RATE_HZ, np.int16), RATE_HZ)
    assert (tmp_path / "bomb.flac").stat().st_size < 100_000
    Image.new("1", (12000, 12000)).save(tmp_path / "bomb.png")
    with cutter(max_duration_s=60) as clipper:
        still = media_of(world / "still0000.jpg", tmp_path / "bomb.flac", still=True)
        assert refusal(clipper, still).reason == Reason.TOO_LONG
        huge = media_of(tmp_path / "bomb.png", world / "still0000.wav", still=True)
        assert refusal(clipper, huge).reason == Reason.TOO_LARGE
    with cutter(max_pixels=5000) as clipper:
        assert refusal(clipper, media_of(world / "mp40000.mp4")).reason == Reason.TOO_LARGE
    with cutter(max_duration_s=3) as clipper:
        assert refusal(clipper, media_of(world / "mp40000.mp4")).reason == Reason.TOO_LONG
    with Clipper(ClipConfig(1.6), AudioConfig(), FrameConfig(128), MediaLimits()) as clipper:
        assert refusal(clipper, media_of(world / "mp40000.mp4")).reason == Reason.TOO_SMALL


def test_too_small_and_too_short_begin_just_below_the_limits(tmp_path: Path) -> None:
    def reason(duration_s: float, short_side_px: int) -> str | None:
        shape = {"clip": ClipConfig(duration_s, "grid"), "frame": FrameConfig(short_side_px)}
        stage = ScrapeStage(ScrapeConfig("unused", SourceConfig("unused", license="own"), **shape))  # type: ignore[arg-type]
        try:
            item = Item("folder", "a", str(tmp_path / "film.mp4"), "own")
            (row,) = scrape_item(item, "a", stage.fetcher, stage.clipper, stage.config)
            return row.reason
        finally:
            stage.close()

    film(tmp_path / "film.mp4", size=(128, 96), duration_s=3.0)
    assert (reason(3.0, 96), reason(3.1, 96), reason(3.0, 97)) == (None, Reason.TOO_SHORT, Reason.TOO_SMALL)


def test_memory_of_the_child_is_bounded(world: Path, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "long.flac", np.zeros(1800 * RATE_HZ, np.int16), RATE_HZ)
    with Clipper(
        ClipConfig(1.6), AudioConfig(192000), FrameConfig(64), MediaLimits(max_memory_mb=512)
    ) as clipper:
        assert (
            refusal(clipper, media_of(world / "still0000.jpg", tmp_path / "long.flac", still=True)).reason
            == Reason.TOO_LARGE
        )
        assert len(clipper.cut(media_of(world / "mp40000.mp4"))) == 3


def test_a_child_that_dies_or_hangs_is_replaced(world: Path) -> None:
    with cutter(timeout_s=1) as clipper:
        assert len(clipper.cut(media_of(world / "mp40000.mp4"))) == 3
        first = clipper.sandbox.pid
        assert first is not None
        os.kill(first, signal.SIGSTOP)
        assert refusal(clipper, media_of(world / "mp40000.mp4")).reason == Reason.DECODER_TIMEOUT
        assert len(clipper.cut(media_of(world / "mp40000.mp4"))) == 3
        second = clipper.sandbox.pid
        assert second not in (None, first)
        os.kill(second, signal.SIGSTOP)
        threading.Timer(0.2, os.kill, (second, signal.SIGKILL)).start()
        died = refusal(clipper, media_of(world / "mp40000.mp4"))
        assert died.reason == Reason.DECODER_CRASHED and "SIGKILL" in died.detail
        assert len(clipper.cut(media_of(world / "mp40000.mp4"))) == 3


def test_the_child_is_recycled_and_sees_no_secrets(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush")
    with cutter(recycle_items=2) as clipper:
        pids = []
        for _ in range(4):
            clipper.cut(media_of(world / "mp40000.mp4"))
            pids.append(clipper.sandbox.pid)
        assert pids[0] == pids[1] != pids[2] == pids[3]
        assert b"hush" not in Path(f"/proc/{pids[3]}/environ").read_bytes()
    assert not Path(f"/proc/{pids[3]}").exists()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ClipConfig(mode="random"), "clip.mode=random: give one of keyframe, grid"),
        (lambda: ClipConfig(max_clips_per_media=-1), "clip.max_clips_per_media"),
        (lambda: ClipConfig(scene_cut=1.5), "clip.scene_cut=1.5"),
        (lambda: AudioConfig(0), "audio.sample_rate_hz"),
        (lambda: FrameConfig(0), "frame.short_side_px"),
        (lambda: FrameConfig(quality=100), "frame.quality"),
        (lambda: MediaLimits(max_pixels=0), "limits.max_pixels"),
        (lambda: MediaLimits(max_memory_mb=10), "limits.max_memory_mb"),
    ],
)
def test_settings_that_cannot_work(make: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()  # type: ignore[operator]
