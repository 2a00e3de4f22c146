"""The launcher, as a machine meets it that has only what `./quire demo` installs."""

import os
import subprocess
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


@pytest.mark.parametrize("label", ["unit", "property", "golden", "kernel", "sim", "server", "e2e", "fuzz", "install"])
def test_every_label_has_tests(label):
    cmake = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("*.cmake"))
    suites = [path.parent.name for path in (ROOT / "tests").glob("*/test_*.py")]
    assert f"LABEL {label} " in cmake or label in suites or (label == "fuzz" and "quire_fuzz(" in cmake)
