"""``fullyconv study NAME``: one function per study, whose options are its signature.

Nothing but typer is imported until a study runs.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fullyconv.commands.options import Batch, Crop, Dataset, Device, Json, is_given, output_json

if TYPE_CHECKING:
    from fullyconv.studies.base import Result

app = typer.Typer(
    invoke_without_command=True,
    rich_markup_mode=None,
    help="Repeat an experiment of the papers; alone, list them with the questions that they answer.",
    epilog="""\b
Examples:
  fullyconv study
  fullyconv study masking
  fullyconv study strides --data CAMVID --minutes 60 --backbone squeezenet1_0 --out runs/strides""",
)

Data = Annotated[
    str | None,
    typer.Option("--data", metavar="DIR", help="Folder of pictures and labels.  [default: generated scenes]"),
]
Backbone = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="Classifier to build on.  [default: squeezenet1_0 for DIR, tinyvgg for generated scenes]"
    ),
]
Weights = Annotated[
    str,
    typer.Option(
        metavar="FILE|default|none",
        help="Of the classifier: a file, the published ones, or random. For generated scenes, default is to train one.",
    ),
]
Input = Annotated[
    str | None, typer.Option(metavar="NAME", help="Preprocessing that the weights expect: caffe, imagenet, ...")
]
Minutes = Annotated[
    float | None,
    typer.Option(
        min=0.01, metavar="N", help="Budget of all nets together as a time, dealt out evenly; fair on a quiet machine."
    ),
]
Steps = Annotated[
    int | None,
    typer.Option(min=1, metavar="N", help="Budget of each net in steps, in place of a time.  [default: 100]"),
]
Seed = Annotated[int, typer.Option(min=0, metavar="N", help="Of everything that is random.")]
Out = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Folder for NAME.json, NAME.md and NAME.png, and for the nets.  [default: runs/study-NAME]",
    ),
]


Split = Annotated[str, typer.Option(metavar="NAME", help="train, val, test, or another that there is.")]
Trained = Annotated[
    Path | None,
    typer.Option("--model", metavar="DIR", help="Folder of a trained model.  [default: one is trained first]"),
]
Rounds = Annotated[int, typer.Option(min=1, metavar="N", help="Rounds that are timed.")]


@app.callback()
def _list(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        from fullyconv.studies import STUDIES

        for study in STUDIES.values():
            print(f"{study.name:<14} {study.question}")
            print(f"{'':<14} trains {study.trains}; without --data: {study.data}")


def _training_study(name: str, about: str, example: str) -> None:
    """Give a study that trains, and has no options of its own, its command."""

    def command(
        context: typer.Context,
        data: Data = None,
        dataset: Dataset = "folder",
        backbone: Backbone = None,
        weights: Weights = "default",
        input: Input = None,
        minutes: Minutes = None,
        steps: Steps = None,
        batch: Batch = 8,
        crop: Crop = None,
        seed: Seed = 0,
        device: Device = "auto",
        out: Out = None,
        json: Json = None,
    ) -> None:
        _train(name, context.params)

    app.command(name, help=about, epilog=f"\b\nExamples:\n  fullyconv study {name}\n  {example}")(command)


@app.command(
    epilog="""\b
Examples:
  fullyconv study masking
  fullyconv study masking --data CAMVID --background sky,building,road,pavement,tree,fence --minutes 60"""
)
def masking(
    context: typer.Context,
    background: Annotated[
        str | None,
        typer.Option(metavar="NAMES", help="Classes that are background, with commas.  [default: the first class]"),
    ] = None,
    data: Data = None,
    dataset: Dataset = "folder",
    backbone: Backbone = None,
    weights: Weights = "default",
    input: Input = None,
    minutes: Minutes = None,
    steps: Steps = None,
    batch: Batch = 8,
    crop: Crop = None,
    seed: Seed = 0,
    device: Device = "auto",
    out: Out = None,
    json: Json = None,
) -> None:
    """Do shapes alone suffice, or things without their surroundings?

    Four nets learn and are scored on pictures of which the labels leave all, the foreground, the background, or
    nothing but the silhouette (PAMI, table 8). What is masked has the mean colour.
    """
    names = None if background is None else [name.strip() for name in background.split(",")]
    _train("masking", context.params, {"background": names})


_training_study(
    "strides",
    """What does each skip bring, alone, staged and at once?

    The coarsest net with its trunk fixed and learning, one skip more, two, two at once with and without scaled maps,
    and each finer map scored alone; of equal budgets (CVPR, table 2; PAMI, section 4.3).""",
    "fullyconv study strides --data CAMVID --weights FILE --input caffe --minutes 80",
)
_training_study(
    "fusion",
    """Where should depth join colour: early, late, or in its own channels?

    Nets on colour, on colour with depth as a fourth channel, on HHA, and the scores of a colour and an HHA stream
    averaged; of equal budgets (CVPR, table 4). The data must have depth and HHA.""",
    "fullyconv study fusion --data NYUD --dataset nyud --weights FILE --input caffe --minutes 80",
)
_training_study(
    "sampling",
    """Are whole pictures as good as sampled patches?

    Nets that learn from all cells, half and a quarter of them, with batches enlarged to as many cells: the loss over
    iterations and over time (CVPR, section 4.3).""",
    "fullyconv study sampling --data CAMVID --weights FILE --input caffe --minutes 40",
)


@app.command(
    epilog="""\b
