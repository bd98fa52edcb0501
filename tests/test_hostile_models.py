"""A model folder from a stranger: it loads or is refused in one line, runs nothing, and reaches for nothing else."""

from __future__ import annotations

import copy
import json
import os
import shutil
import struct
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fullyconv import engines, presets
from fullyconv.building import build
from fullyconv.checkpoint import load, save
from fullyconv.config import Classes
from fullyconv.errors import CONTROL, CheckpointError, FullyConvError


@dataclass
class Watch:
    """What the interpreter did that reaches outside of it, while somebody watches."""

    watching: bool = False
    opened: list[str] = field(default_factory=list)
    reached: list[str] = field(default_factory=list)

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        if self.watching and event == "open" and isinstance(args[0], str | bytes):
            self.opened.append(os.fsdecode(args[0]))
        if self.watching and event.split(".")[0] in ("socket", "urllib", "subprocess", "ctypes", "pickle"):
            self.reached.append(event)
        if self.watching and event in ("os.system", "os.exec", "os.posix_spawn", "os.fork"):
            self.reached.append(event)


WATCH = Watch()
sys.addaudithook(WATCH)


@pytest.fixture
def watch() -> Iterator[Watch]:
    WATCH.opened, WATCH.reached, WATCH.watching = [], [], True
    yield WATCH
    WATCH.watching = False


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = build(presets.fcn16s("tinyvgg", 3, weights=None), classes={"out": Classes.of("a", "b", "c")})
    return save(model, tmp_path_factory.mktemp("good") / "model")


def settings_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return found


def hostile(good: Path, folder: Path, text: str | Callable[[dict[str, Any]], object]) -> Path:
    """A copy of a good model with another config.json, and tensors that no longer say which it was."""
    shutil.copytree(good, folder)
    if callable(text):
        config = settings_of(good)
        text(config)
        text = json.dumps(config)
    (folder / "config.json").write_text(text)
    weights = folder / "model.safetensors"
    content = weights.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    del header["__metadata__"]
    written = json.dumps(header).encode()
    weights.write_bytes(struct.pack("<Q", len(written)) + written + content[8 + length :])
    return folder


def refusal(folder: Path) -> str:
    """One line, said at once."""
    started = time.monotonic()
    with pytest.raises(CheckpointError) as caught:
        load(folder)
    said = str(caught.value)
    assert "\n" not in said
    assert said.isprintable()
    assert len(said) <= 2000
    assert str(folder) in said
    assert time.monotonic() - started < 20
    return said


def put(*path: str | int, value: object) -> Callable[[dict[str, Any]], None]:
    """A change of one place of config.json."""

    def change(config: Any) -> None:
        for key in path[:-1]:
            config = config[key]
        config[path[-1]] = value

    return change


# Nothing is fetched, nothing else is read ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "weights",
    [
        "../secret.pth",
        "{secret}",
        "http://127.0.0.1:9/w.pth",
        "file://{secret}",
        "default",
        "hf-hub:a/b",
        "~/secret",
        "-",
    ],
)
def test_weights_named_in_a_config_are_never_opened(good: Path, tmp_path: Path, watch: Watch, weights: str) -> None:
    secret = tmp_path / "secret.pth"
    torch.save({"a": torch.zeros(1)}, secret)
    folder = hostile(good, tmp_path / "m", put("model", "weights", value=weights.format(secret=secret)))
    watch.opened.clear()
    load(folder)
    assert not [path for path in watch.opened if "secret" in path]
    assert watch.reached == []


@pytest.mark.parametrize(
    "name",
    [
        "timm/hf_hub:stranger/model",
        "timm/hf-hub:stranger/model",
        "timm/local-dir:{outside}",
        "timm/resnet18.hf-hub:stranger/model",
        "timm/resnet18.local-dir:{outside}",
        "timm/hf_hub:resnet18",
        "timm/../../{outside}",
        "timm/",
        "timm/resnet18.a1_in1k?pretrained=True",
        "hf_hub:stranger/model",
        "../{outside}",
        "torch.hub",
        "__import__('os').system('true')",
    ],
)
def test_a_backbone_of_a_stranger_is_a_name_in_a_table_or_refused(
    good: Path, tmp_path: Path, watch: Watch, name: str
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "config.json").write_text('{"architecture": "resnet18"}')
    folder = hostile(good, tmp_path / "m", put("model", "backbone", value=name.format(outside=outside)))
    import timm  # noqa: F401 - what it opens and runs when it is imported is not the stranger's doing

    watch.opened.clear()
    watch.reached.clear()
    refusal(folder)
    assert not [path for path in watch.opened if "outside" in path]
    assert watch.reached == []


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("absolute", [True, False])
def test_links_that_lead_out_of_the_folder_are_refused(good: Path, tmp_path: Path, name: str, absolute: bool) -> None:
    folder = tmp_path / "m"
    shutil.copytree(good, folder)
    elsewhere = tmp_path / f"other-{name}"
    (folder / name).rename(elsewhere)
    (folder / name).symlink_to(elsewhere if absolute else Path("..") / elsewhere.name)
    assert f"{name}: a link that leads out of the folder" in refusal(folder)


