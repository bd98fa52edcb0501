"""Downloads from a server of the test's own: whole, interrupted, wrong, and archives that would write elsewhere."""

from __future__ import annotations

import hashlib
import io
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from fullyconv.archives import Archive, fetch, obtain, unpack
from fullyconv.errors import DatasetError

CONTENT = bytes(range(256)) * 20_000


@dataclass
class Server:
    """Serves ``files``; of each answer at most ``limit`` bytes are sent, as if the line broke; ``asked`` are ranges."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    limit: int | None = None
    ranges: bool = True
    asked: list[str | None] = field(default_factory=list)


@pytest.fixture
def server() -> Iterator[Server]:
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            wanted = self.headers.get("Range")
            state.asked.append(wanted)
            content = state.files.get(self.path[1:])
            if content is None:
                self.send_error(404)
                return
            start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and state.ranges else 0
            if start >= len(content):
                self.send_error(416)
                return
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            self.wfile.write(content[start:][: state.limit])

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as web:
        thread = threading.Thread(target=web.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        state.url = f"http://127.0.0.1:{web.server_port}"
        yield state
        web.shutdown()
        thread.join()


def digest(kind: str, content: bytes = CONTENT) -> str:
    return f"{kind}:{hashlib.new(kind, content, usedforsecurity=False).hexdigest()}"


@pytest.mark.parametrize("kind", ["md5", "sha1", "sha256"])
def test_what_comes_is_held_against_the_published_checksum(server: Server, tmp_path: Path, kind: str) -> None:
    server.files["a.bin"] = CONTENT
    told: list[tuple[int, int | None]] = []
    archive = Archive(f"{server.url}/a.bin", digest(kind))
    found = fetch(archive, tmp_path / "new", on_progress=lambda done, total: told.append((done, total)))
    assert found.path.read_bytes() == CONTENT
    assert (found.digest, found.checked) == (archive.digest, True)
    assert told[-1] == (len(CONTENT), len(CONTENT))
    assert [path.name for path in found.path.parent.iterdir()] == ["a.bin"]
    fetch(archive, tmp_path / "new")
    assert len(server.asked) == 1


def test_a_wrong_file_is_removed_and_refused(server: Server, tmp_path: Path) -> None:
    server.files["a.bin"] = CONTENT[:-1] + b"x"
    with pytest.raises(DatasetError, match=rf"a\.bin: came with md5 \w+; expected {digest('md5')[4:]}; the file was"):
        fetch(Archive(f"{server.url}/a.bin", digest("md5")), tmp_path)
    assert not list(tmp_path.iterdir())


def test_without_a_published_checksum_the_one_that_came_is_recorded(server: Server, tmp_path: Path) -> None:
    server.files["labels.txt"] = b"1: a\n"
    (found,) = obtain([Archive(f"{server.url}/labels.txt", folder="below")], tmp_path)
    assert not found.checked
    recorded = (tmp_path / "below/labels.txt.sha256").read_text()
    assert recorded == f"{hashlib.sha256(b'1: a' + bytes([10])).hexdigest()}  labels.txt\n"


def test_an_interrupted_download_is_gone_on_with(server: Server, tmp_path: Path) -> None:
    server.files["a.bin"], server.limit = CONTENT, 2_000_000
    archive = Archive(f"{server.url}/a.bin", digest("sha256"))
    for _ in range(2):
        with pytest.raises(DatasetError, match=r"a\.bin: cannot be downloaded: .*the same command goes on"):
            fetch(archive, tmp_path)
    assert not (tmp_path / "a.bin").exists()
    server.limit = None
    told: list[tuple[int, int | None]] = []
    assert fetch(archive, tmp_path, on_progress=lambda done, total: told.append((done, total))).checked
    assert told[-1] == (len(CONTENT), len(CONTENT))
    assert server.asked == [None, "bytes=2000000-", "bytes=4000000-"]
    assert not (tmp_path / "a.bin.part").exists()


def test_a_server_that_knows_no_ranges_begins_again(server: Server, tmp_path: Path) -> None:
    server.files["a.bin"], server.ranges = CONTENT, False
    (tmp_path / "a.bin.part").write_bytes(CONTENT[:1000])
    assert fetch(Archive(f"{server.url}/a.bin", digest("md5")), tmp_path).path.read_bytes() == CONTENT


def test_a_part_that_is_all_there_is_begun_again(server: Server, tmp_path: Path) -> None:
    server.files["a.bin"] = CONTENT
    (tmp_path / "a.bin.part").write_bytes(CONTENT)
    assert fetch(Archive(f"{server.url}/a.bin", digest("md5")), tmp_path).checked
    assert server.asked == [f"bytes={len(CONTENT)}-", None]


def test_what_cannot_be_had_is_one_line(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"none\.zip: cannot be downloaded: Not Found; "):
        fetch(Archive(f"{server.url}/none.zip"), tmp_path)
    with pytest.raises(DatasetError, match=r"^http://127\.0\.0\.1:1/a\.zip: cannot be downloaded: .*refused"):
        fetch(Archive("http://127.0.0.1:1/a.zip"), tmp_path)


# Unpacking -----------------------------------------------------------------------------------------------------------


def zipped(members: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


def tarred(members: dict[str, bytes], *, link: str = "") -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        if link:
            info = tarfile.TarInfo("link")
            info.type, info.linkname = tarfile.SYMTYPE, link
            archive.addfile(info)
    return file.getvalue()


@pytest.mark.parametrize(("name", "make"), [("a.zip", zipped), ("a.tgz", tarred), ("a.tar.gz", tarred)])
def test_archives_are_unpacked_with_their_folders_and_again(
    server: Server, tmp_path: Path, name: str, make: Callable[..., bytes]
) -> None:
    server.files[name] = make({"CamVid/train/a.png": b"1", "CamVid/b.txt": b"2"})
    for _ in range(2):
        (found,) = obtain([Archive(f"{server.url}/{name}", folder="data")], tmp_path)
        assert found.path == tmp_path / "data" / name
        assert (tmp_path / "data/CamVid/train/a.png").read_bytes() == b"1"
        assert (tmp_path / "data/CamVid/b.txt").read_bytes() == b"2"
    assert len(server.asked) == 1


@pytest.mark.parametrize("member", ["../outside.txt", "a/../../outside.txt", "/outside.txt", "..\\outside.txt"])
def test_a_zip_writes_nothing_outside(tmp_path: Path, member: str) -> None:
    path = tmp_path / "in/a.zip"
    path.parent.mkdir()
    path.write_bytes(zipped({"good.txt": b"1", member: b"bad"}))
    with pytest.raises(DatasetError, match=r"a\.zip: '.*outside\.txt' would lie outside of .*in; not unpacked"):
        unpack(path, path.parent)
    assert not (tmp_path / "outside.txt").exists()


@pytest.mark.parametrize("member", ["../outside.txt", "a/../../outside.txt"])
def test_a_tar_writes_nothing_outside(tmp_path: Path, member: str) -> None:
    path = tmp_path / "in/a.tar"
    path.parent.mkdir()
    path.write_bytes(tarred({"good.txt": b"1", member: b"bad"}))
    with pytest.raises(DatasetError, match=r"a\.tar: cannot be unpacked: .*outside the destination"):
        unpack(path, path.parent)
    assert not (tmp_path / "outside.txt").exists()


def test_a_link_that_leads_outside_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tgz"
    path.write_bytes(tarred({}, link="/etc"))
    with pytest.raises(DatasetError, match=r"a\.tgz: cannot be unpacked: 'link' is a link to an absolute path"):
        unpack(path, tmp_path)


@pytest.mark.parametrize("name", ["a.zip", "a.tgz", "a.tar"])
def test_what_is_called_an_archive_and_is_none_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"<html>moved</html>")
    with pytest.raises(DatasetError, match=rf"{name}: not an archive, though it is called one"):
        unpack(tmp_path / name, tmp_path)


def test_a_damaged_archive_is_refused(tmp_path: Path) -> None:
    content = zipped({"a.txt": b"hello" * 100})
    at = content.index(b"hellohello")
    (tmp_path / "a.zip").write_bytes(content[:at] + b"HELLO" + content[at + 5 :])
    with pytest.raises(DatasetError, match=r"a\.zip: cannot be unpacked: Bad CRC-32"):
        unpack(tmp_path / "a.zip", tmp_path)
    (tmp_path / "a.tgz").write_bytes(tarred({"a.txt": bytes(100_000)})[:-40])
    with pytest.raises(DatasetError, match=r"a\.tgz: "):
        unpack(tmp_path / "a.tgz", tmp_path)
