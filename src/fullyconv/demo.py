"""The story of the paper in one run, on generated scenes: classifier, heat map, FCN-32s, 16s, 8s, any size.

Nothing is downloaded. Figures go into the run folder's ``report.html`` and ``results.json``.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from html import escape
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fullyconv import checkpoint
from fullyconv.classifiers import TinyVGG
from fullyconv.config import INPUTS, DataConfig, FitConfig, Recipe, Stage
from fullyconv.datasets.scenes import KINDS, Scenes, single_objects
from fullyconv.devices import computes_bf16, pick_device
from fullyconv.errors import CheckpointError, ConfigError
from fullyconv.evaluation import evaluate
from fullyconv.events import Event, Said, Step
from fullyconv.images import write_image
from fullyconv.inference import Predictor, tiled, whole
from fullyconv.learner import heads_of
from fullyconv.model import FCN, Preprocess
from fullyconv.presets import fcn8s, fcn16s, fcn32s
from fullyconv.records import writing
from fullyconv.report import Picture, cards, page, section, strip, table
from fullyconv.surgery import plan
from fullyconv.training import train
from fullyconv.weights import read_metadata, write_weights

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

SIZE = 96
"""Side of the classifier's pictures: what TinyVGG is made for."""
SCENES = "count=600 size=160x160"
HELD_OUT = Scenes(150, (160, 160), seed=0, split="test")
"""Never seen in training, nor used to choose a model."""
WRITTEN = ("classifier.safetensors", "fcn", "results.json", "scenes.png", "report.html")
"""What a demo writes into its folder, in this order."""
MADE_BY = "fullyconv demo"
ODD = (301, 427)
"""Size of the picture that is segmented whole and in tiles."""


def demo(
    out: str | PathLike[str], *, on_event: Callable[[Event], None] = lambda event: None, scale: float = 1.0
) -> dict[str, Any]:
    """Run the whole story and write it to ``out``; what an earlier demo left there is replaced.

    Args:
        out: folder for the models, ``report.html``, ``scenes.png`` and ``results.json``.
        on_event: called with training events and notes as they happen.
        scale: factor on the lengths of training; 1 takes about three minutes on two cores.

    Returns:
        what ``results.json`` holds: mean IU of the three nets on held-out scenes (0..1), minutes, and the checks.

    Raises:
        ConfigError: ``out`` holds something by one of these names that no demo has made, or labelled pictures.
    """
    started = time.monotonic()
    folder = Path(out)
    _refuse_foreign(folder)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(folder / "fcn", ignore_errors=True)

    classifier, accuracy = train_classifier(round(2200 * scale), on_event)
    write_weights(folder / WRITTEN[0], classifier.state_dict(), {"made_by": MADE_BY})
    on_event(Said(f"classifier: {accuracy:.1%} of 400 pictures of single things right"))
    heat = heat_map(classifier)
    on_event(Said(f"the same weights on a scene of {heat.scene.shape[1]}x{heat.scene.shape[0]}: {heat.sentence}"))

    train(recipe(folder / WRITTEN[0], scale), out=folder / "fcn", on_event=on_event, check=False)
    scores = {}
    matrices = {}
    for stage in ("fcn32s", "fcn16s", "fcn8s"):
        best = folder / "fcn" / stage / "best"
        model = checkpoint.load(best)
        matrices[stage] = evaluate(model, HELD_OUT)["out"]
        scores[stage] = matrices[stage].mean_iu
        on_event(Said(f"{stage}: mean IU {scores[stage]:.3f} on {len(HELD_OUT)} held-out scenes"))
    odd = compare_tiled(model)
    on_event(Said(odd.sentence))

    found = {
        "mean_iu": scores,
        "minutes": (time.monotonic() - started) / 60,
        "classifier_accuracy": accuracy,
        "heat_map": {"thing": heat.kind, "peak_on_thing": heat.hit, "cells": list(heat.cells)},
        "tiled_equals_whole": {"size": list(ODD), "differing_pixels": odd.differing, "tile": odd.tile},
        "per_class_iu": {stage: m.as_dict()["per_class"] for stage, m in matrices.items()},
    }
    checkpoint.write_json(folder / "results.json", found)
    write_page(folder, found, heat, odd, {stage: checkpoint.load(folder / "fcn" / stage / "best") for stage in scores})
    return found


