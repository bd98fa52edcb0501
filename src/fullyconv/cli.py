"""The command line: one function per verb, whose options are its signature.

Nothing but typer is imported until a command runs, so that ``--help`` answers at once. Help is printed plain: rich
alone would take longer to load than all the rest.
"""

from __future__ import annotations

import signal
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from fullyconv import __version__
from fullyconv.errors import ConfigError, DatasetError, FullyConvError
from fullyconv.study_cli import Json, writable
from fullyconv.study_cli import app as study

if TYPE_CHECKING:
    from fullyconv.datasets import About
    from fullyconv.inference import Predictor

app = typer.Typer(
    name="fullyconv",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="""\b
Three commands from a folder of labelled pictures to segmented ones:
  fullyconv check DATA
  fullyconv train DATA --out runs/x
  fullyconv predict runs/x PICTURES --out segmented""",
)

Data = Annotated[
    str, typer.Argument(metavar="DATA", help="Folder of pictures and labels; `fullyconv datasets` says in which forms.")
]
Model = Annotated[Path, typer.Argument(metavar="MODEL", help="Folder of a trained model, or of the run that made it.")]
Dataset = Annotated[str, typer.Option(metavar="NAME", help="Kind of data; `fullyconv datasets` lists them.")]
Inputs = Annotated[
    str | None,
    typer.Option(
        metavar="NAMES",
        help="What a picture is made of: color, depth, hha, with commas.  [default: the model's own, or color]",
    ),
]
Device = Annotated[str, typer.Option(metavar="NAME", help="auto, cpu, cuda or cuda:N.")]
Precision = Annotated[Literal["auto", "32", "bf16"], typer.Option(help="auto: bf16 where the hardware has it.")]
Engine = Annotated[
    Literal["auto", "torch", "openvino", "onnxruntime"],
    typer.Option(help="What computes; auto: the one that `fullyconv tune` found for the model, else torch."),
]
StrategyName = Annotated[
    Literal["auto", "whole", "tiled"],
    typer.Option(
        help="Segment pictures whole or in tiles (the result is the same); auto: tiles where memory is short."
    ),
]
Tile = Annotated[
    int | None, typer.Option(min=1, metavar="PX", help="Side of a tile, without its halo.  [default: 1024]")
]
Scales = Annotated[
    str | None,
    typer.Option(
        metavar="LIST",
        help="Test-time augmentation: label each picture by the mean of looks at it at these sizes, 1 among them. "
        "0.5,1,1.5 often scores higher and takes 3.5 times as long.  [default: the model's own, or 1]",
    ),
]
Mirror = Annotated[
    bool | None,
    typer.Option(
        "--mirror/--no-mirror",
        help="Look at each mirrored, too, for twice the time.  [default: the model's own, or not]",
    ),
]


