"""From a `ModelConfig` to an `FCN`. The only code that reads a model config."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from fullyconv import backbones
from fullyconv.config import Classes, ModelConfig
from fullyconv.errors import ConfigError
from fullyconv.model import FCN, Skip


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
    source = config.weights if weights else None
    trunk = backbones.backbone(
        backbone if backbone is not None else config.backbone, weights=source, input=config.input
    )
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
    model = FCN(
        trunk,
        {
            name: [Skip(skip.tap, skip.scale, skip.init, skip.context) for skip in head.skips]
            for name, head in config.heads.items()
        },
        {name: head.classes for name, head in config.heads.items()},
        learned={name: head.learned_upsampling for name, head in config.heads.items()},
        dropout={name: head.dropout for name, head in config.heads.items()},
    )
    # What the weights expect travels with the model, whatever the tables say one day.
    model.config = config.model_copy(update={"input": trunk.input})
    model.classes = dict(classes or {})
    return model
