"""The launcher, as a machine meets it that has only what `./quire demo` installs."""

import contextlib
import fcntl
import os
import pty
import re
import shutil
import signal
import struct
import subprocess
import tempfile
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(os.environ.get("QUIRE_ROOT", Path(__file__).resolve().parents[2]))


def launcher(command: str) -> subprocess.CompletedProcess:
    """Runs a line of bash that knows the launcher's functions."""
    environment = {**os.environ, "QUIRE_CUDA": "off"}
    return subprocess.run(["bash", "-c", f"source ./quire __source; {command}"], cwd=ROOT, capture_output=True, text=True, env=environment)


def test_the_binary_is_configured_without_the_packages_of_the_tests(tmp_path):
    missing = "-DCMAKE_DISABLE_FIND_PACKAGE_GTest=ON"
    done = launcher(f"configure_binary -B {tmp_path}/binary {missing}")
    assert done.returncode == 0, done.stdout + done.stderr
    tests = launcher(f"configure_with_tests -B {tmp_path}/tests {missing}")
    assert tests.returncode != 0 and "GTest" in tests.stderr, "the tests do need GoogleTest: the first half of this test can fail"


def test_another_processor_is_refused_before_anything_is_installed(tmp_path):
    stubs = f"logs={tmp_path}; uname() {{ echo riscv64; }}; apt_install() {{ touch {tmp_path}/installed; }}"
    done = launcher(f"{stubs}; missing_packages() {{ echo g++; }}; set_up")
    assert done.returncode == 1 and done.stderr == "quire: this machine is riscv64; quire runs on x86-64 only\n"
    assert not (tmp_path / "installed").exists()
    other = ["-DCMAKE_SYSTEM_NAME=Linux", "-DCMAKE_SYSTEM_PROCESSOR=riscv64"]
    by_hand = subprocess.run(["cmake", "-S", ROOT, "-B", tmp_path / "build", *other], capture_output=True, text=True)
    assert by_hand.returncode != 0 and "no kernels for riscv64" in " ".join(by_hand.stderr.split()), by_hand.stderr


@pytest.mark.parametrize(("gpu", "said"), [("false", True), ("true", False)])
def test_a_toolkit_without_a_card_is_announced(tmp_path, gpu, said):
    """What, how large, why, and how to leave it out, before 490 MB come."""
    stubs = f"logs={tmp_path}; have_gpu() {{ {gpu}; }}; have_toolkit() {{ false; }}; install_cuda() {{ true; }}"
    done = launcher(f"{stubs}; QUIRE_CUDA=on ensure_cuda")
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    assert "CUDA 13.0 compiler (490 MB)" in lines[-1] and len(lines) == (2 if said else 1)
    assert not said or all(part in lines[0] for part in ("no GPU", "490 MB", "compiled", "QUIRE_CUDA=off"))


@pytest.mark.parametrize(
    ("there", "cuda", "offline", "brought"),
    [
        (("nvcc",), "on", "", True),  # as toolkit images are
        (("nvcc", "cuobjdump"), "on", "", True),
        (("nvcc", "cuobjdump", "nvdisasm"), "on", "", False),
        (("nvcc",), "on", "1", False),
        (("nvcc",), "off", "", False),
    ],
)
def test_a_toolkit_that_cannot_read_machine_code_back_gets_what_can(tmp_path, there, cuda, offline, brought):
    for name in there:
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    stubs = f"root={tmp_path}; logs={tmp_path}; PATH={tmp_path}:/usr/bin:/bin; have_toolkit() {{ true; }}; install_sass_tools() {{ touch {tmp_path}/brought; }}"
    done = launcher(f"{stubs}; [ ! -e /usr/local/cuda/bin/nvdisasm ] || exit 3; QUIRE_OFFLINE={offline} QUIRE_CUDA={cuda} ensure_sass_tools")
    if done.returncode == 3:
        pytest.skip("this machine has nvdisasm in /usr/local/cuda")
    assert done.returncode == 0 and (tmp_path / "brought").exists() == brought, done.stderr
    assert ("not tested" in done.stderr) == bool(offline)