def test_links_inside_the_folder_and_to_it_are_followed(good: Path, tmp_path: Path) -> None:
    folder = tmp_path / "m"
    shutil.copytree(good, folder)
    (folder / "config.json").rename(folder / "other.json")
    (folder / "config.json").symlink_to("other.json")
    (tmp_path / "link").symlink_to(folder)
    assert load(tmp_path / "link").heads["out"].classes == 3


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("kind", ["fifo", "loop", "folder", "device"])
def test_what_is_no_file_is_refused_and_waits_for_nobody(good: Path, tmp_path: Path, name: str, kind: str) -> None:
    folder = tmp_path / "m"
    shutil.copytree(good, folder)
    place = folder / name
    place.unlink()
    if kind == "fifo":
        os.mkfifo(place)
    elif kind == "loop":
        place.symlink_to(name)
    elif kind == "folder":
        place.mkdir()
    else:
        place.symlink_to("/dev/zero")
    assert name in refusal(folder)


# What a config may say -----------------------------------------------------------------------------------------------

TAP = "stride16"


def many(count: int, context: int, classes: int = 3) -> Callable[[dict[str, Any]], None]:
    """So many heads that each ask for a large context block."""

    def change(config: dict[str, Any]) -> None:
        head = {"classes": classes, "skips": [{"tap": TAP, "context": context}]}
        config["model"]["heads"] = {f"h{i}": head for i in range(count)}
        config["classes"] = {}

    return change


def full_kernels(config: dict[str, Any]) -> None:
    head = config["model"]["heads"]["out"]
    head |= {"classes": 65535, "upsampling": "full", "last_upsampling": "full"}
    config["classes"] = {}


def skip(**changes: object) -> Callable[[dict[str, Any]], None]:
    def change(config: dict[str, Any]) -> None:
        config["model"]["heads"]["out"]["skips"][0] |= changes

    return change


def streams(count: int) -> Callable[[dict[str, Any]], None]:
    def change(config: dict[str, Any]) -> None:
        config["model"] |= {"backbone": "vgg16", "input": None, "streams": {f"s{i}": {} for i in range(count)}}
        config["model"]["heads"]["out"]["skips"] = [{"tap": "s0/fc7"}]

    return change


def class_names(name: str) -> Callable[[dict[str, Any]], None]:
    return put("classes", "out", "entries", 0, "name", value=name)


