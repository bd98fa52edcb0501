"""Draw the figures and compute the tables of these pages.

    python docs/explanation/figures.py NAME ... | all [--out docs/explanation/images]

NAME is that of a page without its suffix. Each prints its table as Markdown, as it stands in the page, and writes
NAME.png where the page has a picture. Everything is computed with the library, on generated scenes and with seed 0;
where something is trained, it is a TinyVGG, for half a minute at most on two quiet cores.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from fullyconv import Grid, build, explain, presets, rarefy, shift_and_stitch
from fullyconv.backbones import BACKBONES
from fullyconv.config import INPUTS, DataConfig, FitConfig, ModelConfig
from fullyconv.datasets.scenes import KINDS, Scenes
from fullyconv.demo import SIZE, train_classifier
from fullyconv.evaluation import evaluate
from fullyconv.events import Event, Step
from fullyconv.fitting import fit
from fullyconv.losses import sample_patches
from fullyconv.metrics import ConfusionMatrix
from fullyconv.model import FCN, Preprocess
from fullyconv.studies.masking import Kept, Masked, mask_colour
from fullyconv.surgery import plan
from fullyconv.transplant import transplant
from fullyconv.upsample import Steps, Upsample, bilinear_kernel

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

Array = npt.NDArray[Any]
TRAIN = Scenes(300, (160, 160), seed=0)
TEST = Scenes(24, (160, 160), seed=0, split="test")
CLASSES = len(KINDS) + 1
COLOURS = np.array([c.colour for c in TEST.classes["out"].used] + [(224, 224, 192)] * (256 - CLASSES), np.uint8)
SHOWN = 3
"""The test scene that is shown."""
VOID = TEST.classes["out"].void
STAGES = (150, 100, 150)
"""Steps at stride 32, 16 and 8; a net that is not trained in stages has them all."""


# What the figures share ----------------------------------------------------------------------------------------------


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def panels(count: int, *, size: tuple[float, float] = (2.2, 2.4), columns: int | None = None) -> tuple[Figure, Any]:
    """A white figure of ``count`` panels, each of this (width, height) in inches, row after row."""
    columns = columns or count
    rows = -(-count // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(size[0] * columns, size[1] * rows), squeeze=False)
    return figure, axes.ravel()


def write(figure: Figure, path: Path) -> None:
    """Write a PNG that is the same every time, small, and readable on a dark page."""
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90, facecolor="white", metadata={"Software": None})
    plt.close(figure)


def show(axes: Axes, picture: Array, title: str, **how: Any) -> None:
    """A picture without ticks."""
    axes.imshow(picture, interpolation="nearest", **how)
    axes.set_title(title, fontsize=8)
    axes.axis("off")


def picture_of(image: Array) -> Tensor:
    """(H, W, 3) uint8 -> (1, 3, H, W)."""
    return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None]


@torch.no_grad()
def labels_of(model: FCN, image: Array) -> Array:
    """Class of each pixel, (H, W)."""
    logits = model.eval()(picture_of(image))["out"]
    labels: Array = logits.argmax(1)[0].numpy()
    return labels


def scored(model: FCN, data: Any = TEST) -> ConfusionMatrix:
    """Counts on held-out scenes."""
    return evaluate(model, data, device="cpu", precision="32")["out"]


def percent(share: float) -> str:
    return f"{100 * share:.1f}"


def thousands(count: float) -> str:
    return f"{count:,.0f}"


def flops(net: nn.Module, image: Tensor) -> int:
    """Floating-point operations of one run (a multiply-add is 2); on the meta device nothing is computed."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net.eval()(image)
    return int(counter.get_total_flops())


def on_meta(config: ModelConfig) -> FCN:
    """A net without memory for its weights, to be measured only."""
    with torch.device("meta"):
        return build(config).eval()


def learn(model: FCN, steps: int, data: Any = TRAIN, *, lr: float = 4e-3, **settings: Any) -> list[float]:
    """Train in place; the loss of every step."""
    chosen = FitConfig(steps=steps, batch=8, lr=lr, warmup=20, ema=0, precision="32", device="cpu", **settings)
    transform = DataConfig(root="", name="scenes", crop=(96, 96), scale=(0.9, 1.1), jitter=0.1, workers=0)
    events: Iterable[Event] = fit(model, data, None, chosen, data=transform)
    return [event.loss for event in events if isinstance(event, Step)]


@cache
def classifier() -> nn.Module:
    """TinyVGG that names single things on pictures of 96x96."""
    return train_classifier(1200, lambda event: None)[0]


