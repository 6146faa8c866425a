"""The JavaScript runtime as the fetch process starts it: what a hostile script cannot do, and what yt-dlp can
do with it.
"""

import contextlib
import http.server
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from configs.load import UserError
from ingest.fetch.access import YoutubeConfig, youtube_egress
from ingest.fetch.fetcher import Fetcher
from ingest.fetch.guard import Abort, audit_hook
from ingest.fetch.runtime import (
    ENVIRONMENT,
    FLAGS,
    confinement,
    evaluated,
    find_deno,
    leave_files,
    leave_network,
    write_launcher,
)
from ingest.fetch.settings import FetchConfig
from ingest.fetch.youtube import prepare_runtime
from ingest.sample import Item, Reason, Refused
from ingest.sources.youtube import check_session
from tests.fakes.tube import PLAYER, Tube, Video, running_tube

pytest.importorskip("deno", reason="the youtube extra is not installed")
SECRET = "secret-5711"
Runs = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "secret.json"
    path.write_text(json.dumps(SECRET))
    return path


@pytest.fixture
def js(tmp_path: Path) -> Runs:
    """Runs a script as yt-dlp does: the launcher with yt-dlp's flags, a script on stdin, our environment."""

    def runs(script: str, max_s: float = 20) -> subprocess.CompletedProcess[str]:
        launcher = write_launcher(find_deno("deno"), tmp_path / "js-runtime", max_s)
        command = [str(launcher), "run", "--ext=js", "--allow-all", "-"]
        environment = {**os.environ, "SECRET": SECRET}
        return subprocess.run(
            command, input=script, capture_output=True, text=True, timeout=60, env=environment
        )

    return runs


def fails(done: subprocess.CompletedProcess[str], words: str) -> bool:
    print(done.stderr)  # what is refused, should a test fail
    assert SECRET not in done.stdout + done.stderr
    return done.returncode != 0 and not done.stdout and words in done.stderr


def test_a_script_answers_through_stdout(js: Runs) -> None:
    done = js(
        "var lib = {two: 2}; Object.assign(globalThis, lib); console.log(JSON.stringify({a: two + two, b: 'é\\u2028'}));"
    )
    assert (done.returncode, json.loads(done.stdout), done.stderr) == (0, {"a": 4, "b": "é\u2028"}, "")


READS = {
    "deno": "console.log(Deno.readTextFileSync(PATH))",
    "node": "import('node:fs').then(fs => console.log(fs.readFileSync(PATH, 'utf8')))",
    "a list of the folder": "for (const one of Deno.readDirSync(FOLDER)) console.log(one.name)",
    "an import": "import text from PATH with {type: 'json'}; console.log(text)",
    "an import when it runs": "import(PATH, {with: {type: 'json'}}).then(module => console.log(module.default))",
    "an import of the text": "import text from PATH with {type: 'text'}; console.log(text)",
    "a module of its own": "import('data:text/javascript,' + encodeURIComponent(`import text from ${JSON.stringify('file://' + PATH)}"
    " with {type: 'json'}; console.log(text)`))",
    "fetch": "fetch('file://' + PATH).then(answer => answer.text()).then(console.log)",
}


@pytest.mark.parametrize("read", READS.values(), ids=READS.keys())
def test_a_script_reads_no_file(js: Runs, secret: Path, read: str) -> None:
    script = read.replace("FOLDER", json.dumps(str(secret.parent))).replace("PATH", json.dumps(str(secret)))
    assert fails(js(script), "")


def test_deno_alone_reads_no_import(secret: Path) -> None:
    """Its flags do not forbid what a module on stdin imports: the script is evaluated within one."""
    command = [str(find_deno("deno")), "run", *FLAGS, "-"]
    for name in ("an import", "an import when it runs", "an import of the text"):
        script = READS[name].replace("PATH", json.dumps(str(secret))).encode()
        assert (
            SECRET
            in subprocess.run(command, input=script, capture_output=True, env=ENVIRONMENT).stdout.decode()
        )
        done = subprocess.run(command, input=evaluated(script), capture_output=True, env=ENVIRONMENT)
        assert done.returncode and SECRET not in (done.stdout + done.stderr).decode()


PLACES = ("js-runtime", "js-runtime/deno", "js-runtime/empty")


def test_a_script_writes_no_file(js: Runs, tmp_path: Path) -> None:
    before = sorted(tmp_path.iterdir())
    assert fails(js(f"Deno.writeTextFileSync({json.dumps(str(tmp_path / 'new'))}, 'x')"), "write access")
    assert fails(js("Deno.writeTextFileSync('here', 'x')"), "write access")
    assert sorted(tmp_path.rglob("*")) == sorted([*before, *(tmp_path / name for name in PLACES)])


