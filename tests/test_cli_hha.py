"""`hha` as a user meets it."""

from __future__ import annotations

from pathlib import Path

import miniatures as mini
import numpy as np
from conftest import Run

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
    assert "none: no .png or .tif file in it" in err
