"""The paper's nets as functions that return a complete `ModelConfig`.

The number in a name is the prediction stride: ``fcn8s`` reads the backbone's coarsest tap and every tap down to
stride 8, one for each stride. On VGG16 that is fc7, pool4 and pool3, as in the paper; on a net whose coarsest map has
stride 16 it is that map and one skip. Whatever else a config can say (`fullyconv.config.HeadConfig`), such as max
fusion or logits at half the resolution, is said with ``model_copy(update=...)`` or in a recipe.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fractions import Fraction
from functools import partial
from typing import Literal

from torch import nn

from fullyconv import backbones
from fullyconv.config import Geometry, HeadConfig, InputConfig, ModelConfig, SkipConfig, StreamConfig, Upsampling
from fullyconv.errors import ConfigError
from fullyconv.lookup import lookup

CONTEXT = 256
"""Channels of the context block that stands in for fc6 and fc7 on nets that end in a global pool."""


def fcn(
    stride: int,
    backbone: str | nn.Module = "vgg16",
    classes: int | Mapping[str, int] = 21,
    *,
    weights: str | None = "default",
    input: InputConfig | None = None,
    geometry: Geometry = "same",
    context: int | None = None,
    upsampling: Upsampling = "fixed",
    at_once: bool = False,
    dropout: float = 0.0,
) -> ModelConfig:
    """A net that predicts at a stride of ``stride`` pixels before the last, fixed, upsampling.

    Args:
        stride: 32, 16, 8, 4 or 2; at most the backbone's coarsest.
        backbone: a name, or an object (then give it to `build` as well).
        classes: of the one head "out", or of each head by name.
        weights: of the classifier: "default", a file, or None for random ones.
        input: preprocessing that goes with them; None: the published weights' own. With four or six channels this is
            the paper's early fusion.
        geometry: "same", or "pad100" for the authors' own, which their weights need.
        context: channels of a context block before the coarsest score; 0 for none, as in the paper. None: none where
            the backbone has hidden linear layers (VGG's fc6 and fc7) or is the paper's GoogLeNet, else 256.
        upsampling: between skips: "fixed", or "learned" from bilinear on (paper, section 4.2).
        at_once: scale each skip's map by a hundredth of the one before, 1e-2 and 1e-4: this brings VGG16's maps, whose
            numbers grow towards the finer taps, to one range, and so all can learn at once (PAMI, section 4.3). Other
            backbones have other numbers; `fullyconv.studies.strides.levelled` measures them.
        dropout: before every score layer, on top of the classifier's own.

    Raises:
        ConfigError: the backbone has no tap at that stride, or is finer than that; or a setting out of its range.

    Example:
        >>> [skip.tap for skip in fcn(8, "vgg16", 21).heads["out"].skips]
        ['fc7', 'pool4', 'pool3']
    """
    name, taps, usual = _described(backbone)
    # Where several maps have one stride, the last is the deepest.
    deepest = {at: tap for tap, at in taps.items()}
    strides = sorted((s for s in deepest if s >= stride), reverse=True)
    if not strides or strides[-1] != stride:
        offered = ", ".join(f"{int(s)}" for s in sorted(deepest))
        raise ConfigError(f"fcn{stride}s on {name}: it has no map of stride {stride}; expected one of {offered}")
    first = usual if context is None else context
    skips = tuple(
        SkipConfig.parse(
            {"tap": deepest[s], "context": 0 if i else first, "scale": float(f"1e-{2 * i}") if at_once else 1.0}
        )
        for i, s in enumerate(strides)
    )
    counts = {"out": classes} if isinstance(classes, int) else dict(classes)
    heads = {
        head: HeadConfig.parse({"classes": n, "skips": skips, "upsampling": upsampling, "dropout": dropout})
        for head, n in counts.items()
    }
    return ModelConfig.parse(
        {"backbone": name, "weights": weights, "input": input, "geometry": geometry, "heads": heads}
    )


fcn32s = partial(fcn, 32)
fcn16s = partial(fcn, 16)
fcn8s = partial(fcn, 8)
fcn4s = partial(fcn, 4)
fcn2s = partial(fcn, 2)
fcn8s_at_once = partial(fcn, 8, at_once=True)


def single_tap(
    tap: str,
    backbone: str | nn.Module = "vgg16",
    classes: int | Mapping[str, int] = 21,
    *,
    weights: str | None = "default",
    input: InputConfig | None = None,
    geometry: Geometry = "same",
) -> ModelConfig:
    """A net that scores one map and nothing else: what pool3, pool4 or pool5 know by themselves (PAMI, section 4.3).

    Raises:
        UnknownName: the backbone has no such tap.

    Example:
        >>> single_tap("pool4").heads["out"].skips[0].tap
        'pool4'
    """
    name, taps, _ = _described(backbone)
    lookup("tap", tap, taps)
    counts = {"out": classes} if isinstance(classes, int) else dict(classes)
    heads = {head: HeadConfig(classes=n, skips=(SkipConfig(tap=tap),)) for head, n in counts.items()}
    return ModelConfig(backbone=name, weights=weights, input=input, geometry=geometry, heads=heads)


def late_fusion(
    streams: Mapping[str, InputConfig | None],
    backbone: str = "vgg16",
    classes: int | Mapping[str, int] = 40,
    *,
    stride: int = 32,
    weights: str | None = "default",
    geometry: Geometry = "same",
    fusion: Literal["mean", "sum"] = "mean",
) -> ModelConfig:
    """Copies of a net, each with its own channels of the picture, whose scores are joined (paper, section 5, NYUDv2).

    Args:
        streams: the preprocessing of each, by name, in the order of the picture's channels.
        fusion: "mean", as in the authors' nets, or "sum", as in the text of the paper.

    Example:
        >>> from fullyconv.config import INPUTS
        >>> both = late_fusion({"color": INPUTS["nyud-color"], "hha": INPUTS["nyud-hha"]})
        >>> [skip.tap for skip in both.heads["out"].skips]
        ['color/fc7', 'hha/fc7']
    """
    config = fcn(stride, backbone, classes, weights=weights, geometry=geometry)
    heads = {
        head: of.model_copy(
            update={
                "fusion": fusion,
                "skips": tuple(
                    skip.model_copy(update={"tap": f"{stream}/{skip.tap}"}) for skip in of.skips for stream in streams
                ),
            }
        )
        for head, of in config.heads.items()
    }
    made = {name: StreamConfig(weights=weights, input=input) for name, input in streams.items()}
    return config.model_copy(update={"streams": made, "heads": heads})


PRESETS: Mapping[str, Callable[..., ModelConfig]] = {
    "fcn32s": fcn32s,
    "fcn16s": fcn16s,
    "fcn8s": fcn8s,
    "fcn4s": fcn4s,
    "fcn2s": fcn2s,
    "fcn8s-at-once": fcn8s_at_once,
}


def finest(backbone: str) -> str:
    """The preset to take where none is asked for: fcn4s, or fcn8s where the backbone has no map of stride 4.

    Example:
        >>> finest("squeezenet1_0"), finest("googlenet")
        ('fcn4s', 'fcn4s')
    """
    return "fcn4s" if 4 in _described(backbone)[1].values() else "fcn8s"


def _described(backbone: str | nn.Module) -> tuple[str, dict[str, Fraction], int]:
    """Of a backbone: its name, the stride of each tap, and the channels of the context block that it usually gets."""
    if isinstance(backbone, backbones.Backbone):
        described = backbone
    else:
        described = backbones.describe(backbone) if isinstance(backbone, str) else backbones.backbone(backbone)
    name = backbone if isinstance(backbone, str) else type(backbone).__name__
    spec = backbones.BACKBONES.get(name)
    context = spec.context if spec is not None else None
    if context is None:
        context = 0 if described.plan is not None and described.plan.hidden else CONTEXT
    return name, {tap: of.grid.stride for tap, of in described.taps.items()}, context
