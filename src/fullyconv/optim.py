"""What turns gradients into weights: parameter groups, schedules, the average of weights, class weights."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Collection, Mapping
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from fullyconv.backbones import Backbone
from fullyconv.errors import ConfigError
from fullyconv.lookup import lookup
from fullyconv.model import FCN, Head

Module = TypeVar("Module", bound=nn.Module)

NORMS = (
    nn.modules.batchnorm._NormBase,  # BatchNorm and InstanceNorm of every dimension
    nn.GroupNorm,
    nn.LayerNorm,
    nn.LocalResponseNorm,
)

SCHEDULES: Mapping[str, Callable[[float], float]] = {
    "fixed": lambda progress: 1.0,
    "poly": lambda progress: (1.0 - progress) ** 0.9,
    "cosine": lambda progress: 0.5 * (1.0 + math.cos(math.pi * progress)),
}
"""From how far training is, 0..1, to a factor on the learning rate, 0..1."""


def rate(schedule: str, *, progress: float, step: int, warmup: int) -> float:
    """The factor on the learning rate for the step about to be taken.

    The rate rises in equal steps over ``warmup`` steps, but over a tenth of the run at most, so that a short run learns
    too. ``progress`` is 0..1 in whatever the budget is counted in, so a budget in minutes needs no guess of its steps.

    Example:
        >>> [round(rate("poly", progress=s / 100, step=s, warmup=4), 4) for s in (0, 3, 100)]
        [0.25, 0.973, 0.0]
    """
    warm = min(1.0, max((step + 1) / warmup, 10 * progress)) if warmup else 1.0
    return warm * lookup("schedule", schedule, SCHEDULES)(min(max(progress, 0.0), 1.0))


def param_groups(
    model: FCN, *, lr: float, backbone_lr: float, weight_decay: float, bias_lr: float = 1.0
) -> list[dict[str, Any]]:
    """The parameters that learn, in groups with their own rate and decay.

    Weights decay; biases and the parameters of norms do not.

    Args:
        lr: rate of the heads' weights.
        backbone_lr: factor on it for the backbone; at 0 the backbone's parameters are frozen and in no group.
        weight_decay: of weights.
        bias_lr: factor for biases that are not a norm's; the paper's is 2.

    Returns:
        Groups as an optimizer takes them; ``base_lr`` in each is what a schedule's factor multiplies.
    """
    norms = {
        f"{name}.{p}" for name, m in model.named_modules() if isinstance(m, NORMS) for p, _ in m.named_parameters()
    }
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        in_backbone = name.startswith("backbone.")
        if in_backbone and backbone_lr == 0:
            parameter.requires_grad_(False)
        if not parameter.requires_grad:
            continue
        is_norm, is_bias = name in norms, name.rpartition(".")[2] == "bias"
        factor = (backbone_lr if in_backbone else 1.0) * (bias_lr if is_bias and not is_norm else 1.0)
        groups.setdefault((factor, 0.0 if is_norm or is_bias else weight_decay), []).append(parameter)
    return [
        {"params": params, "lr": lr * factor, "base_lr": lr * factor, "weight_decay": decay}
        for (factor, decay), params in groups.items()
    ]


def freeze(backbone: Backbone, stride: int) -> set[str]:
    """Let all that maps of at most this stride are computed from keep its weights, in place.

    Args:
        backbone: any, in any mode; some of it may be frozen already.
        stride: in pixels; 0: nothing is frozen.

    Returns:
        names of the parameters that these maps are computed from, within the backbone; none where no map is so fine.

    Example:
        >>> from fullyconv.backbones import backbone
        >>> sorted(freeze(backbone("resnet18"), 2))
        ['net.bn1.bias', 'net.bn1.weight', 'net.conv1.weight']
    """
    frozen = computed_from(backbone, [name for name, tap in backbone.taps.items() if tap.grid.stride <= stride])
    for name, parameter in backbone.named_parameters():
        if name in frozen:
            parameter.requires_grad_(False)
    return frozen


def freeze_unread(model: FCN) -> None:
    """Let layers whose maps no head reads keep their weights, in place.

    They have no gradient in any case; but processes that learn together would wait for one.
    """
    heads = [head for head in model.heads.values() if isinstance(head, Head)]
    read = computed_from(model.backbone, {skip.tap for head in heads for skip in head.skips})
    for name, parameter in model.backbone.named_parameters():
        if name not in read:
            parameter.requires_grad_(False)


def computed_from(backbone: Backbone, taps: Collection[str]) -> set[str]:
    """Names of the parameters of a backbone that some of its maps are computed from; the backbone stays as it is."""
    parameters = dict(backbone.named_parameters())
    if not parameters or not taps:
        return set()
    side = backbone.minimum + 2 * (backbone.border or 0)
    channels = sum(len(input.mean) for input in backbone.inputs)
    picture = next(iter(parameters.values())).new_zeros(1, channels, side, side)
    learnt = {name for name, parameter in parameters.items() if parameter.requires_grad}
    modes = {module: module.training for module in backbone.modules()}
    with torch.enable_grad():
        maps = backbone.requires_grad_().eval()(picture)  # of what is frozen already, too
        slopes = torch.autograd.grad([maps[name].sum() for name in taps], [*parameters.values()], allow_unused=True)
    for module, training in modes.items():
        module.training = training
    for name, parameter in parameters.items():
        parameter.requires_grad_(name in learnt)
    return {name for name, slope in zip(parameters, slopes, strict=True) if slope is not None}


def optimizer_of(
    kind: str, groups: list[dict[str, Any]], *, momentum: float, device: torch.device
) -> torch.optim.Optimizer:
    """ "adamw" or "sgd" over groups that `param_groups` made; ``momentum`` is sgd's."""
    # One pass over each weight in place of one for each term of the formula.
    fused = device.type in ("cpu", "cuda")
    if kind == "sgd":
        return torch.optim.SGD(groups, momentum=momentum, fused=fused)
    if kind == "adamw":
        return torch.optim.AdamW(groups, fused=fused)
    raise ConfigError(f"optimizer: got {kind!r}; expected adamw or sgd", where="optimizer")