Examples:
  fullyconv study momentum
  fullyconv study momentum --data CAMVID --weights FILE --input caffe --minutes 40"""
)
def momentum(
    context: typer.Context,
    rate: Annotated[
        float | None,
        typer.Option(
            metavar="RATE",
            help="Learning rate of a mean over the pixels of one picture.  [default: the papers' 1.9e-5, times the "
            "number that the preprocessing divides by]",
        ),
    ] = None,
    data: Data = None,
    dataset: Dataset = "folder",
    backbone: Backbone = None,
    weights: Weights = "default",
    input: Input = None,
    minutes: Minutes = None,
    steps: Steps = None,
    crop: Crop = None,
    seed: Seed = 0,
    device: Device = "auto",
    out: Out = None,
    json: Json = None,
) -> None:
    """What do batch and momentum change: accumulated, online, heavy?

    Steps of 20 pictures with momentum 0.9, of one picture with 0.9, and of one with 0.99, at one rate for each
    picture (PAMI, section 4.2). Of --steps each is worth 8 pictures, however a net takes them.
    """
    _train("momentum", context.params, {"rate": rate})


@app.command(
    "upper-bound",
    epilog="""\b
Examples:
  fullyconv study upper-bound --data VOCdevkit --dataset voc --split seg11valid      the published row's pictures
  fullyconv study upper-bound --labels LABELS --classes 21 --json upper-bound.json
  fullyconv study upper-bound --data CAMVID --split train""",
)
def upper_bound(
    context: typer.Context,
    labels: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of nothing but label maps: PNG of class ids, 255 void.")
    ] = None,
    classes: Annotated[int, typer.Option(metavar="K", help="With --labels: how many classes.")] = 21,
    data: Data = None,
    dataset: Dataset = "folder",
    split: Split = "val",
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder for upper-bound.json, .md and .png.  [default: runs/study-upper-bound; none with --json]",
        ),
    ] = None,
    json: Json = None,
) -> None:
    """How good could a net of a coarse output be?

    The mean IU of true labels that are shrunk by a stride of 128, 64, 32, 16, 8 and 4 and enlarged again (CVPR,
    appendix A).
    """
    from fullyconv.display import counting
    from fullyconv.errors import ConfigError
    from fullyconv.studies.upper_bound import LabelFiles, LabelsOf, run

    if labels is not None and data is not None:
        raise ConfigError("--labels and --data: got both; label maps come from one of them", where="labels")
    for option in ("dataset", "split") if labels is not None else ("classes",):
        if is_given(context, option):
            beside = "--labels is a bare folder" if labels is not None else "only --labels asks for it"
            raise ConfigError(f"--{option}: {beside}; drop one of the two", where=option)
    if labels is not None:
        maps: LabelFiles | LabelsOf = LabelFiles.of(labels, classes)
        said = labels.resolve().name
    else:
        from fullyconv.studies.trials import Setup

        kind, root = Setup(data=data, dataset=dataset).source
        maps = LabelsOf.of(kind, root, split)
        said = f"{split} of {'generated scenes' if data is None else Path(data).resolve().name}"
    with counting("label maps", len(maps)) as progress:
        result = run(maps, data=said, on_progress=lambda done, _: progress.update(progress.task_ids[0], completed=done))
    show(result, out if out or json else Path("runs", "study-upper-bound"), json)


@app.command(
    epilog="""\b
