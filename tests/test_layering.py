"""Who may import whom: the table of CONTRIBUTING.md, held against the syntax trees."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "fullyconv"

LAYERS = (
    {"__init__", "errors", "geometry", "config", "lookup", "rates", "events", "archives", "findings", "documents"},
    {
        "places",
        "operations",
        "locate",
        "tracing",
        "edits",
        "postconditions",
        "surgery",
        "classifiers",
        "variants",
        "taps",
        "parts",
        "transplant",
        "upsample",
        "native",
        "dense",
        "fused",
        "losses",
        "metrics",
        "transforms",
        "caffe",
        "weights",
        "opening",
        "images",
        "values",
        "labels",
        "devices",
        "depthwise",
        "dropout",
        "engines",
        "records",
        "hha",
        "datasets.base",
    },
    {
        "maps",
        "backbones",
        "model",
        "rarefaction",
        "stitching",
        "substitutes",
        "impressions",
        "datasets",
        "datasets.inputs",
        "datasets.listed",
        "datasets.mat",
        "datasets.folder",
        "datasets.scenes",
        "datasets.voc",
        "datasets.sbd",
        "datasets.nyud",
        "datasets.siftflow",
        "datasets.pascal_context",
        "datasets.cityscapes",
        "datasets.ade20k",
        "datasets.camvid",
    },
    {
        "presets",
        "building",
        "checking",
        "diagnosis",
        "census",
        "duplicates",
        "agreement",
        "misfits",
        "optim",
        "sampling",
        "segmentation",
        "exporters",
        "exporters.onnx",
        "exporters.openvino",
        "exporters.torch_export",
        "tiling",
        "multiscale",
        "graphs",
        "margins",
        "rasters",
    },
    {"checkpoint", "runners", "quick", "mending"},
    {"inference", "conversion", "streaming", "tuning"},
    {"evaluation", "explanation", "recipes", "runs", "report"},
    {"contact_sheet", "learner", "alarms", "reading", "fitting", "training", "demo"},
    {
        "studies",
        "studies.base",
        "studies.altered",
        "studies.trials",
        "studies.masking",
        "studies.strides",
        "studies.fusion",
        "studies.sampling",
        "studies.momentum",
        "studies.upper_bound",
        "studies.dense",
        "studies.timing",
        "studies.contributions",
    },
    {"display", "flags", "folders", "commands", "commands.options"},
    {
        "commands.train",
        "commands.predict",
        "commands.evaluate",
        "commands.check",
        "commands.explain",
        "commands.convert",
        "commands.demo",
        "commands.tune",
        "commands.info",
        "commands.datasets",
        "commands.hha",
        "commands.study",
    },
    {"cli", "__main__"},
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}

# Inside a layer, files may lean on these neighbours only, so that there is no circle.
NEIGHBOURS = {
    "geometry": {"errors"},
    "config": {"errors", "lookup", "rates", "documents"},
    "lookup": {"errors"},
    "archives": {"errors"},
    "__init__": {"errors"},
    "postconditions": {"tracing"},
    "operations": {"places"},
    "locate": {"operations", "places", "tracing"},
    "surgery": {"locate", "places", "tracing", "edits", "postconditions"},
    "taps": {"locate", "places"},
    "parts": {"locate", "places", "taps"},
    "variants": {"locate", "tracing"},
    "backbones": {"maps"},
    "stitching": {"rarefaction"},
    "checking": {"diagnosis", "census", "duplicates", "misfits"},
    "misfits": {"agreement", "diagnosis"},
    "weights": {"caffe", "records"},
    "images": {"opening"},
    "values": {"opening"},
    "labels": {"opening", "values"},
    "model": {"backbones", "maps"},
    "datasets": {
        f"datasets.{name}"
        for name in ("folder", "scenes", "voc", "sbd", "nyud", "siftflow", "pascal_context", "cityscapes", "ade20k")
    }
    | {"datasets.camvid"},
    "datasets.folder": {"datasets.inputs", "datasets.listed", "datasets.voc"},
    "datasets.scenes": {"datasets.inputs"},
    "datasets.listed": {"datasets.inputs"},
    "datasets.voc": {"datasets.inputs", "datasets.listed", "datasets.mat"},
    "datasets.sbd": {"datasets.inputs", "datasets.listed", "datasets.voc"},
    "datasets.nyud": {"datasets.inputs", "datasets.listed", "datasets.mat"},
    "datasets.siftflow": {"datasets.inputs", "datasets.listed", "datasets.mat"},
    "datasets.pascal_context": {"datasets.inputs", "datasets.listed", "datasets.mat", "datasets.voc"},
    "datasets.cityscapes": {"datasets.inputs", "datasets.listed"},
    "datasets.ade20k": {"datasets.inputs", "datasets.listed"},
    "datasets.camvid": {"datasets.inputs", "datasets.listed"},
    "dense": {"losses", "native", "devices", "fused"},
    "exporters": {"exporters.onnx", "exporters.openvino", "exporters.torch_export"},
    "exporters.openvino": {"exporters.onnx"},
    "exporters.torch_export": {"exporters.onnx"},
    "streaming": {"inference"},
    "report": {"runs"},
    "reading": {"learner"},
    "fitting": {"learner", "alarms", "reading"},
    "training": {"fitting", "learner"},
    "demo": {"training", "learner"},
    "studies.trials": {"studies.base"},
    "studies.masking": {"studies.altered", "studies.base", "studies.trials"},
    "studies.strides": {"studies.base", "studies.trials"},
    "studies.fusion": {"studies.altered", "studies.base", "studies.trials"},
    "studies.sampling": {"studies.base", "studies.trials"},
    "studies.momentum": {"studies.base", "studies.trials"},
    "studies.upper_bound": {"studies.base"},
    "studies.dense": {"studies.base", "studies.trials", "studies.timing"},
    "studies.timing": {"studies.base", "studies.trials"},
    "studies.contributions": {"studies.base", "studies.trials"},
    "__main__": {"cli"},
}

COMMANDS = {name for name in LEVEL if name.startswith("commands.")}

ONLY_IN = {
    "PIL": {"opening", "images", "values", "labels"},
    "timm": {"backbones"},
    "safetensors": {"weights"},
    "lightning_fabric": {"learner"},
    "typer": {"cli"} | COMMANDS,
    "rich": {"display"} | COMMANDS,
    "matplotlib": {"report", "studies.base"},
    "torchvision": {"backbones", "transforms"},
    "pydantic": {"config"},
    "scipy": {"datasets.mat", "hha", "studies.contributions"},
    "rasterio": {"rasters"},
    "triton": {"fused"},
    "onnx": {"exporters.onnx"},
    "onnxruntime": {"engines"},
    "openvino": {"engines", "exporters.openvino"},
    "nncf": {"exporters.openvino"},
}

NO_TORCH = LAYERS[0]


def modules() -> dict[str, Path]:
    found = {}
    for path in SOURCE.rglob("*.py"):
        name = ".".join(path.relative_to(SOURCE).with_suffix("").parts)
        found[name.removesuffix(".__init__")] = path
    return found


def imports(path: Path, *, module: str) -> set[str]:
    """Full names of all modules that a file imports, inside functions too, but not those for type checkers alone."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for_types = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for statement in node.body
        for inner in ast.walk(statement)
    }
    names: set[str] = set()
    for node in ast.walk(tree):
        if id(node) in for_types:
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import"
            assert node.module is not None
            inside = [f"{node.module}.{alias.name}" for alias in node.names]
            submodules = [full for full in inside if full.removeprefix("fullyconv.") in modules()]
            names |= set(submodules) if submodules else {node.module}
    return names


