"""The example of README.md, as it stands there, with a real agent and trainer; and what the package asks for."""

from __future__ import annotations

import importlib.metadata
import pathlib
import re
import subprocess
import sys

from conftest import SOURCE, Server
from luthier.v1 import jobs_pb2_grpc


def test_the_package_asks_for_the_gRPC_that_its_stubs_need() -> None:
    assert f"grpcio>={jobs_pb2_grpc.GRPC_GENERATED_VERSION}" in (importlib.metadata.requires("luthier") or [])


def test_the_example_trains_and_downloads(tmp_path: pathlib.Path) -> None:
    page = (SOURCE / "clients/python/README.md").read_text()
    (example,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert example.count("\n") <= 12
    (tmp_path / "examples").symlink_to(SOURCE / "examples")
    server = Server(tmp_path, "--with-local-worker", "--worker-metrics-listen", "127.0.0.1:0")
    try:
        out = subprocess.run(
            [sys.executable, "-c", example],
            cwd=tmp_path, env={"LUTHIER_SERVER": server.address, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True, text=True, timeout=120,
        )
    finally:
        server.stop()
    assert out.returncode == 0, out.stderr + server.log().decode()
    assert "step" in out.stdout
    assert (tmp_path / "adapter/adapter_model.safetensors").stat().st_size > 1000
