"""Everything that can be set, as frozen pydantic models that know no torch.

A `Recipe` is a tuple of stages; a `Stage` is a model, data and a fit. A recipe is written as TOML, recorded whole in
every run folder as JSON, and repeats from there. Unknown keys are errors, and an impossible combination is refused
where it is born, with the dotted path of the setting.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from fullyconv.documents import MAX_RECIPE_BYTES, parse_json, parse_toml, read_text
from fullyconv.errors import CONTROL, ConfigError
from fullyconv.lookup import lookup
from fullyconv.rates import PICTURE, Rate, Reduction, refusal

T = TypeVar("T")

MOST = 256
"""Of heads, skips, streams, stages: ten times what anybody has built, and little enough to say no at once."""

RUN_FILES = frozenset((
    "config.json", "engine", "log.jsonl", "model.safetensors", "recipe.json", "report.html", "results.json", "run.json",
    "tensorboard",
))  # fmt: skip
"""What a run folder holds beside its stages (`fullyconv.runs`)."""

MOST_CLASSES = 65536
"""In a table: the ids that 16 bits can hold."""

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
            # A name that is written wrong leaves another missing, and tells more.
            first = min(errors, key=lambda e: e["type"] != "extra_forbidden")
            # Where a setting may be of several types, pydantic goes on with the name of the type it tried.
            parts = [_shorten(str(part)) for part in first["loc"]]
            typed = next((i for i, part in enumerate(parts) if "[" in part), len(parts))
            where = ".".join(parts[:typed])
            message = first["msg"].removeprefix("Value error, ")
            if first["type"] == "extra_forbidden":
                known = _settings_at(cls, parts)
                near = difflib.get_close_matches(parts[-1], known, n=3)
                hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(known)}"
                message = f"no such setting; {hint}"
            silent = first["type"] in {"extra_forbidden", "missing", "value_error"}
            found = "" if silent else f", got {first['input']!r:.80}"
            more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
            prefix = f"{source}: " if source else ""
            raise ConfigError(f"{prefix}{where or cls.__name__}: {message}{found}{more}", where=where) from None


def _shorten(name: str, most: int = 80) -> str:
    """A name that somebody else has written, cut where it is too long to be one.

    Example:
        >>> _shorten("learning_rate", most=8)
        'learn...'
    """
    return name if len(name) <= most else f"{name[: most - 3]}..."


def _settings_at(of: type[Config], where: Sequence[str]) -> list[str]:
    """Names of the settings that stand beside the one at this dotted path, which need not exist itself."""

    def configs_in(annotation: Any) -> list[type[Config]]:
        if isinstance(annotation, type) and issubclass(annotation, Config):
            return [annotation]
        return [config for part in get_args(annotation) for config in configs_in(part)]

    there = [of]
    for part in where[:-1]:
        fields = [config.model_fields[part] for config in there if part in config.model_fields]
        # Else the part is a number in a list, or a name in a table, of what is there.
        there = [config for field in fields for config in configs_in(field.annotation)] or there
    return sorted({name for config in there for name in config.model_fields})


class ClassInfo(Config):
    """One class: its id in label files, its name, its colour (RGB, 0..255), and whether it is void."""

    id: int = Field(ge=0, le=65535)
    name: str = Field(min_length=1, max_length=200)
    colour: tuple[int, int, int]
    ignore: bool = False

    @field_validator("name")
    @classmethod
    def _printable(cls, name: str) -> str:
        # They are printed to terminals, where control characters are orders, and written as UTF-8.
        if bad := CONTROL.search(name):
            raise ValueError(f"holds the control character {bad[0]!a}; expected a name that can be printed")
        return name

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

    entries: tuple[ClassInfo, ...] = Field(min_length=1, max_length=MOST_CLASSES)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        ids = [c.id for c in self.entries]
        if (twice := _twice(ids)) is not None:
            raise ValueError(f"two classes share the id {twice}")
        if ids != sorted(ids):
            raise ValueError("classes must be listed in ascending order of id")
        names = [c.name for c in self.entries]
        if (shared := _twice(names)) is not None:
            raise ValueError(f"two classes share the name {shared!r}")
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


def _twice(values: Sequence[T]) -> T | None:
    """The first that occurs a second time."""
    seen: set[T] = set()
    for value in values:
        if value in seen:
            return value
        seen.add(value)
    return None


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
    mean: tuple[float, ...] = Field(default=(123.675, 116.28, 103.53), min_length=1, max_length=MOST)
    std: tuple[float, ...] = Field(default=(58.395, 57.12, 57.375), min_length=1, max_length=MOST)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(self.mean) != len(self.std):
            raise ValueError(f"mean has {len(self.mean)} channels and std {len(self.std)}")
        if min(self.std) <= 0:
            raise ValueError(f"std must be positive, got {min(self.std)}")
        if (largest := max(map(abs, (*self.mean, *self.std)))) > 1e6:
            raise ValueError(f"mean and std are those of numbers in 0..255 or so, got {largest:g}")
        return self


INPUTS: Mapping[str, InputConfig] = {
    "imagenet": InputConfig(),
    "caffe": InputConfig(order="BGR", mean=(104.00699, 116.66877, 122.67892), std=(1.0, 1.0, 1.0)),
    "inception": InputConfig(mean=(127.5, 127.5, 127.5), std=(127.5, 127.5, 127.5)),
    "siftflow": InputConfig(order="BGR", mean=(114.578, 115.294, 108.353), std=(1.0, 1.0, 1.0)),
    "nyud-color": InputConfig(order="BGR", mean=(116.190, 97.203, 92.318), std=(1.0, 1.0, 1.0)),
    "nyud-color-depth": InputConfig(order="BGR", mean=(116.190, 97.203, 92.318, 7.844), std=(1.0, 1.0, 1.0, 1.0)),
    "nyud-hha": InputConfig(mean=(132.431, 94.076, 118.477), std=(1.0, 1.0, 1.0)),
    "unit": InputConfig(mean=(0.0, 0.0, 0.0), std=(255.0, 255.0, 255.0)),
    "raw": InputConfig(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)),
}
"""Preprocessings by name: torchvision's, the Caffe release's (BGR minus mean), the release's for SIFT Flow and NYUDv2
(depth as its natural logarithm), -1..1, 0..1, and 0..255 as it is."""


Upsampling = Literal["fixed", "learned", "full"]
"""How scores get to a finer grid: bilinear and fixed; learned from bilinear on, a kernel for each class; or learned
from one class to another as well, K x K kernels, as the files of the Caffe nets hold them."""
Geometry = Literal["same", "pad100"]
"""What is done about a picture's border: every layer pads by half its kernel; or, as the authors did, the first layer
pads by 100 pixels, fc6 by none, and the scores are cropped."""


class SkipConfig(Config):
    """One line of the skip DAG: read this tap, scale it, score it (CVPR, section 4.2; scales: PAMI, section 4.3)."""

    tap: str
    scale: float = Field(default=1.0, gt=0)
    init: Literal["zeros", "gaussian"] = "zeros"
    context: int = Field(default=0, ge=0, le=8192)
    """Channels of a context block (3x3, then 3x3 dilated by 2, each with batch norm) before the score; 0: none."""


class HeadConfig(Config):
    """One output: so many classes, scored from these skips, coarse to fine."""

    classes: int = Field(ge=1, le=65535)
    skips: tuple[SkipConfig, ...] = Field(min_length=1, max_length=MOST)
    fusion: Literal["sum", "mean", "max"] = "sum"
    """How skips are joined. mean: skips on one grid (those of several streams) are averaged, strides summed."""
    upsampling: Upsampling = "fixed"
    """Between skips."""
    last_upsampling: Upsampling = "fixed"
    """From the finest scores to pixels."""
    stepwise: bool = False
    """Upsample by x2, x2, ... in place of one step."""
    resolution: Literal["half", "equal", "double"] = "equal"
    """Of the logits, beside the picture's."""
    dropout: float = Field(default=0.0, ge=0, lt=1)


