"""The launcher and the test runner, on folders made for it, and the lists of what is used: nothing is built."""

import contextlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from conftest import BINARY, ROOT

OLD, NEW = 1_000_000_000, 2_000_000_000
WATCHED = [
    "CMakeLists.txt",
    "CMakePresets.json",
    "src/text/ffi/Cargo.toml",
    "src/text/ffi/Cargo.lock",
    "src/text/ffi/src/lib.rs",
    "src/base/check.cc",
    "proto/quire.proto",
]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A repository whose binary is newer than all it is made of."""
    shutil.copy(ROOT / "quire", tmp_path / "quire")
    for folder in ("include", "kernels", "server", "cmake", "benchmarks"):
        (tmp_path / folder).mkdir()
    for name in [*WATCHED, "src/README.md", "build/release/quire"]:
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
        os.utime(file, (OLD, OLD))
    binary = tmp_path / "build/release/quire"
    binary.chmod(0o755)
    os.utime(binary, (OLD + 1, OLD + 1))
    return tmp_path


def is_current(tree: Path) -> bool:
    return subprocess.run(["bash", "-c", f"source {tree}/quire __source; binary_is_current"]).returncode == 0


@pytest.mark.parametrize("changed", WATCHED)
def test_a_binary_older_than_what_it_is_made_of_is_built_again(tree, changed):
    os.utime(tree / "src/README.md", (NEW, NEW))
    assert is_current(tree)
    os.utime(tree / changed, (NEW, NEW))
    assert not is_current(tree)


@pytest.mark.parametrize(
    ("asked", "built", "current"),
    [("on", "OFF", False), ("OFF", "ON", False), ("on", "AUTO", False), ("ON", "ON", True), ("off", "OFF", True), ("auto", "OFF", True), (None, "ON", True)],
)
def test_a_binary_built_with_other_cuda_than_asked_for_is_built_again(tree, asked, built, current):
    (tree / "build/release/CMakeCache.txt").write_text(f"A:STRING=b\nQUIRE_CUDA:STRING={built}\nQUIRE_CUDA_ARCHITECTURES:STRING=ON\n")
    environment = {name: value for name, value in os.environ.items() if name != "QUIRE_CUDA"} | ({"QUIRE_CUDA": asked} if asked else {})
    done = subprocess.run(["bash", "-c", f"source {tree}/quire __source; binary_is_current"], env=environment)
    assert (done.returncode == 0) == current


@pytest.mark.parametrize("arguments", [["serve", "--model", "x"], ["demo"], ["setup"], ["test"], ["serve", "--help"]])
def test_a_cuda_setting_that_is_none_is_refused_though_nothing_is_to_be_built(tree, arguments):
    (tree / "build/release/quire").write_text("#!/bin/sh\necho ran\n")
    shutil.copytree(ROOT / "tools", tree / "tools", ignore=lambda folder, names: [name for name in names if name != "test.sh"])
    done = subprocess.run([tree / "quire", *arguments], env={**os.environ, "QUIRE_CUDA": "onn", "QUIRE_OFFLINE": "1"}, capture_output=True, text=True, timeout=20)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "quire: QUIRE_CUDA is 'onn'; it must be auto, on or off\n"


@pytest.mark.parametrize(
    ("command", "flag", "summary"),
    [("bench --help", "--batch ", "bench"), ("serve --port 5 -h", "--max-message-bytes ", "serve"), ("inspect kv --help", "--tokens ", "inspect kv")],
)
def test_help_without_a_binary_installs_and_builds_nothing(tree, command, flag, summary):
    (tree / "build/release/quire").unlink()
    (tree / "docs").mkdir()
    shutil.copy(ROOT / "docs" / "flags.md", tree / "docs")
    done = subprocess.run([tree / "quire", *command.split()], capture_output=True, text=True, timeout=20)
    assert done.returncode == 0 and done.stderr == ""
    assert f"\n  {flag}" in done.stdout and done.stdout.startswith(f"quire {summary}: its flags")
    assert ("--max-message-bytes" in done.stdout) == (summary == "serve"), "of no other command"
    assert not (tree / "build/logs").exists()


@pytest.mark.parametrize("arguments", [["--label"], ["--label="], ["--label", ""]])
def test_a_label_has_a_name(arguments):
    done = subprocess.run([ROOT / "quire", "test", *arguments], capture_output=True, text=True, timeout=20)
    assert (done.returncode, done.stderr) == (1, "quire: --label needs a name\n")


@pytest.fixture
def runner():
    spec = importlib.util.spec_from_file_location("run_tests", ROOT / "tools" / "run_tests.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("status", "failed"), [("run", 0), ("notrun", 0), (None, 1)])
def test_a_program_that_ran_not_one_case_has_failed(runner, tmp_path, status, failed):
    report = tmp_path / "report.xml"
    case = f'<testcase status="{status}"/>' if status else ""
    command = ["sh", "-c", f"echo '<testsuites><testsuite>{case}</testsuite></testsuites>' > {report}"]
    outcome = runner.run(runner.Program("a", "unit", command, report, 10, {}, tmp_path))
    assert (outcome.failed, outcome.passed + outcome.skipped) == (failed, 1 - failed)


def test_another_user_reaches_what_a_test_put_into_its_temporary_folder(runner, tmp_path):
    outcome = runner.run(runner.Program("a", "unit", ["sh", "-c", '[ "$(stat -c %a "$TMPDIR")" = 711 ]'], tmp_path / "none.xml", 10, {}, tmp_path))
    assert (outcome.passed, outcome.failed) == (1, 0)


def is_alive(pid: int) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    return False


def wait_until(condition, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.02)


# A program that waits for one of its own: a pytest suite and its server.
BEGINS_ANOTHER = "sleep 600 & echo $! > {0}.new; mv {0}.new {0}; wait"


def test_a_program_that_times_out_leaves_nothing_behind(runner, tmp_path):
    """Its servers would take the cores of those that come after it, and the next run's ports and locks."""
    pid = tmp_path / "pid"
    outcome = runner.run(runner.Program("a", "unit", ["sh", "-c", "echo begun; " + BEGINS_ANOTHER.format(pid)], tmp_path / "none.xml", 1, {}, tmp_path))
    assert (outcome.failed, outcome.output) == (1, "begun\n\ntimed out after 1 s")
    wait_until(lambda: not is_alive(int(pid.read_text())), 5)


