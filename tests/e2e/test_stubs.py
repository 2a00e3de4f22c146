"""The Python client's committed stubs are those of the protos, and its own types have names and words."""

import importlib.util
import inspect
import subprocess
import sys

import pytest
from conftest import ROOT

import quire_client
from quire_client import request, types

CLIENT = ROOT / "clients" / "python"


def test_what_the_client_takes_and_gives_has_a_name_and_says_what_it_is():
    for module in (request, types):
        made = {name: thing for name, thing in vars(module).items() if inspect.isclass(thing) and thing.__module__ == module.__name__}
        assert set(made) <= set(quire_client.__all__)
        undocumented = [name for name, thing in made.items() if not thing.__doc__ or thing.__doc__.startswith(f"{name}(")]
        assert undocumented == [], "a dataclass without one is given its list of fields"
    assert quire_client.__all__ == sorted(quire_client.__all__)


@pytest.mark.skipif(importlib.util.find_spec("grpc_tools") is None, reason="grpcio-tools is not installed")
def test_stubs_are_current(tmp_path):
    subprocess.run([sys.executable, str(CLIENT / "generate_stubs.py"), "--target", str(tmp_path)], check=True)
    committed = CLIENT / "src" / "quire_client" / "wire"
    names = sorted(file.name for file in tmp_path.iterdir() if file.is_file())
    assert names == sorted(file.name for file in committed.iterdir() if file.is_file())
    for name in names:
        assert (tmp_path / name).read_text() == (committed / name).read_text(), f"{name}: run clients/python/generate_stubs.py"