def main(args: list[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 1 done in part, 2 a user's error (one line on stderr), 130 Ctrl-C."""
    before = None
    if threading.current_thread() is threading.main_thread():
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # whoever ends us wants what Ctrl-C does
    try:
        app(args, prog_name="fullyconv")
    except FullyConvError as error:
        print(f"fullyconv: error: {error}", file=sys.stderr)
        sys.exit(2)
    except (MemoryError, RuntimeError) as error:
        from fullyconv.devices import out_of_memory

        if not out_of_memory(error):
            raise
        print("fullyconv: error: memory ran out; give it more, or smaller pictures", file=sys.stderr)
        sys.exit(2)
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"fullyconv {__version__}")
        raise typer.Exit


@app.callback(help="Fully convolutional networks: from any classifier and a labelled folder to segmented pictures.")
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None: ...


@app.command(
    epilog="""\b
Examples:
  fullyconv train DATA --model fcn8s --backbone squeezenet1_1 --out runs/x
  fullyconv train DATA --backbone squeezenet1_0 --weights squeezenet.safetensors --input caffe --minutes 25
  fullyconv train DATA --out runs/x --resume        go on after an interruption, exactly
  fullyconv train --recipe recipes/camvid.toml --out runs/camvid"""
)
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
    ] = "squeezenet1_1",
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of the run.  [default: runs/DATA-BACKBONE]")
    ] = None,
    weights: Annotated[
        str,
        typer.Option(
            metavar="FILE|default|none",
            help="Of the classifier: a .safetensors or .pth file, the published ones (downloaded once), or random.",
        ),
    ] = "default",
    input: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Preprocessing that the weights expect: caffe, imagenet, inception, unit or raw.  "
            "[default: that of the published weights]",
        ),
    ] = None,
    minutes: Annotated[float | None, typer.Option(metavar="N", help="Budget as a time.  [default: 30]")] = None,
    epochs: Annotated[float | None, typer.Option(metavar="N", help="Budget in passes over the pictures.")] = None,
    steps: Annotated[int | None, typer.Option(metavar="N", help="Budget in steps.")] = None,
    batch: Annotated[int, typer.Option(min=1, metavar="N", help="Pictures a step.")] = 8,
    lr: Annotated[float, typer.Option(metavar="RATE", help="Learning rate at its highest.")] = 1e-3,
    crop: Annotated[
        str | None,
        typer.Option(metavar="HxW", help="Size of training crops in pixels, or whole.  [default: by the pictures]"),
    ] = None,
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
        bool, typer.Option("--resume", help="Go on with the run in --out where it was interrupted.")
    ] = False,
    no_check: Annotated[bool, typer.Option("--no-check", help="Do not look at every label file first.")] = False,
) -> None:
    """Train a network on a folder of labelled pictures.

    The run folder gets the best model and the last, the whole recipe, a log, and report.html to look at. Ctrl-C stops
    cleanly; --resume goes on.
    """
    from fullyconv.config import Recipe
    from fullyconv.display import TrainingDisplay
    from fullyconv.flags import adjusted, recipe_of
    from fullyconv.runs import holds_run
    from fullyconv.training import train
    from fullyconv.tuning import tune as set_allocator

    given = {name for name in context.params if _is_given(context, name)}
    named = f"{Path(data or '').name or dataset}-{backbone.replace('/', '-')}" if recipe is None else recipe.stem
    folder = out or Path("runs", named)
    there = folder / "recipe.json"
    if holds_run(folder) and not resume:
        raise ConfigError(f"{folder}: holds a run; add --resume to go on with it, or name another --out", where="out")
    if recipe is None and resume and data is None:
        recipe = there
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
    except KeyboardInterrupt:
        print(f"stopped; go on with: fullyconv train --out {folder} --resume", file=sys.stderr)
        raise typer.Exit(130) from None
    if settings.published:
        from rich.console import Console

        from fullyconv.checkpoint import read_json
        from fullyconv.display import published_table

        Console().print(published_table(settings.published, read_json(folder / "results.json")))
    print(f"trained: {folder}\nreport:  {folder / 'report.html'}")
    print(f"next:    fullyconv predict {folder} PICTURES --out segmented")


