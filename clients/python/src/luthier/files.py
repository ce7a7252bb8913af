"""Uploads and downloads, without the connection: `Client` and `AsyncClient` drive them."""

from __future__ import annotations

import contextlib
import hashlib
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Union

import google_crc32c
import grpc

from luthier.errors import Error, from_grpc
from luthier.retry import RetryPolicy, is_broken_stream
from luthier.v1 import datasets_pb2, models_pb2

Path = Union[str, os.PathLike[str]]
_CHUNK_BYTES = 1 << 20  # the API's limit

DownloadRequest = Union[models_pb2.DownloadModelVersionRequest, models_pb2.DownloadBaseModelRequest]
DownloadResponse = Union[models_pb2.DownloadModelVersionResponse, models_pb2.DownloadBaseModelResponse]


class Damaged(Exception):
    """Bytes changed on the way."""


class DatasetUpload:
    """The files of a dataset, hashed; the same content under the same id is no error, so that it can be sent again."""

    def __init__(self, dataset_id: str, files: Mapping[str, Path], policy: RetryPolicy, server: str) -> None:
        self._files = files
        self._policy = policy
        self._server = server
        self._failures = 0
        self._unreadable: OSError | None = None
        self._header = datasets_pb2.UploadDatasetHeader(dataset_id=dataset_id)
        for part, path in files.items():
            with open(path, "rb") as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
                self._header.parts.add(part=part, sha256=sha256, size_bytes=file.tell())

    def messages(self) -> Iterator[datasets_pb2.UploadDatasetRequest]:
        yield datasets_pb2.UploadDatasetRequest(header=self._header)
        for part, path in self._files.items():
            try:
                yield from _chunks(part, path)
            except OSError as error:
                # Thrown at gRPC it would be a cancelled call, without its cause. The server refuses what is not whole.
                self._unreadable = error
                return

    def pause_after(self, error: grpc.RpcError) -> float:
        """How long to wait before all is sent again. Raises if it is not."""
        if self._unreadable is not None:
            raise self._unreadable
        self._failures += 1
        failed = from_grpc(error, self._server)
        if failed.code != grpc.StatusCode.UNAVAILABLE or self._failures >= self._policy.attempts:
            raise failed from error
        return self._policy.pause(self._failures)


def _chunks(part: str, path: Path) -> Iterator[datasets_pb2.UploadDatasetRequest]:
    offset = 0
    with open(path, "rb") as file:
        while data := file.read(_CHUNK_BYTES):
            chunk = datasets_pb2.DatasetChunk(part=part, offset=offset, data=data, crc32c=google_crc32c.value(data))
            yield datasets_pb2.UploadDatasetRequest(chunk=chunk)
            offset += len(data)


