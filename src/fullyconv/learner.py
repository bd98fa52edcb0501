"""A model with what moves its weights: one step at a time, on any device, in any number of processes.

Lightning Fabric is beneath, and is named nowhere else. Started by ``torchrun`` or ``fabric run``, every process makes a
`Learner` and they move as one: each takes its share of every batch, and a loss is the mean over the pixels of all
shares, so that the number of processes is no part of a recipe. (BatchNorm is the exception: it sees one share.)
"""

from __future__ import annotations

import atexit
import logging
import math
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from fullyconv import checkpoint, dense
from fullyconv.config import FitConfig
from fullyconv.devices import computes_bf16, pick_device
from fullyconv.errors import ConfigError
from fullyconv.lookup import lookup
from fullyconv.losses import LOSSES, Reduction, lovasz
from fullyconv.model import FCN, Head
from fullyconv.optim import NORMS, Average, freeze, freeze_unread, optimizer_of, param_groups
from fullyconv.sampling import Batch, mix
from fullyconv.substitutes import Substitutes

if TYPE_CHECKING:
    from lightning_fabric import Fabric


STATISTICS = 0.1
"""Share of a batch, at least, that goes into running statistics; the average of the weights averages them as well."""


class Learner:
    """What learns.

    Args:
        model: learns in place; is moved to the device, channels_last.
        settings: optimizer, loss, precision, device.
        void: the label that does not count.
        weights: for each head the weights of its classes in the loss, (K,) float32; a head may be left out.

    Attributes:
        model: the model as it was given.
        scored: what to score and to keep: the average of the weights, or the model itself where there is none.
        device, rank, processes: where this process is.
        bf16: whether the net computes in bfloat16.
        guess: loss per pixel of guessing every class alike, ``ln K``, summed over heads with their weights.

    Raises:
        ConfigError: the settings do not fit the model or the machine.
    """

    def __init__(
        self,
        model: FCN,
        settings: FitConfig,
        *,
        void: int,
        weights: Mapping[str, Tensor] | None = None,
    ) -> None:
        lookup("loss", settings.loss, LOSSES)
        self._heads = heads_of(model)
        self._head_weights = head_weights(settings, self._heads)
        device = pick_device(settings.device)
        self.bf16 = settings.precision == "bf16" or (settings.precision == "auto" and computes_bf16(device))
        self._fabric = _fabric(device, bf16=self.bf16)
        self.device: torch.device = self._fabric.device
        self.rank, self.processes = self._fabric.global_rank, self._fabric.world_size
        if settings.pictures % self.processes:
            enlarged = (
                "" if settings.keep == 1 else f", which is {settings.pictures} pictures with keep {settings.keep:g}"
            )
            raise ConfigError(
                f"batch: got {settings.batch}{enlarged}; expected a multiple of {self.processes}, the number of "
                "processes",
                where="batch",
            )
        self.settings, self.model = settings, model.to(self.device).to(memory_format=torch.channels_last)
        keep_up(model)
        freeze_unread(model)
        frozen, every = freeze(model.backbone, settings.freeze), settings.freeze_norm or settings.backbone_lr == 0
        self._frozen_norms = [
            norm
            for name, norm in model.backbone.named_modules()
            if isinstance(norm, NORMS) and (every or any(f"{name}.{p}" in frozen for p, _ in norm.named_parameters()))
        ]
        groups = param_groups(
            model,
            lr=settings.lr,
            backbone_lr=settings.backbone_lr,
            weight_decay=settings.weight_decay,
            bias_lr=2.0 if settings.optimizer == "sgd" else 1.0,
        )
        self._optimizer = optimizer_of(settings.optimizer, groups, momentum=settings.momentum, device=self.device)
        self._average = Average(model, settings.ema) if settings.ema else None
        self.scored = model if self._average is None else self._average.model
        self._net, self._stepper = self._fabric.setup(_ScoreMaps(model), self._optimizer)
        self._void = void
        self._class_weights = {head: w.to(self.device) for head, w in (weights or {}).items()}
        self.guess = sum(w * math.log(self._heads[name].classes) for name, w in self._head_weights.items())

    def train(self) -> None:
        """Put the model into train mode, but for norms that are to keep their statistics. Needed after each scoring."""
        self.model.train()
        for norm in self._frozen_norms:
            norm.eval()

    def step(self, held: Sequence[Batch], *, number: int, rate: float, seed: int) -> tuple[float, float]:
        """Learn from some batches in one step of the optimizer.

        Args:
            held: batches whose gradients are summed; of each, this process's share.
            number: steps taken before this one.
            rate: factor on the learning rates, 0..1.
            seed: of dropout.

        Returns:
            loss per pixel, as the reduction means it, summed over heads with their weights; and what a summed loss is
            to be divided by for it, summed over heads: the pixels that counted, or for "image" the pictures.
        """
        for group in self._optimizer.param_groups:
            group["lr"] = group["base_lr"] * rate
        batches = [(self._fabric.to_device(i), {h: self._fabric.to_device(n) for h, n in y.items()}) for i, y in held]
        counts = self.sum(torch.stack([self._count(head, batches) for head in self._head_weights])).clamp(min=1e-12)
        loss = torch.zeros((), device=self.device)
        self._stepper.zero_grad()
        for index, (images, labels) in enumerate(batches):
            more = index + 1 < len(batches)
            with _seeded(mix(seed, index, self.rank), self.device), self._fabric.no_backward_sync(self._net, more):
                scores = self._net(images.contiguous(memory_format=torch.channels_last))
                sums = torch.stack([w * self._loss(h, scores[h], labels[h]) for h, w in self._head_weights.items()])
                per_pixel = (sums / counts).sum()
                # Fabric takes the mean of the processes' gradients, where the sum is wanted.
                wanted = sums.sum() if self.settings.reduction == "sum" else per_pixel
                self._fabric.backward(self.processes * wanted)
            loss += per_pixel.detach()
        if self.settings.clip:
            self._fabric.clip_gradients(self._net, self._stepper, max_norm=self.settings.clip, error_if_nonfinite=False)
        self._stepper.step()
        if self._average is not None:
            self._average.update(self.model, number)
        return float(self.sum(loss)), float(counts.sum())

    def agree(self, number: float, wish: bool) -> tuple[float, bool]:
        """The number as process 0 has it, and whether any process has the wish."""
        mine = torch.tensor([number if self.rank == 0 else 0.0, float(wish)])
        chosen, wishes = self.sum(mine).tolist()
        return chosen, wishes > 0

    def sum(self, numbers: Tensor) -> Tensor:
        """A tensor, summed over processes."""
        if self.processes == 1:
            return numbers
        total = self._fabric.all_reduce(numbers.to(self.device), reduce_op="sum")
        assert isinstance(total, Tensor)
        return total

    def pooled(self, found: Mapping[str, str]) -> dict[str, str]:
        """What all processes have found, in each of them."""
        if self.processes == 1 or not int(self.sum(torch.tensor(len(found)))):
            return dict(found)
        everyone: list[dict[str, str]] = [{}] * self.processes
        torch.distributed.all_gather_object(everyone, dict(found))
        return {name: reason for one in everyone for name, reason in one.items()}

    def lost_contact(self, error: RuntimeError) -> bool:
        """Whether an error says that another process is no longer there."""
        said = str(error).lower()
        return isinstance(error, torch.distributed.DistBackendError) or "gloo" in said or "connection" in said

    def wait(self) -> None:
        """Until every process is here."""
        self._fabric.barrier()

    def tensors(self) -> dict[str, Tensor]:
        """All that `restore` needs, by name."""
        found = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        if self._average is not None:
            found |= {f"average.{name}": value for name, value in self.scored.state_dict().items()}
        for index, slots in self._optimizer.state_dict()["state"].items():
            found |= {f"optimizer.{index}.{slot}": value for slot, value in slots.items() if value is not None}
        return found | {f"class_weights.{head}": weights for head, weights in self._class_weights.items()}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from what `tensors` gave.

        Raises:
            CheckpointError: they are another model's.
        """
        own = {"model": self.model} | ({} if self._average is None else {"average": self.scored})
        for prefix, module in own.items():
            given = {n.removeprefix(f"{prefix}."): t for n, t in tensors.items() if n.startswith(f"{prefix}.")}
            checkpoint.load_strictly(module, given, "the resume point")
        # Counted anew, they would be others once a picture cannot be read.
        for head in self._class_weights:
            if (weights := tensors.get(f"class_weights.{head}")) is not None:
                # A copy: products round by where numbers lie, and those of a file lie anywhere.
                self._class_weights[head] = weights.to(self.device, copy=True)
        parameters = [p for group in self._optimizer.param_groups for p in group["params"]]
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            if name.startswith("optimizer."):
                _, index, slot = name.split(".")
                like = parameters[int(index)]
                # In the memory format of the weight, since rounding may depend on it.
                state.setdefault(int(index), {})[slot] = (
                    torch.empty_like(like).copy_(value) if value.shape == like.shape else value
                )
        self._optimizer.load_state_dict({"state": state, "param_groups": self._optimizer.state_dict()["param_groups"]})

    def _count(self, head: str, batches: Sequence[Batch]) -> Tensor:
        """What the loss of a step is divided by: pixels that count, with the weights of their classes, or pictures."""
        pictures = [picture for _, labels in batches for picture in self._heads[head].labels_on(labels[head])]
        pixels = torch.stack([self._pixels(head, picture) for picture in pictures])
        return ((pixels > 0) if self.settings.reduction == "image" else pixels).sum().to(torch.float32)

    def _pixels(self, head: str, labels: Tensor) -> Tensor:
        """Pixels that count, with the weights of their classes."""
        weights = self._class_weights.get(head)
        if weights is None:
            return (labels != self._void).sum()
        return torch.bincount(labels.flatten(), minlength=len(weights))[: len(weights)].to(weights.dtype) @ weights

    def _loss(self, head: str, scores: Tensor, labels: Tensor) -> Tensor:
        """Summed over pixels; for reduction "image", the mean over each picture's pixels, summed over pictures."""
        on_logits = self._heads[head].labels_on(labels)
        if self.settings.reduction != "image":
            total = self._reduced(head, scores, on_logits, "sum")
        else:
            pictures = zip(scores.split(1), on_logits.split(1), strict=True)
            total = torch.stack([self._reduced(head, one, truth, "mean") for one, truth in pictures]).sum()
        return total + self._lovasz(head, scores, labels) if self.settings.lovasz else total

    def _lovasz(self, head: str, scores: Tensor, labels: Tensor) -> Tensor:
        """On the scale of `_loss`: it is no sum, and counts as much as if every pixel had cost its mean."""
        cells = self._heads[head].labels_at_cells(labels, (scores.shape[2], scores.shape[3]), void=self._void)
        pixels = self._count(head, [(scores, {head: labels})])
        return self.settings.lovasz * pixels * lovasz(scores, cells, void=self._void)

    def _reduced(self, head: str, scores: Tensor, labels: Tensor, reduction: Reduction) -> Tensor:
        upsample, void, weights = self._heads[head].upsample, self._void, self._class_weights.get(head)
        if self.settings.loss == "cross_entropy":
            return dense.cross_entropy(scores, upsample, labels, void=void, reduction=reduction, weights=weights)
        logits = upsample(scores, (labels.shape[-2], labels.shape[-1]))
        return LOSSES[self.settings.loss](logits, labels, void=void, reduction=reduction, weights=weights)


