"""The paper's nets as functions that return a complete `ModelConfig`.

The number in a name is the prediction stride: ``fcn8s`` reads the backbone's coarsest tap and every tap down to
stride 8, one for each stride. On VGG16 that is fc7, pool4 and pool3, as in the paper; on a net whose coarsest map has
stride 16 it is that map and one skip.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import nn

from fullyconv import backbones
from fullyconv.config import HeadConfig, InputConfig, ModelConfig, SkipConfig
from fullyconv.errors import ConfigError

CONTEXT = 256
"""Channels of the context block that stands in for fc6 and fc7 on nets that end in a global pool."""


def fcn(
    stride: int,
    backbone: str | nn.Module = "vgg16",
    classes: int | Mapping[str, int] = 21,
    *,
    weights: str | None = "default",
    input: InputConfig | None = None,
    context: int | None = None,
    learned_upsampling: bool = False,
    dropout: float = 0.0,
) -> ModelConfig:
    """A net that predicts at a stride of ``stride`` pixels before the last, fixed, upsampling.

    Args:
        stride: 32, 16, 8, 4 or 2; at most the backbone's coarsest.
        backbone: a name, or an object (then give it to `build` as well).
        classes: of the one head "out", or of each head by name.
        weights: of the classifier: "default", a file, or None for random ones.
        input: preprocessing that goes with them; None: the published weights' own.
        context: channels of a context block before the coarsest score; 0 for none, as in the paper. None: none where
            the backbone has hidden linear layers (VGG's fc6 and fc7), else 256.
        learned_upsampling: learn the kernels between skips, from bilinear (paper, section 4.2).
        dropout: before every score layer, on top of the classifier's own.

    Raises:
        ConfigError: the backbone has no tap at that stride, or is finer than that.

    Example:
        >>> [skip.tap for skip in fcn(8, "vgg16", 21).heads["out"].skips]
        ['fc7', 'pool4', 'pool3']
    """
    described = backbones.describe(backbone) if isinstance(backbone, str) else backbones.backbone(backbone)
    name = backbone if isinstance(backbone, str) else type(backbone).__name__
    # Where several maps have one stride, the last is the deepest.
    deepest = {tap.grid.stride: label for label, tap in described.taps.items()}
    strides = sorted((s for s in deepest if s >= stride), reverse=True)
    if not strides or strides[-1] != stride:
        offered = ", ".join(f"{int(s)}" for s in sorted(deepest))
        raise ConfigError(f"fcn{stride}s on {name}: it has no map of stride {stride}; expected one of {offered}")
    if context is None:
        context = 0 if described.plan is not None and described.plan.hidden else CONTEXT
    skips = tuple(SkipConfig(tap=deepest[s], context=context if i == 0 else 0) for i, s in enumerate(strides))
    counts = {"out": classes} if isinstance(classes, int) else dict(classes)
    heads = {
        head: HeadConfig(classes=n, skips=skips, learned_upsampling=learned_upsampling, dropout=dropout)
        for head, n in counts.items()
    }
    return ModelConfig(backbone=name, weights=weights, input=input, heads=heads)


def _preset(stride: int) -> Callable[..., ModelConfig]:
    def preset(
        backbone: str | nn.Module = "vgg16",
        classes: int | Mapping[str, int] = 21,
        *,
        weights: str | None = "default",
        input: InputConfig | None = None,
        context: int | None = None,
        learned_upsampling: bool = False,
        dropout: float = 0.0,
    ) -> ModelConfig:
        return fcn(
            stride,
            backbone,
            classes,
            weights=weights,
            input=input,
            context=context,
            learned_upsampling=learned_upsampling,
            dropout=dropout,
        )

    preset.__name__ = preset.__qualname__ = f"fcn{stride}s"
    preset.__doc__ = f"`fcn` with a prediction stride of {stride} pixels."
    return preset


fcn32s = _preset(32)
fcn16s = _preset(16)
fcn8s = _preset(8)
fcn4s = _preset(4)
fcn2s = _preset(2)

PRESETS: Mapping[str, Callable[..., ModelConfig]] = {
    "fcn32s": fcn32s,
    "fcn16s": fcn16s,
    "fcn8s": fcn8s,
    "fcn4s": fcn4s,
    "fcn2s": fcn2s,
}


def finest(backbone: str) -> str:
    """The preset to take where none is asked for: fcn4s, or fcn8s where the backbone has no map of stride 4.

    Example:
        >>> finest("squeezenet1_0"), finest("googlenet")
        ('fcn4s', 'fcn4s')
    """
    strides = {tap.grid.stride for tap in backbones.describe(backbone).taps.values()}
    return "fcn4s" if 4 in strides else "fcn8s"
