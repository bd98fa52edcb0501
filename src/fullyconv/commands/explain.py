"""``fullyconv explain``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from fullyconv.commands.options import Json, is_given, output_json
from fullyconv.errors import ConfigError

EXAMPLES = """\b
Examples:
  fullyconv explain runs/x
  fullyconv explain vgg16
  fullyconv explain recipes/voc-fcn8s.toml          its stages, and what its rates come to
  fullyconv explain fcn8s --backbone resnet18 --classes 21 --json -"""


def explain(
    context: typer.Context,
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
    given = [name for name in ("backbone", "classes", "geometry") if is_given(context, name)]
    if given and (what not in PRESETS or Path(what).is_dir()):
        raise ConfigError(
            f"--{given[0]}: goes with a preset ({', '.join(PRESETS)}), and {what} is none; drop it, or name a preset",
            where=given[0],
        )
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
    output_json(json, report.json())