@app.command(
    epilog="""\b
Examples:
  fullyconv predict runs/x photo.jpg --out segmented
  fullyconv predict runs/x photos/ "more/*.tif" --out segmented --overlay
  find /archive -name "*.jpg" | fullyconv predict runs/x - --out segmented

\b
Exit code: 0 all done; 1 some pictures could not be read, all others done; 2 none could, or wrong usage."""
)
def predict(
    model: Model,
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUTS",
            help="Pictures, folders with pictures in and below them, patterns, or - for paths on standard input.",
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the results.")],
    overlay: Annotated[
        bool, typer.Option("--overlay", help="Write NAME.overlay.jpg, too: classes laid over it.")
    ] = False,
    probabilities: Annotated[
        bool, typer.Option("--probabilities", help="Write NAME.npz, too: (H, W, K) float16, of every class everywhere.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Write again what is there; else it is kept.")] = False,
    scales: Scales = None,
    mirror: Mirror = None,
    strategy: StrategyName = "auto",
    tile: Tile = None,
    batch: Annotated[int, typer.Option(min=1, metavar="N", help="Pictures of equal size at a time.")] = 1,
    max_pixels: Annotated[
        int,
        typer.Option(
            min=1,
            metavar="N",
            help="Refuse files that declare more pixels, before decoding; those read by rows, over 4 billion.",
        ),
    ] = 178_000_000,
    device: Device = "auto",
    precision: Precision = "auto",
    engine: Engine = "auto",
) -> None:
    """Segment pictures: any number, any size.

    Writes for each picture NAME.png, a label map whose palette shows the classes, with subfolders as they were; and
    classes.json, what its ids mean, and results.json, what became of each picture and how much of it each class covers.
    A picture that cannot be read is reported and skipped.

    A GeoTIFF becomes NAME.tif, a cloud-optimised GeoTIFF that keeps its place (pip install 'fullyconv[geo]'). Very
    large pictures are read and written a row of tiles at a time.
    """
    from fullyconv.display import counting
    from fullyconv.folders import (
        LARGE,
        Outcome,
        find_pictures,
        refuse_foreign,
        segment_files,
        with_standard_input,
        write_results,
    )
    from fullyconv.quick import QuickPredictor, open_quick

    refuse_foreign(out)
    pictures = find_pictures(with_standard_input(inputs), out=out)
    once = scales is None and mirror is None
    plain = strategy != "tiled" and tile is None and not probabilities and batch == 1 and once
    files = [picture.path for picture in pictures]
    quick = (
        open_quick(model, files, engine=engine, precision=precision, device=device, max_pixels=max_pixels)
        if plain
        else None
    )
    predictor: Predictor | QuickPredictor
    if quick is not None:
        predictor = quick
    else:
        from fullyconv import checkpoint, inference
        from fullyconv.flags import looks_of, strategy_of
        from fullyconv.inference import Predictor
        from fullyconv.tuning import tune as set_allocator

        set_allocator()
        net = checkpoint.load(model)
        predictor = Predictor(
            net,
            folder=model,
            strategy=strategy_of(strategy, tile),
            device=device,
            precision=precision,
            probabilities=probabilities,
            max_pixels=max_pixels,
            engine=engine,
            multiscale=looks_of(scales, mirror, inference.looks_of(net)),
        )
    outcomes: list[Outcome] = []
    try:
        with counting("segmenting", len(pictures)) as progress:
            for outcome in segment_files(
                predictor,
                pictures,
                out,
                overlay=overlay,
                probabilities=probabilities,
                overwrite=overwrite,
                batch_size=batch,
            ):
                outcomes.append(outcome)
                if outcome.error:
                    progress.console.print(f"skipped: {outcome.error}", markup=False, soft_wrap=True)
                progress.advance(progress.task_ids[0])
    finally:
        if outcomes:
            results = write_results(
                predictor,
                outcomes,
                out,
                settings={
                    "fullyconv": __version__,
                    "model": str(model),
                    "strategy": strategy if tile is None else f"{strategy}, tile {tile}",
                    "device": str(predictor.device),
                },
            )
    count = {status: sum(o.status == status for o in outcomes) for status in ("done", "kept", "failed")}
    kept = f", {count['kept']} kept since they were there (--overwrite writes them again)" if count["kept"] else ""
    failed = f", {count['failed']} failed" if count["failed"] else ""
    print(f"{count['done']} segmented{kept}{failed}: {results}")
    if single := sum(o.multiscale is not None and o.multiscale != predictor.multiscale for o in outcomes):
        why = f"GeoTIFFs and pictures of more than {LARGE / 1e6:.0f} Mpx are read by rows"
        print(f"{single} of them looked at once, and not at {predictor.multiscale}: {why}", file=sys.stderr)
    if count["failed"]:
        raise typer.Exit(1 if count["done"] or count["kept"] else 2)