@pytest.mark.parametrize(("sent", "ignored"), [(signal.SIGINT, False), (signal.SIGTERM, False), (signal.SIGHUP, False), (signal.SIGHUP, True)])
def test_an_interrupted_run_leaves_nothing_behind_and_begins_nothing(tmp_path, sent, ignored):
    pid, script = tmp_path / "pid", tmp_path / "begins"
    script.write_text("#!/bin/sh\n" + BEGINS_ANOTHER.format(pid) + "\n")
    script.chmod(0o755)
    (tmp_path / "CTestTestfile.cmake").write_text(f'add_test(a "{script}")\nadd_test(b "touch" "{tmp_path}/begun")\n')
    (tmp_path / "scratch").mkdir()
    heeds = lambda: signal.signal(sent, signal.SIG_IGN if ignored else signal.SIG_DFL)  # noqa: E731 -- whatever the tests run under
    command = [sys.executable, ROOT / "tools/run_tests.py", "--build", tmp_path, "--jobs", "1"]
    environment = {**os.environ, "TMPDIR": str(tmp_path / "scratch")}
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment, preexec_fn=heeds)
    wait_until(pid.exists)
    process.send_signal(sent)
    if ignored:  # nohup
        time.sleep(0.5)
        assert process.poll() is None
        process.terminate()
    assert process.wait(timeout=20) == 128 + (signal.SIGTERM if ignored else sent)
    wait_until(lambda: not is_alive(int(pid.read_text())), 5)
    assert not (tmp_path / "begun").exists() and list((tmp_path / "scratch").iterdir()) == []


def run_fuzz_target(runner, folder: Path):
    command = [str(ROOT / "tests/fuzz/run.sh"), str(folder / "fuzz_cuts"), str(folder / "corpus")]
    return runner.run(runner.Program("fuzz_cuts", "fuzz", command, folder / "none.xml", 10, {"QUIRE_FUZZ_SECONDS": "3"}, folder))


def test_a_fuzz_target_that_is_not_built_is_reported_as_skipped(runner, tmp_path):
    outcome = run_fuzz_target(runner, tmp_path)
    assert (outcome.passed, outcome.failed, outcome.skipped) == (0, 0, 1)
    assert "clang++-19" in next(iter(outcome.skips))


