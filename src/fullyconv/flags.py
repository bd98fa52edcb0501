"""What the options of the command line mean: recipes, strategies, inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fullyconv.backbones import describe
from fullyconv.config import INPUTS, InputConfig, MultiScale, Recipe
from fullyconv.datasets import SegmentationDataset, dataset
from fullyconv.datasets.inputs import CHANNELS
from fullyconv.errors import ConfigError
from fullyconv.inference import STRATEGIES, Strategy, tiled
from fullyconv.lookup import lookup
from fullyconv.presets import PRESETS, finest
from fullyconv.runs import holds_run
from fullyconv.sampling import evenly

MINUTES = 30.0
"""The budget of a training run for which none is given."""
LOVASZ, SCALE = 0.5, (0.6, 1.6)
"""What wins on camvid (docs/results.md): a Lovász-softmax loss beside cross-entropy, and pictures scaled by less than
recipes scale them where they do not say."""
RATE_FROM_RANDOM = 2e-3
"""Learning rate where the classifier's weights are random, twice that of `FitConfig`: MobileNets gain by it, other nets
do alike, and trained ones lose (docs/results.md)."""
TRAINED = {"freeze": 2, "backbone_lr": 0.3}
"""How little trained layers move where colours are all they see: on little data scores are higher, in long runs on more
they are alike, and steps are shorter (docs/results.md)."""

OF_DATA: Mapping[str, str] = {"data": "root", "dataset": "name", "workers": "workers"}
BUDGETS = ("minutes", "epochs", "steps")
OF_FIT = (*BUDGETS, "seed", "deterministic", "device", "precision")
BESIDE_RECIPES = frozenset({*OF_DATA, *OF_FIT, "weights", "out", "recipe", "resume", "no_check"})
"""Options of ``train`` that may stand beside a recipe; the recipe settles all others."""


def recipe_of(options: Mapping[str, Any]) -> Recipe:
    """The options of ``train`` as a recipe of one stage.

    Raises:
        ConfigError: an option is not allowed, or at odds with another.
        DatasetError: the data cannot be opened, so that the classes are not known.
    """
    name = options["model"] or finest(options["backbone"])
    preset = lookup("preset", name, PRESETS)
    inputs = inputs_of(options["inputs"]) or ["color"]
    data = dataset(options["dataset"], options["data"], split="train", inputs=inputs)
    tables = data.classes
    model = preset(
        options["backbone"],
        {head: len(table) for head, table in tables.items()},
        weights=None if options["weights"] == "none" else options["weights"],
        input=_input(options, data),
        context=options["context_channels"],
        upsampling="learned" if options["learned_upsampling"] else "fixed",
    )
    looks = looks_of(options["scales"], options["mirror"] or None, model.multiscale)
    model = model.model_copy(update={"multiscale": looks})
    budget = {name: options[name] for name in ("minutes", "epochs", "steps") if options[name] is not None}
    plain = ("batch", "class_weights", "seed", "deterministic", "device", "precision")
    trained = options["weights"] != "none"
    layers: dict[str, float] = {} if trained else {"lr": RATE_FROM_RANDOM}
    layers |= TRAINED if trained and inputs == ["color"] else {}
    layers |= {name: options[name] for name in ("lr", "backbone_lr", "freeze") if options[name] is not None}
    stage = {
        "name": name,
        "model": model,
        "data": {
            "root": options["data"],
            "name": options["dataset"],
            "inputs": inputs,
            "crop": crop_of(options["crop"]),
            "scale": SCALE,
            "workers": options["workers"],
        },
        "fit": {name: options[name] for name in plain} | {"lovasz": LOVASZ} | layers | (budget or {"minutes": MINUTES}),
    }
    try:
        return Recipe.parse({"stages": [stage]})
    except ConfigError as error:
        raise by_option(error, options) from None


def by_option(error: ConfigError, options: Mapping[str, Any]) -> ConfigError:
    """An error of a setting, told as one of the option that gave it; as it is where none did.

    Example:
        >>> error = ConfigError("stages.0.fit.backbone_lr: got -1", where="stages.0.fit.backbone_lr")
        >>> str(by_option(error, {"backbone_lr": -1}))
        '--backbone-lr: got -1'
    """
    option = error.where.rpartition(".")[2]
    if option not in options or not error.where.startswith("stages.0."):
        return error
    return ConfigError(str(error).replace(error.where, f"--{option.replace('_', '-')}", 1), where=option)


def _input(options: Mapping[str, Any], data: SegmentationDataset) -> InputConfig | None:
    """The preprocessing, for as many channels as the data's pictures have.

    Weights know of colours alone. Channels beyond are given mean 0 and as much spread as their first pictures have.
    """
    inputs = inputs_of(options["inputs"]) or ["color"]
    if len(inputs) > 1 and inputs[0] != "color":
        raise ConfigError(
            f"--inputs {options['inputs']}: got {inputs[0]} first; expected color first where there are several, since "
            "the weights and their preprocessing take the first channels for colours",
            where="inputs",
        )
    named = None if options["input"] is None else lookup("input", options["input"], INPUTS)
    channels = data[0].image.shape[2]
    if channels == 3 or (named is not None and len(named.mean) == channels):
        return named
    known = named or describe(options["backbone"]).inputs[0]
    if channels < len(known.mean):
        raise ConfigError(
            f"--inputs {options['inputs']}: pictures of {channels} channels, and the preprocessing is for "
            f"{len(known.mean)}; expected color, hha, or color with others",
            where="inputs",
        )
    extra = [
        data[i].image[..., len(known.mean) :].reshape(-1, channels - len(known.mean)) for i in evenly(len(data), 50)
    ]
    pixels = np.concatenate(extra).astype(np.float64)
    spread = np.maximum(pixels.std(0), 1e-3) / np.mean([58.0 / std for std in known.std])
    return InputConfig(
        order=known.order,
        mean=(*known.mean, *pixels.mean(0).round(4).tolist()),
        std=(*known.std, *spread.round(6).tolist()),
    )


def adjusted(recipe: Recipe, origin: Path, given: Mapping[str, Any]) -> Recipe:
    """A recipe from a file, with what may be said beside it: which data and weights, how long, and where to compute.

    All of it holds for every stage.

    Args:
        recipe: as it was read.
        origin: the file, for the message.
        given: options that are on the command line.

    Raises:
        ConfigError: an option that the recipe settles.
    """
    if settled := sorted(given.keys() - BESIDE_RECIPES):
        option = settled[0].removesuffix("_channels").replace("_", "-")
        if holds_run(origin.parent) and origin.name == "recipe.json":
            what = "the run goes on as it began; drop the option, or name another --out for a run of its own"
            raise ConfigError(f"--{option}: {origin} settles this, and {what}", where=option)
        raise ConfigError(f"--{option}: {origin} settles this; change it there, or drop one of the two", where=option)
    plain = recipe.model_dump()
    for stage in plain["stages"]:
        stage["data"] |= {setting: given[name] for name, setting in OF_DATA.items() if name in given}
        if given.keys() & {*BUDGETS}:
            stage["fit"] |= dict.fromkeys(BUDGETS)
        stage["fit"] |= {name: given[name] for name in OF_FIT if name in given}
        if "weights" in given:
            weights = None if given["weights"] == "none" else given["weights"]
            for part in (stage["model"], *stage["model"]["streams"].values()):
                part["weights"] = weights
    return Recipe.parse(plain)


def crop_of(text: str | None) -> tuple[int, int] | str | None:
    """(height, width) in pixels from text; "whole" and None stay.

    Raises:
        ConfigError: another text.

    Example:
        >>> crop_of("256x336")
        (256, 336)
    """
    if text is None or text == "whole":
        return text
    height, _, width = text.lower().partition("x")
    if not (height.isdecimal() and width.isdecimal()):
        raise ConfigError(f"--crop {text}: expected HEIGHTxWIDTH in pixels, such as 256x336, or whole", where="crop")
    return int(height), int(width)


def inputs_of(text: str | None) -> list[str] | None:
    """Names of inputs from text, with commas between; None stays.

    Example:
        >>> inputs_of("color, depth")
        ['color', 'depth']
    """
    return None if text is None else [name.strip() for name in text.split(",")]


def scored_inputs(text: str | None, learnt: Sequence[str], channels: int) -> list[str]:
    """The inputs to score a model on: as ``--inputs`` says, or those that it learnt.

    Args:
        text: names with commas between; None: where nothing is said.
        learnt: the model's own.
        channels: how many the model reads.

    Raises:
        UnknownName: no input of that name.
        ConfigError: the inputs have other channels than the model reads.

    Example:
        >>> scored_inputs(None, ["color", "depth"], 4)
        ['color', 'depth']
    """
    named = inputs_of(text) or list(learnt)
    found, own = (sum(lookup("input", name, CHANNELS) for name in some) for some in (named, learnt))
    if found != channels:
        known = f": it learnt --inputs {','.join(learnt)}" if own == channels else ""
        raise ConfigError(
            f"--inputs {','.join(named)}: got {found} channel{'s' * (found != 1)}; expected the {channels} that the "
            f"model reads{known}",
            where="inputs",
        )
    return named


def strategy_of(name: str, tile: int | None) -> Strategy:
    """The strategy of this name, with its tiles of this size where one is given.

    Raises:
        UnknownName: no such strategy.
        ConfigError: a size of tiles for a strategy that has none.
    """
    strategy = lookup("strategy", name, STRATEGIES)
    if tile is None:
        return strategy
    if strategy is not tiled:
        raise ConfigError(f"--tile {tile}: only tiles have a size; add --strategy tiled", where="tile")
    return partial(tiled, tile=tile)


def looks_of(scales: str | None, mirror: bool | None, own: MultiScale) -> MultiScale:
    """How pictures are to be looked at: as ``--scales`` and ``--mirror`` say, and where they say nothing, as before.

    Raises:
        ConfigError: no numbers, or not those that `MultiScale` takes.

    Example:
        >>> looks_of("0.5,1", None, MultiScale(mirror=True))
        MultiScale(scales=(0.5, 1.0), mirror=True)
    """
    wanted = own.model_dump() | ({} if scales is None else {"scales": scales.split(",")})
    try:
        return MultiScale.parse(wanted | ({} if mirror is None else {"mirror": mirror}))
    except ConfigError as error:
        said = str(error).removeprefix("scales: ")
        raise ConfigError(f"--scales {scales}: {said}; expected such as 0.5,1,1.5", where="scales") from None