def _few(value: Any) -> Any:
    # Of too many, pydantic would first look at each.
    if isinstance(value, list | tuple) and len(value) > MOST:
        raise ValueError(f"{len(value):,} of them; expected {MOST} at most")
    return value


def _input_by_name(value: Any) -> Any:
    return lookup("input", value, INPUTS) if isinstance(value, str) else value


Input = Annotated[InputConfig | None, BeforeValidator(_input_by_name)]
"""What weights expect of a picture, or the name of an entry of `INPUTS`."""


class StreamConfig(Config):
    """One of several copies of a backbone, each of which reads channels of its own (paper, section 5, NYUDv2)."""

    weights: str | None = "default"
    """As of `ModelConfig`."""
    input: Input = None


class MultiScale(Config):
    """How a picture is looked at when it is labelled: once, or several times, the scores averaged.

    Raises:
        ConfigError: by `parse`, for more than 16 scales, none that is 1, one listed twice, or beyond 0.1..4.

    Example:
        >>> six = MultiScale(scales=(0.5, 1.0, 1.5), mirror=True)
        >>> six.looks, six.cost
        (6, 7.0)
    """

    scales: tuple[float, ...] = (1.0,)
    """Factors on the picture's height and width, 0.1..4, 1 among them."""
    mirror: bool = False
    """Look at each mirrored, too, left for right."""

    @field_validator("scales")
    @classmethod
    def _consistent(cls, scales: tuple[float, ...]) -> tuple[float, ...]:
        if len(scales) > 16:
            raise ValueError(f"{len(scales)} of them; expected 16 at most")
        if (twice := _twice(scales)) is not None:
            raise ValueError(f"{twice:g} is listed twice")
        if 1.0 not in scales:
            raise ValueError("expected 1 among them, the picture as it is")
        if not all(0.1 <= scale <= 4 for scale in scales):
            raise ValueError("expected factors of 0.1 to 4")
        return scales

    @property
    def looks(self) -> int:
        """How often a picture goes through the net."""
        return len(self.scales) * (1 + self.mirror)

    @property
    def cost(self) -> float:
        """What prediction costs, in looks at the picture as it is; a scale of 2 has four times its pixels."""
        return sum(scale**2 for scale in self.scales) * (1 + self.mirror)

    def largest(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) in pixels of the largest look at a picture of this size."""
        return math.ceil(max(self.scales) * height), math.ceil(max(self.scales) * width)

    def __str__(self) -> str:
        return f"scales {', '.join(f'{scale:g}' for scale in self.scales)}" + (", mirrored too" if self.mirror else "")


class ModelConfig(Config):
    """A backbone and some heads."""

    backbone: str
    weights: str | None = "default"
    """Of the classifier: "default" (published ones, by name), a path to a .safetensors, .pth or .caffemodel file, or
    None."""
    input: Input = None
    """None: what the backbone's published weights expect. With more than three channels, the first layer is widened."""
    geometry: Geometry = "same"
    align: Literal["grid", "interpolate"] = "grid"
    """interpolate: upsample as `F.interpolate` does, whatever the grids say, for weights that were trained so."""
    pools: Literal["keep", "convolution"] = "keep"
    """convolution: every pool of the classifier becomes a strided convolution."""
    streams: dict[str, StreamConfig] = Field(default_factory=dict, max_length=MOST)
    """Copies of the backbone by name, for late fusion: taps are then ``NAME/TAP``, the picture's channels are dealt out
    in this order, and ``weights`` and ``input`` above are not read."""
    heads: dict[str, HeadConfig] = Field(min_length=1, max_length=MOST)
    multiscale: MultiScale = MultiScale()
    """How whoever predicts with the model looks at pictures, where it is not told otherwise. Training does not."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.align == "interpolate" and self.geometry == "pad100":
            raise ValueError("align 'interpolate' knows no crops; expected geometry 'same'")
        if self.streams and self.input is not None:
            raise ValueError("each stream has an input of its own; set streams.NAME.input")
        return self


class DataConfig(Config):
    """Which pictures, and what is done to them while training."""

    root: str
    name: str = "folder"
    train: str = "train"
    """Name of the split that is learnt from."""
    val: str = "val"
    """Name of the split that is scored."""
    inputs: tuple[str, ...] = Field(default=("color",), min_length=1, max_length=MOST)
    """What a picture is made of, channel after channel: color (3), depth (1, its natural logarithm), hha (3)."""
    crop: tuple[int, int] | Literal["whole"] | None = None
    """(height, width) of training crops; "whole": none are cut; None: chosen from the pictures' sizes and said."""
    scale: tuple[float, float] = (0.5, 2.0)
    mirror: bool = True
    jitter: float = Field(default=0.25, ge=0, le=1)
    """Strength of brightness, contrast, saturation jitter; 0: none."""
    shift: int = Field(default=0, ge=0)
    """The paper's translation jitter, in pixels (it used 32); only without a crop."""
    workers: int | None = Field(default=None, ge=0)
    """Processes that read pictures; None: by the number of cores, and more where pictures are waited for."""
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

    @field_validator("shift")
    @classmethod
    def _of_whole(cls, shift: int, info: ValidationInfo) -> int:
        if shift and isinstance(info.data.get("crop"), tuple):
            raise ValueError(f"{shift} px beside a crop, which moves pictures already; expected 0, or crop 'whole'")
        return shift


