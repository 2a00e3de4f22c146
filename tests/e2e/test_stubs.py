"""The Python client's committed stubs are those of the protos."""

import importlib.util
import subprocess
import sys

import pytest
from conftest import ROOT

CLIENT = ROOT / "clients" / "python"


@pytest.mark.skipif(importlib.util.find_spec("grpc_tools") is None, reason="grpcio-tools is not installed")
def test_stubs_are_current(tmp_path):
    subprocess.run([sys.executable, str(CLIENT / "generate_stubs.py"), "--target", str(tmp_path)], check=True)
    committed = CLIENT / "src" / "quire_client" / "wire"
    names = sorted(file.name for file in tmp_path.iterdir() if file.is_file())
    assert names == sorted(file.name for file in committed.iterdir() if file.is_file())
    for name in names:
        assert (tmp_path / name).read_text() == (committed / name).read_text(), f"{name}: run clients/python/generate_stubs.py"