def own(names: set[str]) -> set[str]:
    return {
        name.removeprefix("fullyconv").removeprefix(".") or "__init__"
        for name in names
        if name.split(".")[0] == "fullyconv"
    }


@pytest.mark.parametrize("module", sorted(modules()))
def test_a_module_imports_only_from_lower_layers(module: str) -> None:
    assert module in LEVEL, f"{module} has no layer: add it to this table and to CONTRIBUTING.md"
    for imported in own(imports(modules()[module], module=module)):
        assert imported in LEVEL, f"{module} imports {imported}, which is no module"
        lower = LEVEL[imported] < LEVEL[module] or imported == "__init__"
        assert lower or imported in NEIGHBOURS.get(module, set()), f"{module} imports {imported}"


@pytest.mark.parametrize("module", sorted(modules()))
def test_third_party_libraries_are_imported_only_where_they_belong(module: str) -> None:
    for imported in imports(modules()[module], module=module):
        library = imported.split(".")[0]
        if library in ONLY_IN:
            assert module in ONLY_IN[library], f"{module} imports {imported}"
    if module in NO_TORCH:
        heavy = {name for name in imports(modules()[module], module=module) if name.split(".")[0] in {"torch", "numpy"}}
        assert not heavy, f"{module} imports {heavy}"


def test_the_table_names_no_module_that_is_gone() -> None:
    assert set(LEVEL) == {name or "__init__" for name in modules()} | {"__init__"}
