"""Everything that can be set, as frozen pydantic models that know no torch.

A `Recipe` is a tuple of stages; a `Stage` is a model, data and a fit. A recipe is written as TOML, recorded whole in
every run folder as JSON, and repeats from there. Unknown keys are errors, and an impossible combination is refused
where it is born, with the dotted path of the setting.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from fullyconv.errors import ConfigError
from fullyconv.lookup import lookup

VOID = 255
"""Label id that is ignored everywhere, unless a table of classes has 255 or more of them: then 65535."""


class Config(BaseModel):
    """Base of all: frozen, no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @classmethod
    def parse(cls, data: Any, *, source: str = "") -> Self:
        """Validate plain data.

        Raises:
            ConfigError: names the setting, what was found, and what is allowed; ``source`` (a file) comes first.
        """
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            # A list whose items are wrong is reported as too short, too.
            errors = [e for e in error.errors() if e["type"] != "too_short"] or error.errors()
            first = errors[0]
            # Where a setting may be of several types, pydantic goes on with the name of the type it tried.
            parts = [str(part) for part in first["loc"]]
            typed = next((i for i, part in enumerate(parts) if "[" in part), len(parts))
            where = ".".join(parts[:typed])
            message = first["msg"].removeprefix("Value error, ")
            if first["type"] == "extra_forbidden":
                message = "no such setting"
            silent = first["type"] in {"extra_forbidden", "missing", "value_error"}
            found = "" if silent else f", got {first['input']!r:.80}"
            more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
            prefix = f"{source}: " if source else ""
            raise ConfigError(f"{prefix}{where or cls.__name__}: {message}{found}{more}", where=where) from None


class ClassInfo(Config):
    """One class: its id in label files, its name, its colour (RGB, 0..255), and whether it is void."""

    id: int = Field(ge=0, le=65535)
    name: str = Field(min_length=1, max_length=200)
    colour: tuple[int, int, int]
    ignore: bool = False

    @field_validator("colour")
    @classmethod
    def _in_range(cls, colour: tuple[int, int, int]) -> tuple[int, int, int]:
        if not all(0 <= c <= 255 for c in colour):
            raise ValueError(f"a colour is three numbers 0..255, got {colour}")
        return colour