def fresh(config: ModelConfig) -> FCN:
    """A net as it starts: the classifier's weights, and scores of zero."""
    torch.manual_seed(0)
    model = build(config, classes=TEST.classes)
    transplant(classifier().state_dict(), model.backbone.net)
    return model


@cache
def segmenter() -> FCN:
    """FCN-8s on TinyVGG, from the classifier, all skips at once, kernels between skips learned."""
    model = fresh(presets.fcn8s("tinyvgg", CLASSES, weights=None, upsampling="learned"))
    learn(model, sum(STAGES))
    return model.eval()


def upgraded(coarse: FCN, preset: Callable[..., ModelConfig]) -> FCN:
    """The next finer net, with all weights of the coarser one; what is new scores zero."""
    finer = fresh(preset("tinyvgg", CLASSES, weights=None, upsampling="learned"))
    assert not finer.load_state_dict(coarse.state_dict(), strict=False).unexpected_keys
    return finer


@cache
def staged() -> tuple[list[FCN], list[float]]:
    """FCN-32s, 16s and 8s, each from the one before, in as many steps as `segmenter`; and the loss of every step."""
    nets, losses = [fresh(presets.fcn32s("tinyvgg", CLASSES, weights=None))], []
    for steps, preset in zip(STAGES, (presets.fcn16s, presets.fcn8s, None), strict=True):
        losses += learn(nets[-1], steps)
        if preset is not None:
            nets.append(upgraded(nets[-1], preset))
    return nets, losses


# One function a page -------------------------------------------------------------------------------------------------


def score_layer(out: Path) -> str:
    """Scores of a trained classifier at every cell; sizes of VGG16's score layers."""
    dense = plan(classifier(), image_size=SIZE).apply(padding="same", verify=False).eval()
    scene = Scenes(1, (192, 288), seed=5)[0]
    with torch.no_grad():
        scores = dense(Preprocess(INPUTS["imagenet"])(picture_of(scene.image)))[0].softmax(0)
    kinds = list(KINDS)
    seen = list(np.bincount(scene.labels["out"].ravel(), minlength=256)[1:CLASSES].argsort()[::-1][:3])
    figure, axes = panels(4, size=(2.4, 1.9))
    show(axes[0], scene.image, f"scene, {scene.image.shape[1]}x{scene.image.shape[0]}")
    for panel, kind in zip(axes[1:], seen, strict=True):
        title = f"'{kinds[kind]}', {scores.shape[2]}x{scores.shape[1]} cells"
        show(panel, scores[kind].numpy(), title, vmin=0, vmax=1, cmap="magma")
    write(figure, out / "score-layer.png")

    model = on_meta(presets.fcn8s("vgg16", 21, weights=None))
    layers = dict(model.backbone.net.named_modules())
    named = {"fc6": layers["classifier.0"], "fc7": layers["classifier.3"]}
    named |= {f"score of {tap}": score[-1] for tap, score in model.heads["out"].score.items()}
    rows = []
    for name, layer in named.items():
        assert isinstance(layer, nn.Conv2d)
        size = f"{layer.kernel_size[0]}x{layer.kernel_size[1]}"
        rows.append((name, size, layer.in_channels, layer.out_channels, thousands(count_parameters(layer))))
    return table(["layer", "kernel", "channels in", "channels out", "parameters"], rows)