@app.command(
    epilog="""\b
Examples:
  fullyconv evaluate runs/x DATA
  fullyconv evaluate runs/x DATA --scales 0.5,1,1.5 --mirror
  fullyconv evaluate runs/x DATA --split test --json scores.json"""
)
def evaluate(
    model: Model,
    data: Data,
    split: Annotated[str, typer.Option(metavar="NAME", help="train, val or test.")] = "val",
    json: Json = None,
    dataset: Dataset = "folder",
    inputs: Inputs = None,
    scales: Scales = None,
    mirror: Mirror = None,
    strategy: StrategyName = "auto",
    tile: Tile = None,
    device: Device = "auto",
    precision: Precision = "auto",
) -> None:
    """Score a model on labelled pictures.

    Pixel accuracy, mean accuracy, mean IU, frequency-weighted IU, and the IU of each class.

    One confusion matrix over the whole set, labels at native size, as the paper defines the scores. Classes that do not
    occur in the truth are left out of the means, and named.
    """
    from rich.console import Console

    from fullyconv import checkpoint, datasets, evaluation, inference
    from fullyconv.display import counting, scores_table
    from fullyconv.flags import inputs_of, looks_of, strategy_of

    net = checkpoint.load(model)
    looks = looks_of(scales, mirror, inference.looks_of(net))
    named = inputs_of(inputs) or checkpoint.provenance(model).get("inputs", ["color"])
    pictures = datasets.dataset(dataset, data, split=split, inputs=named)
    chosen = strategy_of(strategy, tile)
    with counting("scoring", len(pictures)) as progress:
        matrices = evaluation.evaluate(
            net,
            pictures,
            strategy=chosen,
            device=device,
            precision=precision,
            multiscale=looks,
            on_progress=lambda done, total: progress.update(progress.task_ids[0], completed=done, total=total),
        )
    said = evaluation.protocol(pictures, strategy=chosen, device=device, precision=precision, multiscale=looks)
    results = evaluation.results(matrices, protocol={"model": str(model), "data": data, **said})
    if str(json) != "-":
        console = Console()
        for head, matrix in matrices.items():
            title = f"{data}, {split}, {len(pictures)} pictures" + (f", head {head}" if len(matrices) > 1 else "")
            console.print(scores_table(matrix.as_dict(), title))
    _write_json(json, results)