HOSTILE: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "a billion classes": (put("model", "heads", "out", "classes", value=10**9), "less than or equal to 65535"),
    "classes of 10^5000": (put("model", "heads", "out", "classes", value=1e308), "heads.out.classes"),
    "no classes": (put("model", "heads", "out", "classes", value=0), "greater than or equal to 1"),
    "huge contexts": (many(64, 8192), "does not fit the model"),
    "too many heads": (many(300, 8), "heads: Dictionary should have at most 256 items"),
    "larger than the largest context": (skip(context=10**9), "less than or equal to 8192"),
    "kernels from each class to each": (full_kernels, "does not fit the model"),
    "three VGGs": (streams(3), "does not fit the model"),
    "an enormous backbone": (put("model", "backbone", value="timm/convnextv2_huge"), "does not fit the model"),
    "channels without end": (
        put("model", "input", value={"order": "RGB", "mean": [0] * 10**5, "std": [1] * 10**5}),
        "at most 256 items",
    ),
    "no channels": (put("model", "input", value={"order": "RGB", "mean": [], "std": []}), "at least 1 item"),
    "a tap that is not there": (skip(tap="stride16.weight"), "no tap 'stride16.weight'"),
    "a tap with a path": (skip(tap="../../stride16"), "no tap '../../stride16'"),
    "a tap of a megabyte": (skip(tap="x" * 10**6), "no tap 'xxx"),
    "a dunder": (skip(tap="__class__"), "no tap '__class__'"),
    "skips in the wrong order": (
        lambda config: config["model"]["heads"]["out"]["skips"].reverse(),
        "list skips coarse to fine",
    ),
    "a head that is a method": (
        lambda config: config["model"]["heads"].update(keys=config["model"]["heads"].pop("out")),
        "cannot name a head",
    ),
    "a head with a path": (
        lambda config: config["model"]["heads"].update({"../x": config["model"]["heads"].pop("out")}),
        "'../x' cannot name a head",
    ),
    "NaN": (skip(scale=float("nan")), "finite"),
    "infinity": (skip(scale=float("inf")), "finite"),
    "an unknown setting": (put("model", "__class__", value="os"), "no such setting"),
    "another fusion": (put("model", "heads", "out", "fusion", value="eval"), "'sum', 'mean' or 'max'"),
    "a class with escapes": (class_names("\x1b[2J\x1b]0;owned\x07"), "control character '\\x1b'"),
    "a class of two lines": (class_names("a\nb"), "control character '\\n'"),
    "a class with NUL": (class_names("a\0"), "control character '\\x00'"),
    "a class that turns the line": (class_names("a\u202egnp.exe"), "control character '\\u202e'"),
    "a lone surrogate": (class_names("\ud800"), "unable to parse raw data as a unicode string"),
    "a class of a megabyte": (class_names("x" * 10**6), "at most 200 characters"),
    "no model": (put("model", value=[]), "config.json"),
    "classes of an unknown head": (put("classes", value={"out": None}), "classes"),
    "format as a list": (put("format", value=[1]), "format [1]"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_a_config_asks_for_is_refused_before_it_is_made(good: Path, tmp_path: Path, name: str) -> None:
    change, said = HOSTILE[name]
    assert said in refusal(hostile(good, tmp_path / "m", change))


TEXTS = {
    "a name twice": ('{"format": 1, "format": 1}', "'format' occurs twice"),
    "a nested name twice": ('{"format": 1, "model": {"backbone": "a", "backbone": "b"}}', "'backbone' occurs twice"),
    "lists in lists": ("[" * 100_000, "nested more than 64 deep"),
    "tables in tables": ('{"a":' * 300 + "1" + "}" * 300, "nested more than 64 deep"),
    "a number of 5000 digits": ('{"format": ' + "9" * 5000 + "}", "Exceeds the limit"),
    "not JSON": ("<html>", "not valid JSON"),
    "nothing": ("", "not valid JSON"),
    "a text": ('"x"', "format 'str'"),
    "17 megabytes": (" " * (17 << 20), "bytes; expected 16,777,216 at most"),
}


@pytest.mark.parametrize("name", TEXTS)
def test_what_is_no_plain_json_is_refused(good: Path, tmp_path: Path, name: str) -> None:
    text, said = TEXTS[name]
    assert said in refusal(hostile(good, tmp_path / "m", text))


def test_a_file_of_another_encoding_is_refused(good: Path, tmp_path: Path) -> None:
    folder = hostile(good, tmp_path / "m", "")
    (folder / "config.json").write_bytes(b'{"format": "\xff"}')
    assert "not UTF-8 text" in refusal(folder)


def places(node: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Every place of a JSON value."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, child in items:
        yield (*path, key)
        yield from places(child, (*path, key))


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**12), 10**12) | st.floats() | st.text(max_size=8)
    | st.sampled_from(["tinyvgg", "stride16", "stride2", "out", "zeros", "full", "pad100", "imagenet", "a/b"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_config_with_any_value_in_any_place_loads_or_is_refused(
    good: Path, tmp_path: Path, data: st.DataObject
) -> None:
    config = settings_of(good)
    change = copy.deepcopy(config)
    for _ in range(data.draw(st.integers(1, 2))):
        path = data.draw(st.sampled_from([p for p in places(change) if p[0] != "provenance"]))
        put(*path, value=data.draw(JUNK))(change)
    folder = tmp_path / "m"
    shutil.rmtree(folder, ignore_errors=True)
    hostile(good, folder, json.dumps(change))
    try:
        load(folder)
    except CheckpointError as error:
        told = str(error)
    else:
        return
    assert not CONTROL.search(told)
    assert str(folder) in told


# What was tuned ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["../../outside.onnx", "/outside.onnx", "trunk.onnx\0", "other.onnx", ["trunk.onnx"]])
def test_what_was_tuned_names_no_file_elsewhere(good: Path, tmp_path: Path, file: object) -> None:
    folder = tmp_path / "m"
    shutil.copytree(good, folder)
    row = {"engine": "onnxruntime", "precision": "32", "milliseconds": 1, "agreement": 1, "file": file}
    tuned = {"format": 1, "model": engines.identity(folder), "machine": engines.machine(), "size": [9, 9]}
    (folder / engines.FOLDER).mkdir()
    (folder / engines.FOLDER / "tuned.json").write_text(json.dumps(tuned | {"pictures": "", "measured": [row]}))
    with pytest.raises(CheckpointError, match=r"tuned\.json: damaged \(file "):
        engines.read_tuned(folder)


@pytest.mark.parametrize("text", ["1e1000000000", "1/0", "9" * 50, "nan", "1_0", " 1", ""])
def test_a_fraction_is_two_short_numbers(text: str) -> None:
    with pytest.raises(ValueError, match="is no fraction"):
        engines._fraction(text)
    assert [str(engines._fraction(good)) for good in ("1/2", "-3", "15/2")] == ["1/2", "-3", "15/2"]


def test_every_error_prints_as_one_line() -> None:
    error = FullyConvError("a\nb\x1b[31m\u202e\ud800" + "x" * 10**6)
    assert str(error).isprintable()
    assert str(error).startswith(r"a b\x1b[31m\u202e\ud800xxx")
    assert len(str(error)) < 2100
