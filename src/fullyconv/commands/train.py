"""``fullyconv train``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from fullyconv.commands.options import BACKBONE, Batch, Crop, Dataset, Device, Inputs, Precision, is_given
from fullyconv.errors import ConfigError

EXAMPLES = """\b
Examples:
  fullyconv train DATA --model fcn8s --backbone resnet18 --out runs/x
  fullyconv train DATA --backbone squeezenet1_0 --weights squeezenet.safetensors --input caffe --minutes 25
  fullyconv train DATA --out runs/x --resume        go on after an interruption, exactly
  fullyconv train --recipe recipes/camvid.toml --out runs/camvid"""


def train(
    context: typer.Context,
    data: Annotated[str | None, typer.Argument(metavar="DATA", help="Folder of pictures and labels.")] = None,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="PRESET",
            help="fcn32s, fcn16s, fcn8s, fcn4s or fcn2s: the stride of its scores.  "
            "[default: fcn4s, or fcn8s where the backbone has no map of stride 4]",
        ),
    ] = None,
    backbone: Annotated[
        str, typer.Option(metavar="NAME", help="Classifier to build on: vgg16, resnet50, timm/NAME, ...")
    ] = BACKBONE,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of the run.  [default: runs/DATA-BACKBONE]")
    ] = None,
    weights: Annotated[
        str,
        typer.Option(
            metavar="FILE|default|none",
            help="The classifier's: a .safetensors, .pth or .caffemodel file, or RUN/model.safetensors of a run on the "
            "same backbone; published (downloaded once); or random.",
        ),
    ] = "default",
    input: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Preprocessing that the weights expect: caffe, imagenet, inception, unit or raw.  "
            "[default: what the file says, or that of the published weights]",
        ),
    ] = None,
    minutes: Annotated[float | None, typer.Option(metavar="N", help="Budget as a time.  [default: 30]")] = None,
    epochs: Annotated[float | None, typer.Option(metavar="N", help="Budget in passes over the pictures.")] = None,
    steps: Annotated[int | None, typer.Option(metavar="N", help="Budget in steps.")] = None,
    batch: Batch = 8,
    lr: Annotated[
        float | None,
        typer.Option(metavar="RATE", help="Learning rate at its highest.  [default: 0.001; 0.002 with --weights none]"),
    ] = None,
    backbone_lr: Annotated[
        float | None,
        typer.Option(
            metavar="FACTOR",
            help="Of the rate, for the classifier's layers; 0: they keep their weights.  "
            "[default: 0.3; 1 with --weights none, or --inputs beyond color]",
        ),
    ] = None,
    freeze: Annotated[
        int | None,
        typer.Option(
            min=0,
            metavar="STRIDE",
            help="The classifier's layers up to this stride keep their weights; 0: all learn.  "
            "[default: 2; 0 with --weights none, or --inputs beyond color]",
        ),
    ] = None,
    crop: Crop = None,
    context_channels: Annotated[
        int | None,
        typer.Option(
            "--context",
            min=0,
            metavar="N",
            help="Channels of a context block before the coarsest scores; 0: none.  [default: by the backbone]",
        ),
    ] = None,
    learned_upsampling: Annotated[
        bool, typer.Option("--learned-upsampling", help="Learn the upsampling, from bilinear on.")
    ] = False,
    class_weights: Annotated[
        Literal["none", "median"], typer.Option(help="Weigh rare classes more; median: by median frequency.")
    ] = "median",
    scales: Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            help="Test-time augmentation, saved with the model: it will label each picture by the mean of looks at it "
            "at these sizes. 0.5,1,1.5 often scores higher, and takes 3.5 times as long.  [default: 1]",
        ),
    ] = None,
    mirror: Annotated[
        bool,
        typer.Option("--mirror", help="The saved model looks at pictures mirrored, too. Training mirrors anyway."),
    ] = False,
    seed: Annotated[int, typer.Option(metavar="N", help="Of everything that is random.")] = 0,
    deterministic: Annotated[
        bool, typer.Option("--deterministic", help="The same bits every time on CUDA, too, at some cost in time.")
    ] = False,
    workers: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="Processes that read pictures.  [default: by the cores]")
    ] = None,
    dataset: Dataset = "folder",
    inputs: Inputs = None,
    device: Device = "auto",
    precision: Precision = "auto",
    recipe: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="A .toml or .json with all settings. Beside it go DATA, --dataset, --weights, a budget, --seed, "
            "--deterministic, --workers, --device and --precision",
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Go on with the run in --out where it was interrupted; name DATA if it has moved."
        ),
    ] = False,
    no_check: Annotated[
        bool,
        typer.Option(
            "--no-check",
            help="Do not look at every label file first. Their pixels are counted all the same for --class-weights "
            "median, the default.",
        ),
    ] = False,
) -> None:
    """Train a network on a folder of labelled pictures.

    The run folder gets the best model and the last, the whole recipe, a log, and report.html to look at. Ctrl-C stops
    cleanly; --resume goes on.
    """
    from shlex import quote

    from fullyconv.config import Recipe
    from fullyconv.display import TrainingDisplay
    from fullyconv.flags import BESIDE_RECIPES, adjusted, by_option, recipe_of
    from fullyconv.runs import holds_run
    from fullyconv.training import train
    from fullyconv.tuning import tune as set_allocator

    given = {name for name in context.params if is_given(context, name)}
    named = f"{Path(data or '').name or dataset}-{backbone.replace('/', '-')}" if recipe is None else recipe.stem
    folder = out or Path("runs", named)
    there = folder / "recipe.json"
    if holds_run(folder) and not resume:
        raise ConfigError(f"{folder}: holds a run; add --resume to go on with it, or name another --out", where="out")
    if data == "":
        raise ConfigError("DATA is empty; expected a folder of pictures and labels", where="data")
    if resume and recipe is None and data is None and not there.exists():
        raise ConfigError(f"{folder}: holds no run to go on with; name the run with --out", where="out")
    if recipe is None and resume and (data is None or (holds_run(folder) and given <= BESIDE_RECIPES)):
        recipe = there  # what is not said is the run's own
    if recipe is not None:
        settings = adjusted(Recipe.read(recipe), recipe, {name: context.params[name] for name in given})
    elif data is None:
        raise ConfigError("DATA is missing: name a folder of pictures and labels, or a --recipe", where="data")
    else:
        settings = Recipe.parse(recipe_of(context.params))
    set_allocator()
    try:
        with TrainingDisplay() as display:
            train(settings, out=folder, resume=resume, on_event=display, check=not no_check)
    except ConfigError as error:
        raise (by_option(error, context.params) if recipe is None else error) from None
    except KeyboardInterrupt:
        print(f"stopped; go on with: fullyconv train --out {quote(str(folder))} --resume", file=sys.stderr)
        raise typer.Exit(130) from None
    if settings.published:
        from rich.console import Console

        from fullyconv.checkpoint import read_json
        from fullyconv.display import published_table

        Console().print(published_table(settings.published, read_json(folder / "results.json")))
    print(f"trained: {folder}\nreport:  {folder / 'report.html'}")
    print(f"next:    fullyconv predict {quote(str(folder))} PICTURES --out segmented")
