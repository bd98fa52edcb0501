"""What SECURITY.md promises of the code as a whole: no code is read from files, and outputs stay where they belong."""

from __future__ import annotations

import ast
import io
import json
import os
import pickle
import struct
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from fullyconv import cli
from fullyconv.archives import unpack
from fullyconv.config import Classes, Recipe
from fullyconv.documents import MAX_RECIPE_BYTES
from fullyconv.errors import CONTROL, CheckpointError, ConfigError, DatasetError
from fullyconv.folders import PictureFile, _refuse_to_harm, refuse_escape
from fullyconv.images import write_image
from fullyconv.weights import input_of, read_metadata, read_shapes, read_weights, write_weights

SOURCE = Path(__file__).parents[1] / "src" / "fullyconv"
FILES = sorted(SOURCE.rglob("*.py"))

# What the code does not do ------------------------------------------------------------------------------------------

UNPICKLERS = {"dill", "cloudpickle", "joblib", "shelve", "marshal", "yaml", "pickle"}
RUNNERS = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "torch.jit.load", "torch.hub.load"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(SOURCE).as_posix())
def test_nothing_that_is_read_can_run(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    imported = {
        name.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names])
    }
    # weights.py names the exception that torch raises for a file which holds more than tensors.
    assert imported & UNPICKLERS <= ({"pickle"} if path.name == "weights.py" else set())
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        words = {word.arg: ast.unparse(word.value) for word in call.keywords}
        called = ast.unparse(call.func)
        assert called not in RUNNERS
        assert not called.startswith(("os.exec", "os.spawn"))
        assert called.split(".")[0] not in UNPICKLERS
        assert called != "torch.save", "it writes a pickle"
        assert called != "torch.load" or words["weights_only"] == "True"
        assert called != "np.load" or words.get("allow_pickle", "False") == "False"
        assert not called.endswith(".extractall") or words["filter"] == "'data'"
        assert "trust_remote_code" not in words
        assert words.get("shell", "False") == "False"


# Weights of others --------------------------------------------------------------------------------------------------


