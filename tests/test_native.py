"""The native kernel gives what torch gives, on every pixel; and the package is built and works without it."""

from __future__ import annotations

import importlib.util
import math
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from scoremaps import Case, cases, laid_out
from torch import Tensor

from fullyconv import dense, native
from fullyconv.geometry import Grid
from fullyconv.upsample import Interpolate, Nearest, Steps, Upsample

ROOT = Path(__file__).parents[1]
TARGETS = native.kernel().targets
built = pytest.mark.skipif(not native.available(), reason=native.describe())


def native_results(case: Case, target: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Labels, labels again, their probability, entropy."""
    taps = dense._taps(case.scores, case.upsample, case.size)
    assert taps is not None
    shape, dtype = (len(case.scores), *case.size), dense._label_type(case.scores)
    labels, again = (torch.full(shape, 99, dtype=dtype) for _ in range(2))
    probability, entropy = (torch.full(shape, math.inf) for _ in range(2))
    torch.set_num_threads(case.threads)
    native.reduce(case.scores, *taps, labels=labels, target=target)
    native.reduce(case.scores, *taps, labels=again, probability=probability, target=target)
    native.reduce(case.scores, *taps, entropy=entropy, target=target)
    torch.set_num_threads(1)
    return labels, again, probability, entropy


def plain_entropy(logits: Tensor) -> Tensor:
    shares = logits.double().softmax(1)
    return -torch.xlogy(shares, shares).sum(1)


# --- equality on every pixel ------------------------------------------------------------------------------------------


@built
@pytest.mark.parametrize("target", TARGETS)
@settings(deadline=None, max_examples=60)
@given(case=cases())
def test_labels_equal_those_of_torch_on_every_pixel(target: str, case: Case) -> None:
    logits = case.reference()
    labels, again, probability, entropy = native_results(case, target)
    assert labels.long().equal(logits.max(1).indices)
    assert again.equal(labels)
    expected = logits.double().softmax(1).amax(1).float()
    torch.testing.assert_close(probability, expected, rtol=2e-6, atol=0, equal_nan=True)
    torch.testing.assert_close(entropy, plain_entropy(logits).float(), rtol=1e-6, atol=2e-6, equal_nan=True)


@built
@pytest.mark.parametrize("target", TARGETS)
def test_scores_that_are_nearly_infinite_leave_no_doubt(target: str) -> None:
    """A difference of 1e37 times what is left of its power, 1.6e-38, was taken for entropy."""
    scores = torch.tensor([[2.6e38, 1.1e38, 2.5e37], [2.5e38, -1.8e38, -6.6e37]]).view(1, 2, 1, 3)
    coarse = Grid(Fraction(2), Fraction(1, 2), Fraction(2))
    case = Case(scores, Upsample(coarse, Grid(), 2, border="zero"), (2, 6), 1)
    _, _, probability, entropy = native_results(case, target)
    assert torch.equal(probability, torch.ones(1, 2, 6))
    assert entropy.abs().max() < 1e-30


@built
@settings(deadline=None, max_examples=40)
@given(cases())
def test_instruction_sets_give_the_same_bits(case: Case) -> None:
    best, *others = (native_results(case, target) for target in TARGETS)
    for other in others:
        for a, b in zip(best, other, strict=True):
            assert torch.equal(a.nan_to_num(-7), b.nan_to_num(-7))


@built
@settings(deadline=None, max_examples=60)
@given(cases(kinds=("noise", "smooth", "ties", "constant", "planes", "masked", "odd")))
def test_torch_block_by_block_gives_the_same_but_for_ties_by_rounding(case: Case) -> None:
    logits = case.reference()
    labels = dense.argmax(case.scores, case.upsample, case.size)
    in_blocks = dense.argmax(case.scores, case.upsample, case.size, block=(7, 9))
    assert labels.dtype == in_blocks.dtype
    # Of scores that are unequal by rounding alone either may be called the largest.
    unequal = labels != in_blocks
    chosen, other = (logits.gather(1, found.long()[:, None])[:, 0][unequal] for found in (labels, in_blocks))
    assert torch.allclose(chosen, other, rtol=1e-6, atol=1e-5)
    found, probability = dense.probability(case.scores, case.upsample, case.size)
    assert found.equal(labels)
    by_torch = dense.probability(case.scores, case.upsample, case.size, block=(7, 9))[1]
    torch.testing.assert_close(probability, by_torch, rtol=1e-5, atol=0, equal_nan=True)
    torch.testing.assert_close(
        dense.entropy(case.scores, case.upsample, case.size),
        dense.entropy(case.scores, case.upsample, case.size, block=(7, 9)),
        rtol=1e-5,
        atol=1e-5,
        equal_nan=True,
    )


@pytest.mark.parametrize("classes", [2, 21, 256])
@pytest.mark.parametrize("layout", ["contiguous", "channels last"])
def test_labels_equal_those_of_interpolate_nan_and_all(classes: int, layout: str) -> None:
    generator = torch.Generator().manual_seed(classes)
    scores = torch.randn(2, classes, 15, 22, generator=generator)
    scores[torch.rand(scores.shape, generator=generator) < 0.1 / classes] = math.nan
    scores = laid_out(scores, layout)
    # No pixel lies exactly on a cell, where rounding decides which two it lies between.
    for size in ((120, 176), (116, 172), (60, 44)):
        logits = F.interpolate(scores, size, mode="bilinear")
        labels = dense.argmax(scores, Interpolate(Grid().conv(8, stride=8), Grid(), classes), size).long()
        nans = logits.isnan().any(1)
        assert nans.any()
        assert not nans.all()
        assert labels[nans].equal(logits.max(1).indices[nans])
        first, second = logits.topk(2, 1).values.unbind(1)
        clear = first - second > 1e-5
        assert labels[clear & ~nans].equal(logits.argmax(1)[clear & ~nans])


def test_a_class_masked_with_minus_infinity_never_wins_even_where_its_weight_is_zero() -> None:
    scores = torch.randn(1, 5, 6, 6, generator=torch.Generator().manual_seed(0))
    scores[:, 1] = -math.inf
    for upsample in (Upsample(Grid().conv(8, stride=8), Grid(), 5), Upsample(Grid(Fraction(8)), Grid(), 5)):
        for block in (None, (16, 16)):
            found, probability = dense.probability(scores, upsample, (48, 48), block=block)
            assert not (found == 1).any()
            assert probability.isfinite().all()
            assert dense.entropy(scores, upsample, (48, 48), block=block).isfinite().all()


@settings(deadline=None, max_examples=60)
@given(cases())
def test_taps_are_the_matrix(case: Case) -> None:
    for cells, pixels in zip(case.scores.shape[-2:], case.size, strict=True):
        taps = case.upsample.taps(cells, pixels)
        assert taps is not None
        index, lower, upper = taps
        eye = F.pad(torch.eye(cells), (0, 0, 1, 2))  # cell -1, ..., cell n + 1
        built = lower[:, None] * eye[index + 1] + upper[:, None] * eye[index + 2]
        assert built.equal(case.upsample.matrix(cells, pixels))
        assert (lower + upper - 1).abs().max() <= 2**-24


def test_steps_lie_on_more_than_two_cells_and_are_left_to_torch() -> None:
    scores = torch.randn(1, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    steps = Steps(Grid().conv(8, stride=8), Grid(), 3)
    for upsample in (steps, Nearest(steps, Fraction(2))):
        assert dense._native_taps(scores, upsample, (40, 40)) is None
        assert dense.argmax(scores, upsample, (40, 40)).long().equal(upsample(scores, (40, 40)).argmax(1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_upsampled_in_single(dtype: torch.dtype) -> None:
    scores = torch.randn(1, 21, 9, 9, generator=torch.Generator().manual_seed(0)).to(dtype).requires_grad_()
    upsample = Upsample(Grid().conv(4, stride=4), Grid(), 21)
    labels = dense.argmax(scores, upsample, (36, 36))
    assert labels.equal(dense.argmax(scores.float(), upsample, (36, 36)))
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert dense.argmax(scores, upsample, (36, 36)).equal(labels)


def test_no_pictures_have_no_labels() -> None:
    assert dense.argmax(torch.zeros(0, 3, 4, 4), Upsample(Grid(), Grid(), 3), (4, 4)).shape == (0, 4, 4)


# --- memory -----------------------------------------------------------------------------------------------------------

MEMORY = """
import resource, torch
from fullyconv import dense
from fullyconv.geometry import Grid
from fullyconv.upsample import Upsample
torch.set_num_threads(2)

def added(classes, kernel, size):
    upsample = Upsample(Grid().conv(8, stride=8), Grid(), classes, kernel=kernel)
    scores = torch.randn(1, classes, size // 8, size // 8)
    dense.argmax(scores[..., :16, :16], upsample, (128, 128))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for reduce in (dense.argmax, dense.probability, dense.entropy):
        reduce(scores, upsample, (size, size))
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024

print(added(1000, "fixed", 1024), added(60, "learned", 1024))
"""


@built
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in kB on Linux only")
def test_a_thousand_classes_never_are_where_the_pixels_are() -> None:
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    fixed, learned = map(int, done.stdout.split())
    assert fixed < 40  # of 4,000 MB
    assert learned < 180  # 240 MB, and three times that for the entropy


# --- with and without -------------------------------------------------------------------------------------------------


@pytest.fixture
def _afresh() -> Iterator[None]:
    native.kernel.cache_clear()
    yield
    native.kernel.cache_clear()


@pytest.mark.usefixtures("_afresh")
def test_the_kernel_can_be_switched_off_and_torch_does_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FULLYCONV_NATIVE", "0")
    monkeypatch.setattr(native, "reduce", lambda *_, **__: pytest.fail("called"))
    assert native.describe() == "native kernel: switched off (FULLYCONV_NATIVE=0); torch is used"
    scores = torch.eye(3).view(1, 3, 1, 3)
    assert dense.argmax(scores, Upsample(Grid().conv(2, stride=2), Grid(), 3), (1, 6)).tolist() == [
        [[0, 0, 1, 1, 2, 2]]
    ]


@pytest.mark.usefixtures("_afresh")
def test_a_kernel_that_is_not_there_or_broken_is_said_to_be(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("FULLYCONV_NATIVE", raising=False)
    monkeypatch.setattr(native, "LIBRARY", tmp_path / "none.so")
    assert native.describe() == "native kernel: not built (no C++ compiler at installation); torch is used"
    assert not native.available()
    native.kernel.cache_clear()
    (tmp_path / "none.so").write_text("no library")
    assert native.describe().startswith("native kernel: not loaded (")


@built
@pytest.mark.usefixtures("_afresh")
def test_a_kernel_of_other_source_is_not_called(monkeypatch: pytest.MonkeyPatch) -> None:
    assert native.describe() == f"native kernel: {TARGETS[0]}, 1 thread"
    native.kernel.cache_clear()
    monkeypatch.setattr(native, "VERSION", 0)
    assert "built from other source" in native.describe()


# --- building ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """What a wheel is built of, without a kernel."""
    copy = tmp_path / "copy"
    shutil.copytree(ROOT / "src", copy / "src", ignore=shutil.ignore_patterns("_kernel.*", "__pycache__"))
    for name in ("pyproject.toml", "hatch_build.py", "README.md", "LICENSE", ".gitignore"):
        shutil.copy(ROOT / name, copy / name)
    return copy


def wheel(copy: Path, **environment: str) -> tuple[Path, str]:
    """The wheel, and what was said."""
    done = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel"],
        cwd=copy,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return next(copy.glob("dist/*.whl")), done.stdout + done.stderr


def test_without_a_compiler_the_wheel_is_plain_python_and_says_so_in_one_line(copy: Path, tmp_path: Path) -> None:
    pytest.importorskip("hatchling")
    (copy / "src" / "fullyconv" / "native" / hatch_build().LIBRARY).write_text("old")
    made, said = wheel(copy, PATH=str(tmp_path), CXX="")
    assert made.name.endswith("-py3-none-any.whl")
    lines = [line for line in said.splitlines() if "native kernel" in line]
    assert len(lines) == 1
    assert lines[0].endswith(
        "plain torch will be used: no C++ compiler found (c++, g++, clang++ or the environment's CXX)"
    )
    assert not [name for name in zipfile.ZipFile(made).namelist() if "_kernel." in name]


def test_with_a_compiler_the_wheel_is_for_this_platform_and_holds_the_kernel(copy: Path) -> None:
    pytest.importorskip("hatchling")
    if hatch_build().build(Path(os.devnull), copy / "nothing.so") is not None:
        pytest.skip("no C++ compiler")
    made, _ = wheel(copy)
    assert made.name.endswith(f"-py3-none-{hatch_build().platform_tag()}.whl")
    assert [name for name in zipfile.ZipFile(made).namelist() if "_kernel." in name] == [
        f"fullyconv/native/{native.LIBRARY.name}"
    ]


def test_a_compiler_that_fails_is_quoted_in_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("hatchling")
    source = tmp_path / "broken.cpp"
    source.write_text("no C++ at all")
    if shutil.which("c++") is None:
        pytest.skip("no C++ compiler")
    monkeypatch.setenv("CXX", "c++")
    problem = hatch_build().build(source, tmp_path / "made.so")
    assert problem is not None
    assert problem.startswith("c++ failed: ")
    assert "\n" not in problem
    assert not (tmp_path / "made.so").exists()


def hatch_build() -> ModuleType:
    found = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module