@app.command(
    epilog="""\b
Examples:
  fullyconv check DATA
  fullyconv check DATA --html offenders.html --json findings.json
  fullyconv check DATA --fix MENDED

\b
Exit code: 0 nothing found; 1 something found; 2 DATA cannot be checked."""
)
def check(
    data: Data,
    fix: Annotated[
        Path | None,
        typer.Option(
            metavar="OUT", help="Write a mended copy of DATA: what needs no guessing is mended, else left out."
        ),
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", callback=writable, help="Write a page of all that is wrong, with pictures and label maps."
        ),
    ] = None,
    json: Json = None,
    backbone: Annotated[
        str, typer.Option(metavar="NAME", help="Classifier whose receptive field the pictures are compared with.")
    ] = "squeezenet1_1",
    dataset: Dataset = "folder",
    inputs: Inputs = None,
) -> None:
    """Look for what is wrong with a data set, and mend it.

    Finds files that cannot be read, label maps that do not fit their picture or the table of classes, copies within a
    split and across, and classes that are missing; docs/data.md lists all. Each finding names its files, says what it
    would do to training and how to mend it. DATA is never written to.
    """
    from rich.console import Console

    from fullyconv import backbones, census
    from fullyconv.checking import check_splits
    from fullyconv.display import checking, counts_table, print_findings
    from fullyconv.flags import inputs_of
    from fullyconv.mending import mend, refuse_out

    wanted = inputs_of(inputs) or ["color"]
    splits = _splits(dataset, data, wanted)
    if fix is not None:
        refuse_out(fix, splits)  # before all is read
    grid = list(backbones.backbone(backbone).taps.values())[-1].grid
    with checking(splits) as show:
        reports = check_splits(splits, on_progress=show)
    reports = {
        split: report.with_findings(census.of_field(report.impressions, backbone, grid.field, grid.stride))
        for split, report in reports.items()
    }
    results: dict[str, Any] = {
        "findings": [{"split": split, **found.json()} for split, report in reports.items() for found in report.findings]
    }
    for split, report in reports.items():
        table = {
            head: dict(zip(classes.names, report.counts[head].tolist(), strict=True))
            for head, classes in splits[split].classes.items()
        }
        notes = [*splits[split].notes, *report.notes]
        results[split] = {"pictures": len(splits[split]), "notes": notes, "pixels": table, "void": dict(report.void)}
    if str(json) != "-":
        console = Console()
        for split, report in reports.items():
            for note in results[split]["notes"]:
                console.print(note, style="dim", markup=False, soft_wrap=True)
            for head, pixels in results[split]["pixels"].items():
                console.print(counts_table(pixels, report.void[head], f"{split}: {len(splits[split])} pictures"))
        sees = f"a cell of {backbone}'s coarsest map sees {float(grid.field):g} pixels, with one every {grid.stride}"
        console.print(sees, style="dim", markup=False, soft_wrap=True)
        print_findings(console, {split: report.findings for split, report in reports.items()})
    _write_json(json, results)
    if html is not None:
        from fullyconv.contact_sheet import contact_sheet

        _write_text(html, contact_sheet(data, splits, reports), where="html")
    if fix is not None:
        mended = mend(splits, reports, fix)
        with checking(copied := _splits(dataset, str(mended.out), wanted)) as show:
            left = [found for report in check_splits(copied, on_progress=show).values() for found in report.findings]
        if str(json) != "-":
            for line in mended.done:
                print(f"done: {line}")
            for line in mended.left:
                print(f"left: {line}")
            pairs = ", ".join(f"{split} {count}" for split, count in mended.pairs.items())
            errors = sum(found.severity == "error" for found in left)
            print(f"mended copy: {mended.out} ({pairs}); in it: {errors} errors, {len(left) - errors} warnings")
    if results["findings"]:
        raise typer.Exit(1)


def _splits(dataset: str, data: str, inputs: list[str]) -> dict[str, Any]:
    from fullyconv import datasets

    splits = {split: datasets.dataset(dataset, data, split=split, inputs=inputs) for split in ("train", "val")}
    with suppress(DatasetError):  # many a data set has none, or keeps its labels secret
        splits["test"] = datasets.dataset(dataset, data, split="test", inputs=inputs)
    return splits


@app.command(
    epilog="""\b
Examples:
  fullyconv explain runs/x
  fullyconv explain vgg16
  fullyconv explain recipes/voc-fcn8s.toml          its stages, and what its rates come to
  fullyconv explain fcn8s --backbone resnet18 --classes 21 --json -"""
)
def explain(
    what: Annotated[
        str,
        typer.Argument(
            metavar="MODEL|BACKBONE|PRESET|RECIPE",
            help="Folder of a model, name of a backbone, or of a preset; or a recipe (.toml or .json).",
        ),
    ],
    backbone: Annotated[str, typer.Option(metavar="NAME", help="With a preset: what it is built on.")] = "vgg16",
    classes: Annotated[int, typer.Option(min=1, metavar="K", help="With a preset: how many classes.")] = 21,
    geometry: Annotated[
        Literal["same", "pad100"] | None,
        typer.Option(
            help="With a preset: whether layers pad by themselves, or pictures by 100 pixels as the authors had it.  "
            "[default: pad100 for caffenet, vgg16 and bvlc_googlenet, else same]"
        ),
    ] = None,
    json: Json = None,
) -> None:
    """Show how a network is made.

    The surgery on the classifier, where every map lies on the picture, the crops, and what each stage costs.
    """
    from fullyconv import backbones, checkpoint, recipes
    from fullyconv.building import build
    from fullyconv.config import Recipe
    from fullyconv.explanation import explain
    from fullyconv.lookup import lookup
    from fullyconv.presets import PRESETS

    net: Any
    if Path(what).suffix in (".toml", ".json"):
        net = Recipe.read(what)
    elif Path(what).is_dir():
        net = checkpoint.load(what)
    elif what in PRESETS:
        published = backbone in ("caffenet", "vgg16", "bvlc_googlenet")
        chosen = geometry or ("pad100" if published else "same")
        net = build(PRESETS[what](backbone, classes, weights=None, geometry=chosen))
    else:
        if not what.startswith("timm/"):
            lookup("model folder, backbone or preset", what, {**backbones.BACKBONES, **PRESETS})
        net = backbones.backbone(what)
    report = recipes.explain(net) if isinstance(net, Recipe) else explain(net)
    if str(json) != "-":
        print(report.text())
    _write_json(json, report.json())


