"""What the data doctor can say: one finding, and for each kind what it would do to training and how to mend it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Kind:
    """A way in which data can be wrong.

    Attributes:
        found: what is found.
        effect: what it would do to training.
        mend: what to do about it.
        fixed: what `fullyconv.mending.mend` does about it; "" where it cannot know, and leaves it.
    """

    found: str
    effect: str
    mend: str
    fixed: str = ""


LEFT_OUT = "the pair is left out"

KINDS: Mapping[str, Kind] = {
    "corrupt": Kind(
        "a picture or label map that is empty, cut off, damaged, or no picture at all",
        "it stops at this file",
        "get the file again, or drop the pair",
        LEFT_OUT,
    ),
    "unpaired": Kind(
        "a picture without label map, or the reverse",
        "nothing is learnt from it",
        "give it its partner, of the same name, or drop it",
        "the file is left out",
    ),
    "size": Kind(
        "a label map of another size than its picture",
        "every label would lie on the wrong pixel",
        "find the label map of this picture; if it was made at another scale, resize it with nearest neighbour",
        LEFT_OUT,
    ),
    "exif": Kind(
        "a picture that EXIF turns and whose label map is not turned, by their sizes or by edges under borders",
        "the picture is turned upright as its EXIF says and the label map is not: labels lie on the wrong pixels",
        "turn the label map as well, or store both upright without EXIF",
        "the picture is stored upright as PNG, and the label map is turned as the picture's EXIF says",
    ),
    "label": Kind(
        "ids that are not in the table of classes",
        "a label that no class has cannot be learnt",
        "add it to the table of classes, or mark it as void there",
        LEFT_OUT,
    ),
    "shifted": Kind(
        "all ids too high or too low by one: in one file, in a split, or in one split against train",
        "every class is learnt under its neighbour's name, and one is missing",
        "subtract (or add) 1, or write the table of classes as the files have it",
        "the ids are moved back where they prove the shift, else the pair is left out",
    ),
    "rgb": Kind(
        "a label map in colours that are not the table's; or that only some have; or that nobody has given the table",
        "colours that are not in the table are no labels; a table without colours of its own may mean other ones",
        "save ids in one channel (palette or grey), or give the colours in classes.json",
        "written as a palette where each colour is one id's in the table or in the other files' palette, "
        "else the pair is left out",
    ),
    "alpha": Kind(
        "a label map with an alpha channel, or a palette with transparent entries",
        "what is transparent has no label, and tools that compose alpha change ids",
        "save ids in one opaque channel",
        "written without transparency where the ids do not depend on it, else the pair is left out",
    ),
    "palette": Kind(
        "label maps whose palette shows ids in the colours that the table, or most others, give to other classes",
        "if the palette is right, classes are learnt under each other's names",
        "look at one of them beside its picture; correct the ids in the table, or the palette",
    ),
    "lossy": Kind(
        "a label map in JPEG, or another format that does not keep numbers",
        "compression invents ids along every edge",
        "make the label map again as PNG; JPEG has lost the ids",
        LEFT_OUT,
    ),
    "antialiased": Kind(
        "a label map with blends along its borders: resized with interpolation, anti-aliased, or once a JPEG",
        "between two classes lies a seam of a third that is not there, and is learnt",
        "make the label map again without anti-aliasing; resize label maps with nearest neighbour only",
        "left out where a seam has ids outside the table; else it is kept, since the edge is not known",
    ),
    "swapped": Kind(
        "two label maps that lie each on the edges of the other's picture, or have its size",
        "each picture is learnt with the labels of another",
        "look at both, and exchange the label maps",
    ),
    "duplicate": Kind(
        "pictures of the same pixels in one split",
        "the picture counts twice; where its label maps differ, training is told two things",
        "keep one of them",
        "the later ones are left out where picture and label map are the same",
    ),
    "overlap": Kind(
        "pictures of the same pixels, file or name in train and in another split",
        "a picture that is learnt is scored: the score says nothing",
        "drop them from one of the two splits",
        "they are left out of train",
    ),
    "near-duplicate": Kind(
        "pictures nearly the same as one of train: re-encoded, brightened, scaled, cropped, mirrored",
        "pictures that are nearly those of training are scored: the score is too good",
        "drop them from one of the two splits; divide videos by scene",
        "they are left out of train",
    ),
    "void": Kind(
        "a picture without a labelled pixel", "there is nothing to learn from it", "label it, or drop it", LEFT_OUT
    ),
    "absent": Kind(
        "a class without a pixel in the split, or no labelled pixel at all (of test that is a note)",
        "the class cannot be learnt (train), or has no score (val)",
        "add pictures of it, or take it out of the table",
    ),
    "rare": Kind(
        "a class on fewer than 3 pictures (of many), or on less than 1 in 100,000 labelled pixels",
        "it is hardly learnt, and its score hangs on a few pixels",
        "add pictures of it, or merge it with a class that resembles it",
    ),
    "single": Kind(
        "one class holds all labelled pixels",
        "there is nothing to tell apart",
        "see whether the table of classes is that of the files; 255 is void",
    ),
    "balance": Kind(
        "one class has over 10,000 times the pixels of another",
        "without class weights the rarest classes hardly change the loss",
        "keep --class-weights median, the default, or merge classes",
    ),
    "sizes": Kind(
        "pictures of more than 16 times the pixels of the median picture, or less than a 16th",
        "small pictures are mostly border, large ones show objects at another scale",
        "scale the pictures to like scales, labels with nearest neighbour; or drop the outliers",
    ),
    "field": Kind(
        "pictures smaller than the stride of the backbone's coarsest map",
        "the net's coarsest map has no whole cell on it: the picture is mostly padding",
        "enlarge the pictures (labels with nearest neighbour), or choose a backbone whose coarsest stride is smaller",
    ),
}
"""By name; the order is that of docs/data.md."""


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, or worth knowing.

    Attributes:
        kind: a name in `KINDS`.
        severity: with an "error" training would fail or learn nothing; a "warning" is for the user to judge.
        files: the files concerned, or names of samples that are in no file.
        detail: what was found, and what was expected; one line.
    """

    kind: str
    severity: Literal["error", "warning"]
    files: tuple[str, ...]
    detail: str

    def json(self) -> dict[str, Any]:
        """As an object for ``--json``, with what it would do to training and how to mend it."""
        kind = KINDS[self.kind]
        return {
            "kind": self.kind,
            "severity": self.severity,
            "files": list(self.files),
            "detail": self.detail,
            "effect": kind.effect,
            "mend": kind.mend,
        }
