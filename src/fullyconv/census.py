"""How often each class occurs, how large the pictures are, and what of that would harm training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from fullyconv.config import Classes
from fullyconv.findings import Finding
from fullyconv.geometry import Pixels
from fullyconv.impressions import Impression

Counts = Mapping[str, npt.NDArray[np.int64]]
"""For each head, pixels of each class in channel order."""

RARE_PICTURES = 3
"""A class that fewer pictures show is rare ..."""
RARE_SHARE = 1e-5
"""... and so is one with a smaller share of the labelled pixels: two pixels of a picture of 480 x 360."""
IMBALANCE = 10_000
"""Pixels of the most frequent class to one of the rarest, from which on it is said. CamVid has 109, NYUDv2 400."""
SPREAD = 16
"""Pixels of a picture to one of the median's, or the other way round, from which on it is said."""


def of_classes(
    head: str, classes: Classes, split: str, counts: npt.NDArray[np.int64], void: int, pictures: npt.NDArray[np.int64]
) -> list[Finding]:
    """What is wrong with how often the classes of one head occur.

    Args:
        head: its name, said where it is not "out".
        classes: its table.
        split: whose, for the message.
        counts: (K,) pixels of each class.
        void: void pixels.
        pictures: (K,) how many pictures show each class.
    """
    names = classes.names
    said = split if head == "out" else f"{split}, head {head}"
    absent = [name for name, count in zip(names, counts, strict=True) if not count]
    if not counts.any():
        detail = f"no pixel of {said} belongs to a class; expected labels of {', '.join(names[:5])}, ..."
        return [Finding("absent", "error", (), detail)]
    if len(absent) == len(names) - 1 and (len(names) > 1 or void):
        only = names[int(counts.argmax())]
        if len(names) == 1:
            detail = (
                f"{only} is the only class, and all labelled pixels of {said} are its own: nothing is told apart; "
                f"{void:,} pixels are void. If label maps are masks of 0 and 255, list background before {only}, and "
                "give 255 to it in classes.json"
            )
            return [Finding("single", "error", (), detail)]
        hint = (
            f"; {void:,} pixels are void: if label maps are masks of 0 and 255, 255 counts as void unless classes.json "
            "gives it to a class"
        )
        return [Finding("single", "error", (), f"every labelled pixel of {said} is {only}{hint if void else ''}")]
    findings = []
    if absent:
        hint = ""
        if len(names) > 2 and len(absent) == 1 and absent[0] == names[0]:
            hint = "; it is the first of the table, and all others occur: are the ids too high by one?"
        detail = f"{len(absent)} of {len(names)} classes {'does' if len(absent) == 1 else 'do'} not occur in {said}: "
        detail += ", ".join(absent) + hint
        findings.append(Finding("absent", "warning", (), detail))
    total = int(counts.sum())
    rare = [
        f"{name} ({count:,} px in {shown} {'picture' if shown == 1 else 'pictures'})"
        for name, count, shown in zip(names, counts.tolist(), pictures.tolist(), strict=True)
        if count and (count < RARE_SHARE * total or shown < RARE_PICTURES <= pictures.max() / 10)
    ]
    if rare:
        detail = f"{len(rare)} of {len(names)} classes hardly {'occurs' if len(rare) == 1 else 'occur'} in {said}: "
        detail += ", ".join(rare)
        findings.append(Finding("rare", "warning", (), detail))
    seen = counts[counts > 0]
    if seen.max() > IMBALANCE * seen.min() and not rare:
        most, least = names[int(counts.argmax())], names[int(np.where(counts > 0, counts, total).argmin())]
        detail = f"{said} has {seen.max() // seen.min():,} pixels of {most} for one of {least}"
        findings.append(Finding("balance", "warning", (), detail))
    return findings


def of_void(pairs: Sequence[Impression]) -> list[Finding]:
    """The pictures without a labelled pixel, as one finding."""
    bare = [pair for pair in pairs if not any(counts[:-1].any() for counts in pair.pixels.values())]
    if not bare:
        return []
    count = "1 picture holds" if len(bare) == 1 else f"{len(bare)} pictures hold"
    detail = f"{count} no labelled pixel, such as {bare[0].name}: nothing is learnt from that"
    return [Finding("void", "warning", tuple(pair.files[0] for pair in bare), detail)]


def of_sizes(pairs: Sequence[Impression]) -> list[Finding]:
    """The pictures that are of quite another size than most."""
    if not pairs:
        return []
    areas = np.array([pair.size[0] * pair.size[1] for pair in pairs])
    median = np.median(areas)
    odd = [pairs[i] for i in np.flatnonzero((areas > SPREAD * median) | (areas * SPREAD < median)).tolist()]
    if not odd:
        return []
    example = f"{odd[0].name} has {odd[0].size[0]} x {odd[0].size[1]}"
    detail = (
        f"{len(odd)} pictures have more than {SPREAD} times the pixels of the median picture, or less than 1 in "
        f"{SPREAD}: {example} (height x width); the median is {int(median):,} pixels"
    )
    return [Finding("sizes", "warning", tuple(pair.files[0] for pair in odd), detail)]


def of_field(pairs: Sequence[Impression], net: str, field: Pixels, stride: Fraction) -> list[Finding]:
    """The pictures on which a net's coarsest map has no whole cell.

    Args:
        pairs: what was looked at.
        net: its name, for the message.
        field: pixels that a cell of its coarsest map sees; infinite where that is all.
        stride: pixels between two such cells.
    """
    small = [pair for pair in pairs if min(pair.size) < stride]
    if not small:
        return []
    detail = (
        f"{len(small)} pictures are smaller than the {stride} pixels from cell to cell of {net}'s coarsest map, whose "
        f"cells see {float(field):g}: {small[0].name} has {small[0].size[0]} x {small[0].size[1]} (height x width)"
    )
    return [Finding("field", "warning", tuple(pair.files[0] for pair in small), detail)]


def sizes_line(pairs: Sequence[Impression]) -> str:
    """How large the pictures are, in a line."""
    sizes = sorted({pair.size for pair in pairs}, key=lambda size: size[0] * size[1])
    if not sizes:
        return "no picture could be read"
    low, high = sizes[0], sizes[-1]
    if len(sizes) == 1:
        return f"all pictures have {low[0]} x {low[1]} pixels (height x width)"
    return f"{len(sizes)} sizes of pictures, from {low[0]} x {low[1]} to {high[0]} x {high[1]} pixels (height x width)"