Examples:
  fullyconv study dense --data CAMVID --weights FILE --input caffe --minutes 30
  fullyconv study dense --data CAMVID --model runs/fcn32s"""
)
def dense(
    context: typer.Context,
    model: Trained = None,
    split: Split = "val",
    pictures: Annotated[int, typer.Option(min=1, metavar="N", help="Pictures that are scored, at most.")] = 100,
    rounds: Rounds = 5,
    data: Data = None,
    dataset: Dataset = "folder",
    backbone: Backbone = None,
    weights: Weights = "default",
    input: Input = None,
    minutes: Minutes = None,
    steps: Steps = None,
    batch: Batch = 8,
    crop: Crop = None,
    seed: Seed = 0,
    device: Device = "auto",
    out: Out = None,
    json: Json = None,
) -> None:
    """How are dense scores had, and what do they cost?

    Deconvolution, filter rarefaction, and shift-and-stitch of one net: time, memory and scores, and whether the last
    two agree (CVPR, section 3.2). And dilation that has learnt, beside skips that have. --model must read one tap.
    """
    _refuse_beside(context)
    own = {"model": model, "split": split, "pictures": pictures, "rounds": rounds}
    _train("dense", context.params, own)


@app.command(
    epilog="""\b
Examples:
  fullyconv study timing
  fullyconv study timing --device cuda --rounds 20"""
)
def timing(
    rounds: Rounds = 5,
    device: Device = "auto",
    out: Out = None,
    json: Json = None,
) -> None:
    """How long does one pass take?

    The forward pass of AlexNet, VGG16 and GoogLeNet as FCN-32s, and of FCN-8s, on a picture of 500x500, in float32 and
    bfloat16 (CVPR, tables 1 and 3).
    """
    from fullyconv.studies.timing import run
    from fullyconv.tuning import tune as set_allocator

    set_allocator()
    result = run(rounds=rounds, device=device, on_progress=lambda line: print(line, file=sys.stderr))
    show(result, out or Path("runs", "study-timing"), json)


@app.command(
    epilog="""\b
Examples:
  fullyconv study contributions --data CAMVID --model runs/x
  fullyconv study contributions --data CAMVID --weights FILE --input caffe --minutes 20"""
)
def contributions(
    context: typer.Context,
    model: Trained = None,
    split: Split = "val",
    data: Data = None,
    dataset: Dataset = "folder",
    backbone: Backbone = None,
    weights: Weights = "default",
    input: Input = None,
    minutes: Minutes = None,
    steps: Steps = None,
    batch: Batch = 8,
    crop: Crop = None,
    seed: Seed = 0,
    device: Device = "auto",
    out: Out = None,
    json: Json = None,
) -> None:
    """How much does each skip decide?

    The share of labels that change when the scores of a skip are left out, and the mean IU that it gains: of all
    pixels, by distance from a label boundary, and by class.
    """
    _refuse_beside(context)
    _train("contributions", context.params, {"model": model, "split": split})


def _refuse_beside(context: typer.Context) -> None:
    """Refuse options of training beside a --model, which has learnt."""
    from fullyconv.errors import ConfigError

    for option in ("backbone", "weights", "input", "minutes", "steps", "batch", "crop", "seed"):
        if context.params["model"] is not None and is_given(context, option):
            raise ConfigError(
                f"--{option}: --model has learnt, and nothing is trained; drop one of the two", where=option
            )


def _train(name: str, options: Mapping[str, Any], own: Mapping[str, Any] | None = None) -> None:
    """Run a study that trains, and show what it found.

    Args:
        name: of the study.
        options: of its command; those in ``own`` are its own.
        own: parameters of the study itself.
    """
    from fullyconv.display import TrainingDisplay
    from fullyconv.flags import crop_of
    from fullyconv.studies import study
    from fullyconv.studies.trials import Setup
    from fullyconv.tuning import tune as set_allocator

    # Older typer makes paths only of what it passes to a command.
    folder, json = Path(options["out"] or Path("runs", f"study-{name}")), options["json"] and Path(options["json"])
    shared = {key: value for key, value in options.items() if key not in {*(own or {}), "out", "json"}}
    weights = None if options["weights"] == "none" else options["weights"]
    setup = Setup(**{**shared, "weights": weights, "crop": crop_of(options["crop"]), "out": folder})
    set_allocator()
    try:
        with TrainingDisplay() as display:
            result = study(name).run(setup, **(own or {}), on_event=display)
    except KeyboardInterrupt:
        print("stopped; the same command goes on from there", file=sys.stderr)
        raise typer.Exit(130) from None
    show(result, folder, json)


def show(result: Result, out: Path | None, json: Path | None) -> None:
    """Print what a study found, and write it to the folder ``out`` and, as JSON, to ``json``."""
    from rich.console import Console

    from fullyconv.display import study_table

    paths = [] if out is None else result.write(out)
    output_json(json, result.json())
    if str(json) == "-":
        return
    if json is not None:
        paths.append(json)
    Console().print(study_table(result))
    print(f"written: {', '.join(str(path) for path in paths)}")