def test_machine_code_that_cannot_be_read_back_stops_no_run(tmp_path):
    stubs = f"root={tmp_path}; logs={tmp_path}; PATH={tmp_path}:/usr/bin:/bin; have_sass_tools() {{ false; }}; install_sass_tools() {{ echo no network; false; }}"
    done = launcher(f"{stubs}; set -e; QUIRE_CUDA=on ensure_sass_tools; echo went on")
    assert done.returncode == 0 and done.stdout == "went on\n"
    assert "no network" in done.stderr and "not tested" in done.stderr


@pytest.mark.parametrize(("release", "is_toolkit"), [("11.5", False), ("12.9", False), ("13.0", True), ("14.1", True), ("", False)])
def test_only_an_nvcc_that_is_new_enough_is_a_toolkit(tmp_path, release, is_toolkit):
    nvcc = tmp_path / "nvcc"
    nvcc.write_text(f"#!/bin/sh\necho 'Cuda compilation tools, release {release}, V{release}.1'\n")
    nvcc.chmod(0o755)
    # A root without .cuda: only what is on PATH counts. An installed toolkit of this machine would, so it must not be there.
    done = launcher(f"root={tmp_path}; unset CUDACXX; PATH={tmp_path}:/usr/bin:/bin; [ ! -e /usr/local/cuda/bin/nvcc ] || exit 3; have_toolkit")
    if done.returncode == 3:
        pytest.skip("this machine has a toolkit in /usr/local/cuda")
    assert done.returncode == (0 if is_toolkit else 1), done.stderr


@pytest.mark.parametrize("label", ["units", "uni", "unit property"])
def test_a_label_that_no_test_has_is_refused_before_anything_is_built(label):
    done = subprocess.run(["./quire", "test", "--label", label], cwd=ROOT, capture_output=True, text=True, timeout=20)
    assert done.returncode == 1
    assert done.stderr.startswith(f"quire: no test has the label '{label}'; labels are: unit property ") and len(done.stderr.splitlines()) == 1