@app.command(
    epilog="""\b
Examples:
  fullyconv convert fcn8s-heavy-pascal.caffemodel --as voc-fcn8s models/voc-fcn8s
  fullyconv predict models/voc-fcn8s photo.jpg --out segmented
  fullyconv convert VGG_ILSVRC_16_layers.caffemodel --as vgg16 vgg16.safetensors"""
)
def convert(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Weights of others: .caffemodel, .pth or .safetensors.")],
    kind: Annotated[
        str,
        typer.Option("--as", metavar="KIND", help="What FILE holds: voc-fcn8s, vgg16, ...; docs/weights.md lists all."),
    ],
    out: Annotated[
        Path,
        typer.Argument(
            metavar="OUT", help="Model folder to write; for a classifier, the .safetensors file for --weights."
        ),
    ],
) -> None:
    """Make a model of weights that others have published.

    The authors' Caffe nets, pytorch-fcn's, torchvision's fcn_resnet50 and 101, and the classifiers vgg16, caffenet and
    bvlc_googlenet. What was used of the file and what was not is listed; nothing is written where something is missing.
    """
    from fullyconv.conversion import convert

    done = convert(file, kind, out)
    print(f"{done}\nwritten: {done.out}")


@app.command(
    epilog="""\b
Examples:
  fullyconv demo
  fullyconv demo --out pictures"""
)
def demo(
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder for the models, report.html and results.json.")
    ] = Path("runs/demo"),
) -> None:
    """Show the whole story on generated scenes, in minutes, with nothing to download.

    Trains a small classifier, reads it at every position, fine-tunes it as FCN-32s, 16s and 8s, scores them, and
    segments a picture of an odd size whole and in tiles. What an earlier demo left in the folder is replaced.
    """
    from fullyconv.demo import demo as run
    from fullyconv.display import TrainingDisplay
    from fullyconv.tuning import tune as set_allocator

    set_allocator()
    with TrainingDisplay() as display:
        found = run(out, on_event=display)
    scores = ", ".join(f"{name} {score:.3f}" for name, score in found["mean_iu"].items())
    print(f"mean IU on held-out scenes: {scores}; {found['minutes']:.1f} minutes")
    print(f"report:  {out / 'report.html'}\nresults: {out / 'results.json'}")


