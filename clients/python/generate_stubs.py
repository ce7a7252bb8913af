"""Generates luthier.v1 from proto/ while a wheel is built, so that it never differs from the API of its commit."""

import importlib.resources
import pathlib
import tempfile
from typing import Any

from grpc_tools import protoc
from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class GenerateStubs(BuildHookInterface):
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        root = pathlib.Path(self.root)
        # In a source distribution the protos lie beside this file, in the repository above it.
        protos = next(folder for folder in (root / "proto", root.parent.parent / "proto") if folder.is_dir())
        self._out = tempfile.TemporaryDirectory()
        files = sorted(str(path) for path in protos.glob("luthier/v1/*.proto"))
        well_known = str(importlib.resources.files("grpc_tools") / "_proto")
        outs = [f"--{kind}_out={self._out.name}" for kind in ("python", "pyi", "grpc_python")]
        if protoc.main(["protoc", f"-I{protos}", f"-I{well_known}", *outs, *files]) != 0:
            raise RuntimeError("protoc failed; its message is above")
        package = pathlib.Path(self._out.name) / "luthier" / "v1"
        (package / "__init__.py").touch()
        build_data["force_include"][str(package)] = "luthier/v1"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        self._out.cleanup()
