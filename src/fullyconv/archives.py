"""Archives that others publish: downloaded once, checked, unpacked."""

from __future__ import annotations

import hashlib
import lzma
import os
import shutil
import tarfile
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from typing import Literal
from urllib.parse import unquote, urlsplit

from fullyconv.errors import DatasetError

CHUNK = 1 << 20
TIMEOUT_S = 30.0
UNPACKING = (
    zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, OSError, RuntimeError, ValueError,
)  # fmt: skip
"""What a damaged, encrypted or strange archive makes the standard library raise."""


@dataclass(frozen=True)
class Archive:
    """A file that is published: a .zip, a tar of any kind, or a plain file that is kept as it is.

    Attributes:
        url: where.
        digest: "md5:...", "sha1:..." or "sha256:..." in hexadecimal, as published; "" where nobody publishes one.
        folder: where it is unpacked, below the folder that is asked for.
    """

    url: str
    digest: str = ""
    folder: str = ""

    @property
    def name(self) -> str:
        """Of the file, the last part of the address."""
        return unquote(urlsplit(self.url).path).rpartition("/")[2]


@dataclass(frozen=True)
class Fetched:
    """A file that was downloaded.

    Attributes:
        path: of the file.
        digest: that it was found to have: the published one, else "sha256:...".
        checked: whether one is published to hold it against.
    """

    path: Path
    digest: str
    checked: bool


def fetch(
    archive: Archive, folder: Path, *, on_progress: Callable[[int, int | None], None] = lambda done, total: None
) -> Fetched:
    """Download an archive into a folder, and check it.

    While it comes it is NAME.part; what an earlier call left of it is gone on with where the server can, and else
    begun again. A NAME that is there already is checked and not downloaded.

    Args:
        archive: what.
        folder: where to; made if need be.
        on_progress: called with the bytes that are there, and those that there will be (None: not said).

    Raises:
        DatasetError: it cannot be had, or has another checksum than the published one; the file is then removed.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DatasetError(f"{folder}: cannot be made: {error.strerror or error}; name another folder") from None
    path = folder / archive.name
    if not path.is_file():
        part = path.with_name(path.name + ".part")
        try:
            _download(archive.url, part, on_progress)
        except (OSError, HTTPException) as error:
            reason = getattr(error, "reason", None) or error
            raise DatasetError(
                f"{archive.url}: cannot be downloaded: {reason}; what came is kept, and the same command goes on with "
                "it; or download it by other means, and unpack it there"
            ) from None
        part.replace(path)
    kind, _, wanted = (archive.digest or "sha256:").partition(":")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, lambda: hashlib.new(kind, usedforsecurity=False)).hexdigest()
    if wanted and found != wanted:
        path.unlink()
        raise DatasetError(
            f"{archive.url}: came with {kind} {found}; expected {wanted}; the file was removed, so the same command "
            "downloads it again"
        )
    return Fetched(path, f"{kind}:{found}", bool(wanted))


def obtain(
    archives: Sequence[Archive],
    folder: Path,
    *,
    on_progress: Callable[[Archive, int, int | None], None] = lambda archive, done, total: None,
) -> Iterator[Fetched]:
    """Download and unpack archives below a folder, one after the other.

    The archives are kept, so that the same call goes on where it was interrupted. Of one without a published checksum
    the SHA-256 that it came with is written beside it, as NAME.sha256.

    Raises:
        DatasetError: one cannot be had, is not what was published, or cannot be unpacked.
    """
    for archive in archives:
        place = folder / archive.folder
        fetched = fetch(archive, place, on_progress=partial(on_progress, archive))
        if not fetched.checked:
            beside = fetched.path.with_name(f"{archive.name}.sha256")
            beside.write_text(f"{fetched.digest.partition(':')[2]}  {archive.name}\n")
        unpack(fetched.path, place)
        yield fetched


def unpack(path: Path, folder: Path) -> None:
    """Unpack a .zip or a tar of any kind below a folder; nothing is written outside it. Any other file is left alone.

    Raises:
        DatasetError: damaged, or with a member that would lie elsewhere; then that member is not written.
    """
    try:
        if not path.is_file():
            raise DatasetError(f"{path}: no such file; expected an archive")
        folder.mkdir(parents=True, exist_ok=True)
        if zipfile.is_zipfile(path):
            _unzip(path, folder)
        elif tarfile.is_tarfile(path):
            if not hasattr(tarfile, "data_filter"):
                raise DatasetError(f"{path}: Python before 3.11.4 cannot unpack a tar safely; unpack it yourself")
            with tarfile.open(path) as archive:
                _refuse_too_large(path, folder, (member.size for member in archive))
                # "data" refuses what would lie outside, links that lead there, and devices.
                archive.extractall(folder, filter="data")
        elif path.suffix in (".zip", ".tar", ".tgz", ".gz"):
            raise DatasetError(f"{path}: not an archive, though it is called one; remove it, and download it again")
    except UNPACKING as error:
        raise DatasetError(f"{path}: cannot be unpacked: {' '.join(str(error).split())}") from None


def _download(url: str, part: Path, on_progress: Callable[[int, int | None], None]) -> None:
    there = part.stat().st_size if part.is_file() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={there}-"} if there else {})
    try:
        answer = urllib.request.urlopen(request, timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        # Nothing is left to come, or the file has changed: it is begun again, and its checksum decides.
        if not there or error.code != HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise
        part.unlink()
        _download(url, part, on_progress)
        return
    with answer:
        goes_on = answer.status == HTTPStatus.PARTIAL_CONTENT
        done = there if goes_on else 0
        length = answer.headers.get("Content-Length")
        total = done + int(length) if length else None
        mode: Literal["ab", "wb"] = "ab" if goes_on else "wb"
        with part.open(mode) as file:
            while chunk := answer.read(CHUNK):
                file.write(chunk)
                done += len(chunk)
                on_progress(done, total)
    if total is not None and done < total:
        raise OSError(f"the connection ended after {done:,} of {total:,} bytes")


def _refuse_too_large(path: Path, folder: Path, sizes: Iterable[int]) -> None:
    """Refuse what would fill the disk before its first member is written; sizes that are not true fail as damage."""
    needed, free = sum(sizes), shutil.disk_usage(folder).free
    if needed > free:
        raise DatasetError(f"{path}: unpacks to {needed:,} bytes, and {free:,} are free in {folder}; make room for it")


def _unzip(path: Path, folder: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        _refuse_too_large(path, folder, (member.file_size for member in archive.infolist()))
        for member in archive.infolist():
            if not member.filename:
                raise DatasetError(f"{path}: damaged: a member has no name; remove it, and download it again")
            inside = PurePosixPath(member.filename.replace("\\", "/"))
            if inside.is_absolute() or ".." in inside.parts or ":" in member.filename:
                raise DatasetError(f"{path}: {member.filename!r} would lie outside of {folder}; not unpacked")
            target = folder.joinpath(*inside.parts)
            if not Path(os.path.realpath(target)).is_relative_to(os.path.realpath(folder)):
                raise DatasetError(f"{path}: {member.filename!r} would go through a link that leads out of {folder}")
            if member.is_dir():
                target.mkdir(parents=True, exist_ok=True)
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(member) as source, target.open("wb") as file:
                shutil.copyfileobj(source, file, CHUNK)