def test_a_fuzz_target_has_its_time_and_keeps_what_it_finds(runner, tmp_path):
    target = tmp_path / "fuzz_cuts"
    target.write_text('#!/bin/sh\necho "$@" > said\nfor a; do case $a in -*) ;; *) touch "$a/found" ;; esac; done\n')
    target.chmod(0o755)
    outcome = run_fuzz_target(runner, tmp_path)
    assert (outcome.passed, outcome.failed, outcome.skipped) == (1, 0, 0)
    assert "-max_total_time=1 " in (tmp_path / "said").read_text(), "a third of three"
    assert (tmp_path / "corpus/found").exists()


@pytest.mark.parametrize("label", ["unit", "property", "golden", "kernel", "sim", "server", "e2e", "fuzz", "install"])
def test_each_label_is_one_of_ctest(label):
    listing = subprocess.run(["ctest", "-N", "-L", f"^{label}$"], cwd=Path(BINARY).parent, capture_output=True, text=True, check=True)
    assert "Total Tests: 0" not in listing.stdout, listing.stdout


@pytest.mark.parametrize("name", ["engine_host_bench", "host_tier_bench", "prefix_groups_bench", "device_step_bench", "disk_io_bench"])
@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--help"], 0, "[default: "),
        (["--nonsense", "1"], 2, "'--nonsense' is no flag"),
        (["--rounds"], 2, ""),
        (["--steps", "many"], 2, ""),
    ],
)
def test_a_benchmark_measures_nothing_when_it_is_asked_wrongly(name, arguments, code, said):
    program = Path(BINARY).parent / "benchmarks" / name
    if not program.exists():
        pytest.skip(f"{name} is not built here")
    done = subprocess.run([program, *arguments], capture_output=True, text=True, timeout=20)
    assert done.returncode == code and said in done.stdout + done.stderr, done.stderr
    assert code == 0 or (not done.stdout and "--help lists the flags" in done.stderr)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "--dir is not given"),
        (["--dir", "/tmp", "--block-bytes", "65536", "--block-bytes", "5000"], "--block-bytes 5000: "),
        (["--dir", "/tmp", "--mib", "1", "--block-bytes", "2097152"], "--block-bytes 2097152: "),
    ],
)
def test_the_disk_bench_measures_nothing_without_a_place_or_with_odd_blocks(arguments, said):
    program = Path(BINARY).parent / "benchmarks" / "disk_io_bench"
    if not program.exists():
        pytest.skip("it is not built here")
    done = subprocess.run([program, *arguments], capture_output=True, text=True, timeout=20)
    assert (done.returncode, done.stdout) == (2, "") and said in done.stderr, done.stderr


def test_a_fuzz_target_that_crashes_is_no_skip(runner, tmp_path):
    """libFuzzer ends with 77 after a crash unless told another code, and 77 says that a program cannot run here."""
    target = tmp_path / "fuzz_cuts"
    target.write_text('#!/bin/sh\nfor a; do case $a in -error_exitcode=*) exit ${a#*=} ;; esac; done\nexit 77\n')
    target.chmod(0o755)
    outcome = run_fuzz_target(runner, tmp_path)
    assert (outcome.passed, outcome.failed, outcome.skipped) == (0, 1, 0)


def sbom(*arguments: str) -> str:
    return subprocess.run([sys.executable, ROOT / "tools" / "sbom.py", *arguments], capture_output=True, text=True, check=True).stdout


def test_each_part_of_the_bill_of_materials_has_its_licence():
    components = json.loads(sbom())["components"]
    licences = {c["name"]: c["licenses"][0]["expression"] for c in components}
    assert licences["foldhash"] == "Zlib" and licences["libssl-dev"] == "Apache-2.0" and licences["fancy-regex"] == "MIT"
    assert licences["unicode-ident"] == "(MIT OR Apache-2.0) AND Unicode-3.0"
    assert not [name for name, licence in licences.items() if not licence or "/" in licence]
    beneath = [licence for name, licence in licences.items() if name.startswith(("libstdc++-", "libgcc-"))]
    assert beneath == ["GPL-3.0-or-later WITH GCC-exception-3.1"] * 2 and licences["rust-std"] == "MIT OR Apache-2.0"
    scopes = {c["name"]: c["scope"] for c in components}
    assert (scopes["tokenizers"], scopes["foldhash"], scopes["syn"], scopes["pytest"]) == ("required", "required", "excluded", "optional")


def test_third_party_has_the_crates_as_cargo_knows_them():
    assert (ROOT / "THIRD_PARTY.md").read_text().endswith("\n\n" + sbom("--crates"))
