"""Folders that logs are published to and read from: local ones, and object stores by their URL."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import fsspec  # type: ignore[import-untyped] # it has no types
from fsspec.implementations.local import LocalFileSystem  # type: ignore[import-untyped]

from ledger.errors import LedgerError

T = TypeVar("T")

ANSWER_SECONDS = 120.0
"""After so long a store that does not answer counts as away."""
WRITERS = 8
_FAILED = (OSError, ImportError, ValueError)


class FolderUnavailable(LedgerError):
    """A folder or object store cannot be reached, read or written."""

    exit_code = 3


def _sync(folder: Path) -> None:
    """Let the names in a local folder last, where the system can do that."""
    if os.name == "posix":
        opened = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)


class Folder:
    """Files below a local path or a URL that fsspec knows (`s3://bucket/log`).

    On a local disk each file appears whole or not at all, and lasts once it is written; in an
    object store that is how objects are.
    """

    def __init__(self, url: str | Path) -> None:
        """Take where it is; FolderUnavailable where nothing here can read such a URL."""
        self.url = str(url)
        try:
            self._files, root = fsspec.url_to_fs(self.url)
        except _FAILED as error:
            raise FolderUnavailable(f"{self.url}: {error}") from error
        self._root = str(root).rstrip("/")
        self._is_local = isinstance(self._files, LocalFileSystem)

    async def read(self, paths: Sequence[str]) -> dict[str, bytes]:
        """Return the contents of those of the files that there are."""
        return await self._call(self._read, paths)

    def _read(self, paths: Sequence[str]) -> dict[str, bytes]:
        if self._is_local:
            return {path: data for path in paths if (data := self._read_local(path)) is not None}
        # One path alone would give its content instead of a mapping.
        wanted = [self._full(path) for path in paths]
        found: dict[str, bytes] = {}
        for path, full in zip(paths, wanted, strict=True) if len(paths) == 1 else ():
            with contextlib.suppress(FileNotFoundError):
                found[path] = self._files.cat_file(full)
        if len(paths) > 1:
            read = self._files.cat(wanted, on_error="return")
            for path, full in zip(paths, wanted, strict=True):
                if isinstance(data := read.get(full), bytes):
                    found[path] = data
                elif isinstance(data, Exception) and not isinstance(data, FileNotFoundError):
                    raise data
        return found

    def _read_local(self, path: str) -> bytes | None:
        try:
            return Path(self._full(path)).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None

    async def write(self, files: Mapping[str, bytes]) -> None:
        """Write files, in no order; those that are there are replaced."""
        if files:
            await self._call(self._write, files)

    def _write(self, files: Mapping[str, bytes]) -> None:
        if not self._is_local:
            self._files.pipe({self._full(path): data for path, data in files.items()})
            return
        with ThreadPoolExecutor(WRITERS) as threads:
            list(threads.map(self._write_local, files.keys(), files.values()))
        root = Path(self._root)
        folders = {folder for path in files for folder in (root / path).parents}
        for folder in sorted(folders):
            if folder == root or root in folder.parents:
                _sync(folder)

    def _write_local(self, path: str, data: bytes) -> None:
        file = Path(self._full(path))
        file.parent.mkdir(parents=True, exist_ok=True)
        beside = file.with_name(f".{file.name}.{uuid4().hex[:12]}")
        try:
            with beside.open("xb") as opened:
                opened.write(data)
                opened.flush()
                os.fsync(opened.fileno())
            beside.replace(file)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise

    async def names(self, folder: str) -> list[str]:
        """Return the names of what is in a folder, nothing where there is no such folder."""
        return await self._call(self._names, folder)

    def _names(self, folder: str) -> list[str]:
        try:
            found = self._files.ls(self._full(folder), detail=False)
        except (FileNotFoundError, NotADirectoryError):
            return []
        return [str(each).rstrip("/").rpartition("/")[2] for each in found]

    async def remove(self, folders: Iterable[str]) -> None:
        """Remove folders with all that is in them; those that are gone are left out."""
        await self._call(self._remove, list(folders))

    def _remove(self, folders: Sequence[str]) -> None:
        for folder in folders:
            with contextlib.suppress(FileNotFoundError):
                self._files.rm(self._full(folder), recursive=True)

    def _full(self, path: str) -> str:
        return f"{self._root}/{path}"

    async def _call(self, work: Callable[..., T], *arguments: Any) -> T:
        """Do blocking work in a thread."""
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                return await asyncio.to_thread(work, *arguments)
        except TimeoutError as error:
            raise FolderUnavailable(f"{self.url} does not answer") from error
        except _FAILED as error:
            raise FolderUnavailable(f"{self.url}: {error}") from error
