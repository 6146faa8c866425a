"""`ingest stills`: every photo a silent video whose every frame is the photo, and a list that says where."""

import csv
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from configs.load import UserError
from ingest.stills import StillsConfig, make_stills


def paint(path: Path, width: int, height: int, orientation: int = 1) -> None:
    """Red on the left, blue on the right, as stored."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    pixels[:, : width // 2, 0] = pixels[:, width // 2 :, 2] = 220
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(path, exif=exif)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    paint(tmp_path / "photos/a.jpg", 121, 90)
    paint(tmp_path / "photos/b/a.png", 64, 200)
    paint(tmp_path / "photos/b/a.jpg", 90, 120, orientation=6)  # to be turned: it is shown 120 wide, 90 high
    (tmp_path / "photos/broken.jpg").write_bytes(b"\xff\xd8\xffno picture")
    (tmp_path / "photos/.hidden.jpg").write_bytes(b"")
    (tmp_path / "photos/notes.txt").write_text("no photo")
    return tmp_path / "photos"


def made(photos: Path, output: Path, **settings: object) -> dict[str, int]:
    config = {"duration_s": 0.5, "fps": 10, "short_side_px": 64, **settings}
    return make_stills(StillsConfig(str(photos), str(output), **config))  # type: ignore[arg-type]


def test_every_photo_is_a_silent_h264_video_of_the_length_asked_for(photos: Path, tmp_path: Path) -> None:
    assert made(photos, tmp_path / "out") == {"videos": 3, "refused": 1}
    sizes = {}
    for row in rows(tmp_path / "out/list.tsv"):
        with av.open(str(tmp_path / "out" / row["path"])) as video:
            assert [
                (one.type, one.codec_context.name, one.codec_context.pix_fmt) for one in video.streams
            ] == [("video", "h264", "yuv420p")]
            assert video.streams.video[0].average_rate == 10
            frames = [frame.to_ndarray(format="rgb24").astype(int) for frame in video.decode(video=0)]
        sizes[row["id"].rsplit("-", 1)[0]] = frames[0].shape[1::-1]
        assert len(frames) == 5 and all(np.abs(frame - frames[0]).mean() < 2 for frame in frames)
    assert sorted(sizes.values()) == [(64, 200), (86, 64), (86, 64)]


def test_a_photo_is_shown_as_a_person_holds_it(photos: Path, tmp_path: Path) -> None:
    made(photos, tmp_path / "out")
    row = next(row for row in rows(tmp_path / "out/list.tsv") if row["id"].startswith("b-a-jpg"))
    with av.open(str(tmp_path / "out" / row["path"])) as video:
        frame = next(video.decode(video=0)).to_ndarray(format="rgb24").astype(int)
    top, bottom = frame[10].mean(axis=0), frame[-10].mean(axis=0)
    assert top[0] > 150 > top[2] and bottom[2] > 150 > bottom[0], (
        "red, which was left, is above after turning"
    )


def test_the_list_has_ids_paths_and_captions_and_refusals_their_reason(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "captions.csv").write_text('path,caption\na.jpg,"a red\tand a blue field"\nb/a.png,\n')
    made(photos, tmp_path / "out", captions=str(tmp_path / "captions.csv"))
    listed = rows(tmp_path / "out/list.tsv")
    assert list(listed[0]) == ["id", "path", "caption"] and len({row["id"] for row in listed}) == 3
    assert {row["id"]: row["caption"] for row in listed}["a"] == "a red and a blue field"
    assert all((tmp_path / "out" / row["path"]).is_file() for row in listed)
    (refused,) = rows(tmp_path / "out/refused.tsv")
    assert refused["path"] == "broken.jpg" and refused["reason"].startswith(
        "cannot be used: not a picture of JPEG, PNG"
    )


def test_running_again_keeps_what_is_there_and_other_settings_do_not(photos: Path, tmp_path: Path) -> None:
    made(photos, tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.mp4")}
    assert made(photos, tmp_path / "out") == {"videos": 3, "refused": 1}
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.mp4")} == before
    made(photos, tmp_path / "out", duration_s=0.3)
    path = tmp_path / "out" / rows(tmp_path / "out/list.tsv")[0]["path"]
    with av.open(str(path)) as video:
        assert len(list(video.decode(video=0))) == 3


def test_another_photo_of_the_same_name_gets_a_video_of_its_own(tmp_path: Path) -> None:
    for folder, colour in (("one", (200, 30, 30)), ("other", (30, 30, 200))):
        (tmp_path / folder).mkdir()
        Image.new("RGB", (64, 64), colour).save(tmp_path / folder / "a.png")
        made(tmp_path / folder, tmp_path / "out")
        with av.open(str(tmp_path / "out" / rows(tmp_path / "out/list.tsv")[0]["path"])) as video:
            shown = next(video.decode(video=0)).to_ndarray(format="rgb24").astype(int)
        assert np.abs(shown[32, 32] - colour).max() <= 2


def test_one_photo_will_do(photos: Path, tmp_path: Path) -> None:
    assert made(photos / "a.jpg", tmp_path / "out") == {"videos": 1, "refused": 0}


COLOURS = [
    (200, 40, 40),
    (40, 200, 40),
    (40, 40, 200),
    (255, 255, 0),
    (12, 100, 120),
    (255, 255, 255),
    (0, 0, 0),
    (128, 128, 128),
]


@pytest.mark.parametrize("lines", [64, 480, 720, 1080])
def test_a_colour_survives_the_round_trip_at_any_height_and_the_video_says_its_matrix_and_range(
    lines: int, tmp_path: Path
) -> None:
    bands = np.repeat(np.array(COLOURS, np.uint8), 64, axis=0)[None].repeat(64, axis=0)
    (tmp_path / "photos").mkdir()
    Image.fromarray(bands).resize((lines * 2, lines), Image.Resampling.NEAREST).save(
        tmp_path / "photos/a.png"
    )
    made(tmp_path / "photos", tmp_path / "out", short_side_px=lines, duration_s=0.1)
    with av.open(str(next((tmp_path / "out").rglob("*.mp4")))) as video:
        frame = next(video.decode(video=0))
    assert (frame.colorspace, frame.color_range) == (1, 1)  # BT.709, limited
    shown = frame.to_ndarray(format="rgb24").astype(int)
    middles = shown[lines // 2, lines // 8 :: lines // 4]
    assert np.abs(middles - np.array(COLOURS)).max() <= 2


def test_pictures_are_prepared_as_for_a_scrape(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    Image.fromarray(np.linspace(0, 65535, 128)[None].repeat(64, 0).astype(np.uint16)).save(
        tmp_path / "photos/grey.png"
    )
    clear = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    clear.paste((200, 30, 30, 255), (16, 16, 48, 48))
    clear.save(tmp_path / "photos/clear.png")
    made(tmp_path / "photos", tmp_path / "out")
    frames = {}
    for row in rows(tmp_path / "out/list.tsv"):
        with av.open(str(tmp_path / "out" / row["path"])) as video:
            frames[row["id"]] = next(video.decode(video=0)).to_ndarray(format="rgb24").astype(int)
    assert frames["clear"][4, 4].min() > 250 and np.abs(frames["clear"][32, 32] - (200, 30, 30)).max() < 5
    assert [frames["grey"][32, at].mean() for at in (8, 64, 120)] == pytest.approx([16, 128, 241], abs=4)


def test_a_photo_too_long_for_a_video_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (4000, 10)).save(tmp_path / "photos/strip.png")
    assert made(tmp_path / "photos", tmp_path / "out") == {"videos": 0, "refused": 1}
    (refused,) = rows(tmp_path / "out/refused.tsv")
    assert refused["reason"] == "too long: 25600 x 64 pixels as a video, 16384 a side allowed"


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"images": "/nowhere"}, "images=/nowhere: does not exist"),
        ({"duration_s": 0.0}, "not even one frame"),
        ({"short_side_px": 63}, "short_side_px=63"),
        ({"captions": "/nowhere.csv"}, "captions=/nowhere.csv"),
    ],
)
def test_what_cannot_work_is_one_clear_line(
    photos: Path, tmp_path: Path, settings: dict[str, object], told: str
) -> None:
    with pytest.raises(UserError, match=told):
        make_stills(StillsConfig(**{"images": str(photos), "output": str(tmp_path / "out"), **settings}))  # type: ignore[arg-type]