def _refuse_foreign(folder: Path) -> None:
    if pictures := [folder / name for name in ("images", "labels") if (folder / name).is_dir()]:
        raise ConfigError(
            f"{pictures[0]}: the demo would lie beside somebody's pictures; name another --out", where="out"
        )
    first = folder / WRITTEN[0]
    if first.is_file():
        with suppress(CheckpointError):
            if read_metadata(first).get("made_by") == MADE_BY:
                return
    if there := [folder / name for name in WRITTEN if (folder / name).exists()]:
        raise ConfigError(f"{there[0]}: no demo has made it, and it would be replaced; name another --out", where="out")


def train_classifier(count: int, on_event: Callable[[Event], None]) -> tuple[TinyVGG, float]:
    """Train TinyVGG on pictures of one thing each; returns it, evaluating, and its accuracy (0..1) on 400 others."""
    on_event(Said(f"drawing {count + 400} pictures of single things, {SIZE}x{SIZE}"))
    pictures, kinds = (torch.from_numpy(a) for a in single_objects(count, size=(SIZE, SIZE)))
    held_pictures, held_kinds = (torch.from_numpy(a) for a in single_objects(400, size=(SIZE, SIZE), split="val"))
    device = pick_device("auto")
    torch.manual_seed(0)
    net = TinyVGG(len(KINDS)).to(device).to(memory_format=torch.channels_last)
    normalise = Preprocess(INPUTS["imagenet"]).to(device)
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3, weight_decay=1e-2)
    batch, epochs = 32, 3
    steps = epochs * (count // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=steps)
    generator = torch.Generator().manual_seed(0)

    def prepare(some: Tensor) -> Tensor:
        prepared: Tensor = normalise(some.to(device).permute(0, 3, 1, 2))
        return prepared

    def accuracy() -> float:
        net.eval()
        with torch.no_grad():
            right = net(prepare(held_pictures)).argmax(1).cpu() == held_kinds
        net.train()
        return float(right.float().mean())

    started, step = time.monotonic(), 0
    for epoch in range(epochs):
        for chosen in torch.randperm(count, generator=generator)[: count // batch * batch].split(batch):
            some = prepare(pictures[chosen])
            if epoch % 2:
                some = some.flip(3)
            with torch.autocast(device.type, torch.bfloat16, enabled=computes_bf16(device)):
                loss = F.cross_entropy(net(some).float(), kinds[chosen].to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            lr = float(schedule.get_last_lr()[0])
            schedule.step()
            step += 1
            elapsed_s, share = time.monotonic() - started, step / steps
            rate, left_s = step * batch / elapsed_s, elapsed_s * (1 - share) / share
            on_event(Step("classifier", step, steps, step * batch / count, loss.item(), lr, rate, share, left_s))
        on_event(Said(f"classifier, epoch {epoch + 1} of {epochs}: {accuracy():.1%} of held-out pictures right"))
    right = accuracy()
    return net.cpu().eval(), right


@dataclass(frozen=True)
class Heat:
    """A classifier's scores over a scene.

    Attributes:
        scene: (H, W, 3) uint8.
        probability: of the kind, (h, w) 0..1, one value for each position of the classifier's window.
        kind: name of the thing.
        hit: whether the peak lies on it.
        cells: rows and columns of the map.
    """

    scene: Pixels
    probability: Floats
    kind: str
    hit: bool
    cells: tuple[int, int]

    @property
    def sentence(self) -> str:
        """The finding in words."""
        where = "on one" if self.hit else "beside it"
        return f"{self.cells[0]}x{self.cells[1]} class scores in one pass; '{self.kind}' peaks {where}"


def heat_map(classifier: nn.Module, *, kind: str = "ball") -> Heat:
    """Convolutionalize a classifier and read one class at every position of a scene (paper, figure 2)."""
    surgery = plan(classifier, image_size=SIZE)
    dense = surgery.apply().eval()
    wanted = list(KINDS).index(kind)
    scene = next(
        s
        for s in (Scenes(100, (320, 480), seed=7)[i] for i in range(100))
        if (s.labels["out"] == wanted + 1).sum() > 600
    )
    image = torch.from_numpy(scene.image).permute(2, 0, 1)[None]
    with torch.no_grad():
        probability = dense(Preprocess(INPUTS["imagenet"])(image)).softmax(1)[0, wanted]
    row, column = divmod(int(probability.argmax()), probability.shape[1])
    # A cell answers for the window whose first pixel is stride * cell; the thing counts where it is in the middle.
    top, left = row * surgery.stride, column * surgery.stride
    middle = scene.labels["out"][top + SIZE // 4 : top + 3 * SIZE // 4, left + SIZE // 4 : left + 3 * SIZE // 4]
    hit = bool((middle == wanted + 1).any())
    return Heat(scene.image, probability.numpy(), kind, hit, (probability.shape[0], probability.shape[1]))


def recipe(classifier: Path, scale: float) -> Recipe:
    """The three stages: 32s from the classifier, then 16s and 8s, each from the one before (paper, section 4.2)."""
    stages = []
    for preset, name, steps, lr in (
        (fcn32s, "fcn32s", 300, 2e-3),
        (fcn16s, "fcn16s", 300, 2e-3),
        (fcn8s, "fcn8s", 400, 2e-3),
    ):
        model = preset("tinyvgg", len(KINDS) + 1, weights=str(classifier), input=INPUTS["imagenet"])
        data = DataConfig(name="scenes", root=SCENES, scale=(0.8, 1.25), jitter=0.1, crop=(160, 160))
        fit = FitConfig(steps=max(10, round(steps * scale)), batch=8, lr=lr, warmup=20, ema=0.98, val_pictures=60)
        stages.append(Stage(name=name, model=model, data=data, fit=fit))
    return Recipe(name="demo", stages=tuple(stages))


@dataclass(frozen=True)
class Compared:
    """A picture of an odd size, segmented whole and in tiles.

    Attributes:
        image: (H, W, 3) uint8.
        labels: (H, W) class indices.
        differing: pixels whose label differs between the two.
        tile: side of the tiles, in pixels.
    """

    image: Pixels
    labels: Pixels
    differing: int
    tile: int

    @property
    def sentence(self) -> str:
        """The finding in words."""
        height, width = self.labels.shape
        return f"a {width}x{height} picture, whole and in tiles of {self.tile}: {self.differing} pixels differ"


def compare_tiled(model: FCN, *, tile: int = 128) -> Compared:
    """Segment a picture of an odd size whole and in tiles, in float64, and count the pixels that differ."""
    scene = Scenes(1, ODD, seed=3, split="test")[0]
    image = torch.from_numpy(scene.image).permute(2, 0, 1)[None]
    exact = model.double().eval()
    upsample = heads_of(exact)["out"].upsample
    with torch.no_grad():
        labels = [
            upsample(scores["out"], ODD).argmax(1)[0]
            for scores in (whole(exact, image), tiled(exact, image, tile=tile))
        ]
    return Compared(scene.image, labels[0].numpy().astype(np.uint8), int((labels[0] != labels[1]).sum()), tile)


def write_page(folder: Path, found: dict[str, Any], heat: Heat, odd: Compared, models: dict[str, FCN]) -> Path:
    """Write ``report.html``: the story in pictures, one file that opens offline."""
    scores = found["mean_iu"]
    colours = np.array([c.colour for c in HELD_OUT.classes["out"].used] + [(224, 224, 192)] * 245, np.uint8)
    glow = np.clip(255 * stretch(heat.probability, heat.scene.shape[:2]), 0, 255)
    lit = (heat.scene * 0.35 + np.stack([glow, glow * 0.75, glow * 0.1], -1) * 0.65).clip(0, 255).astype(np.uint8)
    rows, bands = [], []
    for index in range(4):
        sample = HELD_OUT[index]
        pictures = [Picture(sample.image, "picture"), Picture(colours[sample.labels["out"]], "truth")]
        for stage, model in models.items():
            labels = Predictor(model)(sample.image).labels["out"]
            pictures.append(Picture(colours[labels], stage))
        rows.append(strip(pictures))
        bands.append(np.concatenate([picture.pixels for picture in pictures], axis=1))
    write_image(folder / "scenes.png", np.concatenate(bands[:2]))
    per_class = found["per_class_iu"]
    names = HELD_OUT.classes["out"].names
    intro = (
        f"Fully convolutional networks (Long, Shelhamer, Darrell 2015) in {found['minutes']:.1f} minutes, on generated "
        "scenes: nothing was downloaded."
    )
    accuracy = found["classifier_accuracy"]
    single = zip(*single_objects(6, size=(SIZE, SIZE), split="val"), strict=True)
    sections = [
        "<h1>From a classifier to segmented pictures</h1>",
        f"<p>{escape(intro)}</p>",
        cards({f"mean IU, {stage}": f"{score:.3f}" for stage, score in scores.items()}),
        section(
            "1. A classifier",
            f"TinyVGG learnt to name single things in {SIZE}x{SIZE} pictures: {accuracy:.1%} of 400 others right.",
            strip([Picture(pixels, list(KINDS)[k]) for pixels, k in single]),
        ),
        section(
            "2. The same weights, read at every position",
            f"Its linear layers became convolutions. In one pass it gives {heat.sentence}: bright is where the "
            f"classifier, looking through its {SIZE}x{SIZE} window, sees a {heat.kind}.",
            strip([Picture(heat.scene, "scene"), Picture(lit, f"probability of '{heat.kind}'")]),
        ),
        section(
            "3. Trained end to end, finer and finer",
            "FCN-32s from the classifier, 16s from 32s, 8s from 16s: each skip adds a finer map. Scored on "
            f"{len(HELD_OUT)} held-out scenes.",
            *rows,
            table(
                ["class", *scores],
                [
                    [
                        name,
                        *(math.nan if (iu := per_class[stage][name]["iu"]) is None else float(iu) for stage in scores),
                    ]
                    for name in names
                ],
            ),
        ),
        section(
            "4. Any size, whole or in tiles",
            f"{odd.sentence}.",
            strip([Picture(odd.image, "picture"), Picture(colours[odd.labels], "fcn8s")]),
        ),
        section(
            "5. Look further",
            "The curves, scores and worst pictures of the last stage are in fcn/report.html beside this file. To "
            f"segment other scenes: fullyconv predict {folder / 'fcn'} PICTURES --out segmented",
        ),
    ]
    path = folder / "report.html"
    with writing(path):
        path.write_text(page("fullyconv demo", sections), encoding="utf-8")
    return path


def stretch(map_: Floats, size: tuple[int, int]) -> Floats:
    """Lay a map of window scores over the picture that it was read from, each at the middle of its window."""
    spaced = torch.from_numpy(map_)[None, None]
    (rows, columns), half = map_.shape, SIZE // 2
    inner = F.interpolate(
        spaced, (size[0] - 2 * half, size[1] - 2 * half), mode="bilinear", align_corners=rows > 1 < columns
    )
    return F.pad(inner, (half, half, half, half), mode="replicate")[0, 0].numpy()