@pytest.fixture
def clone() -> Iterator[Path]:
    """A folder with the launcher alone, which every user may read."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "tools").mkdir()
        shutil.copy(ROOT / "quire", folder / "quire")
        shutil.copy(ROOT / "tools" / "test.sh", folder / "tools" / "test.sh")
        yield folder


def run(clone: Path, *arguments: str, offline: str = "1", **kwargs) -> subprocess.CompletedProcess:
    environment = {**os.environ, "QUIRE_CUDA": "off", "QUIRE_OFFLINE": offline}
    return subprocess.run([clone / "quire", *arguments], capture_output=True, text=True, timeout=20, env=environment, **kwargs)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["BOGUS"], "no command 'BOGUS'; there are: demo test setup serve generate "),
        (["--bogus"], "no command '--bogus'"),
        (["demo", "--bogus"], "unknown option '--bogus' of demo"),
        (["demo", "--model"], "--model needs a folder"),
        (["setup", "all"], "unknown option 'all' of setup"),
        (["test", "unit"], "unknown option 'unit' of test"),
    ],
)
def test_what_the_launcher_does_not_know_is_refused_before_anything_is_set_up(clone, arguments, said):
    done = run(clone, *arguments)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"quire: {said}") and len(done.stderr.splitlines()) == 1
    assert sorted(path.name for path in clone.iterdir()) == ["quire", "tools"]


@pytest.mark.parametrize(("arguments", "code"), [(["--help"], 0), (["help"], 0), ([], 2), (["demo", "--help"], 0), (["test", "--help"], 0)])
def test_help_builds_nothing(clone, arguments, code):
    done = run(clone, *arguments)
    assert done.returncode == code and f"./quire {arguments[0] if len(arguments) > 1 else ''}" in done.stdout + done.stderr
    assert "building" not in done.stderr and sorted(path.name for path in clone.iterdir()) == ["quire", "tools"]


def unprivileged(clone: Path) -> dict:
    """Another user than root, who may write everywhere."""
    if os.getuid() != 0:
        return {}
    nobody = {"user": 65534, "group": 65534, "extra_groups": []}
    if subprocess.run(["test", "-x", clone / "quire"], **nobody).returncode != 0:
        pytest.skip(f"user 65534 cannot reach {clone}: TMPDIR lies in a private folder")
    return nobody


@pytest.mark.parametrize("arguments", [["demo"], ["setup"], ["test"], ["serve", "--model", "x"]])
def test_a_folder_that_cannot_be_written_is_named_in_one_line(clone, arguments):
    clone.chmod(0o555)
    done = run(clone, *arguments, **unprivileged(clone))
    assert (done.returncode, done.stderr) == (1, f"quire: cannot install or build in {clone}: Permission denied\n")


def test_a_built_binary_runs_from_a_folder_that_cannot_be_written(clone):
    for folder in ("include", "src", "kernels", "proto", "server", "cmake", "benchmarks", "build/release"):
        (clone / folder).mkdir(parents=True)
    for name in ("CMakeLists.txt", "CMakePresets.json"):
        (clone / name).touch()
    binary = clone / "build/release/quire"
    binary.write_text('#!/bin/sh\necho "ran $*"\n')
    binary.chmod(0o755)
    for folder in (clone / "build", clone):
        folder.chmod(0o555)
    assert run(clone, "serve", "--port", "1", **unprivileged(clone)).stdout == "ran serve --port 1\n"
    done = run(clone, "demo", offline="", **unprivileged(clone))  # it also wants a Python environment
    assert (done.returncode, done.stderr) == (1, f"quire: cannot install or build in {clone}: Permission denied\n")


def test_the_launcher_knows_the_commands_of_the_binary():
    table = (ROOT / "server" / "main.cc").read_text().split("kCommands[] = {")[1].split("};")[0]
    words = {line.split('"')[1].split()[0] for line in table.splitlines() if line.strip().startswith('{"')}
    done = launcher('echo "$commands"')
    assert set(done.stdout.split()) == words


def begin(line: str, **kwargs) -> subprocess.Popen:
    """A line of bash that knows the launcher's functions, running."""
    environment = {**os.environ, "QUIRE_CUDA": "off"}
    heeds = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731 -- also where the tests run in the background of a shell
    return subprocess.Popen(["bash", "-c", f"source ./quire __source; {line}"], cwd=ROOT, env=environment, preexec_fn=heeds, **kwargs)


def wait_until(condition, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.02)


def is_alive(pid: int) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    return False


@pytest.mark.parametrize(
    ("rust", "newest", "named"),
    [("true", "rustc-9 cargo-9", "aa bb"), ("false", "rustc-9 cargo-9", "aa bb rustc-9 cargo-9"), ("false", "", "aa bb (and a cargo of 1.75 or newer)")],
)
def test_who_may_install_nothing_is_told_all_that_is_missing(tmp_path, rust, newest, named):
    stubs = f"logs={tmp_path}; missing_packages() {{ printf 'aa bb '; }}; may_install() {{ false; }}; rust_is_new() {{ {rust}; }}; rust_package() {{ printf '{newest}'; }}"
    done = launcher(f"set -e; {stubs}; QUIRE_OFFLINE= ensure_packages aa bb cc; echo went on")
    assert (done.returncode, done.stdout) == (1, "")
    first, second = done.stderr.splitlines()
    assert first.startswith("quire: packages are missing, and only root ")
    assert second == f"  apt-get update && apt-get install -y --no-install-recommends {named}"


def test_a_broken_package_list_of_somebody_else_stops_nothing(tmp_path):
    stubs = f"run_apt() {{ echo $* >>{tmp_path}/ran; [ $1 != update ]; }}; rust_package() {{ printf 'rustc-9 cargo-9'; }}"
    done = launcher(f"{stubs}; apt_install aa; install_rust")
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in (tmp_path / "ran").read_text().splitlines()] == ["update", "install"] * 2