class Classes(Config):
    """The table of classes of a data set.

    Ids in label files may have gaps and void classes in between; the network's channels may not. So a channel
    (``index``) is a position among the classes that are not void, in order of id, and `lookup_table` maps one to the
    other. Nothing else in the package renumbers labels.
    """

    entries: tuple[ClassInfo, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        ids = [c.id for c in self.entries]
        if len(set(ids)) != len(ids):
            raise ValueError(f"two classes share the id {next(i for i in ids if ids.count(i) > 1)}")
        if ids != sorted(ids):
            raise ValueError("classes must be listed in ascending order of id")
        names = [c.name for c in self.entries]
        if len(set(names)) != len(names):
            raise ValueError(f"two classes share the name {next(n for n in names if names.count(n) > 1)!r}")
        if not self.used:
            raise ValueError("every class is void; nothing is left to learn")
        return self

    @classmethod
    def of(cls, *names: str) -> Self:
        """A table of these names with ids 0, 1, ... and the PASCAL VOC colours.

        Example:
            >>> Classes.of("background", "cat").names
            ('background', 'cat')
        """
        return cls(entries=tuple(ClassInfo(id=i, name=n, colour=voc_colour(i)) for i, n in enumerate(names)))

    @property
    def used(self) -> tuple[ClassInfo, ...]:
        """The classes that are learnt and scored, in channel order."""
        return tuple(c for c in self.entries if not c.ignore)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of `used`, in channel order."""
        return tuple(c.name for c in self.used)

    @property
    def void(self) -> int:
        """The index that stands for void once labels are read: 255, or 65535 with more than 255 classes."""
        return VOID if len(self.used) <= VOID else 65535

    def __len__(self) -> int:
        return len(self.used)

    def index_of_id(self) -> dict[int, int]:
        """From the id in a label file to the channel; void ids map to `void`."""
        indices = {c.id: i for i, c in enumerate(self.used)}
        return {c.id: indices.get(c.id, self.void) for c in self.entries} | (
            {} if any(c.id == self.void for c in self.entries) else {self.void: self.void}
        )


def voc_colour(index: int) -> tuple[int, int, int]:
    """Colour number ``index`` of PASCAL VOC's map: the bits of the index dealt out to red, green and blue.

    Example:
        >>> voc_colour(1), voc_colour(15)
        ((128, 0, 0), (192, 128, 128))
    """
    r = g = b = 0
    for bit in range(8):
        r |= (index >> 3 * bit & 1) << 7 - bit
        g |= (index >> 3 * bit + 1 & 1) << 7 - bit
        b |= (index >> 3 * bit + 2 & 1) << 7 - bit
    return r, g, b


class InputConfig(Config):
    """What a backbone's weights expect of a picture; becomes the FCN's first layer.

    The layer takes RGB in 0..255, puts the channels into ``order``, subtracts ``mean`` and divides by ``std``; both are
    in 0..255 and in the order of the channels after reordering.
    """

    order: Literal["RGB", "BGR"] = "RGB"
    mean: tuple[float, ...] = (123.675, 116.28, 103.53)
    std: tuple[float, ...] = (58.395, 57.12, 57.375)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(self.mean) != len(self.std):
            raise ValueError(f"mean has {len(self.mean)} channels and std {len(self.std)}")
        if min(self.std) <= 0:
            raise ValueError(f"std must be positive, got {min(self.std)}")
        return self


INPUTS: Mapping[str, InputConfig] = {
    "imagenet": InputConfig(),
    "caffe": InputConfig(order="BGR", mean=(104.00699, 116.66877, 122.67892), std=(1.0, 1.0, 1.0)),
    "inception": InputConfig(mean=(127.5, 127.5, 127.5), std=(127.5, 127.5, 127.5)),
    "unit": InputConfig(mean=(0.0, 0.0, 0.0), std=(255.0, 255.0, 255.0)),
    "raw": InputConfig(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)),
}
"""Preprocessings by name: torchvision's, the Caffe release's (BGR minus mean), -1..1, 0..1, and 0..255 as it is."""


class SkipConfig(Config):
    """One line of the skip DAG: read this tap, scale it, score it (paper, section 4.2)."""

    tap: str
    scale: float = Field(default=1.0, gt=0)
    init: Literal["zeros", "gaussian"] = "zeros"
    context: int = Field(default=0, ge=0, le=8192)
    """Channels of a context block (3x3, then 3x3 dilated by 2, each with batch norm) before the score; 0: none."""


class HeadConfig(Config):
    """One output: so many classes, scored from these skips, coarse to fine."""

    classes: int = Field(ge=1, le=65535)
    skips: tuple[SkipConfig, ...] = Field(min_length=1)
    learned_upsampling: bool = False
    dropout: float = Field(default=0.0, ge=0, lt=1)


class ModelConfig(Config):
    """A backbone and some heads."""

    backbone: str
    weights: str | None = "default"
    """Of the classifier: "default" (published ones, by name), a path to a .safetensors or .pth file, or None."""
    input: InputConfig | None = None
    """None: what the backbone's published weights expect."""
    heads: dict[str, HeadConfig] = Field(min_length=1)

    @field_validator("input", mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        return lookup("input", value, INPUTS) if isinstance(value, str) else value


class DataConfig(Config):
    """Which pictures, and what is done to them while training."""

    root: str
    name: str = "folder"
    crop: tuple[int, int] | Literal["whole"] | None = None
    """(height, width) of training crops; "whole": none are cut; None: chosen from the pictures' sizes and said."""
    scale: tuple[float, float] = (0.5, 2.0)
    mirror: bool = True
    jitter: float = Field(default=0.25, ge=0, le=1)
    """Strength of brightness, contrast, saturation jitter; 0: none."""
    shift: int = Field(default=0, ge=0)
    """The paper's translation jitter, in pixels (it used 32); only without a crop."""
    workers: int | None = Field(default=None, ge=0)
    """Processes that read pictures; None: chosen by the number of cores."""
    remember: bool | None = None
    """Keep decoded pictures in memory; None: when they take less than a gigabyte."""

    @field_validator("scale")
    @classmethod
    def _ordered(cls, scale: tuple[float, float]) -> tuple[float, float]:
        if not 0 < scale[0] <= scale[1]:
            raise ValueError(f"scale is (smallest, largest), both positive, got {scale}")
        return scale

    @field_validator("crop")
    @classmethod
    def _positive(cls, crop: tuple[int, int] | str | None) -> tuple[int, int] | str | None:
        if isinstance(crop, tuple) and min(crop) < 1:
            raise ValueError(f"crop is (height, width) in pixels, both positive, got {crop}")
        return crop


class FitConfig(Config):
    """How to learn. Exactly one budget: ``epochs``, ``steps`` or ``minutes``."""

    epochs: float | None = Field(default=None, gt=0)
    steps: int | None = Field(default=None, ge=1)
    minutes: float | None = Field(default=None, gt=0)
    batch: int = Field(default=8, ge=1)
    """Pictures at a time, over all processes together."""
    accumulate: int = Field(default=1, ge=1)
    """Batches whose gradients are summed before one step."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    lr: float = Field(default=1e-3, gt=0)
    backbone_lr: float = Field(default=1.0, ge=0)
    """Factor on ``lr`` for the backbone's parameters; 0 freezes them (the paper's 32s-fixed)."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    weight_decay: float = Field(default=1e-4, ge=0)
    """On weights only; biases and norms are never decayed. With sgd, biases learn at twice the rate (paper, 4.3)."""
    schedule: Literal["fixed", "poly", "cosine"] = "poly"
    warmup: int = Field(default=100, ge=0)
    """Steps over which the rate rises from 0."""
    loss: str = "cross_entropy"
    reduction: Literal["mean", "sum"] = "mean"
    class_weights: Literal["none", "median"] = "none"
    """median: sqrt(median frequency / frequency), clamped to 0.5..4."""
    ema: float = Field(default=0.998, ge=0, lt=1)
    """Decay of the moving average of weights that is scored and kept; 0: none."""
    freeze_norm: bool = False
    """Keep the backbone's BatchNorm at its stored statistics."""
    clip: float = Field(default=0.0, ge=0)
    """Largest norm of the gradient; 0: no limit."""
    evaluate_every: int | None = Field(default=None, ge=1)
    """Steps between scorings on val; None: 20 times over the run, 50 steps apart at least."""
    val_pictures: int = Field(default=500, ge=1)
    """Pictures of val that are scored, at most; drawn at even distances."""
    save_every: int | None = Field(default=None, ge=1)
    """Steps between resume points; None: with every scoring, and every ten minutes."""
    head_loss: dict[str, float] = Field(default_factory=dict)
    """Weight of each head's loss; 1 where not named."""
    seed: int = Field(default=0, ge=0)
    precision: Literal["auto", "32", "bf16"] = "auto"
    device: str = "auto"

    @model_validator(mode="after")
    def _one_budget(self) -> Self:
        given = [name for name in ("epochs", "steps", "minutes") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of epochs, steps, minutes; got {' and '.join(given) or 'none'}")
        return self


class Stage(Config):
    """One fit of one model; the next stage starts from its weights."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    model: ModelConfig
    data: DataConfig
    fit: FitConfig


class Recipe(Config):
    """What to train, on what, how: stages in order."""

    name: str = Field(default="run", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    stages: tuple[Stage, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        names = [stage.name for stage in self.stages]
        if len(set(names)) != len(names):
            raise ValueError(f"two stages share a name: {', '.join(names)}")
        return self

    @classmethod
    def read(cls, path: str | PathLike[str]) -> Self:
        """Read a recipe from a .toml or .json file.

        Raises:
            ConfigError: the file is missing, is no TOML or JSON, or holds a setting that is not allowed.
        """
        path = Path(path)
        try:
            text = path.read_text(encoding="utf-8")
            data = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
        except FileNotFoundError:
            raise ConfigError(f"{path}: no such file; expected a recipe (.toml or .json)") from None
        except (OSError, UnicodeDecodeError, RecursionError) as error:
            raise ConfigError(f"{path}: cannot be read: {error}") from None
        except (tomllib.TOMLDecodeError, json.JSONDecodeError) as error:
            raise ConfigError(f"{path}: not valid {path.suffix[1:].upper() or 'TOML'}: {error}") from None
        return cls.parse(data, source=str(path))