@app.command(
    epilog="""\b
Examples:
  fullyconv tune runs/x
  fullyconv tune runs/x --pictures photos/ --size 500x500
  fullyconv tune runs/x --pictures photos/ --int8 --allow-loss 0.01"""
)
def tune(
    model: Model,
    size: Annotated[str, typer.Option(metavar="HxW", help="Of the picture that is timed, in pixels.")] = "512x512",
    pictures: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Your own pictures, to see how far labels agree.  [default: generated ones]"),
    ] = None,
    int8: Annotated[
        bool,
        typer.Option(
            "--int8", help="Quantise by nncf, too; needs --pictures: half choose the ranges, the others judge."
        ),
    ] = False,
    allow_loss: Annotated[
        float | None,
        typer.Option(
            min=0, max=1, metavar="SHARE", help="Of pixels that may change for speed.  [default: 0.005, never int8]"
        ),
    ] = None,
    json: Json = None,
) -> None:
    """Find the engine that is fastest here, and use it from now on.

    Measures torch, OpenVINO and ONNX Runtime as far as they are installed, in turn, one process each; says how far
    their labels agree with float32's, and remembers it all in MODEL/engine/.
    """
    from fullyconv.engines import AGREES
    from fullyconv.tuning import measure

    height, _, width = size.lower().partition("x")
    if not (height.isdigit() and width.isdigit()):
        raise ConfigError(f"--size: got {size!r}; expected HxW in pixels, such as 512x512", where="size")
    tuned = measure(
        model,
        size=(int(height), int(width)),
        pictures=pictures,
        int8=int8,
        allow_loss=allow_loss,
        on_progress=lambda line: print(line, file=sys.stderr),
    )
    best = tuned.best()
    if str(json) != "-":
        print(f"{size}, labels compared on {tuned.pictures}")
        for row in tuned.measured:
            chosen = "  <- taken" if row == best else ""
            print(f"  {row.engine:<12} {row.precision:<5} {row.milliseconds:9.1f} ms  {row.agreement:8.3%}{chosen}")
    for row in tuned.measured:
        if row.precision != "32" and row.agreement < AGREES:
            does = "taken all the same (--allow-loss)" if tuned.accepts(row) else "not taken"
            print(
                f"warning: {row.engine} {row.precision} labels {1 - row.agreement:.2%} of the pixels otherwise than "
                f"float32; {does}",
                file=sys.stderr,
            )
    _write_json(json, tuned.json())


@app.command()
def info() -> None:
    """Show versions, devices and optional parts of this installation."""
    import importlib.metadata
    import platform

    from fullyconv import native
    from fullyconv.devices import describe_devices

    print(f"fullyconv {__version__}, Python {platform.python_version()}, {platform.platform()}")
    for package in ("torch", "torchvision", "timm", "lightning-fabric", "pillow", "numpy"):
        print(f"  {package} {importlib.metadata.version(package)}")
    for line in (*describe_devices(), native.describe()):
        print(f"  {line}")
    for package, use in (("tensorboard", "training curves in TensorBoard"),):
        try:
            print(f"  {package} {importlib.metadata.version(package)}: {use}")
        except importlib.metadata.PackageNotFoundError:
            print(f"  {package}: not installed; pip install 'fullyconv[{package}]' for {use}")


@app.command(
    epilog="""\b
Examples:
  fullyconv datasets
  fullyconv datasets voc
  fullyconv datasets camvid --download data/camvid"""
)
def datasets(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="One of them only, with all of its classes.")
    ] = None,
    download: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Download NAME into this folder and unpack it there; see its licence first."),
    ] = None,
    json: Json = None,
) -> None:
    """Show the kinds of data that DATA can be.

    Of each its classes, its pictures as published, the layout of folders that is expected, its licence, and where it
    comes from. What has a published checksum is checked on download; a download that was interrupted is gone on with.
    """
    from rich.console import Console

    from fullyconv.archives import obtain
    from fullyconv.datasets import ABOUT
    from fullyconv.display import about_table, downloading
    from fullyconv.lookup import lookup

    chosen = ABOUT if name is None else {name: lookup("dataset", name, ABOUT)}
    if download is None:
        if str(json) != "-":
            for key, about in chosen.items():
                Console(soft_wrap=True).print(about_table(key, about, whole=name is not None), "")
        _write_json(json, {key: _about_json(about) for key, about in chosen.items()})
        return
    if name is None:
        raise ConfigError("--download: of which? name one, as in: fullyconv datasets voc --download DIR", where="name")
    about = chosen[name]
    if not about.archives:
        where = f"; see {about.home}" if about.home else ""
        raise DatasetError(f"{name}: nothing that can be downloaded{where}. {about.remark}")
    print(f"{about.title}: licence: {about.licence}; {about.home}", file=sys.stderr)
    with downloading() as show:
        for fetched in obtain(about.archives, download, on_progress=show):
            said = "as published" if fetched.checked else "none is published; it is recorded beside the file"
            print(f"{fetched.path}: {fetched.digest.replace(':', ' ')} ({said})")
    print(f"next:    fullyconv check {download} --dataset {name}")


