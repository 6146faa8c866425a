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
            assert [(one.type, one.codec_context.name, one.codec_context.pix_fmt) for one in video.streams] == [
                ("video", "h264", "yuv420p")
            ]
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
    assert top[0] > 150 > top[2] and bottom[2] > 150 > bottom[0], "red, which was left, is above after turning"


def test_the_list_has_ids_paths_and_captions_and_refusals_their_reason(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "captions.csv").write_text('path,caption\na.jpg,"a red\tand a blue field"\nb/a.png,\n')
    made(photos, tmp_path / "out", captions=str(tmp_path / "captions.csv"))
    listed = rows(tmp_path / "out/list.tsv")
    assert list(listed[0]) == ["id", "path", "caption"] and len({row["id"] for row in listed}) == 3
    assert {row["id"]: row["caption"] for row in listed}["a"] == "a red and a blue field"
    assert all((tmp_path / "out" / row["path"]).is_file() for row in listed)
    (refused,) = rows(tmp_path / "out/refused.tsv")
    assert (refused["path"], refused["reason"]) == ("broken.jpg", "cannot be read: UnidentifiedImageError")


def test_running_again_keeps_what_is_there_and_other_settings_do_not(photos: Path, tmp_path: Path) -> None:
    made(photos, tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.mp4")}
    assert made(photos, tmp_path / "out") == {"videos": 3, "refused": 1}
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.mp4")} == before
    made(photos, tmp_path / "out", duration_s=0.3)
    path = tmp_path / "out" / rows(tmp_path / "out/list.tsv")[0]["path"]
    with av.open(str(path)) as video:
        assert len(list(video.decode(video=0))) == 3


def test_one_photo_will_do(photos: Path, tmp_path: Path) -> None:
    assert made(photos / "a.jpg", tmp_path / "out") == {"videos": 1, "refused": 0}


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"images": "/nowhere"}, "images=/nowhere: no picture"),
        ({"duration_s": 0.0}, "not even one frame"),
        ({"short_side_px": 63}, "short_side_px=63"),
        ({"captions": "/nowhere.csv"}, "captions=/nowhere.csv"),
    ],
)
def test_what_cannot_work_is_one_clear_line(photos: Path, tmp_path: Path, settings: dict[str, object], told: str) -> None:
    with pytest.raises(UserError, match=told):
        make_stills(StillsConfig(**{"images": str(photos), "output": str(tmp_path / "out"), **settings}))  # type: ignore[arg-type]
