"""A picture looked at several times, smaller, larger and mirrored, and what the net says of it averaged.

What a net sees at once is as many pixels as its receptive field; of a smaller copy of the picture that is more of the
scene, of a larger one more of each thing. Scores are averaged before the last upsampling, on the cells on which the
picture itself has them: the map of each look is read, bilinearly, where those cells lie in it. So what comes after
(bands, labels) is as of one look, and nothing is averaged at the size of the picture.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from fullyconv.config import MultiScale
from fullyconv.model import FCN, Head
from fullyconv.upsample import Interpolate

Strategy = Callable[[FCN, Tensor], dict[str, Tensor]]
Size = tuple[int, int]


def looks_of(model: FCN) -> MultiScale:
    """How a model's config says that pictures are looked at."""
    return MultiScale() if model.config is None else model.config.multiscale


def averaged(model: FCN, image: Tensor, looks: MultiScale, *, strategy: Strategy) -> dict[str, Tensor]:
    """Score maps of a picture, averaged over looks at it.

    Args:
        model: in eval mode.
        image: (B, C, H, W) in 0..255, RGB first, uint8 or float.
        looks: at which sizes, and whether mirrored.
        strategy: how each look is computed, one of `fullyconv.inference.STRATEGIES`.

    Returns:
        by head (B, K, h, w), on the grid and of the size of the picture's own score map.

    Example:
        >>> import fullyconv
        >>> model = fullyconv.build(fullyconv.presets.fcn8s("tinyvgg", classes=3, weights=None)).eval()
        >>> looks = MultiScale(scales=(0.5, 1), mirror=True)
        >>> averaged(model, torch.zeros(1, 3, 50, 70), looks, strategy=fullyconv.whole)["out"].shape
        torch.Size([1, 3, 8, 12])
    """
    size = (image.shape[2], image.shape[3])
    # The picture as it is comes first: its map is what all others are read onto.
    total: dict[str, Tensor] = {}
    for scale in sorted(looks.scales, key=lambda scale: scale != 1):
        seen = image if scale == 1 else resized(image, scale)
        for mirrored in (False, True) if looks.mirror else (False,):
            scores = strategy(model, seen.flip(3) if mirrored else seen)
            for name, found in scores.items():
                head = model.heads[name]
                assert isinstance(head, Head)
                if name in total:
                    there = (seen.shape[2], seen.shape[3])
                    total[name] += read_at(found, head, there, total[name], size, mirrored=mirrored)
                else:
                    total[name] = found.clone()  # an engine may put its next answer where this one is
    return {name: scores / looks.looks for name, scores in total.items()}


def resized(image: Tensor, scale: float) -> Tensor:
    """(B, C, H, W) -> (B, C, scale * H, scale * W), bilinear; a pixel at least. On the CPU uint8 stays uint8."""
    size = [max(1, round(scale * pixels)) for pixels in image.shape[2:]]
    if image.dtype != torch.uint8 or image.device.type != "cpu":
        image = image.float()
    return F.interpolate(image, size=size, mode="bilinear", antialias=scale < 1)


def read_at(scores: Tensor, head: Head, seen: Size, cells: Tensor, size: Size, *, mirrored: bool) -> Tensor:
    """The score map of a look, bilinearly, where the cells of the picture's own map lie in it.

    Args:
        scores: (B, K, h', w').
        head: whose scores these are.
        seen: (height, width) of the look in pixels.
        cells: (B, K, h, w), the picture's own map.
        size: (height, width) of the picture in pixels.
        mirrored: whether the look is mirrored, left for right.
    """
    down = _shares(head, (cells.shape[2], size[0]), (scores.shape[2], seen[0]), mirrored=False).to(scores)
    across = _shares(head, (cells.shape[3], size[1]), (scores.shape[3], seen[1]), mirrored=mirrored).to(scores)
    with torch.autocast(scores.device.type, enabled=False):
        return down @ scores @ across.T


def _shares(head: Head, own: Size, look: Size, *, mirrored: bool) -> Tensor:
    """(cells, cells'): how much of each cell of a look each of the picture's own cells takes, along one axis.

    Args:
        own, look: cells and pixels, of the picture and of the look.
    """
    (count, pixels), (there, pixels_there) = own, look
    numbers = torch.arange(count, dtype=torch.float64)
    spread = isinstance(head.upsample, Interpolate)  # evenly over the pixels, whatever the grid says
    stride, offset = float(head.grid.stride), float(head.grid.offset)
    at = (numbers + 0.5) / count if spread else (numbers * stride + offset + 0.5) / pixels  # share of the side
    if mirrored:
        at = 1 - at
    at = at * there - 0.5 if spread else (at * pixels_there - 0.5 - offset) / stride
    # Beyond the outermost cells the edge goes on; between two, what bilinear means.
    return (1 - (at.clamp(0, there - 1)[:, None] - torch.arange(there)).abs()).clamp(min=0)