class FitConfig(Config):
    """How to learn. Exactly one budget: ``epochs``, ``steps`` or ``minutes``."""

    epochs: float | None = Field(default=None, gt=0)
    steps: int | None = Field(default=None, ge=1)
    minutes: float | None = Field(default=None, gt=0)
    batch: int = Field(default=8, ge=1, le=1 << 20)
    """Pictures at a time, over all processes together."""
    accumulate: int = Field(default=1, ge=1)
    """Batches whose gradients are summed before one step."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    momentum: float = Field(default=0.9, ge=0, lt=1)
    loss: str = "cross_entropy"
    lovasz: float = Field(default=0.0, ge=0)
    """Weight of a Lovász-softmax loss beside ``loss``, of scores as they are before the last upsampling; 0: none."""
    reduction: Reduction = "mean"
    """Of the loss: mean over the pixels of a step; sum over them (heavy learning); or the mean over pictures of the
    mean over each picture's pixels."""
    lr: float = Field(default=1e-3, gt=0, validate_default=True)
    """What it means depends on all of the above: `fullyconv.rates`."""
    backbone_lr: float = Field(default=1.0, ge=0)
    """Factor on ``lr`` for the backbone's parameters; 0 freezes them (the paper's 32s-fixed)."""
    freeze: int = Field(default=0, ge=0)
    """The backbone's layers up to its last map of at most this stride keep their weights, and their norms their
    statistics: steps are quicker by their gradients. 0: all layers learn, as in the paper."""
    weight_decay: float = Field(default=1e-4, ge=0)
    """On weights only; biases and norms are never decayed. With sgd, biases learn at twice the rate (paper, 4.3)."""
    schedule: Literal["fixed", "poly", "cosine"] = "poly"
    warmup: int = Field(default=100, ge=0)
    """Steps over which the rate rises from 0."""
    keep: float = Field(default=1.0, gt=0, le=1)
    """Patch sampling: the chance with which the loss of a cell of the final layer counts; the batch is enlarged by
    1 / keep (paper, sections 3.4 and 4.3)."""
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
    """Pictures of val that are scored, at most; drawn at even distances. While a net learns for so many minutes, these
    are as many as a fiftieth of the time allows."""
    save_every: int | None = Field(default=None, ge=1)
    """Steps between resume points; None: with every scoring, and every ten minutes."""
    head_loss: dict[str, Annotated[float, Field(ge=0)]] = Field(default_factory=dict, max_length=MOST)
    """Weight of each head's loss; 1 where not named. 0: it learns nothing."""
    seed: int = Field(default=0, ge=0)
    deterministic: bool = False
    """The same bits every time on CUDA too, which takes longer; on the CPU they are anyway."""
    precision: Literal["auto", "32", "bf16"] = "auto"
    device: str = "auto"

    @property
    def pictures(self) -> int:
        """Pictures at a time, as patch sampling enlarges the batch."""
        return round(self.batch / self.keep)

    @field_validator("reduction")
    @classmethod
    def _felt(cls, reduction: Reduction, info: ValidationInfo) -> Reduction:
        if reduction == "sum" and info.data.get("optimizer") == "adamw":
            raise ValueError(
                "'sum' with optimizer 'adamw', which divides the size of the gradient out; expected 'mean', which is "
                "the same to it with the same lr, or optimizer 'sgd'"
            )
        return reduction

    @field_validator("lr")
    @classmethod
    def _meant(cls, lr: float, info: ValidationInfo) -> float:
        needed = ("batch", "accumulate", "optimizer", "momentum", "reduction")
        if any(name not in info.data for name in needed):
            return lr  # one of them is wrong itself
        batch, accumulate, optimizer, momentum, reduction = (info.data[name] for name in needed)
        pixels = batch * accumulate * PICTURE[0] * PICTURE[1]
        if wrong := refusal(Rate(lr, reduction, momentum=momentum, pixels=pixels), optimizer=optimizer):
            raise ValueError(wrong)
        return lr

    @model_validator(mode="after")
    def _one_budget(self) -> Self:
        given = [name for name in ("epochs", "steps", "minutes") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of epochs, steps, minutes; got {' and '.join(given) or 'none'}")
        return self


class Stage(Config):
    """One fit of one model."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    start: Literal["previous", "classifier"] | dict[str, str] = "previous"
    """Whose weights it starts from: the stage's before; the classifier's, as the first stage does; or, for each stream,
    those of the earlier stage named here."""
    model: ModelConfig
    data: DataConfig
    fit: FitConfig

    @field_validator("name")
    @classmethod
    def _free(cls, name: str) -> str:
        if name.lower() in RUN_FILES:
            raise ValueError(
                f"'{name}' is a file of the run folder, in which each stage has a folder; expected another"
            )
        return name


class Published(Config):
    """Scores that somebody else has published for a recipe, each 0..1, beside which its own are printed."""

    source: str
    """Where: paper and table, or repository and file; with the data and split that were scored."""
    head: str = "out"
    pixel_accuracy: float | None = Field(default=None, ge=0, le=1)
    mean_accuracy: float | None = Field(default=None, ge=0, le=1)
    mean_iu: float | None = Field(default=None, ge=0, le=1)
    fw_iu: float | None = Field(default=None, ge=0, le=1)


class Recipe(Config):
    """What to train, on what, how: stages in order."""

    name: str = Field(default="run", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    published: tuple[Published, ...] = Field(default=(), max_length=MOST)
    """Of the last stage."""
    stages: Annotated[tuple[Stage, ...], BeforeValidator(_few)] = Field(min_length=1)

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        names = [stage.name for stage in self.stages]
        if len(set(names)) != len(names):
            raise ValueError(f"two stages share a name: {', '.join(names)}")
        return self

    @model_validator(mode="after")
    def _start_from_what_is_there(self) -> Self:
        for number, stage in enumerate(self.stages):
            if not isinstance(stage.start, dict):
                continue
            where = f"stages.{number}.start"
            if not stage.model.streams:
                raise ValueError(f"{where}: the model has no streams; expected 'previous' or 'classifier'")
            earlier = {before.name: before for before in self.stages[:number]}
            for stream, name in stage.start.items():
                lookup(f"stream of {where}", stream, stage.model.streams)
                source = lookup(f"earlier stage for {where}.{stream}", name, earlier)
                if source.model.streams:
                    raise ValueError(f"{where}.{stream}: the stage '{name}' has streams itself; expected one without")
            if missing := stage.model.streams.keys() - stage.start.keys():
                raise ValueError(
                    f"{where}: no stage for the streams {', '.join(sorted(missing))}; expected one for each"
                )
        return self

    @classmethod
    def read(cls, path: str | PathLike[str]) -> Self:
        """Read a recipe from a .toml or .json file.

        Raises:
            ConfigError: the file is missing, is no TOML or JSON, or holds a setting that is not allowed.
        """
        path = Path(path)
        try:
            text = read_text(path, max_bytes=MAX_RECIPE_BYTES)
            data = parse_json(text) if path.suffix == ".json" else parse_toml(text)
        except FileNotFoundError:
            raise ConfigError(f"{path}: no such file; expected a recipe (.toml or .json)") from None
        except (OSError, ValueError) as error:
            raise ConfigError(f"{path}: {getattr(error, 'strerror', None) or error}") from None
        return cls.parse(data, source=str(path))