def keep_up(model: nn.Module) -> None:
    """Let running statistics follow the weights within tens of steps, in place.

    Some classifiers, such as torchvision's MobileNetV3, take only a hundredth of each batch into them: after some
    hundred steps they would still be those of weights that are long gone, and scores in eval mode nothing.

    Example:
        >>> norm = nn.BatchNorm2d(4, momentum=0.01)
        >>> keep_up(norm)
        >>> norm.momentum
        0.1
    """
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.momentum is not None:
            module.momentum = max(module.momentum, STATISTICS)


def heads_of(model: FCN) -> dict[str, Head]:
    """The heads of a model by name, as what they are."""
    return {name: head for name, head in model.heads.items() if isinstance(head, Head)}


def head_weights(settings: FitConfig, heads: Collection[str]) -> dict[str, float]:
    """The weight of each head's loss.

    Raises:
        UnknownName: one is given for a head that there is not.
        ConfigError: none is above 0.

    Example:
        >>> head_weights(FitConfig(steps=1, head_loss={"depth": 0.5}), ["out", "depth"])
        {'out': 1.0, 'depth': 0.5}
    """
    for name in settings.head_loss:
        lookup("head", name, dict.fromkeys(heads))
    weights = {name: settings.head_loss.get(name, 1.0) for name in heads}
    if not any(weights.values()):
        raise ConfigError(
            "head_loss: got 0 for every head, so that nothing is learnt; expected a weight above 0", where="head_loss"
        )
    return weights


