"""How wrong logits are, pixel by pixel. Void pixels weigh nothing, and a batch of nothing but void costs 0.

Every loss takes ``(logits, labels, *, void, reduction, weights)``:

    logits     (B, K, H, W), float; computed in float32 at least
    labels     (B, H, W) int64, 0..K-1 or ``void``
    void       the label that does not count, outside 0..K-1
    reduction  "mean": over the pixels that count, each with its class weight (the sum of weights divides);
               "sum": over the pixels of the batch, as PAMI (section 4.2) and the release's VGG nets learn;
               "image": the mean over pictures of the mean over each picture's pixels, so that a picture counts the same
               however large it is; pictures of nothing but void are left out
    weights    (K,) one factor for each class, not negative; None: 1

and returns a scalar, 0 or more, best 0. A loss is added by writing such a function and naming it in `LOSSES`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

Reduction = Literal["mean", "sum", "image"]


class Loss(Protocol):
    """What every entry of `LOSSES` is."""

    def __call__(
        self, logits: Tensor, labels: Tensor, *, void: int, reduction: Reduction = "mean", weights: Tensor | None = None
    ) -> Tensor: ...


def cross_entropy(
    logits: Tensor, labels: Tensor, *, void: int, reduction: Reduction = "mean", weights: Tensor | None = None
) -> Tensor:
    """Minus the log of the probability of the true class (multinomial logistic loss; paper, section 4).

    `fullyconv.dense.cross_entropy` computes the same from a coarse score map without holding ``logits``.

    Example:
        >>> cross_entropy(torch.zeros(1, 4, 1, 2), torch.tensor([[[3, 255]]]), void=255)  # log(4)
        tensor(1.3863)
    """
    logits = _wide(logits)
    weight = None if weights is None else weights.to(logits)
    if reduction != "image":
        total = F.cross_entropy(logits, labels, weight, ignore_index=void, reduction="sum")
        return reduce(total, _pixel_weights(labels, void, weights, total).sum(), reduction)
    each = F.cross_entropy(logits, labels, weight, ignore_index=void, reduction="none")
    return reduce(each.sum((1, 2)), _pixel_weights(labels, void, weights, each).sum((1, 2)), reduction)


def focal(
    logits: Tensor,
    labels: Tensor,
    *,
    void: int,
    reduction: Reduction = "mean",
    weights: Tensor | None = None,
    gamma: float = 2.0,
) -> Tensor:
    """Cross-entropy times (1 - p)^gamma, p the probability of the true class: easy pixels count less.

    Lin, Goyal, Girshick, He, Dollár: Focal loss for dense object detection, ICCV 2017.

    Args:
        gamma: 0 or more; 0 gives `cross_entropy`.

    Example:
        >>> focal(torch.zeros(1, 2, 1, 1), torch.tensor([[[0]]]), void=255)  # log(2) / 4
        tensor(0.1733)
    """
    log_p = -F.cross_entropy(_wide(logits), labels, ignore_index=void, reduction="none")
    # -expm1 keeps the digits of 1 - p where p is near 1; below the clamp the power's own slope is 0 or infinite.
    missing = (-torch.expm1(log_p)).clamp(min=torch.finfo(log_p.dtype).tiny)
    weight = _pixel_weights(labels, void, weights, log_p)
    return reduce((-(missing**gamma) * log_p * weight).sum((1, 2)), weight.sum((1, 2)), reduction)


def dice(
    logits: Tensor, labels: Tensor, *, void: int, reduction: Reduction = "mean", weights: Tensor | None = None
) -> Tensor:
    """1 - soft Dice coefficient, averaged over the classes that the batch's truth holds.

    For a class with probabilities p and truth g (0 or 1), Dice is 2 sum(p g) / (sum(p) + sum(g)), the sums going over
    all pixels of the batch that count. ``weights`` weigh the classes in the average. Dice is no sum over pixels, so
    "sum" is the mean times the number of pixels that count (with their weights), which puts it on one scale with a
    summed cross-entropy; and of a batch cut in two it is not the sum of the parts. "image" is the mean of each
    picture's own.

    Milletari, Navab, Ahmadi: V-Net, 3DV 2016.

    Example:
        >>> dice(torch.tensor([[[[90., 0.]], [[0., 90.]]]]), torch.tensor([[[0, 1]]]), void=255)
        tensor(0.)
    """
    if reduction == "image":
        each = [dice(x, y, void=void, weights=weights) for x, y in zip(logits.split(1), labels.split(1), strict=True)]
        counts = _pixel_weights(labels, void, weights, each[0]).sum((1, 2))
        return reduce(torch.stack(each) * counts, counts, reduction)
    classes = logits.shape[1]
    counted = labels != void
    p = _wide(logits).softmax(1) * counted.unsqueeze(1)
    truth = torch.where(counted, labels, 0)
    p_true = p.gather(1, truth.unsqueeze(1)).squeeze(1)
    shared = p.new_zeros(classes).index_add(0, truth.flatten(), p_true.flatten())
    pixels = p.new_zeros(classes).index_add(0, truth.flatten(), counted.flatten().to(p.dtype))
    share = (pixels > 0).to(p.dtype)
    if weights is not None:
        share = share * weights.to(share)
    missed = 1 - 2 * shared / (p.sum((0, 2, 3)) + pixels).clamp(min=torch.finfo(p.dtype).tiny)
    count = _pixel_weights(labels, void, weights, missed).sum()
    mean = reduce((share * missed).sum(), share.sum(), "mean")
    return reduce(mean * count, count, reduction)


def lovasz(
    logits: Tensor, labels: Tensor, *, void: int, reduction: Reduction = "mean", weights: Tensor | None = None
) -> Tensor:
    """1 - IU made smooth, averaged over the classes that the batch's truth holds: the Lovász-softmax loss.

    Of probabilities that are all 0 or 1 it is exactly 1 - IU. ``weights`` weigh the classes in the average. Like `dice`
    it is no sum over pixels, and "sum" and "image" mean what they mean there.

    Berman, Rannen Triki, Blaschko: The Lovász-softmax loss, CVPR 2018, equations 8 and 11, algorithm 1.

    Example:
        >>> lovasz(torch.tensor([[[[90., 90.]], [[0., 0.]]]]), torch.tensor([[[0, 1]]]), void=255)  # IU 1/2 and 0
        tensor(0.7500)
    """
    if reduction == "image":
        each = [lovasz(x, y, void=void, weights=weights) for x, y in zip(logits.split(1), labels.split(1), strict=True)]
        counts = _pixel_weights(labels, void, weights, each[0]).sum((1, 2))
        return reduce(torch.stack(each) * counts, counts, reduction)
    counted = labels != void
    truth = labels[counted]
    pixels = torch.bincount(truth, minlength=logits.shape[1])
    held = pixels.nonzero()  # (P, 1), the classes that count
    pixels = pixels[held]
    p = _wide(logits).softmax(1)[:, held[:, 0]].movedim(1, 0)[:, counted]  # (P, N)
    true = (truth == held).to(p)
    errors = (true - p).abs()
    order = _largest_first(errors.detach())
    errors, hits = errors.gather(1, order), true.gather(1, order).cumsum(1)
    # 1 - IU where the pixels with the largest errors, up to each in turn, are wrong.
    union = pixels + torch.arange(1, len(truth) + 1, device=truth.device) - hits
    jaccard = 1 - (pixels - hits) / union
    missed = (errors * jaccard.diff(dim=1, prepend=torch.zeros_like(jaccard[:, :1]))).sum(1)
    share = torch.ones_like(missed) if weights is None else weights.to(missed)[held[:, 0]]
    mean = reduce((share * missed).sum(), share.sum(), "mean")
    count = _pixel_weights(labels, void, weights, missed).sum()
    return reduce(mean * count, count, reduction)


def _largest_first(errors: Tensor) -> Tensor:
    """The order of each row's numbers, (K, N) int64."""
    if errors.device.type != "cpu":
        return errors.argsort(1, descending=True)
    return torch.from_numpy(np.argsort(-errors.numpy(), axis=1))  # several times as fast as torch's, in vectors


