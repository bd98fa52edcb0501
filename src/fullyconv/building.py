"""From a `ModelConfig` to an `FCN`. The only code that reads a model config."""

from __future__ import annotations

import copy
from collections.abc import Mapping

from torch import nn

from fullyconv import backbones
from fullyconv.config import Classes, ModelConfig, StreamConfig
from fullyconv.errors import ConfigError
from fullyconv.model import FCN


def build(
    config: ModelConfig,
    *,
    weights: bool = True,
    backbone: nn.Module | None = None,
    classes: Mapping[str, Classes] | None = None,
) -> FCN:
    """Build the network that a config describes.

    Args:
        config: what to build.
        weights: load the classifier's weights as the config says; False leaves them random, for loading a checkpoint.
        backbone: the object to use where ``config.backbone`` names none of ours: a classifier or a net that gives maps.
        classes: class table of each head, kept with the model.

    Raises:
        UnknownName: no such backbone or tap; says which are near.
        ConfigError, SurgeryError, AlignmentError, CheckpointError: see `fullyconv.backbones.backbone` and `Head`.

    Example:
        >>> from fullyconv.presets import fcn8s
        >>> build(fcn8s("tinyvgg", classes=3, weights=None)).heads["out"].classes
        3
    """
    trunk = _trunk(config, config.backbone if backbone is None else backbone, weights)
    for name, head in config.heads.items():
        if not name.isidentifier() or hasattr(nn.ModuleDict(), name):
            raise ConfigError(
                f"heads: {name!r} cannot name a head; expected letters, digits and underscores, and no name of a "
                "method such as 'keys'",
                where="heads",
            )
        table = (classes or {}).get(name)
        if table is not None and len(table) != head.classes:
            raise ConfigError(
                f"head '{name}' has {head.classes} classes and its table {len(table)}; expected the same number",
                where=f"heads.{name}.classes",
            )
    model = FCN(trunk, config.heads, interpolate=config.align == "interpolate")
    # What the weights expect travels with the model, whatever the tables say one day.
    if config.streams:
        streams = {
            name: stream.model_copy(update={"input": input})
            for (name, stream), input in zip(config.streams.items(), trunk.inputs, strict=True)
        }
        model.config = config.model_copy(update={"streams": streams})
    else:
        model.config = config.model_copy(update={"input": trunk.inputs[0]})
    model.classes = dict(classes or {})
    return model


def _trunk(config: ModelConfig, source: str | nn.Module, weights: bool) -> backbones.Backbone:
    def make(stream: ModelConfig | StreamConfig, net: str | nn.Module) -> backbones.Backbone:
        given = stream.weights if weights else None
        return backbones.backbone(net, weights=given, input=stream.input, geometry=config.geometry, pools=config.pools)

    if not config.streams:
        return make(config, source)
    # A net of one's own is one object; each stream is to learn by itself.
    return backbones.Streams(
        {
            name: make(stream, source if isinstance(source, str) else copy.deepcopy(source))
            for name, stream in config.streams.items()
        }
    )