class _ScoreMaps(nn.Module):
    """The model with score maps for its forward, which is what Fabric casts, wraps and synchronises."""

    def __init__(self, model: FCN) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        try:
            with Substitutes() if images.device.type == "cpu" else nullcontext():
                return self.model.score_maps(images)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise ConfigError(
                f"batch: {len(images)} picture of {images.shape[2]}x{images.shape[3]} leaves a BatchNorm one value, of "
                "which there is no spread; expected a larger batch, or larger crops",
                where="batch",
            ) from None


def _fabric(device: torch.device, *, bf16: bool) -> Fabric:
    from lightning_fabric import Fabric

    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # `fit` says device and precision itself
    precision: Literal["bf16-mixed", "32-true"] = "bf16-mixed" if bf16 else "32-true"
    processes, here = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    joined = _joined()  # by whoever called, who leaves by himself
    if "LT_CLI_USED" in os.environ:  # `fabric run` has said the rest, and launched
        fabric = Fabric(precision=precision)
    elif processes > 1:
        fabric = Fabric(
            accelerator=device.type, strategy="ddp", devices=here, num_nodes=processes // here, precision=precision
        )
        fabric.launch()
    else:
        devices = 1 if device.index is None else [device.index]
        fabric = Fabric(accelerator=device.type, devices=devices, precision=precision)
        fabric.launch()
    if _joined() and not joined:
        atexit.register(_leave)
    return fabric


def _joined() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _leave() -> None:
    """Leave the processes that learnt together, as Fabric does with NCCL alone.

    With Gloo one that still had its threads when Python ended was aborted once, after all its work was done.
    """
    if _joined():
        torch.distributed.destroy_process_group()


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Torch's own random numbers, which dropout takes, from this seed; and as they were before, afterwards."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
