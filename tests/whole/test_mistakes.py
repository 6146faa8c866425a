"""Mistakes of a new user: one line on stderr with the value and the fix, exit code 2, nothing written."""

import sys
from pathlib import Path

import pytest

import cluster.__main__
import ingest.__main__
import training.__main__
from configs.load import run_app
from tests.conftest import ROOT
from tests.fakes.latents import make_latents

APPS = {"cluster": cluster.__main__.app, "ingest": ingest.__main__.app, "training": training.__main__.app}
FOLDER = "ingest scrape configs/ingest/folder.yaml"
DEMO = "training train configs/training/demo.yaml"


@pytest.mark.parametrize(
    ("command", "fragments"),
    [
        (
            "ingest scrape configs/ingest/folder.yml",
            ["configs/ingest/folder.yml", 'did you mean "configs/ingest/folder.yaml"'],
        ),
        (f"{FOLDER} source.pth=x", ["source.pth", 'did you mean "source.path"']),
        (f"{FOLDER} source.path=/nowhere", ["source.path=/nowhere"]),
        (f"{FOLDER} workers=two", ["workers", "two", "int"]),
        (f"{FOLDER} source.path={{media}} output={{file}}/clips", ["{file}/clips", "choose another output"]),
        (
            f"{FOLDER} source.path={{media}} output=s3://no-such-bucket/x",
            ["s3://no-such-bucket/x", "AWS_ACCESS_KEY_ID"],
        ),
        (f"{FOLDER} source.path={{media}} output=gopher://x/y", ["gopher", "s3://bucket/prefix"]),
        (f"{FOLDER} source.kind=ftp", ["source.kind=ftp", "folder, urls, webdataset, youtube, inaturalist"]),
        (f"{FOLDER} source.kind=youtube", ["source.license=own", "source.youtube.vouched_channels"]),
        (
            "ingest scrape source.kind=youtube source.path=rain output={out}",
            ["source.path=rain", "ytsearch50:words"],
        ),
        (
            "ingest scrape source.kind=inaturalist source.path=/nowhere output={out}",
            ["source.path=/nowhere", "no such file"],
        ),
        ("ingest stills images=/nowhere output={out}", ["images=/nowhere", "does not exist"]),
        (f"{FOLDER} license.allow=[GPL]", ["GPL", "CC0-1.0"]),
        (f"{FOLDER} clip.mode=keyfram", ["clip.mode=keyfram", "keyframe, grid"]),
        (f"{FOLDER} clip.duration_s=0", ["clip.duration_s=0"]),
        ("ingest scrape", ["output, source.path"]),
        (
            "ingest scrape configs/ingest/urls.yaml network.allow_private=[nonsense]",
            ["nonsense", "127.0.0.1:8080"],
        ),
        ("ingest verify /nowhere", ["/nowhere", "no dataset"]),
        ("ingest report /nowhere", ["/nowhere", "no dataset"]),
        ("cluster demo workers=4", ["demo workers=4: takes a folder", "out/demo"]),
        ("cluster demo {file}/x", ["{file}/x", "choose another output"]),
        ("ingest synth {file}/x", ["{file}/x", "choose another folder"]),
        ("ingest serve /nowhere", ["/nowhere", "ingest synth"]),
        (f"{DEMO} step=5", ['did you mean "steps"']),
        (f"{DEMO} steps=abc", ["steps", "abc", "int"]),
        (f"{DEMO} data=/nowhere output={{out}}", ["/nowhere", "no dataset"]),
        (f"{DEMO} data={{latents}} output={{file}}/run", ["{file}/run", "choose another output"]),
        (
            f"{DEMO} data={{latents}} output=s3://no-such-bucket/x",
            ["s3://no-such-bucket/x", "AWS_ACCESS_KEY_ID"],
        ),
        (f"{DEMO} workers=5", ["workers=5", "lanes=48"]),
        (
            "training train configs/training/demo_autoencoder.yaml data={latents} output={out}",
            ["dataset of latents", "clips"],
        ),
        (
            "training precompute data={latents} output={out} autoencoder=/a image_encoder=/b",
            ["{latents}", "need one of clips"],
        ),
        ("training generate model=/nowhere images={media} output={out}", ["images={media}", "no picture"]),
        ("training evaluate model=/nowhere data={latents} output={out}", ["truth=", "ingest synth"]),
        ("training export model=/nowhere output={out}", ["model=/nowhere", "does not exist"]),
        ("training inspect /nowhere", ["/nowhere", "no run here"]),
        ("training trian", ["trian", "train"]),
        ("cluster submit -- python -m ingest scrape x.yaml", ["--address"]),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    command: str,
    fragments: list[str],
    tmp_path: Path,
    no_aws_account: None,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    paths = {name: str(tmp_path / name) for name in ("media", "latents", "file", "out")}
    (tmp_path / "media").mkdir()
    (tmp_path / "media/a.mp4").write_bytes(b"x")
    (tmp_path / "file").write_bytes(b"")
    if "{latents}" in command:
        make_latents(tmp_path / "latents", units=1)
    monkeypatch.chdir(ROOT)
    app, *args = command.format(**paths).split()
    monkeypatch.setattr(sys, "argv", [app, *args])
    with pytest.raises(SystemExit) as exited:
        run_app(APPS[app])
    error = capfd.readouterr().err
    assert exited.value.code == 2
    assert error.startswith("error: ") and error.count("\n") == 1, error
    assert all(fragment.format(**paths) in error for fragment in fragments), error
    assert not (tmp_path / "out").exists()


@pytest.fixture
def no_aws_account(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the environment, a file nor the machine's metadata gives keys."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nowhere")
