"""Which files of a folder, tree or glob are photos, and what each is called."""

from pathlib import Path

import pytest

from configs.load import UserError
from ingest.photos import find_photos


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")


def test_a_photo_is_named_by_its_path_without_suffix(tmp_path: Path) -> None:
    touch(tmp_path, "a/scene.jpg", "b/scene.jpg", "UPPER.JPG")
    photos = find_photos(str(tmp_path))
    assert {name: str(path.relative_to(tmp_path)) for name, path in photos.items()} == {
        "a/scene": "a/scene.jpg",
        "b/scene": "b/scene.jpg",
        "UPPER": "UPPER.JPG",
    }


def test_photos_that_differ_in_their_suffix_keep_it(tmp_path: Path) -> None:
    touch(tmp_path, "x.jpg", "x.png", "x.jpg.png", "x.jpg.png.gif")
    assert set(find_photos(str(tmp_path))) == {"x.jpg", "x.png", "x.jpg.png", "x.jpg.png.gif"}


def test_hidden_and_other_files_are_no_photos(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "notes.txt", ".hidden.jpg")
    assert list(find_photos(str(tmp_path))) == ["a"]


def test_names_of_a_glob_are_below_its_fixed_prefix(tmp_path: Path) -> None:
    touch(tmp_path, "a/scene.jpg", "b/scene.jpg", "b/deep/er.png")
    assert set(find_photos(f"{tmp_path}/[ab]/*.jpg")) == {"a/scene", "b/scene"}
    assert set(find_photos(f"{tmp_path}/**/*")) == {"a/scene", "b/scene", "b/deep/er"}


def test_an_existing_file_is_not_read_as_a_glob(tmp_path: Path) -> None:
    touch(tmp_path, "odd[1].jpg")
    assert list(find_photos(f"{tmp_path}/odd[1].jpg")) == ["odd[1]"]


def test_a_file_that_is_named_itself_needs_no_suffix(tmp_path: Path) -> None:
    touch(tmp_path, "plain")
    assert list(find_photos(f"{tmp_path}/plain")) == ["plain"]


def test_linked_folders_are_followed_once(tmp_path: Path) -> None:
    touch(tmp_path, "in/a.jpg", "out/b.jpg")
    (tmp_path / "in/linked").symlink_to(tmp_path / "out")
    (tmp_path / "in/circle").symlink_to(tmp_path / "in")
    (tmp_path / "in/dangling.jpg").symlink_to(tmp_path / "nowhere.jpg")
    assert list(find_photos(f"{tmp_path}/in")) == ["a", "dangling", "linked/b"]


@pytest.mark.parametrize("images", ["nowhere", "nowhere/*.jpg", "."])
def test_no_photo_is_an_error_of_one_line(images: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="images="):
        find_photos(str(tmp_path / images))
