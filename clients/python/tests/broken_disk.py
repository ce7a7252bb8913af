"""A disk that fails while a file is sent, after it was hashed, or is full when one comes."""

from __future__ import annotations

import errno
import os
from typing import Any, NoReturn

import pytest
from luthier import AsyncClient, Client, files


def break_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on no file can be read for sending."""

    def broken(part: str, path: files.Path) -> NoReturn:
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

    monkeypatch.setattr(files, "_chunks", broken)


def fill_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on nothing that is received can be written."""

    def full(file: files.FileDownload, message: files.DownloadResponse) -> NoReturn:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.FileDownload, "take", full)


def note_streams(client: Client | AsyncClient, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The streams of base models that are opened from now on."""
    opened: list[Any] = []
    real = client.stubs.models.DownloadBaseModel

    def noted(*arguments: Any, **options: Any) -> Any:
        opened.append(real(*arguments, **options))
        return opened[-1]

    monkeypatch.setattr(client.stubs.models, "DownloadBaseModel", noted)
    return opened