def sample_patches(
    labels: Tensor,
    *,
    keep: float = 0.25,
    cell: int = 32,
    start: int = 0,
    void: int,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Labels of which only a random share of the cells counts: the others become void (paper, sections 3.4 and 4.3).

    A cell of the final layer is one patch of patch-wise training, so dropping the loss of whole cells samples patches.
    The paper enlarges the batch by 1 / keep to see as many patches, and finds no gain over training on whole pictures.

    Args:
        labels: (B, H, W); left as it is.
        keep: probability that a cell counts, 0 < keep <= 1.
        cell: side of a cell in pixels, the net's coarsest stride.
        start: the row and the column at which a cell begins; cells lie from there on, both ways.
        void: the label of pixels that do not count.
        generator: where the random numbers come from; None: torch's own state.

    Raises:
        ValueError: ``keep`` or ``cell`` is out of range.

    Example:
        >>> kept = sample_patches(torch.zeros(1, 64, 64), void=255, generator=torch.Generator().manual_seed(5))
        >>> kept[0, ::32, ::32]
        tensor([[255.,   0.],
                [255., 255.]])
    """
    if not 0 < keep <= 1:
        raise ValueError(f"keep: got {keep}; expected a probability above 0, at most 1")
    if cell < 1:
        raise ValueError(f"cell: got {cell}; expected a side in pixels, 1 or more")
    pictures, height, width = labels.shape
    cut = -start % cell  # pixels that the first cell has lost to the border
    cells = (pictures, math.ceil((height + cut) / cell), math.ceil((width + cut) / cell))
    drawn = torch.rand(cells, generator=generator, device=generator.device if generator else labels.device)
    dropped = (drawn >= keep).to(labels.device).repeat_interleave(cell, 1).repeat_interleave(cell, 2)
    return labels.masked_fill(dropped[:, cut : cut + height, cut : cut + width], void)


def reduce(total: Tensor, count: Tensor, reduction: Reduction) -> Tensor:
    """A loss summed over pixels, or its mean; where no pixel counts, 0 / 0 is 0.

    Args:
        total: the sum over pixels, a scalar; or of each picture, (B,), which "image" needs.
        count: the sum of the pixels' weights, of the same shape.

    Raises:
        ValueError: another reduction.
    """
    if reduction not in ("mean", "sum", "image"):
        raise ValueError(f"reduction: got {reduction!r}; expected mean, sum or image")
    if reduction == "image":
        total, count = total / torch.where(count > 0, count, 1), (count > 0).to(total)
    summed = total.sum()
    return summed if reduction == "sum" else summed / torch.where(count.sum() > 0, count.sum(), 1)


def _pixel_weights(labels: Tensor, void: int, weights: Tensor | None, like: Tensor) -> Tensor:
    """(B, H, W): the class weight of every pixel, 0 where void."""
    counted = labels != void
    if weights is None:
        return counted.to(like.dtype)
    return weights.to(like)[torch.where(counted, labels, 0)] * counted


def _wide(logits: Tensor) -> Tensor:
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


LOSSES: Mapping[str, Loss] = {"cross_entropy": cross_entropy, "focal": focal, "dice": dice, "lovasz": lovasz}