def _about_json(about: About) -> dict[str, Any]:
    return {
        "title": about.title,
        "classes": {head: list(table.names) for head, table in about.classes.items()},
        "pictures": dict(about.pictures),
        "layout": about.layout.splitlines(),
        "licence": about.licence,
        "home": about.home,
        "archives": [{"url": archive.url, "digest": archive.digest or None} for archive in about.archives],
        "remark": about.remark,
    }


@app.command(
    epilog="""\b
Examples:
  fullyconv hha nyud/data/depth --out nyud/data/hha
  fullyconv hha depth --out hha --fx 525 --fy 525 --cx 319.5 --cy 239.5 --unit 0.0002

\b
Exit code: 0 all done; 1 some files could not be used, all others done; 2 none could, or wrong usage."""
)
def hha(
    depth: Annotated[Path, typer.Argument(metavar="DEPTH", help="Folder of depth maps: PNG or TIFF, one channel.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the results: PNG, of the same names.")],
    unit: Annotated[float, typer.Option(metavar="M", help="Metres that a stored 1 stands for.")] = 0.001,
    fx: Annotated[float | None, typer.Option(help="Focal length in pixels, along a row.  [default: NYUDv2's]")] = None,
    fy: Annotated[float | None, typer.Option(help="Focal length in pixels, along a column.")] = None,
    cx: Annotated[float | None, typer.Option(help="Column of the optical axis, from 0.")] = None,
    cy: Annotated[float | None, typer.Option(help="Row of the optical axis, from 0.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Write again what is there; else it is kept.")] = False,
) -> None:
    """Compute HHA from depth: horizontal disparity, height above ground, angle with gravity.

    The direction of gravity is found from the walls and floors of each picture. Folders of results are an input, hha,
    of `fullyconv train`.
    """
    from fullyconv.display import counting
    from fullyconv.folders import refuse_escape
    from fullyconv.hha import Camera, nyud_camera
    from fullyconv.hha import hha as compute
    from fullyconv.images import read_depth, write_image

    given = (fx, fy, cx, cy)
    if any(value is not None for value in given) and None in given:
        raise ConfigError("--fx, --fy, --cx and --cy describe one camera; give all four, or none for NYUDv2's")
    camera = None if fx is None else Camera(*(float(value or 0) for value in given))
    files = sorted(path for path in depth.rglob("*") if path.suffix.lower() in (".png", ".tif", ".tiff"))
    if not files:
        raise DatasetError(f"{depth}: no .png or .tif file in it; expected a folder of depth maps")
    failed = 0
    with counting("computing", len(files)) as progress:
        for path in files:
            target = (out / path.relative_to(depth)).with_suffix(".png")
            if overwrite or not target.exists():
                try:
                    stored = read_depth(path)
                    found = compute(stored * unit, camera or nyud_camera(*stored.shape))
                except FullyConvError as error:
                    failed += 1
                    said = str(error) if str(error).startswith(str(path)) else f"{path}: {error}"
                    progress.console.print(f"skipped: {said}", markup=False, soft_wrap=True)
                else:
                    refuse_escape(target, out)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    write_image(target, found.encoded())
            progress.advance(progress.task_ids[0])
    print(f"{len(files) - failed} of {len(files)} depth maps: {out}")
    if failed:
        raise typer.Exit(1 if failed < len(files) else 2)


app.add_typer(study, name="study")


def _is_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name != "DEFAULT"


def _write_text(path: Path, text: str, *, where: str) -> None:
    beside = path.with_name(f".{path.name}.part")
    try:
        beside.write_text(text, encoding="utf-8")
        beside.replace(path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise ConfigError(f"{path}: cannot be written: {error.strerror}", where=where) from None


def _write_json(path: Path | None, value: Any) -> None:
    import json

    if path is None:
        return
    if str(path) == "-":
        print(json.dumps(value, indent=2))
        return
    from fullyconv.records import write_json

    write_json(path, value)
