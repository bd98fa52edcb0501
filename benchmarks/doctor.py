"""How many planted faults does the data doctor find in real data, and how many does it see where there are none?

    python benchmarks/doctor.py DATA [--faults 40] [--seed 0]

DATA is a folder as `fullyconv check` reads it. First it is checked as it is: every finding but a missing class is a
false alarm, or a fault of DATA. Then, with train's pairs at random: label maps change places, two by two; all ids of
one map are moved by one, void apart, and what falls off the table is void; and changed copies of pictures join val, one
kind of change after the other. Of each kind of fault it is printed how many are found, and how many others are named.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance

from fullyconv import misfits
from fullyconv.checking import check, check_splits
from fullyconv.datasets import Sample
from fullyconv.datasets.folder import Folder, open_folder
from fullyconv.duplicates import near_duplicates
from fullyconv.images import read_image
from fullyconv.impressions import Impression, impression

Change = Callable[[Image.Image, np.random.Generator], Image.Image]


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    stored = io.BytesIO()
    image.save(stored, "JPEG", quality=quality)
    return Image.open(stored).convert("RGB")


def cropped(image: Image.Image, share: float, generator: np.random.Generator) -> Image.Image:
    width, height = (round(side * share) for side in image.size)
    left, top = (int(generator.integers(0, room + 1)) for room in (image.width - width, image.height - height))
    return image.crop((left, top, left + width, top + height))


CHANGES: Mapping[str, Change] = {
    "JPEG, quality 30": lambda image, _: jpeg(image, 30),
    "brighter by 1.15": lambda image, _: ImageEnhance.Brightness(image).enhance(1.15),
    "darker by 0.8": lambda image, _: ImageEnhance.Brightness(image).enhance(0.8),
    "contrast by 1.2": lambda image, _: ImageEnhance.Contrast(image).enhance(1.2),
    "half the size": lambda image, _: image.resize((image.width // 2, image.height // 2)),
    "mirrored, quality 50": lambda image, _: jpeg(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), 50),
    "cropped to 0.95": lambda image, generator: cropped(image, 0.95, generator),
    "cropped to 0.9": lambda image, generator: cropped(image, 0.9, generator),
    "cropped to 0.85": lambda image, generator: cropped(image, 0.85, generator),
    "cropped to 0.8": lambda image, generator: cropped(image, 0.8, generator),
}


def exchanged(data: Folder, faults: int, generator: np.random.Generator) -> tuple[int, int, int]:
    """Pairs of maps that have changed places: planted, found, and others named."""
    order = generator.permutation(len(data))[: faults // 2 * 2].reshape(-1, 2).tolist()
    files = [list(pair) for pair in data.files]
    for one, other in order:
        files[one][1], files[other][1] = files[other][1], files[one][1]
    report = check(dataclasses.replace(data, files=[tuple(pair) for pair in files]))
    number = {str(pictures["color"]): i for i, (pictures, _) in enumerate(data.files)}
    named = {frozenset((number[f.files[0]], number[f.files[2]])) for f in report.findings if f.kind == "swapped"}
    planted = {frozenset(pair) for pair in order}
    return len(planted), len(named & planted), len(named - planted)


def moved(data: Folder, pairs: list[Impression], faults: int, generator: np.random.Generator) -> tuple[int, int, int]:
    """Maps whose ids are moved, one at a time: planted, found, and others named."""
    classes = data.classes["out"]
    count = len(classes)
    found = others = 0
    for i in generator.permutation(len(pairs))[:faults].tolist():
        step = int(generator.choice([-1, 1]))
        labels = pairs[i].labels.astype(int)
        there = np.where(labels < count, labels + step, classes.void)
        there[(there < 0) | (there >= count)] = classes.void
        wrong = dataclasses.replace(pairs[i], labels=there.astype(pairs[i].labels.dtype))
        named = [finding.files[0] for finding in misfits.moved_in([*pairs[:i], wrong, *pairs[i + 1 :]], classes)]
        found += wrong.files[1] in named
        others += len(set(named) - {wrong.files[1]})
    return faults, found, others


def copies(
    data: Folder, pairs: tuple[list[Impression], list[Impression]], change: Change, faults: int, seed: int
) -> tuple[int, int, int]:
    """Changed copies of pictures of train among val's: planted, found, and others named."""
    generator = np.random.default_rng(seed)
    planted = []
    for i in generator.permutation(len(pairs[0]))[:faults].tolist():
        original = Image.fromarray(read_image(pairs[0][i].files[0]).pixels)
        pixels = np.array(change(original, generator))
        sample = Sample(f"copy {i}", pixels, {"out": np.zeros(pixels.shape[:2], np.uint8)})
        planted.append(impression(sample, (f"copy of {pairs[0][i].files[0]}", ""), data.classes))
    near = near_duplicates(pairs[0], [*pairs[1], *planted])
    named = set(near.files) if near else set()
    found = [pair for pair in planted if pair.files[0] in named]
    right = sum(pair.files[0].removeprefix("copy of ") in named for pair in found)
    return faults, right, sum(pair.files[0] in named for pair in pairs[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--faults", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    splits = {split: open_folder(chosen.data, split=split) for split in ("train", "val")}
    began, used = time.perf_counter(), time.process_time()
    reports = check_splits(splits)
    count = sum(map(len, splits.values()))
    wall, cpu = time.perf_counter() - began, time.process_time() - used
    print(f"{count} pairs in {wall:.1f} s, {1000 * cpu / count:.2f} ms of CPU a pair; as they are:")
    for split, report in reports.items():
        for finding in report.findings:
            print(f"  {split}: {finding.kind}: {finding.detail}")
    generator = np.random.default_rng(chosen.seed)
    train, val = (list(reports[split].impressions) for split in ("train", "val"))
    print("fault                    planted  found  others named")
    rows: dict[str, Callable[[], tuple[int, int, int]]] = {
        "maps exchanged": lambda: exchanged(splits["train"], chosen.faults, generator),
        "ids moved by one": lambda: moved(splits["train"], train, chosen.faults, generator),
    }
    for name, change in CHANGES.items():
        rows[f"copy, {name}"] = lambda change=change: copies(  # type: ignore[misc]
            splits["train"], (train, val), change, chosen.faults, chosen.seed
        )
    for name, row in rows.items():
        planted, found, others = row()
        print(f"{name:<26} {planted:>5}  {found:>5}  {others:>5}", flush=True)


if __name__ == "__main__":
    main()