class Counted(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()


@pytest.fixture
def server() -> Iterator[tuple[int, list[object]]]:
    """A port of loopback and who connected to it."""
    connected: list[object] = []

    class Server(http.server.ThreadingHTTPServer):
        def verify_request(self, request: object, client_address: object) -> bool:
            connected.append(client_address)
            return True

    with Server(("127.0.0.1", 0), Counted) as ours:
        threading.Thread(target=ours.serve_forever, args=(0.05,), daemon=True).start()
        yield ours.server_address[1], connected
        ours.shutdown()


@pytest.mark.parametrize(
    "script",
    [
        "Deno.connect({hostname: '127.0.0.1', port: PORT}).then(() => console.log('connected'))",
        "fetch('http://127.0.0.1:PORT/').then(answer => console.log(answer.status))",
        "import('http://127.0.0.1:PORT/x.js').then(() => console.log('imported'))",
        "import('node:net').then(net => net.connect(PORT, '127.0.0.1', () => console.log('connected')))",
        "new WebSocket('ws://127.0.0.1:PORT/').onerror = event => { throw event.error ?? event }",
    ],
)
def test_a_script_opens_no_socket(js: Runs, server: tuple[int, list[object]], script: str) -> None:
    port, connected = server
    assert fails(js(script.replace("PORT", str(port))), "") and not connected


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("console.log(Deno.env.get('SECRET'))", "env access"),
        ("console.log(JSON.stringify(Deno.env.toObject()))", "env access"),
        ("new Deno.Command('/bin/echo', {args: ['started']}).outputSync()", "run access"),
        ("import('node:child_process').then(child => child.execSync('/bin/echo started'))", ""),
        ("Deno.kill(1, 'SIGCONT')", "run access"),
        ("Deno.dlopen('libc.so.6', {})", "ffi access"),
        ("console.log(Deno.hostname())", "sys access"),
        ("import('npm:meriyah').then(() => console.log('imported'))", ""),
    ],
)
def test_a_script_reaches_nothing_else_of_the_machine(js: Runs, script: str, words: str) -> None:
    assert fails(js(script), words)


@pytest.mark.parametrize(
    "spin",
    ["for (;;) {}", "setInterval(() => 0, 1000)", "Deno.addSignalListener('SIGTERM', () => 0); for (;;) {}"],
)
def test_a_script_that_does_not_end_is_ended(js: Runs, spin: str) -> None:
    start_s = time.monotonic()
    assert fails(js(spin, max_s=1), "deno took too long")
    assert time.monotonic() - start_s < 10


def test_a_script_that_allocates_without_end_is_ended(js: Runs) -> None:
    assert fails(js("const held = []; for (;;) held.push(new Uint8Array(1 << 26).fill(1));"), "")


def test_a_script_that_writes_without_end_is_ended(js: Runs) -> None:
    assert fails(js("for (;;) console.log('x'.repeat(1 << 20));"), "deno ended with")


def test_deno_ends_when_the_fetch_process_does(tmp_path: Path) -> None:
    launcher = write_launcher(find_deno("deno"), tmp_path)
    program = f"import subprocess; subprocess.Popen([{str(launcher)!r}, 'run', '-'], stdin=subprocess.PIPE).communicate(b'for (;;) {{}}')"
    fetching = subprocess.Popen([sys.executable, "-c", program])
    deadline_s = time.monotonic() + 20
    while len(running_in(tmp_path)) < 2 and time.monotonic() < deadline_s:  # ours and deno
        time.sleep(0.05)
    assert len(running_in(tmp_path)) == 2
    fetching.send_signal(signal.SIGKILL)
    fetching.wait()
    while running_in(tmp_path) and time.monotonic() < deadline_s:
        time.sleep(0.05)
    assert not running_in(tmp_path)


def running_in(folder: Path) -> list[str]:
    """The processes that were started with `folder`/empty as an argument, or run in it."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            here = os.readlink(process / "cwd") == str(folder / "empty")
            if here or str(folder / "empty").encode() in (process / "cmdline").read_bytes().split(b"\0"):
                found.append(process.name)
    return found


def confined(*command: str) -> subprocess.CompletedProcess[str]:
    """Any program where deno would be: what the kernel refuses to it, without deno's own permissions."""
    confine = confinement(command[0], os.getpid(), 5)
    return subprocess.run(command, preexec_fn=confine, capture_output=True, text=True)


def can(step: Callable[[], bool]) -> bool:
    pid = os.fork()
    if pid == 0:
        os._exit(0 if step() else 1)
    return os.waitpid(pid, 0)[1] == 0