def test_no_home_is_no_fault():
    done = launcher("unset HOME; find_cargo; echo went on")
    assert done.stdout == "went on\n", done.stderr


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_what_a_step_began_ends_with_the_launcher(tmp_path, sent):
    """Ctrl-C in the midst of a build or of pip; the shell alone would leave them running behind its back."""
    work = f"work() {{ sleep 60 & echo $! >{tmp_path}/pid.new; mv {tmp_path}/pid.new {tmp_path}/pid; wait; }}"
    process = begin(f"logs={tmp_path}; {work}; step 'some work' work; echo went on", stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_until((tmp_path / "pid").exists)
    process.send_signal(sent)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out) == (-sent, ""), err
    assert "interrupted in 'some work'" in err
    wait_until(lambda: not is_alive(int((tmp_path / "pid").read_text())), 5)


def test_packages_are_not_left_half_installed(tmp_path):
    stub = f"run_apt() {{ sleep 1; echo $1 >>{tmp_path}/ran; }}"
    process = begin(f"logs={tmp_path}; {stub}; step 'system packages' apt_install aa", stderr=subprocess.PIPE, text=True)
    wait_until((tmp_path / "system-packages.log").exists)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == -signal.SIGINT and "apt-get goes on" in err
    wait_until(lambda: (tmp_path / "ran").exists() and (tmp_path / "ran").read_text() == "update\ninstall\n")


def test_a_step_is_named_before_it_ends(tmp_path):
    process = begin(f"logs={tmp_path}; step 'some work' sleep 60", stderr=subprocess.PIPE)
    os.set_blocking(process.stderr.fileno(), False)
    seen = b""

    def named() -> bool:
        nonlocal seen
        seen += process.stderr.read() or b""
        return b"some work" in seen

    wait_until(named)
    process.terminate()
    process.communicate(timeout=20)
    assert b"done" not in seen


def test_a_progress_line_fits_the_terminal(tmp_path):
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 70, 0, 0))
    with begin(f"logs={tmp_path}; work() {{ printf '%0200d' 0; sleep 1; }}; step 'some work' work", stderr=theirs) as process:
        os.close(theirs)
        process.wait(timeout=20)
    seen = b""
    with contextlib.suppress(OSError):  # the terminal's end
        while chunk := os.read(ours, 4096):
            seen += chunk
    os.close(ours)
    lines = [re.sub(r"\x1b\[K", "", line) for line in re.split(r"[\r\n]", seen.decode())]
    assert max(len(line) for line in lines) == 67 and any("000" in line for line in lines)
    assert re.fullmatch(r"  some work +done, \d s", [line for line in lines if line][-1]), lines