def count_parameters(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


def fusion(out: Path) -> str:
    """What nets of three strides see, and the three score maps that the finest one adds up."""
    nets, _ = staged()
    names = ["FCN-32s", "FCN-16s", "FCN-8s"]
    sample, head = TEST[SHOWN], nets[-1].heads["out"]
    figure, axes = panels(10, size=(1.8, 2.0), columns=5)
    show(axes[0], sample.image, "picture")
    show(axes[1], COLOURS[sample.labels["out"]], "truth")
    for panel, net, name in zip(axes[2:5], nets, names, strict=True):
        show(panel, COLOURS[labels_of(net, sample.image)], name)
    kind = int(np.bincount(sample.labels["out"].ravel(), minlength=256)[1:CLASSES].argmax()) + 1
    net = nets[-1].eval()
    with torch.no_grad():
        maps = net.backbone(net.preprocess(picture_of(sample.image)))
        parts = {f"stride {skip.tap[6:]}": head.score[skip.tap](maps[skip.tap])[0, kind] for skip in head.skips}
        parts["their sum"] = head.score_map(maps)[0, kind]
    axes[5].axis("off")
    name = TEST.classes["out"].names[kind]
    axes[5].text(
        0.5, 0.5, f"scores of '{name}'\nin FCN-8s:\nblue below 0,\nred above", ha="center", va="center", fontsize=9
    )
    for panel, (title, scores) in zip(axes[6:], parts.items(), strict=True):
        most = float(scores.abs().max())
        show(panel, scores.numpy(), title, cmap="RdBu_r", vmin=-most, vmax=most)
    write(figure, out / "fusion.png")
    rows = []
    for net, name in zip(nets, names, strict=True):
        matrix = scored(net)
        strides = ", ".join(skip.tap.removeprefix("stride") for skip in net.heads["out"].skips)
        rows.append((name, strides, percent(matrix.pixel_accuracy), percent(matrix.mean_iu)))
    return table(["net", "strides of the scores", "pixel accuracy", "mean IU"], rows)


def stitching(out: Path) -> str:
    """Four shifted pictures of one example, interlaced; and the cost of three ways to one dense map."""
    generator = torch.Generator().manual_seed(0)
    picture = torch.randint(0, 10, (1, 1, 5, 5), generator=generator).float()
    pool = nn.MaxPool2d(2)
    stitched = shift_and_stitch(pool, picture)[0, 0]
    assert torch.equal(stitched, rarefy(pool, channels=1, size=5, verify=False)(picture)[0, 0])
    tints = np.array([[(0.75, 0.86, 1.0), (1.0, 0.85, 0.7)], [(0.8, 0.95, 0.75), (0.95, 0.8, 0.95)]])
    figure, axes = panels(6, size=(1.7, 1.9))

    def numbers(panel: Axes, values: Tensor, colours: Array, title: str) -> None:
        show(panel, colours, title, vmin=0, vmax=1)
        for (row, column), value in np.ndenumerate(values.numpy()):
            panel.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize=10)

    numbers(axes[0], picture[0, 0], np.ones((5, 5, 3)), "picture, 5x5")
    for panel, (a, b) in zip(axes[1:5], np.ndindex(2, 2), strict=True):
        part = pool(picture[..., a:, b:])[0, 0]
        numbers(panel, part, np.broadcast_to(tints[a, b], (*part.shape, 3)), f"2x2 pool, cut by ({a}, {b})")
    rows, columns = stitched.shape
    numbers(axes[5], stitched, np.tile(tints, (rows // 2 + 1, columns // 2 + 1, 1))[:rows, :columns], "stitched, 4x4")
    write(figure, out / "shift-and-stitch.png")

    torch.manual_seed(0)
    net = nn.Sequential(
        *(nn.Conv2d(3, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 3), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 32, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(32, 11, 3)),
    ).double()
    image = torch.rand(1, 3, 96, 96, dtype=torch.float64)
    dense = rarefy(net).double()
    with torch.no_grad():
        plain, fine, rare = net(image), shift_and_stitch(net, image), dense(image)
    assert torch.equal(rare[..., ::8, ::8], plain) or torch.allclose(rare[..., ::8, ::8], plain, rtol=1e-12)
    worst = float((fine - rare).abs().max() / rare.abs().max())
    assert fine.shape == rare.shape
    assert worst < 1e-12
    base = flops(net, image)
    shifted = sum(flops(net, image[..., a:, b:]) for a in range(8) for b in range(8))
    results = [
        ("the net as it is", 1, plain, base),
        ("shift-and-stitch", 64, fine, shifted),
        ("filter rarefaction", 1, rare, flops(dense, image)),
    ]
    return table(
        ["way", "runs", "cells", "cost, times the net as it is"],
        [(name, runs, f"{m.shape[2]}x{m.shape[3]}", f"{cost / base:.1f}") for name, runs, m, cost in results],
    )


def deconvolution(out: Path) -> str:
    """The bilinear kernel at work along one axis, and kernels before and after training."""
    figure, axes = panels(3, size=(3.0, 2.5))
    coarse, factor = torch.tensor([1.0, 3.0, 2.0, 0.5, 2.5]), 4
    source = Grid().conv(factor, stride=factor)
    up = Upsample(source, Grid(), channels=1, border="zero")
    pixels = factor * len(coarse)
    matrix = up.matrix(len(coarse), pixels)
    for cell, value in enumerate(coarse):
        axes[0].plot(matrix[:, cell] * value, color="0.7", lw=1)
    centres = [float(source.offset + source.stride * i) for i in range(len(coarse))]
    axes[0].plot(centres, coarse, "o:", color="tab:red", ms=4, lw=1)
    axes[0].plot(matrix @ coarse, "o", color="tab:blue", ms=3)
    axes[0].set_title("each cell lays down one scaled kernel", fontsize=8)
    axes[0].set_xlabel("pixel", fontsize=8)
    axes[0].tick_params(labelsize=7)

    step = segmenter().heads["out"].align["stride8"]
    start = bilinear_kernel(step.weight.shape[-1])
    moved = (step.weight.detach()[:, 0] - start).abs().amax((1, 2))
    farthest = int(moved.argmax())
    for panel, kernel, title in (
        (axes[1], start, "before: bilinear"),
        (axes[2], step.weight.detach()[farthest, 0], f"learned for '{TEST.classes['out'].names[farthest]}'"),
    ):
        show(panel, kernel.numpy(), title, vmin=0, vmax=1.2, cmap="Blues")
        for (row, column), value in np.ndenumerate(kernel.numpy()):
            colour = "white" if value > 0.7 else "black"
            panel.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=7, color=colour)
    write(figure, out / "deconvolution.png")
    names = TEST.classes["out"].names
    order = moved.argsort(descending=True).tolist()
    chosen = [*order[:2], order[-1]]
    return table(
        ["kernel of class", "largest change of a weight", "sum of its weights (bilinear: 4)"],
        [(names[k], f"{moved[k]:.2f}", f"{step.weight.detach()[k].sum():.2f}") for k in chosen],
    )


def kernels(out: Path) -> str:
    """The transposed convolutions of the paper's nets on VGG16."""
    rows = []
    for name, preset in (("FCN-32s", presets.fcn32s), ("FCN-16s", presets.fcn16s), ("FCN-8s", presets.fcn8s)):
        for crop in explain(on_meta(preset("vgg16", 21, weights=None, geometry="pad100"))).crops:
            learned = "learned" if crop["to"] != "pixels" else "fixed"
            step = f"{crop['from']} to {crop['to']}", f"{crop['factor']:g}", crop["kernel"], f"{crop['crop']:g}"
            rows.append((name, *step, learned))
    return table(["net", "step", "factor", "kernel", "cells cropped", "in the CVPR paper"], rows)


def any_size(out: Path) -> str:
    """What becomes of pictures of odd sizes, on VGG16."""
    ours = on_meta(presets.fcn8s("vgg16", 21, weights=None))
    authors = on_meta(presets.fcn8s("vgg16", 21, weights=None, geometry="pad100"))
    rows = []
    for height, width in ((1, 1), (17, 300), (224, 224), (375, 500), (501, 333)):
        image = torch.empty(1, 3, height, width, device="meta")
        frame = ours.frame(height, width)
        maps = ours.backbone(ours.preprocess(image))
        fc7 = authors.backbone(authors.preprocess(image))["fc7"]
        logits = ours(image)["out"]
        assert logits.shape[2:] == authors(image)["out"].shape[2:] == (height, width)
        cells = " / ".join(f"{maps[tap].shape[2]}x{maps[tap].shape[3]}" for tap in ("fc7", "pool4", "pool3"))
        reads = f"{fc7.shape[2] + 6}x{fc7.shape[3] + 6}"
        framed = f"{height + frame.top + frame.bottom}x{width + frame.left + frame.right}"
        rows.append((f"{height}x{width}", framed, cells, f"{logits.shape[2]}x{logits.shape[3]}", reads))
    return table(
        ["picture", "framed", "cells of fc7 / pool4 / pool3", "logits", "authors' geometry: cells fc6 reads"], rows
    )


def patches(out: Path) -> str:
    """How much the loss of a batch varies with patch sampling; what patches cost one by one."""
    model, generator = segmenter(), torch.Generator().manual_seed(0)
    data = Scenes(160, (160, 160), seed=0, split="val")
    losses, counts = [], []
    with torch.no_grad():
        for sample in data:
            truth = torch.from_numpy(sample.labels["out"]).long()[None]
            loss = F.cross_entropy(model(picture_of(sample.image))["out"], truth, ignore_index=VOID, reduction="none")
            losses.append(F.avg_pool2d(loss, 32)[0])
            counts.append(F.avg_pool2d((truth != VOID).float(), 32)[0])
    loss, count = torch.stack(losses), torch.stack(counts)

    @cache
    def spread(pictures: int, keep: float, draws: int = 4000) -> float:
        chosen = torch.randint(len(data), (draws, pictures), generator=generator)
        cells = torch.zeros(draws * pictures, *loss.shape[1:])
        kept = sample_patches(cells, keep=keep, cell=1, void=VOID, generator=generator) != VOID
        kept = kept.view(draws, pictures, *loss.shape[1:])
        sums = [(of[chosen] * kept).sum((1, 2, 3)) for of in (loss, count)]
        return float((sums[0] / sums[1])[sums[1] > 0].std())

    batch, keeps = 8, (1.0, 0.5, 0.25, 0.125)
    whole = spread(batch, 1.0)
    rows, sampled, full = [], [], []
    for keep in keeps:
        pictures = round(batch / keep)
        sampled.append(spread(pictures, keep) / whole)
        full.append(spread(pictures, 1.0) / whole)
        rows.append((keep, pictures, f"{sampled[-1]:.2f}", f"{full[-1]:.2f}"))
    figure, (axes,) = panels(1, size=(4.2, 2.6))
    pictures = [batch / keep for keep in keeps]
    axes.plot(pictures, sampled, "o-", label="a share of their cells, as many as 8 pictures have")
    axes.plot(pictures, full, "s-", label="all their cells")
    axes.set(xscale="log", ylim=(0, 1.1))
    axes.set_xticks(pictures, [f"{n:.0f}" for n in pictures], fontsize=7, minor=False)
    axes.set_xticks([], minor=True)
    axes.tick_params(labelsize=7)
    axes.set_xlabel("pictures run", fontsize=8)
    axes.set_ylabel("spread of the batch's loss", fontsize=8)
    axes.legend(fontsize=7)
    write(figure, out / "patches.png")
    return table(["share kept", "pictures run", "spread, sampled", "spread, all cells of these"], rows)


def patch_cost(out: Path) -> str:
    """The cost of windows one by one, and in one run over the picture."""
    rows = []
    for name, window in (("caffenet", 227), ("vgg16", 224), ("tinyvgg", 96)):
        spec, side = BACKBONES[name], 500
        with torch.device("meta"):
            net = plan(spec.classifier(), image_size=spec.image_size, pool=spec.pool).apply(verify=False)
        image = torch.empty(1, 3, side, side, device="meta")
        with torch.no_grad():
            cells = net.eval()(image).shape[-2:]
        one, whole = flops(net, image[..., :window, :window]), flops(net, image)
        total = one * cells[0] * cells[1]
        grid = f"{cells[0]}x{cells[1]}"
        rows.append((name, window, grid, f"{total / 1e9:.1f}", f"{whole / 1e9:.1f}", f"{total / whole:.1f}"))
    return table(["net", "window, px", "windows", "one by one, GFLOPs", "in one run, GFLOPs", "times"], rows)


def stages(out: Path) -> str:
    """From 32s to 16s to 8s; with the layers behind the scores fixed, and not; and 8s at once."""
    nets, losses = staged()
    coarse, first, second = nets[0], STAGES[0], STAGES[0] + STAGES[1]
    start, fixed = upgraded(coarse, presets.fcn16s), upgraded(coarse, presets.fcn16s)
    same = np.mean([(labels_of(coarse, s.image) == labels_of(start, s.image)).mean() for s in islice(TEST, 10)])
    frozen = learn(fixed, STAGES[1], backbone_lr=0, freeze_norm=True)
    figure, (axes,) = panels(1, size=(5.2, 2.8))
    for name, begin, part in (
        ("FCN-32s", 0, losses[:first]),
        ("FCN-16s", first, losses[first:second]),
        ("FCN-16s, only scores learn", first, frozen),
        ("FCN-8s", second, losses[second:]),
    ):
        smooth = np.convolve(part, np.ones(10) / 10, mode="valid")
        axes.plot(begin + 10 + np.arange(len(smooth)), smooth, label=name, lw=1)
    axes.set_xlabel("step", fontsize=8)
    axes.set_ylabel("loss, mean of 10 steps", fontsize=8)
    axes.tick_params(labelsize=7)
    axes.legend(fontsize=7)
    write(figure, out / "stages.png")
    results = {
        f"FCN-32s after {first} steps": coarse,
        f"FCN-16s as it starts ({percent(float(same))} % of the labels are those of FCN-32s)": start,
        f"{STAGES[1]} steps later, if only scores and kernels learn": fixed,
        f"{STAGES[1]} steps later, if all layers learn": nets[1],
        f"FCN-8s, from that, {STAGES[2]} steps later": nets[2],
        f"FCN-8s at once, {sum(STAGES)} steps": segmenter(),
    }
    matrices = {name: scored(net) for name, net in results.items()}
    rows = [(name, percent(found.pixel_accuracy), percent(found.mean_iu)) for name, found in matrices.items()]
    return table(["net", "pixel accuracy", "mean IU"], rows)


def skip_and_residual(out: Path) -> str:
    """What is added to what, in ResNet-18 and in FCN-8s on it."""
    from torchvision.models import resnet18

    from fullyconv.locate import locate
    from fullyconv.places import Place
    from fullyconv.tracing import trace

    with torch.device("meta"):
        graph = trace(resnet18())
    located = locate(graph, channels=3, size=(224, 224))
    rows = []
    blocks = [n for n in graph.graph.nodes if n.op == "call_function" and "add" in str(n.target)]
    for block in (blocks[4], blocks[5]):
        fields = []
        for source in block.args:
            place = located[source.name].where
            assert isinstance(place, Place)
            fields.append(place.down)
        fields.sort(key=lambda grid: float(grid.field))
        channels = located[block.name].shape[1]
        strides, seen = (" and ".join(f"{float(getattr(g, of)):g}" for g in fields) for of in ("stride", "field"))
        rows.append((f"residual, '{block.name}'", "features", channels, strides, seen))
    model = on_meta(presets.fcn8s("resnet18", 21, weights=None))
    head = model.heads["out"]
    coarser = head.skips[0].tap
    for skip in head.skips[1:]:
        step = head.align[skip.tap]
        fine = model.backbone.taps[skip.tap].grid
        strides = f"{float(step.source.stride):g} and {float(fine.stride):g}"
        seen = f"{float(step.grid.field):g} and {float(fine.field):g}"
        rows.append((f"skip, '{coarser}' and '{skip.tap}'", "class scores", head.classes, strides, seen))
        coarser = skip.tap
    return table(["sum", "of", "channels", "strides of the two, px", "fields of the two, px"], rows)


def pools(out: Path) -> str:
    """What each map of one trained net knows by itself, and what is left of the truth at its stride."""
    model = segmenter()
    rows, alone, left = [], [], []
    taps = model.backbone.taps
    for tap, of in taps.items():
        probe = fresh(presets.single_tap(tap, "tinyvgg", CLASSES, weights=None))
        probe.backbone.load_state_dict(model.backbone.state_dict())
        learn(probe, 60, lr=2e-2, backbone_lr=0, freeze_norm=True)
        alone.append(scored(probe).mean_iu)
        left.append(truth_at(int(of.grid.stride)))
        strides = f"{float(of.grid.stride):g}", f"{float(of.grid.field):g}"
        rows.append((tap, *strides, of.channels, percent(alone[-1]), percent(left[-1])))
    figure, (axes,) = panels(1, size=(4.2, 2.6))
    places = [float(of.grid.stride) for of in taps.values()]
    axes.plot(places, [100 * v for v in left], "s--", color="0.5", label="the truth, averaged over cells")
    axes.plot(places, [100 * v for v in alone], "o-", label="scores of this map alone")
    axes.set_xscale("log", base=2)
    axes.set_xticks(places, [f"{p:g}" for p in places], fontsize=7)
    axes.tick_params(labelsize=7)
    axes.set_ylim(0, 102)
    axes.set_xlabel("stride, px", fontsize=8)
    axes.set_ylabel("mean IU", fontsize=8)
    axes.legend(fontsize=7)
    write(figure, out / "pools.png")
    return table(["map", "stride", "field", "channels", "mean IU alone", "of the averaged truth"], rows)


def truth_at(stride: int) -> float:
    """Mean IU of the truth itself, averaged over cells of a stride and upsampled again."""
    matrix, up = (
        ConfusionMatrix(TEST.classes["out"].names),
        Upsample(Grid().conv(stride, stride=stride), Grid(), CLASSES),
    )
    for sample in TEST:
        truth = sample.labels["out"]
        shares = F.one_hot(torch.from_numpy(np.where(truth == VOID, 0, truth)).long(), CLASSES)
        fine = up(F.avg_pool2d(shares.permute(2, 0, 1)[None].float(), stride), truth.shape)
        matrix.update(truth, fine.argmax(1)[0].numpy(), VOID)
    return matrix.mean_iu


def pool_layers(out: Path) -> str:
    """Parameters with pools as they are, and with strided convolutions in their place."""
    rows = []
    for name in ("caffenet", "vgg16", "bvlc_googlenet"):
        config = presets.fcn32s(name, 21, weights=None)
        counts = [
            count_parameters(on_meta(config.model_copy(update={"pools": pools}))) for pools in ("keep", "convolution")
        ]
        rows.append((name, *map(thousands, counts), f"{100 * (counts[1] / counts[0] - 1):.0f} %"))
    return table(["net", "pools kept", "pools as convolutions", "more"], rows)


def dilation(out: Path) -> str:
    """The cost of a denser map: strides taken out, or skips and upsampling."""
    rows, side = [], 512
    figure, (axes,) = panels(1, size=(4.2, 2.8))
    for name in ("vgg16", "resnet18", "googlenet"):
        config = presets.fcn32s(name, 21, weights=None, context=0)
        image = torch.empty(1, 3, side, side, device="meta")
        plain = on_meta(config)
        costs = {32: flops(plain, image)}
        for stride in (16, 8):
            net = rarefy(plain.backbone.net, stride=stride, verify=False)
            more = flops(net, image) - flops(plain.backbone.net, image)
            costs[stride] = costs[32] + more
        skips = flops(on_meta(presets.fcn8s(name, 21, weights=None, context=0)), image)
        rows.append((name, *(f"{costs[s] / 1e9:.1f}" for s in (32, 16, 8)), f"{skips / 1e9:.1f}"))
        axes.plot(list(costs), [cost / costs[32] for cost in costs.values()], "o-", label=f"{name}, dilated")
    axes.axhline(1, color="0.5", ls="--", lw=1, label="skips and upsampling")
    axes.set(xscale="log", yscale="log")
    axes.set_xticks([32, 16, 8], ["32", "16", "8"], fontsize=7)
    axes.set_xticks([], minor=True)
    axes.set_yticks([1, 2, 3, 4, 5], ["1", "2", "3", "4", "5"])
    axes.set_yticks([], minor=True)
    axes.invert_xaxis()
    axes.tick_params(labelsize=7)
    axes.set_xlabel("stride of the last map, px", fontsize=8)
    axes.set_ylabel("cost, times stride 32", fontsize=8)
    axes.legend(fontsize=7)
    write(figure, out / "dilation.png")
    return table(
        ["net", "stride 32", "dilated to 16", "dilated to 8", "stride 32 with skips at 16 and 8 (FCN-8s)"], rows
    )


def steps(out: Path) -> str:
    """What one cell becomes when it is upsampled eightfold, in one step and in three."""
    source, cells = Grid().conv(8, stride=8), 9
    one, three = Upsample(source, Grid(), channels=1), Steps(source, Grid(), channels=1)
    answers = [up.matrix(cells, 8 * cells, dtype=torch.float64)[:, cells // 2].numpy() for up in (one, three)]
    learned = [count_parameters(kind(source, Grid(), 21, kernel="learned")) for kind in (Upsample, Steps)]
    figure, (axes,) = panels(1, size=(4.6, 2.6))
    centre = float(source.offset + source.stride * (cells // 2))
    for answer, name in zip(answers, ("one step of 8", "three steps of 2"), strict=True):
        axes.step(np.arange(len(answer)) - centre, answer, where="mid", label=name)
    axes.set_xlim(-16, 16)
    axes.set_xlabel("pixels from the cell", fontsize=8)
    axes.set_ylabel("share of the cell's score", fontsize=8)
    axes.tick_params(labelsize=7)
    axes.legend(fontsize=7)
    write(figure, out / "steps.png")
    rows = []
    for name, answer, count in zip(("one step of 8", "three steps of 2"), answers, learned, strict=True):
        sums = answer.reshape(cells, 8).sum(0)
        assert np.allclose(sums, sums[0]) or name != "one step of 8"
        reach = int((answer > 1e-12).sum())
        rows.append((name, f"{answer.max():.3f}", reach, f"{answer.sum():.1f}", thousands(count)))
    return table(["way", "largest share", "pixels reached", "sum of shares", "parameters if learned, 21 classes"], rows)


def resolution(out: Path) -> str:
    """One net with logits at half, equal and double the picture's height and width."""
    model, rows, labels = segmenter(), [], {}
    assert model.config is not None
    for name in ("half", "equal", "double"):
        head = model.config.heads["out"].model_copy(update={"resolution": name})
        other = build(model.config.model_copy(update={"heads": {"out": head}}), classes=TEST.classes)
        other.load_state_dict(model.state_dict())
        logits = other.heads["out"].size((160, 160))
        labels[name] = scored(other.eval()).mean_iu
        factor = {"half": 2, "equal": 1, "double": 1}[name]
        matrix = ConfusionMatrix(TEST.classes["out"].names)
        for sample in TEST:
            truth = sample.labels["out"]
            coarse = truth[::factor, ::factor].repeat(factor, 0).repeat(factor, 1)
            # Void is no prediction; where it stands for one, the truth's nearest pixel would have been void as well.
            coarse = np.where(coarse == VOID, 0, coarse)
            matrix.update(truth, coarse, VOID)
        rows.append((name, f"{logits[0]}x{logits[1]}", percent(labels[name]), percent(matrix.mean_iu)))
    return table(["logits", "of a picture of 160x160", "mean IU of the net", "of the truth, read so"], rows)


MASKS: Mapping[str, Kept] = {
    "as they are": "all",
    "foreground left": "foreground",
    "background left": "background",
    "shape left": "shape",
}


def masked(data: Scenes, kept: Kept) -> Masked:
    """Scenes of which only this is left; masks have the colour that becomes 0 in the net."""
    return Masked(data, kept, background=(0,), mask=mask_colour(INPUTS["imagenet"]))


def shapes(out: Path) -> str:
    """A net that learnt on scenes, and one that learnt on their shapes, on masked scenes."""
    shape_net = fresh(presets.fcn8s("tinyvgg", CLASSES, weights=None, upsampling="learned"))
    learn(shape_net, sum(STAGES), masked(TRAIN, "shape"))
    figure, axes = panels(len(MASKS))
    rows = []
    for panel, (name, kept) in zip(axes, MASKS.items(), strict=True):
        data = masked(TEST, kept)
        show(panel, data[SHOWN].image, name)
        scores = [scored(net.eval(), data).mean_iu for net in (segmenter(), shape_net)]
        rows.append((name, *map(percent, scores)))
    write(figure, out / "shapes.png")
    return table(["scored on scenes", "learnt on scenes as they are", "learnt on shapes"], rows)


def backbones(out: Path) -> str:
    """Parameters, fields and operations of the paper's three nets, and at which stride they are spent."""
    rows, shares = [], {}
    for name in ("caffenet", "vgg16", "bvlc_googlenet"):
        report = explain(on_meta(presets.fcn32s(name, 21, weights=None, geometry="pad100")))
        cost = sum(part.flops for part in report.costs)
        taps = ", ".join(f"{tap.stride:g}" for tap in report.taps)
        shares[name] = {
            part.part.removeprefix("backbone "): (part.parameters / report.parameters, part.flops / cost)
            for part in report.costs
        }
        field = f"{report.receptive_field:g}"
        rows.append((name, thousands(report.parameters), f"{cost / 1e9:.0f}", field, f"{report.stride:g}", taps))
    figure, axes = panels(2, size=(4.2, 2.4))
    parts = sorted(
        {part for of in shares.values() for part in of if part.startswith("stride")}, key=lambda p: int(p[7:])
    )
    colours = matplotlib.colormaps["viridis"](np.linspace(0, 0.95, len(parts)))
    for panel, index, title in ((axes[0], 0, "parameters"), (axes[1], 1, "operations")):
        left = np.zeros(len(shares))
        for part, colour in zip(parts, colours, strict=True):
            values = np.array([of.get(part, (0.0, 0.0))[index] for of in shares.values()])
            panel.barh(list(shares), 100 * values, left=100 * left, label=part, color=colour)
            left += values
        panel.set_title(f"share of {title}, %", fontsize=8)
        panel.tick_params(labelsize=7)
        panel.invert_yaxis()
    axes[1].legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    write(figure, out / "backbones.png")
    return table(
        ["backbone", "parameters", "GFLOPs at 500x500", "receptive field, px", "stride", "strides of its maps"], rows
    )


FIGURES: Mapping[str, tuple[Callable[[Path], str], ...]] = {
    "score-layer": (score_layer,),
    "fusion": (fusion,),
    "shift-and-stitch": (stitching,),
    "deconvolution": (kernels, deconvolution),
    "any-size": (any_size,),
    "patches": (patches, patch_cost),
    "stages": (stages,),
    "skip-and-residual": (skip_and_residual,),
    "pools": (pools, pool_layers),
    "dilation": (dilation,),
    "steps": (steps,),
    "resolution": (resolution,),
    "shapes": (shapes,),
    "backbones": (backbones,),
}
"""By page: each function writes the page's picture, if it has one, and returns a table."""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+", metavar="NAME", choices=[*FIGURES, "all"], help=", ".join(FIGURES))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "images", help="folder for pictures")
    options = parser.parse_args(arguments)
    for name in FIGURES if "all" in options.names else options.names:
        print(f"{name}\n", file=sys.stderr)
        for function in FIGURES[name]:
            print(f"{function(options.out)}\n")


if __name__ == "__main__":
    main()
