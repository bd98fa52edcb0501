"""The Triton kernels: in the interpreter, compiled for devices that are not here, and on the device that is."""

from __future__ import annotations

import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import pytest
import torch

import fullyconv
from fullyconv import dense
from fullyconv.geometry import Grid
from fullyconv.upsample import Nearest, Steps, Upsample

KERNELS = Path(__file__).with_name("fused_kernels.py")


def run(**environment: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", str(KERNELS)],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
    assert " skipped" not in done.stdout


@pytest.mark.slow
def test_kernels_give_what_torch_gives_in_the_interpreter() -> None:
    triton = pytest.importorskip("triton", reason="torch came without triton")
    if tuple(map(int, triton.__version__.split(".")[:2])) < (3, 6):
        pytest.skip(
            "interpreters lack 1-bit integers (3.2) or convert arrays as numpy refuses or warns of (3.3 to 3.5)"
        )
    run(TRITON_INTERPRET="1", CUDA_VISIBLE_DEVICES="")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_kernels_give_what_torch_gives_on_the_device() -> None:
    pytest.importorskip("triton", reason="torch came without triton")
    run(TRITON_INTERPRET="0")


COMPILE = """
import inspect
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from fullyconv import fused

def assembly(kernel, capability, **constants):
    types = {"scores": "*bf16", "labels": "*i64" if constants.get("GOAL") != "argmax" else "*u8"}
    types |= dict.fromkeys(("runs", "row_cell", "column_cell", "row_gaps", "column_gaps"), "*i32")
    types |= dict.fromkeys(("void", "odd_row", "odd_column", *fused._NUMBERS), "i32")
    signature = {n: "constexpr" if n in constants else types.get(n, "*fp32") for n in kernel.arg_names}
    named = inspect.signature(ASTSource).parameters
    source = ASTSource(kernel, signature, **{"constexprs" if "constexprs" in named else "constants": constants})
    made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"enable_fp_fusion": False})
    assert made.asm["cubin"]
    return made.asm["ptx"]

absent = {"values": None, "scale": None, "weights": None}
assert "fma." not in assembly(fused._reduce, 80, GOAL="argmax", R=8, C=128, **absent)
assembly(fused._reduce, 90, GOAL="loss", R=8, C=128)
assert "atom" not in assembly(fused._gather, 90, R=8, C=8, N=32)
"""


@pytest.mark.slow
def test_kernels_compile_without_fused_sums_which_would_round_differently(tmp_path: Path) -> None:
    pytest.importorskip("triton", reason="torch came without triton")
    done = subprocess.run(
        [sys.executable, "-c", COMPILE],
        env={**os.environ, "TRITON_CACHE_DIR": str(tmp_path), "TRITON_INTERPRET": "0"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]


def test_without_triton_torch_does_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fullyconv.fused", None)
    monkeypatch.delattr(fullyconv, "fused", raising=False)  # where another test has imported it
    dense._fused_on.cache_clear()
    assert dense._fused_on(torch.device("cuda")) is None
    dense._fused_on.cache_clear()


def test_scores_on_the_cpu_never_ask_for_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dense, "_fused_on", lambda _: pytest.fail("asked"))
    scores, upsample = torch.zeros(1, 3, 2, 2), Upsample(Grid().conv(4, stride=4), Grid(), 3)
    assert not dense.argmax(scores, upsample, (8, 8)).any()
    assert dense.cross_entropy(scores, upsample, torch.zeros(1, 8, 8, dtype=torch.long), void=255) > 1


def test_what_kernels_fill_lies_where_the_scores_are(monkeypatch: pytest.MonkeyPatch) -> None:
    filled: list[torch.Tensor] = []
    monkeypatch.setattr(dense, "_kernel", lambda *_: lambda **made: filled.extend(made.values()))
    scores, upsample = torch.zeros(1, 3, 2, 2, device="meta"), Upsample(Grid().conv(4, stride=4), Grid(), 3)
    for reduce in (dense.argmax, dense.probability, dense.entropy):
        reduce(scores, upsample, (8, 8))
    assert [made.device.type for made in filled] == ["meta"] * 4
    taps = upsample.taps(2, 8)
    pytest.importorskip("triton", reason="torch came without triton")
    from fullyconv.fused import Axis

    axis = Axis.of(taps, 2, scores.device)
    assert {field.device.type for field in axis if isinstance(field, torch.Tensor)} == {"meta"}


def test_kernels_are_given_the_axes_of_bilinear_upsampling_and_of_no_other() -> None:
    pytest.importorskip("triton", reason="torch came without triton")
    scores, lies = torch.zeros(1, 3, 2, 5), Grid().conv(4, stride=4)
    upsample = Upsample(lies, Grid(), 3)
    axes = dense._axes(scores, upsample, (8, 19))
    assert axes is not None
    for axis, cells, pixels in zip(axes, (2, 5), (8, 19), strict=True):
        index, lower, upper = upsample.taps(cells, pixels)
        assert axis.pixels == pixels
        assert axis.gaps.shape == (cells + 2,)
        assert axis.cell.equal(index)
        assert axis.lower.equal(lower)
        assert axis.upper.equal(upper)
    # Made once for each size and device, and of use in training even where inference was first to ask.
    with torch.inference_mode():
        sent = dense._axis(upsample, 2, 9, torch.device("meta"))
    assert sent is not None
    assert sent is dense._axis(upsample, 2, 9, torch.device("meta"))
    assert (sent.lower.device.type, sent.lower.is_inference()) == ("meta", False)
    steps = Steps(lies, Grid(), 3)
    assert dense._axes(scores, steps, (8, 19)) is None
    assert dense._axes(scores, Nearest(steps, Fraction(1, 2)), (8, 19)) is None
    assert dense._axes(scores, Upsample(lies, Grid(), 3, kernel="learned"), (8, 19)) is None