def test_a_second_launcher_waits_for_the_first(clone):
    (clone / "build").mkdir()
    held, second = clone / "held", None
    lock = f"source {clone}/quire __source; lock_clone; "
    with subprocess.Popen(["bash", "-c", lock + f"touch {held}; read -r; unlock_clone; read -r"], stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as first:
        wait_until(held.exists)
        second = subprocess.Popen(["bash", "-c", lock + "echo got it"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert second.stderr.readline() == "  another ./quire sets up, builds or tests here: waiting for it\n"
        time.sleep(0.3)
        assert second.poll() is None, "two at once would write the same files"
        print(file=first.stdin, flush=True)
        assert second.communicate(timeout=20)[0] == "got it\n"
        print(file=first.stdin, flush=True)


@pytest.mark.parametrize(("free", "said"), [(99, True), (100, False)])
def test_a_failure_on_a_full_disk_says_so(tmp_path, free, said):
    df = f"df() {{ echo head; echo tmpfs 9000 9000 {free} 99% /; }}"
    done = launcher(f"{df}; logs={tmp_path}; HOME=/h; TMPDIR=/t; step 'some work' false")
    full = re.findall(rf"^quire: (.+) lies on a disk with {free} MB free$", done.stderr, flags=re.M)
    assert done.returncode == 1 and full == ([str(ROOT), "/t", "/h"] if said else [])


def script(path: Path, line: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{line}\n")
    path.chmod(0o755)


@pytest.mark.parametrize("changed", [None, "python", "no python", "requirements", "interrupted"])
def test_a_python_environment_of_another_python_or_of_other_packages_is_made_anew(tmp_path, changed):
    """A system that was upgraded, a clone mounted into a container, Ctrl-C in the midst of pip."""
    here = tmp_path / "here"
    (here / "tools").mkdir(parents=True)
    (here / "tools" / "requirements.txt").write_text("a==1\n")
    python = here / ".venv" / "bin" / "python"
    script(python, "echo Python 3.11.2")
    made = launcher(f"root={here}; venv_made_of >{here}/.venv/made_of; venv_is_current")
    assert made.returncode == 0, made.stderr
    here = here.rename(tmp_path / "there")
    python = here / python.relative_to(tmp_path / "here")
    if changed == "python":
        script(python, "echo Python 3.13.5")
    elif changed == "no python":
        python.unlink()
        python.symlink_to("/nonexistent/python3")
    elif changed == "requirements":
        (here / "tools" / "requirements.txt").write_text("a==2\n")
    elif changed == "interrupted":
        (here / ".venv" / "made_of").unlink()
    done = launcher(f"root={here}; venv_is_current")
    assert (done.returncode == 0) == (changed is None), done.stderr


@pytest.mark.parametrize(("marked", "kept"), [(True, True), (False, False)])
def test_half_a_python_environment_is_not_built_upon(tmp_path, marked, kept):
    python = tmp_path / ".venv" / "bin" / "python"
    script(python, "echo ran $*")
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools" / "requirements.txt").touch()
    if marked:
        (tmp_path / ".venv" / "made_of").touch()
    (tmp_path / ".venv/lib/python3.11/site-packages").mkdir(parents=True)
    make = f'python3() {{ mkdir -p "$3/bin" "$3/lib/python3.11/site-packages"; printf "#!/bin/sh\\necho anew\\n" >"$3/bin/python"; chmod +x "$3/bin/python"; }}'
    done = launcher(f"root={tmp_path}; {make}; set -e; install_venv; venv_is_current")
    assert done.returncode == 0, done.stderr
    assert ("anew" not in done.stdout) == kept


def test_an_environment_finds_the_client_wherever_the_clone_lies(tmp_path):
    client = tmp_path / "here/clients/python/src/quire_client"
    client.mkdir(parents=True)
    (client / "__init__.py").touch()
    (tmp_path / "here/tools").mkdir()
    (tmp_path / "here/tools/requirements.txt").touch()  # no packages: pip needs no network
    done = launcher(f"set -e; root={tmp_path}/here; install_venv")
    assert done.returncode == 0, done.stderr
    there = (tmp_path / "here").rename(tmp_path / "there it is")
    done = launcher(f"set -e; root='{there}'; venv_is_current; '{there}/.venv/bin/python' -c 'import quire_client; print(quire_client.__file__)'")
    assert done.stdout == f"{there}/clients/python/src/quire_client/__init__.py\n", done.stderr


@pytest.mark.parametrize(("home", "kept"), [("{}", True), ("/elsewhere", False)])
def test_a_build_folder_of_another_place_is_configured_anew(tmp_path, home, kept):
    cache = tmp_path / "build" / "CMakeCache.txt"
    (tmp_path / "build" / "CMakeFiles").mkdir(parents=True)
    cache.write_text(f"A:STRING=b\nCMAKE_HOME_DIRECTORY:INTERNAL={home.format(tmp_path)}\n")
    done = launcher(f"set -e; root={tmp_path}; forget_other_place {tmp_path}/build; forget_other_place {tmp_path}/none")
    assert done.returncode == 0, done.stderr
    assert (cache.exists(), (tmp_path / "build" / "CMakeFiles").exists()) == (kept, kept)


@pytest.mark.parametrize("whole", [True, False])
def test_half_a_toolkit_is_none(tmp_path, whole):
    toolkit = tmp_path / ".cuda/lib/python3.11/site-packages/nvidia/cu13"
    script(toolkit / "bin" / "nvcc", "echo 'Cuda compilation tools, release 13.0, V13.0.1'")
    (toolkit / "lib" / ("stubs" if whole else "")).mkdir(parents=True)
    done = launcher(f"root={tmp_path}; unset CUDACXX; PATH=/usr/bin:/bin; [ ! -e /usr/local/cuda/bin/nvcc ] && [ ! -e /usr/bin/nvcc ] || exit 3; have_toolkit")
    if done.returncode == 3:
        pytest.skip("this machine has a toolkit")
    assert done.returncode == (0 if whole else 1), done.stderr
