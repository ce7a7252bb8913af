"""The real luthierd, on a folder and a port of the test's own. LUTHIER_BIN is the folder of the programs."""

from __future__ import annotations

import os
import pathlib
import re
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest
from luthier import Client, DatasetSelection, FineTuningSpec

SOURCE = pathlib.Path(__file__).resolve().parents[3]
BIN = pathlib.Path(os.environ["LUTHIER_BIN"])


class Server:
    def __init__(self, folder: pathlib.Path, *arguments: str) -> None:
        self._folder = folder
        self._arguments = arguments
        self.address = "127.0.0.1:0"
        self.start()

    def start(self) -> None:
        """On the port that it had before, if it is started again."""
        with open(self._folder / "luthierd.log", "ab") as log:
            began = log.tell()
            self._process = subprocess.Popen(
                [BIN / "luthierd", "--listen", self.address, "--metrics-listen", "127.0.0.1:0",
                 "--data-dir", self._folder / "data", *self._arguments],
                stderr=log,
            )
        while not (serves := re.search(rb" serves on ([^,]+),", self.log()[began:])):
            assert self._process.poll() is None, self.log()
        self.address = serves[1].decode()

    def log(self) -> bytes:
        return (self._folder / "luthierd.log").read_bytes()

    def kill(self) -> None:
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def stop(self) -> None:
        if self._process.poll() is None:
            self._process.terminate()
            self._process.wait(timeout=30)


@pytest.fixture
def server(tmp_path: pathlib.Path) -> Iterator[Server]:
    """Without an agent: jobs wait, and what happens to them is what the test does."""
    server = Server(tmp_path)
    yield server
    server.kill()
    sys.stderr.write(server.log().decode())  # shown by pytest if the test failed


@pytest.fixture
def spec(server: Server, tmp_path: pathlib.Path) -> FineTuningSpec:
    """What a job needs, registered and uploaded."""
    with Client(server.address) as client:
        client.register_base_model("luthier-tiny", str(SOURCE / "examples/base/luthier-tiny"))
        rows = tmp_path / "rows.jsonl"
        rows.write_text('{"prompt": "hello", "completion": "yes"}\n{"prompt": "bye", "completion": "no"}\n')
        client.upload_dataset("rows", {"train": rows})
    return FineTuningSpec(base_model="luthier-tiny", dataset=DatasetSelection(dataset="rows"))