class Average(Generic[Module]):
    """The moving average of a model's weights, which scores better and steadier than the last of them.

    Running statistics are averaged with the weights they belong to; counters are copied. The decay starts low
    and grows to its value, so that the random start is forgotten: ``min(decay, (1 + step) / (10 + step))``.

    Attributes:
        model: a copy of the model that holds the average; in eval mode.
    """

    def __init__(self, model: Module, decay: float) -> None:
        # After the copy: a copied graph module comes back in train mode.
        self.model: Module = copy.deepcopy(model).requires_grad_(False).eval()
        self.decay = decay

    @torch.no_grad()
    def update(self, model: Module, step: int) -> None:
        """Move the average towards ``model``, which has done ``step`` steps."""
        decay = min(self.decay, (1 + step) / (10 + step))
        now = model.state_dict()
        for name, average in self.model.state_dict().items():
            if average.is_floating_point():
                average.lerp_(now[name], 1 - decay)
            else:
                average.copy_(now[name])


def class_weights(counts: npt.ArrayLike) -> Tensor:
    """Weights of classes in the loss: ``sqrt(median frequency / frequency)``, clamped to 0.5..4.

    The square root of the median frequency balancing of Eigen and Fergus (2015), which in full trades too
    much of the large classes for the small.

    Args:
        counts: pixels of each class, (K,); a class without pixels gets 1.

    Returns:
        Shape (K,), float32.

    Example:
        >>> class_weights([100, 400, 1600, 0])
        tensor([2.0000, 1.0000, 0.5000, 1.0000])
    """
    frequency = torch.from_numpy(np.asarray(counts, np.float64))
    seen = frequency > 0
    if not seen.any():
        return torch.ones(len(frequency))
    weights = (frequency[seen].median() / frequency).sqrt().clamp(0.5, 4.0)
    return torch.where(seen, weights, torch.ones_like(weights)).float()