def test_the_kernel_opens_no_file_to_what_broke_out(secret: Path) -> None:
    if not can(lambda: leave_files("/bin/cat")):
        pytest.skip("no Landlock here")
    done = confined("/bin/cat", str(secret))
    assert (done.returncode, done.stdout) == (1, "") and "denied" in done.stderr
    assert confined("/bin/bash", "-c", "/bin/echo started").stdout == ""


def test_the_kernel_opens_no_socket_to_what_broke_out(server: tuple[int, list[object]]) -> None:
    port, connected = server
    if not can(leave_network):
        pytest.skip("no network namespaces here")
    assert confined("/bin/bash", "-c", f"exec 3<>/dev/tcp/127.0.0.1/{port}").returncode == 1 and not connected


def test_the_guard_lets_the_launcher_start_and_nothing_else() -> None:
    hook = audit_hook(frozenset(), "/spool/deno")
    hook("subprocess.Popen", ("/spool/deno", ["/spool/deno"], None, None))
    for event, program in (
        ("subprocess.Popen", "/bin/sh"),
        ("os.exec", "/spool/deno"),
        ("os.system", "/spool/deno"),
    ):
        with pytest.raises(PermissionError):
            hook(event, (program, [program], None, None))
    with pytest.raises(Abort):
        hook("socket.connect", (None, ("127.0.0.1", 80)))


def test_a_runtime_that_yt_dlp_cannot_use_is_one_clear_line(tmp_path: Path) -> None:
    for runtime, says in (
        (str(tmp_path / "none"), "is not a program"),
        ("/bin/true", "does not run here"),
        ("nodejs", "not a program"),
    ):
        with pytest.raises(UserError, match=f"source.youtube.js_runtime={runtime}: .*{says}"):
            check_session(YoutubeConfig(js_runtime=runtime))
    assert prepare_runtime(YoutubeConfig(), tmp_path) == ""


def test_listing_starts_no_runtime() -> None:
    assert "js_runtimes" not in youtube_egress(YoutubeConfig(), True, "/deno").options
    assert youtube_egress(YoutubeConfig(), False, "/deno").options["js_runtimes"] == {
        "deno": {"path": "/deno"}
    }


SESSION = ("LOGIN_INFO", "SAPISID", "__Secure-1PAPISID", "__Secure-3PAPISID")


@pytest.fixture
def tube(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Tube]:
    (tmp_path / "media").write_bytes(bytes(range(256)) * 64)  # nobody decodes it here
    with running_tube(tmp_path, tmp_path / "media", tmp_path / "media") as ours:
        monkeypatch.setenv("SSL_CERT_FILE", str(ours.ca))
        yield ours


def signed_in(tube: Tube, folder: Path, js_runtime: str) -> YoutubeConfig:
    (folder / "proxies").write_text(f"http://{tube.address}\n")
    lines = [f".youtube.com\tTRUE\t/\tTRUE\t2000000000\t{name}\tvalue-{name}\n" for name in SESSION]
    (folder / "cookies").write_text("# Netscape HTTP Cookie File\n" + "".join(lines))
    files = {"proxies_file": str(folder / "proxies"), "cookies_file": str(folder / "cookies")}
    return YoutubeConfig(
        **files, js_runtime=js_runtime, sleep_requests_s=0, sleep_s=0, max_sleep_s=0, rest_s=0
    )


def test_with_a_runtime_a_signed_in_session_gets_media(tube: Tube, tmp_path: Path) -> None:
    """yt-dlp's own solver, in the fetch process, on a player's script that turns the challenge round."""
    tube.add(Video("signedin000", challenge="abcdefgh"))
    network = FetchConfig(allow_private=[tube.address], requests_per_s=0, retries=0)
    with Fetcher(
        network, tmp_path / "spool", ("CC-BY-3.0",), {"youtube": signed_in(tube, tmp_path, "deno")}
    ) as fetcher:
        media = fetcher.fetch(
            Item("youtube", "signedin000", "https://www.youtube.com/watch?v=signedin000"), 64
        )
    assert media.license == "CC-BY-3.0" and tube.paths(PLAYER)
    assert tube.paths("expire=") and all("n=hgfedcba" in path for path in tube.paths("expire="))


def test_without_a_runtime_a_signed_in_session_ends_as_format(tube: Tube, tmp_path: Path) -> None:
    tube.add(Video("signedin000", challenge="abcdefgh"))
    network = FetchConfig(allow_private=[tube.address], requests_per_s=0, retries=0)
    with Fetcher(
        network, tmp_path / "spool", ("CC-BY-3.0",), {"youtube": signed_in(tube, tmp_path, "")}
    ) as fetcher:
        with pytest.raises(Refused) as refused:
            fetcher.fetch(Item("youtube", "signedin000", "https://www.youtube.com/watch?v=signedin000"), 64)
    assert refused.value.reason == Reason.FORMAT