class FileDownload:
    """One file; a stream that breaks is taken up again at the byte where it broke."""

    def __init__(
        self, folder: str, wanted: models_pb2.ModelFile, local: pathlib.Path, policy: RetryPolicy, server: str
    ) -> None:
        self._folder = folder
        self._wanted = wanted
        self._local = local
        self._policy = policy
        self._server = server
        self._failures = 0
        self._damaged_once = False
        local.parent.mkdir(parents=True, exist_ok=True)
        local.touch()
        if self._size() > wanted.size_bytes:
            self._clear()

    def method(self) -> str:
        return "DownloadBaseModel" if self._folder.startswith("baseModels/") else "DownloadModelVersion"

    def request(self) -> DownloadRequest:
        base = self._folder.startswith("baseModels/")
        kind = models_pb2.DownloadBaseModelRequest if base else models_pb2.DownloadModelVersionRequest
        return kind(name=self._folder, path=self._wanted.path, offset=self._size())

    def take(self, message: DownloadResponse) -> None:
        if not message.HasField("chunk"):
            return
        chunk = message.chunk
        if chunk.offset != self._size() or google_crc32c.value(chunk.data) != chunk.crc32c:
            raise Damaged(f"{self._wanted.path}: damaged on the way at byte {self._size()}")
        with open(self._local, "ab") as file:
            file.write(chunk.data)
        self._failures = 0

    def end_of_stream(self) -> None:
        if self._size() < self._wanted.size_bytes:
            raise Damaged(f"{self._wanted.path}: ended at byte {self._size()} of {self._wanted.size_bytes}")

    def complete(self) -> bool:
        """Whether every byte is there and right. Raises if they are wrong for the second time."""
        if self._size() < self._wanted.size_bytes:
            return False
        with open(self._local, "rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
            if found == self._wanted.sha256:
                os.fsync(file.fileno())
                return True
        # Bytes of an earlier try may have been of another file, or damaged on our disk: once more from the start.
        self._clear()
        if self._damaged_once:
            message = f"{self._wanted.path}: received content with SHA-256 {found}, expected {self._wanted.sha256}"
            raise Error(grpc.StatusCode.DATA_LOSS, message)
        self._damaged_once = True
        return False

    def pause_after(self, error: grpc.RpcError | Damaged) -> float:
        """How long to wait before the next stream. Raises if there is none."""
        self._failures += 1
        give_up = self._failures >= self._policy.attempts
        if isinstance(error, Damaged):
            if give_up:
                raise Error(grpc.StatusCode.DATA_LOSS, str(error)) from error
        elif give_up or not is_broken_stream(error):
            raise from_grpc(error, self._server) from error
        return self._policy.pause(self._failures)

    def _size(self) -> int:
        return self._local.stat().st_size

    def _clear(self) -> None:
        os.truncate(self._local, 0)


class FolderDownload:
    """The files of `name` into `target`, which appears once every file is verified and on disk. Until then they are in
    `{target}.partial`, from where a later download goes on."""

    def __init__(
        self, name: str, files: Sequence[models_pb2.ModelFile], target: Path, policy: RetryPolicy, server: str
    ) -> None:
        self._name = name
        self._wanted = files
        self.target = pathlib.Path(os.path.abspath(target))
        self._partial = self.target.with_name(self.target.name + ".partial")
        self._policy = policy
        self._server = server

    def is_there(self) -> bool:
        """Whether `target` holds exactly these files. Raises if it is anything else."""
        if not self.target.exists():
            return False
        if _hashes(self.target) == {file.path: file.sha256 for file in self._wanted}:
            return True
        message = f"{self.target} exists and is not {self._name}; give another folder, or remove it"
        raise Error(grpc.StatusCode.ALREADY_EXISTS, message)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Keeps other downloads out of the folder, those of the program `luthier` too. Raises if one is under way."""
        import fcntl  # Windows has none, and may still make all other calls

        self._partial.mkdir(parents=True, exist_ok=True)
        folder = os.open(self._partial, os.O_RDONLY)
        try:
            try:
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                message = f"{self._partial}: another download is writing here; wait for it"
                raise Error(grpc.StatusCode.FAILED_PRECONDITION, message) from error
            yield
        finally:
            os.close(folder)

    def files(self) -> Iterator[FileDownload]:
        for path in _files(self._partial) - {file.path for file in self._wanted}:
            (self._partial / path).unlink()  # of an earlier download of something else
        for file in self._wanted:
            local = (self._partial / file.path).resolve()
            if not local.is_relative_to(self._partial.resolve()):
                raise Error(grpc.StatusCode.DATA_LOSS, f"{file.path}: is no path inside the folder")
            yield FileDownload(self._name, file, local, self._policy, self._server)

    def publish(self) -> pathlib.Path:
        for folder in {self._partial, *((self._partial / file.path).parent for file in self._wanted)}:
            _sync(folder)
        self._partial.rename(self.target)
        _sync(self.target.parent)
        return self.target


def _sync(folder: pathlib.Path) -> None:
    """What is in the folder is still there after a loss of power."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def _files(folder: pathlib.Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}


def _hash(path: pathlib.Path) -> str:
    """Piece by piece: a file of weights may be larger than the memory."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _hashes(folder: pathlib.Path) -> dict[str, str]:
    return {path: _hash(folder / path) for path in _files(folder)}
