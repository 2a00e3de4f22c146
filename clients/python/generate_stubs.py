"""Writes src/quire_client/wire/ from proto/quire/v1. Run it after a change of the protos and commit the result.

The stubs are committed so that `pip install` and `import quire_client` need no compiler; tests/e2e checks that they are current.
Needs grpcio-tools of the version in pyproject.toml: the stubs of a newer one would refuse older runtimes.
"""

import argparse
import re
import tempfile
from importlib import resources
from pathlib import Path

from grpc_tools import protoc

HERE = Path(__file__).resolve().parent
PROTO_ROOT = HERE.parents[1] / "proto"
NAMES = ("sampling", "generation", "service")


def generate(target: Path) -> None:
    """Compiles the protos and makes their imports relative: the wire's package `quire` is not a Python package here."""
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        arguments = [
            "protoc",
            f"-I{PROTO_ROOT}",
            f"-I{resources.files('grpc_tools') / '_proto'}",
            f"--python_out={scratch}",
            f"--pyi_out={scratch}",
            f"--grpc_python_out={scratch}",
            *(f"quire/v1/{name}.proto" for name in NAMES),
        ]
        if protoc.main(arguments) != 0:
            raise SystemExit("protoc failed")
        for made in sorted((Path(scratch) / "quire" / "v1").iterdir()):
            if made.name.endswith("_grpc.py") and "service" not in made.name:
                continue  # no service in it
            text = re.sub(r"^from quire\.v1 import", "from . import", made.read_text(), flags=re.MULTILINE)
            (target / made.name).write_text(text)
    (target / "__init__.py").write_text('"""Generated from proto/quire/v1 by generate_stubs.py; do not edit."""\n')


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", type=Path, default=HERE / "src" / "quire_client" / "wire")
    generate(parser.parse_args().target)
