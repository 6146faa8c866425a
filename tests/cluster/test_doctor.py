"""The doctor finds what is wrong before money is spent, says the fix, and leaves nothing behind."""

import datetime
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cluster import doctor
from cluster.doctor import CHECKS, DoctorConfig, diagnose
from cluster.storage import FolderStore
from configs.load import UserError

ROOT = Path(__file__).parents[2]


def only(check: str, **settings: object) -> doctor.Finding:
    (finding,) = diagnose(DoctorConfig(checks=[check], **settings))  # type: ignore[arg-type]
    assert finding.check == check and finding.found
    return finding


def test_python_disk_and_ffmpeg_are_well_here() -> None:
    findings = diagnose(DoctorConfig(checks=["python", "disk", "ffmpeg"], min_free_gib=0.001))
    assert [finding.fix for finding in findings] == ["", "", ""]
    assert findings[2].found.startswith("ffmpeg version")


def test_a_full_disk_names_the_room_it_wants() -> None:
    assert "1e+09 GiB" in only("disk", min_free_gib=1e9).fix


def test_a_missing_ffmpeg_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", "/nowhere/ffmpeg")
    assert "IMAGEIO_FFMPEG_EXE" in only("ffmpeg").fix


@pytest.mark.parametrize(
    ("versions", "says"),
    [
        ({"yt-dlp": "2026.07.03"}, "security"),
        ({"yt-dlp": ""}, "ingest extra"),
        ({"deno": "2.2.9"}, "deno 2.3.0"),
        ({"deno": "", "yt-dlp-ejs": ""}, ""),
        ({}, ""),
    ],
)
def test_an_old_yt_dlp_or_javascript_runtime_is_seen(
    monkeypatch: pytest.MonkeyPatch, versions: dict[str, str], says: str
) -> None:
    new = {"yt-dlp": f"{datetime.date.today():%Y.%m.%d}", "yt-dlp-ejs": "0.8.0", "deno": "2.9.8"}
    monkeypatch.setattr(doctor, "_version_of", {**new, **versions}.get)
    finding = only("ytdlp")
    assert says in finding.fix and bool(says) == bool(finding.fix)
    assert all(name in finding.found for name in new)


def test_a_yt_dlp_of_last_season_is_said_and_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "OLDEST_YTDLP", datetime.date(2020, 1, 1))
    monkeypatch.setattr(
        doctor,
        "_version_of",
        lambda package: f"{datetime.date.today() - datetime.timedelta(days=91):%Y.%m.%d}",
    )
    assert only("ytdlp").ok and "91 days old" in only("ytdlp").found


def test_a_folder_keeps_create_only_and_nothing_is_left(tmp_path: Path) -> None:
    assert only("storage", output=str(tmp_path / "new")).ok
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "mine").mkdir()
    assert only("storage", output=str(tmp_path / "mine")).ok
    assert list(tmp_path.rglob("*")) == [tmp_path / "mine"]


def test_a_store_that_overwrites_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FolderStore, "put", FolderStore.replace)
    assert "conditional writes" in only("storage", output=str(tmp_path)).fix


def test_an_output_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    finding = only("storage", output=str(tmp_path / "file"))
    assert str(tmp_path / "file") in finding.found and not finding.ok


@pytest.mark.parametrize("output", ["/proc/x/y", "nowhere://bucket/x"])
def test_place_and_fix_are_said_once(output: str) -> None:
    finding = only("storage", output=output)
    assert finding.found.count(output) == 1 and ";" not in finding.found
    assert finding.fix.startswith(("choose another output", "use a folder or s3://"))


def test_a_cluster_that_is_down_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"  # bound, and nobody listens
        monkeypatch.setenv("RAY_ADDRESS", address)
        started = time.monotonic()
        finding = only("ray")
    assert f"the cluster at {address}: nobody answers" in finding.found and "head" in finding.fix
    assert time.monotonic() - started < 3


def test_each_finding_is_shown_as_soon_as_it_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []

    def last(_: DoctorConfig) -> doctor.Finding:
        return doctor.Finding("disk", f"after {shown}")

    monkeypatch.setitem(CHECKS, "disk", last)
    findings = diagnose(DoctorConfig(checks=["python", "disk"]), lambda finding: shown.append(finding.check))
    assert findings[1].found == "after ['python']" and shown == ["python", "disk"]


def test_a_command_that_hangs_is_ended() -> None:
    ok, said = doctor._run([sys.executable, "-c", "import time; time.sleep(60)"], timeout_s=0.5)
    assert not ok and said == "no answer within 0.5 s"


def test_the_job_server_is_not_taken_for_the_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:8265")
    assert "job server" in only("ray").fix


def test_a_local_ray_runs_a_task() -> None:
    finding = only("ray")
    assert finding.ok and "ran a task on" in finding.found


def test_an_unknown_check_is_named() -> None:
    with pytest.raises(UserError, match="no such check: rya; there are python"):
        diagnose(DoctorConfig(checks=["rya"]))


def test_the_command_ends_with_1_where_something_is_wrong_and_plans_without_doing(tmp_path: Path) -> None:
    def run(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "cluster", "doctor", "checks=[python,disk]", *words]
        return subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60, env=dict(os.environ)
        )

    assert (run("min_free_gib=0.001").returncode, run("min_free_gib=1e9").returncode) == (0, 1)
    mistake = run("min_fre_gib=1")
    assert (mistake.returncode, mistake.stderr) == (
        2,
        'error: unknown setting "min_fre_gib"; did you mean "min_free_gib"?\n',
    )
    assert "would check python, disk" in run("--dry-run").stdout
    assert set(CHECKS) >= {"python", "disk", "storage", "ffmpeg", "ray", "training"}