class Harm:
    """What a pickle does that runs code."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(Harm.place),)

    place = Path()


@pytest.mark.parametrize("packed", [True, False])
def test_a_pth_that_would_run_code_is_refused_and_does_not(tmp_path: Path, packed: bool) -> None:
    Harm.place = tmp_path / "owned"
    torch.save({"a": Harm()}, tmp_path / "w.pth", _use_new_zipfile_serialization=packed)
    (tmp_path / "v.pth").write_bytes(pickle.dumps({"a": Harm()}))
    for name in ("w.pth", "v.pth"):
        with pytest.raises(CheckpointError, match=r"holds more than tensors|not a file of PyTorch weights") as caught:
            read_weights(tmp_path / name)
        assert not CONTROL.search(str(caught.value))
    assert not Harm.place.exists()


def test_a_pth_that_unpacks_to_a_thousand_times_its_size_is_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1_000_000)}, tmp_path / "plain.pth")
    with zipfile.ZipFile(tmp_path / "plain.pth") as plain, zipfile.ZipFile(tmp_path / "w.pth", "w", 8) as packed:
        for name in plain.namelist():
            packed.writestr(name, plain.read(name))
    assert (tmp_path / "w.pth").stat().st_size < 40_000
    with pytest.raises(CheckpointError, match=r"w\.pth: holds the compressed part '.*data.*'; PyTorch writes none"):
        read_weights(tmp_path / "w.pth")
    assert read_weights(tmp_path / "plain.pth")["a"].shape == (1_000_000,)


@pytest.mark.parametrize(
    "tensor",
    [torch.zeros(2, 2).to_sparse(), torch.zeros(2, device="meta"), torch.zeros(2, dtype=torch.complex64)],
    ids=["sparse", "meta", "complex"],
)
def test_tensors_that_cannot_be_a_parameter_are_refused(tmp_path: Path, tensor: torch.Tensor) -> None:
    torch.save({"a": tensor}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=r"'a' is .*; expected dense tensors|not a file of PyTorch weights"):
        read_weights(tmp_path / "w.pth")


def safetensors(header: object, data: bytes = b"", *, length: int | None = None) -> bytes:
    written = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(written) if length is None else length) + written + data


TWO = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (safetensors({"a": TWO}, bytes(8), length=1 << 40), "a header of 1,099,511,627,776 bytes"),
        (safetensors({"a": TWO}, bytes(8), length=2**64 - 1), "expected 16,777,216 at most"),
        (safetensors({"a": TWO, "b": TWO}, bytes(8)), "invalid offset"),
        (safetensors({"a": TWO, "b": TWO | {"data_offsets": [12, 20]}}, bytes(20)), "invalid offset"),
        (safetensors({"a": TWO}, bytes(4)), "not a whole"),
        (safetensors({"a": TWO}, bytes(14)), "not a whole"),
        (safetensors({"a": TWO | {"shape": [-1]}}, bytes(8)), "not a whole"),
        (safetensors({"a": TWO | {"shape": [2**33, 2**33]}}, bytes(8)), "not a whole"),
        (safetensors({"a": TWO | {"dtype": "PICKLE"}}, bytes(8)), "not a whole"),
        (safetensors({"a": TWO | {"dtype": "F4", "shape": [16]}}, bytes(8)), "expected dense tensors of 16 to 64 bits"),
        (safetensors(b'{"a":' * 10**5), "not a whole"),
        (safetensors(b'{"a":[' + b"[]," * 10**6), "not a whole"),
        (safetensors({f"{i}": TWO | {"shape": [0], "data_offsets": [0, 0]} for i in range(70_000)}), "70,000 tensors"),
        (b"", "not a whole"),
        (b"\0" * 7, "not a whole"),
    ],
)
def test_a_header_that_is_not_sound_is_refused_in_one_line(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(content)
    started = time.monotonic()
    with pytest.raises(CheckpointError, match=said) as caught:
        read_weights(path)
    assert time.monotonic() - started < 5
    assert str(caught.value).startswith(f"{path}: ")
    assert len(str(caught.value)) < 2000


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_header_of_any_content_is_read_or_refused(tmp_path: Path, data: st.DataObject) -> None:
    small = st.integers(-1, 12) | st.sampled_from([2**31, 2**62, 2**64])
    info = st.fixed_dictionaries(
        {
            "dtype": st.sampled_from(["F32", "F16", "BOOL", "I64", "F8_E4M3", "C64", "x"]),
            "shape": st.lists(small, max_size=3),
            "data_offsets": st.lists(small, min_size=1, max_size=3),
        }
    )
    told = st.dictionaries(st.just("converted_from") | st.text(max_size=3), st.text(max_size=9) | st.just("[" * 2000))
    header = data.draw(st.dictionaries(st.text(max_size=3), info, max_size=3)) | {"__metadata__": data.draw(told)}
    content = bytearray(safetensors(header, data.draw(st.binary(max_size=60))))
    for at, byte in data.draw(st.lists(st.tuples(st.integers(0, len(content) - 1), st.integers(0, 255)), max_size=2)):
        content[at] = byte
    path = tmp_path / "w.safetensors"
    path.write_bytes(content)
    for read in (read_weights, read_metadata, read_shapes, input_of):
        said = ""
        try:
            read(path)
        except CheckpointError as error:
            said = str(error)
        assert not CONTROL.search(said)


def test_shapes_are_told_from_the_header(tmp_path: Path) -> None:
    write_weights(tmp_path / "w.safetensors", {"a": torch.zeros(2, 3), "b": torch.tensor(1)}, {})
    assert read_shapes(tmp_path / "w.safetensors") == {"a": (2, 3), "b": ()}


# Recipes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("r.toml", "a" + ".a" * 20_000 + " = 1", "a key of more than 64 parts"),
        ("r.toml", "[a" + ".'b c'" * 100 + "]", "a key of more than 64 parts"),
        ("r.toml", "x = {" + "a." * 20_000 + "a = 1}", "a key of more than 64 parts"),
        ("r.toml", "a = " + "[" * 10**5, "nested more than 64 deep"),
        ("r.toml", "a = " + "{a=" * 10**4, "nested more than 64 deep"),
        ("r.toml", "a = " + "9" * 5000, "Exceeds the limit"),
        ("r.toml", "a = 1\na = 2", "not valid TOML"),
        ("r.toml", "[[stages]]\n" * 20_000, "stages: 20,000 of them; expected 256 at most"),
        ("r.toml", "#" * (MAX_RECIPE_BYTES + 1), "bytes; expected 1,048,576 at most"),
        ("r.toml", "name = '\x1b[2J'", "not valid TOML"),
        ("r.toml", 'name = "' + "x" * 10**5 + '"', "name: String should match"),
        (
            "r.toml",
            'stages = 1\n"' + "x" * 10**5 + '" = 1',
            "xxx...: no such setting; known: name, published, stages (and 1 more)",
        ),
        ("r.json", '{"name": "a", "name": "b"}', "'name' occurs twice"),
        ("r.json", '{"stages": [' + "{}," * 10**5 + "{}]}", "stages: 100,001 of them; expected 256 at most"),
        ("r.json", '{"a": ' + "9" * 5000 + "}", "Exceeds the limit"),
    ],
)
def test_a_recipe_beyond_all_measure_is_refused_in_one_line(tmp_path: Path, name: str, text: str, said: str) -> None:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    started = time.monotonic()
    with pytest.raises(ConfigError) as caught:
        Recipe.read(path)
    assert said in str(caught.value)
    assert str(caught.value).startswith(f"{path}: ")
    assert not CONTROL.search(str(caught.value))
    assert len(str(caught.value)) <= 2000
    assert time.monotonic() - started < 10


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_recipe_of_any_text_is_read_or_refused(tmp_path: Path, data: st.DataObject) -> None:
    source = (Path(__file__).parents[1] / "recipes" / "camvid.toml").read_text(encoding="utf-8")
    recipe = Recipe.read(Path(__file__).parents[1] / "recipes" / "camvid.toml").model_dump_json()
    name, text = data.draw(st.sampled_from([("r.toml", source), ("r.json", recipe)]))
    junk = st.sampled_from(
        ["=", "[", "]", "{", "}", '"', "'", ".", ",", "\\", "\n", "\0", "1e999", "-1", "nan", "é", "#"]
    )
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(text)))
        text = text[:at] + data.draw(junk) + text[at + data.draw(st.integers(0, 5)) :]
    (tmp_path / name).write_text(text, encoding="utf-8")
    said = ""
    try:
        Recipe.read(tmp_path / name)
    except ConfigError as error:
        said = str(error)
    assert not CONTROL.search(said)


# Outputs stay where they belong --------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["../escaped", "a/../../escaped", "/escaped", "link/escaped"])
def test_no_picture_is_written_outside_of_out(tmp_path: Path, key: str) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "link").symlink_to(tmp_path)
    picture = PictureFile(tmp_path / "in.png", key)
    with pytest.raises(ConfigError, match="a link leads out of"):
        _refuse_to_harm([picture], {key: {"labels": out / f"{key}.png"}}, out)
    refuse_escape(out / "a/b/../c.png", out)


def test_a_link_in_the_place_of_an_output_is_replaced_and_not_followed(tmp_path: Path) -> None:
    precious = tmp_path / "precious.png"
    precious.write_text("precious")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/a.png").symlink_to(precious)
    write_image(tmp_path / "out/a.png", np.zeros((4, 4, 3), np.uint8))
    assert precious.read_text() == "precious"
    assert not (tmp_path / "out/a.png").is_symlink()


def test_hha_writes_through_no_link(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from PIL import Image

    (tmp_path / "depth/sub").mkdir(parents=True)
    Image.fromarray(np.full((48, 64), 1000, np.uint16)).save(tmp_path / "depth/sub/a.png")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out/sub").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SystemExit) as done:
        cli.main(["hha", str(tmp_path / "depth"), "--out", str(tmp_path / "out")])
    assert done.value.code == 2
    assert "a link leads out of" in capsys.readouterr().err
    assert not list((tmp_path / "elsewhere").iterdir())


def test_a_zip_goes_through_no_link_and_fills_no_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/link").symlink_to(tmp_path)
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("link/owned.txt", b"owned")
        archive.writestr("large.bin", bytes(10_000_000))
    with pytest.raises(DatasetError, match=r"'link/owned\.txt' would go through a link that leads out"):
        unpack(tmp_path / "a.zip", tmp_path / "in")
    assert not (tmp_path / "owned.txt").exists()
    usage = type("Usage", (), {"free": 1_000_000})
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    with pytest.raises(DatasetError, match="unpacks to 10,000,005 bytes, and 1,000,000 are free"):
        unpack(tmp_path / "a.zip", tmp_path / "in")


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, 400), byte=st.integers(0, 255), tar=st.booleans())
@example(at=335, byte=0, tar=False)  # a member whose name is cut to nothing
def test_an_archive_with_a_wrong_byte_is_unpacked_or_refused(tmp_path: Path, at: int, byte: int, tar: bool) -> None:
    buffer = io.BytesIO()
    if tar:
        import tarfile

        with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
            info = tarfile.TarInfo("sub/a.txt")
            info.size = 100
            archive.addfile(info, io.BytesIO(b"a" * 100))
    else:
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("sub/a.txt", b"a" * 100)
    content = bytearray(buffer.getvalue())
    content[at % len(content)] = byte
    path = tmp_path / ("a.tgz" if tar else "a.zip")
    path.write_bytes(content)
    (tmp_path / "in").mkdir(exist_ok=True)
    said = ""
    try:
        unpack(path, tmp_path / "in")
    except DatasetError as error:
        said = str(error)
    assert not CONTROL.search(said)
    assert {found.name for found in tmp_path.iterdir()} <= {"in", "a.tgz", "a.zip"}


def test_an_error_on_the_command_line_holds_no_orders_for_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as done:
        cli.main(["explain", f"{tmp_path}/\x1b[2J\x1b]0;owned\x07.toml"])
    assert done.value.code == 2
    assert "\x1b" not in capsys.readouterr().err


def test_a_study_escapes_names_in_its_page() -> None:
    from fullyconv.studies.base import Column, Result, Row

    made = {"study": "x", "question": "Why?", "columns": (Column("n"),), "rows": (Row("<script>|", (1.0,)),)}
    result = Result(**made, paper="", data="d", net="n", minutes=1.0, seed=0)
    assert r"| &lt;script&gt;\| |" in result.markdown()


def test_class_names_are_shown_as_they_are_where_that_is_safe() -> None:
    assert Classes.of("straße", "<b>", "空", "a b", "नदी").names[0] == "straße"
    assert sys.getdefaultencoding() == "utf-8"
