"""What the options of the command line mean: recipes, strategies, inputs."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from fullyconv.config import INPUTS, Recipe
from fullyconv.datasets import dataset
from fullyconv.errors import ConfigError
from fullyconv.inference import STRATEGIES, Strategy, tiled
from fullyconv.lookup import lookup
from fullyconv.presets import PRESETS, finest

MINUTES = 30.0
"""The budget of a training run for which none is given."""


def recipe_of(options: Mapping[str, Any]) -> Recipe:
    """The options of ``train`` as a recipe of one stage.

    Raises:
        ConfigError: an option is not allowed, or at odds with another.
        DatasetError: the data cannot be opened, so that the classes are not known.
    """
    name = options["model"] or finest(options["backbone"])
    preset = lookup("preset", name, PRESETS)
    tables = dataset(options["dataset"], options["data"], split="train").classes
    model = preset(
        options["backbone"],
        {head: len(table) for head, table in tables.items()},
        weights=None if options["weights"] == "none" else options["weights"],
        input=None if options["input"] is None else lookup("input", options["input"], INPUTS),
        context=options["context_channels"],
        learned_upsampling=options["learned_upsampling"],
    )
    budget = {name: options[name] for name in ("minutes", "epochs", "steps") if options[name] is not None}
    plain = ("batch", "lr", "class_weights", "seed", "device", "precision")
    stage = {
        "name": name,
        "model": model,
        "data": {
            "root": options["data"],
            "name": options["dataset"],
            "crop": crop_of(options["crop"]),
            "workers": options["workers"],
        },
        "fit": {name: options[name] for name in plain} | (budget or {"minutes": MINUTES}),
    }
    try:
        return Recipe.parse({"stages": [stage]})
    except ConfigError as error:
        option = error.where.rpartition(".")[2]
        if option not in options:
            raise
        raise ConfigError(str(error).replace(error.where, f"--{option}", 1), where=option) from None


def adjusted(recipe: Recipe, origin: Path, given: Mapping[str, Any]) -> Recipe:
    """A recipe from a file, with what may be said beside it: where the data are, and where to compute.

    Args:
        recipe: as it was read.
        origin: the file, for the message.
        given: options that are on the command line.

    Raises:
        ConfigError: an option that the recipe settles.
    """
    settled = sorted(given.keys() - {"data", "out", "recipe", "resume", "no_check", "device", "precision", "workers"})
    if settled:
        option = settled[0].removesuffix("_channels").replace("_", "-")
        raise ConfigError(f"--{option}: {origin} settles this; change it there, or drop one of the two", where=option)
    data = {setting: given[name] for name, setting in (("data", "root"), ("workers", "workers")) if name in given}
    fit = {name: given[name] for name in ("device", "precision") if name in given}
    plain = recipe.model_dump()
    for stage in plain["stages"]:
        stage["data"] |= data
        stage["fit"] |= fit
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


def with_standard_input(inputs: Sequence[str]) -> list[str]:
    """The inputs, with ``-`` replaced by the paths on standard input: one a line, or ended by NUL (find -print0)."""
    if "-" not in inputs:
        return list(inputs)
    data = sys.stdin.buffer.read()
    lines = data.split(b"\0") if b"\0" in data else data.splitlines()
    listed = [os.fsdecode(line) for line in lines if line]
    return [path for given in inputs for path in (listed if given == "-" else [given])]
