"""A disk that fails while a file is sent, after it was hashed."""

from __future__ import annotations

import errno
import os
from typing import NoReturn

import pytest
from luthier import files


def break_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on no file can be read for sending."""

    def broken(part: str, path: files.Path) -> NoReturn:
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

    monkeypatch.setattr(files, "_chunks", broken)
