"""`hha` as a user meets it."""

from __future__ import annotations

from pathlib import Path

import miniatures as mini
import numpy as np
import pytest
from conftest import Run
from PIL import Image

from fullyconv import images


def test_hha_is_computed_for_a_folder(run: Run, tmp_path: Path) -> None:
    from fullyconv.hha import Camera, hha, nyud_camera

    depth = np.random.default_rng(0).integers(1500, 4000, (30, 40)).astype(np.uint16)
    mini.put(tmp_path / "depth/a/1.png", depth)
    mini.put(tmp_path / "depth/2.png", depth)
    code, out, _ = run("hha", tmp_path / "depth", "--out", tmp_path / "hha")
    assert (code, out) == (0, f"2 of 2 depth maps: {tmp_path / 'hha'}\n")
    written = images.read_image(tmp_path / "hha/a/1.png").pixels
    assert np.array_equal(written, hha(depth / 1000, nyud_camera(30, 40)).encoded())
    # What is there is kept; another camera and unit give other numbers.
    own = ("--fx", "40", "--fy", "40", "--cx", "19.5", "--cy", "14.5", "--unit", "0.002")
    run("hha", tmp_path / "depth", "--out", tmp_path / "hha", *own)
    assert np.array_equal(images.read_image(tmp_path / "hha/2.png").pixels, written)
    run("hha", tmp_path / "depth", "--out", tmp_path / "hha", "--overwrite", *own)
    again = images.read_image(tmp_path / "hha/2.png").pixels
    Image.fromarray((depth // 100).astype(np.uint8)).save(tmp_path / "depth/3.bmp")
    assert run("hha", tmp_path / "depth", "--out", tmp_path / "hha", "--unit", "0.1")[1].startswith("3 of 3")
    assert (tmp_path / "hha/3.png").exists()
    assert np.array_equal(again, hha(depth * 0.002, Camera(40, 40, 19.5, 14.5)).encoded())


def test_hha_skips_what_is_no_depth_and_says_so(run: Run, tmp_path: Path) -> None:
    mini.put(tmp_path / "depth/1.png", np.zeros((30, 40), np.uint16))
    code, out, err = run("hha", tmp_path / "depth", "--out", tmp_path / "hha")
    assert code == 2
    assert "0 of 1 depth maps" in out
    assert f"skipped: {tmp_path / 'depth/1.png'}: no pixel has a depth above 0" in err
    mini.put(tmp_path / "depth/2.png", np.full((30, 40), 2000, np.uint16))
    assert run("hha", tmp_path / "depth", "--out", tmp_path / "hha")[0] == 1
    code, _, err = run("hha", tmp_path / "depth", "--out", tmp_path / "hha", "--fx", "500")
    assert (code, err) == (
        2,
        "fullyconv: error: --fx, --fy, --cx and --cy describe one camera; give all four, or none for NYUDv2's\n",
    )
    code, _, err = run("hha", tmp_path / "none", "--out", tmp_path / "hha")
    assert code == 2
    assert "none: no such folder" in err
    (tmp_path / "none").mkdir()
    code, _, err = run("hha", tmp_path / "none", "--out", tmp_path / "hha")
    assert code == 2
    assert "none: no .png, .tif or .bmp file in it" in err


def test_hha_never_replaces_depth_and_no_two_maps_share_a_result(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    depth = np.full((30, 40), 2000, np.uint16)
    mini.put(tmp_path / "depth/1.png", depth)
    before = (tmp_path / "depth/1.png").read_bytes()
    for options in ([], ["--overwrite"]):
        code, _, err = run("hha", tmp_path / "depth", "--out", tmp_path / "depth", *options)
        assert code == 2
        assert "depth/1.png: would replace one of the depth maps" in err
    assert (tmp_path / "depth/1.png").read_bytes() == before
    # Results below the depth maps are not computed from again.
    for said in ("1 of 1", "1 of 1"):
        assert said in run("hha", tmp_path / "depth", "--out", tmp_path / "depth/hha")[1]
    monkeypatch.chdir(tmp_path)
    assert "1 were there and are kept" in run("hha", tmp_path / "depth", "--out", "depth/hha")[1]
    Image.fromarray(depth).save(tmp_path / "depth/1.tif")
    code, _, err = run("hha", tmp_path / "depth", "--out", tmp_path / "hha")
    assert code == 2
    assert "would both be" in err


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--fx", "0", "fx: got 0.0"),
        ("--fy", "nan", "fy: got nan"),
        ("--cx", "inf", "cx: got inf"),
        ("--unit", "0", "--unit 0"),
    ],
)
def test_hha_refuses_a_camera_that_cannot_be(run: Run, tmp_path: Path, option: str, value: str, message: str) -> None:
    mini.put(tmp_path / "depth/1.png", np.full((30, 40), 2000, np.uint16))
    own = {"--fx": "40", "--fy": "40", "--cx": "19.5", "--cy": "14.5", option: value}
    code, _, err = run(
        "hha", tmp_path / "depth", "--out", tmp_path / "hha", *(text for pair in own.items() for text in pair)
    )
    assert code == 2
    assert message in err
    assert not (tmp_path / "hha").exists()


def test_an_output_that_cannot_be_made_and_a_folder_that_is_none_are_one_line(run: Run, tmp_path: Path) -> None:
    mini.put(tmp_path / "depth/1.png", np.full((30, 40), 2000, np.uint16))
    (tmp_path / "file").write_text("")
    for arguments, said in (
        ((tmp_path / "depth", "--out", tmp_path / "file"), "file: cannot be written: File exists"),
        ((tmp_path / "depth/1.png", "--out", tmp_path / "hha"), "1.png: a file; expected a folder of depth maps"),
        ((tmp_path / "nothing", "--out", tmp_path / "hha"), "nothing: no such folder; expected a folder of depth maps"),
    ):
        code, _, err = run("hha", *arguments)
        assert code == 2
        assert said in err
        assert err.count("\n") == 1
