"""The result for one picture: its label maps, with names and colours, that save and overlay themselves."""

from __future__ import annotations

import os
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from fullyconv import images
from fullyconv.errors import ConfigError
from fullyconv.labels import Labels, write_labels

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from fullyconv.config import Classes
    from fullyconv.dense import Upsampling


@dataclass(frozen=True)
class ScoreMap:
    """A score map and how to bring it to full resolution, kept where probabilities are asked for."""

    scores: Tensor
    """(1, K, h, w) float32."""
    upsample: Upsampling
    size: tuple[int, int]

    def probability_bands(self) -> Iterator[npt.NDArray[np.float16]]:
        """Softmax at full resolution from top to bottom, (rows, W, K) float16, never held whole."""
        from fullyconv import dense  # brings torch, which `fullyconv.quick` does without

        for band in dense.probabilities_bands(self.scores, self.upsample, self.size):
            yield band[0].permute(1, 2, 0).half().cpu().numpy()


@dataclass(frozen=True, repr=False)
class Segmentation:
    """Label maps of one picture, with the names and colours of the classes.

    Attributes:
        labels: for each head (H, W) *indices* 0..K-1 at the picture's size; uint8, uint16 with more than 255 classes.
        classes: for each head the table that names, colours and numbers the indices.
        image: (H, W, 3) uint8 RGB, the picture as it was read (upright, composed on its background).
        source: the picture's path, "" if it came as an array.
        notes: what was done to the picture on the way in, and to it as a whole on the way through.
        score_maps: for each head, where the `Predictor` was made with ``probabilities=True``; else empty.

    Example:
        >>> from fullyconv.config import Classes
        >>> from fullyconv import Classes
        >>> classes, image = Classes.of("sky", "road"), np.zeros((2, 2, 3), np.uint8)
        >>> Segmentation({"out": np.eye(2, dtype=np.uint8)}, {"out": classes}, image)
        Segmentation(2x2: sky 50.0 %, road 50.0 %)
    """

    labels: dict[str, Labels]
    classes: dict[str, Classes]
    image: npt.NDArray[np.uint8]
    source: str = ""
    notes: tuple[str, ...] = ()
    score_maps: dict[str, ScoreMap] = field(default_factory=dict)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.image.shape[0], self.image.shape[1]

    def head(self, name: str | None = None) -> str:
        """``name``, or the only head's name where none is given.

        Raises:
            ConfigError: no such head, or none given and there are several.
        """
        if name is None and len(self.labels) == 1:
            return next(iter(self.labels))
        if name is None or name not in self.labels:
            raise ConfigError(f"head: got {name!r}; expected one of {', '.join(self.labels)}", where="head")
        return name

    def area(self, head: str | None = None) -> dict[str, float]:
        """Share of the picture that each class covers, 0..1, in channel order; the shares sum to 1."""
        name = self.head(head)
        labels, table = self.labels[name], self.classes[name]
        # Band by band: bincount makes 8 bytes of every label.
        bands = (labels[top : top + 256].ravel() for top in range(0, len(labels), 256))
        counts = sum((np.bincount(band, minlength=len(table)) for band in bands), np.zeros(len(table), np.int64))
        return {n: float(count) / labels.size for n, count in zip(table.names, counts, strict=True)}

    def save(self, path: str | os.PathLike[str], head: str | None = None) -> Path:
        """Write the label map as a PNG of class *ids* with the classes' colours as palette; returns the path."""
        name = self.head(head)
        write_labels(path, self.labels[name], self.classes[name])
        return Path(path)

    def overlay(self, head: str | None = None, *, alpha: float = 0.5) -> npt.NDArray[np.uint8]:
        """The picture with its classes laid over it in colour, (H, W, 3) uint8; ``alpha`` 0 picture .. 1 colours."""
        name = self.head(head)
        return images.overlay(self.image, self.labels[name], self.classes[name], alpha)

    def save_overlay(self, path: str | os.PathLike[str], head: str | None = None) -> Path:
        """Write `overlay` in the format that the name's suffix says; returns the path."""
        images.write_image(path, self.overlay(head))
        return Path(path)

    def probabilities(self, head: str | None = None) -> npt.NDArray[np.float16]:
        """Probability of every class at every pixel, (H, W, K) float16 in 0..1.

        Raises:
            ConfigError: the `Predictor` was made without ``probabilities=True``.
        """
        return np.concatenate(list(self._score_map(head).probability_bands()))

    def save_probabilities(self, path: str | os.PathLike[str], head: str | None = None) -> Path:
        """Write an .npz of ``probabilities``, as above, and ``classes``, their names; returns the path.

        Raises:
            ConfigError: the `Predictor` was made without ``probabilities=True``.
        """
        name, path = self.head(head), Path(path)
        score_map, names = self._score_map(name), self.classes[name].names
        header = {"descr": "<f2", "fortran_order": False, "shape": (*self.size, len(names))}
        unfinished = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            # An .npz is a zip of .npy files. Written band by band, since it can be larger than memory.
            with zipfile.ZipFile(unfinished, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
                with archive.open("probabilities.npy", "w", force_zip64=True) as file:
                    np.lib.format.write_array_header_1_0(file, header)
                    for band in score_map.probability_bands():
                        file.write(np.ascontiguousarray(band, "<f2").data)
                with archive.open("classes.npy", "w") as file:
                    np.lib.format.write_array(file, np.array(names))
            unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)
        return path

    def _score_map(self, head: str | None) -> ScoreMap:
        name = self.head(head)
        if name not in self.score_maps:
            raise ConfigError("probabilities: none were kept; make the Predictor with probabilities=True")
        return self.score_maps[name]

    def __repr__(self) -> str:
        height, width = self.size
        return f"Segmentation({width}x{height}: {'; '.join(self._found(name) for name in self.labels)})"

    def _found(self, head: str) -> str:
        found = sorted(((share, name) for name, share in self.area(head).items() if share), reverse=True)
        text = ", ".join(f"{name} {share:.1%}".replace("%", " %") for share, name in found[:6])
        more = f" and {len(found) - 6} more" if len(found) > 6 else ""
        return (f"{head}: " if len(self.labels) > 1 else "") + text + more
