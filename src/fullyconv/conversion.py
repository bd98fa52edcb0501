"""Weights that others have published, as models of ours.

Each line of `KINDS` says, for one sort of file, which of our nets it is and which of our modules each of its layers
becomes; each of `fullyconv.caffe.CLASSIFIERS` the same for a classifier. Names are those of the FCN authors' release
(shelhamer/fcn.berkeleyvision.org), of pytorch-fcn (wkentaro/pytorch-fcn), which took them over, and of torchvision.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from os import PathLike
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fullyconv.backbones import BACKBONES
from fullyconv.building import build
from fullyconv.caffe import CLASSIFIERS, classifier_of
from fullyconv.checkpoint import save
from fullyconv.config import INPUTS, Classes, ModelConfig, Upsampling
from fullyconv.datasets import nyud, pascal_context, siftflow, voc
from fullyconv.errors import CheckpointError
from fullyconv.lookup import lookup
from fullyconv.model import FCN
from fullyconv.presets import fcn, late_fusion, single_tap
from fullyconv.upsample import bilinear_kernel
from fullyconv.weights import read_caffemodel, read_weights, write_weights

FINER = {32: (), 16: ("pool4",), 8: ("pool4", "pool3")}
"""Taps of the skips behind fc7, by stride."""
STREAMS = {"color": "nyud-color", "hha": "nyud-hha"}
"""Of the late fusion net: what each reads."""


class Kernels(NamedTuple):
    """The transposed convolutions of one head.

    Attributes:
        between: the tap at which each layer's scores are joined, coarse to fine; each of these layers upsamples by 2.
        last: the layer that upsamples to pixels.
        size: of its kernel.
    """

    between: Mapping[str, str]
    last: str
    size: int


@dataclass(frozen=True)
class Kind:
    """One sort of file.

    Attributes:
        model: makes the model's config from the number of classes of each head.
        tables: of the classes of each head, where they are as many as the file has.
        modules: path of our module, by layer or by the first parts of a tensor's name.
        kernels: by head.
        scales: layers that hold one number again and again, and that number.
    """

    model: Callable[[Mapping[str, int]], ModelConfig]
    tables: Mapping[str, Classes]
    modules: Mapping[str, str]
    kernels: Mapping[str, Kernels] = field(default_factory=dict)
    scales: Mapping[str, float] = field(default_factory=dict)

    @property
    def layers(self) -> set[str]:
        """All that a file of this kind has."""
        kernels = {layer for of in self.kernels.values() for layer in (*of.between, of.last)}
        return {*self.modules, *self.scales, *kernels}


@dataclass(frozen=True)
class Conversion:
    """What `convert` did.

    Attributes:
        kind: as asked for.
        sha256: of the file.
        used: names of the file's tensors that are in the result, or that decided what it is.
        unused: names of the rest.
        missing: names of the result's tensors that no tensor of the file gave: counters of batch norm, at 0.
        out: the model folder, or the .safetensors file of a classifier.
    """

    kind: str
    sha256: str
    used: tuple[str, ...]
    unused: tuple[str, ...]
    missing: tuple[str, ...]
    out: Path

    def __str__(self) -> str:
        unused = f" ({', '.join(self.unused)})" if self.unused else ""
        return (
            f"{self.kind}, SHA-256 {self.sha256}\n"
            f"{len(self.used)} tensors used, {len(self.unused)} unused{unused}, {len(self.missing)} missing"
        )


@dataclass(frozen=True)
class Mapped:
    """Tensors under our names, and the net that they belong to.

    Attributes:
        config: of the net.
        classes: table of each head, where the file has as many classes as the kind.
        tensors: by our names.
        used: names of the source's tensors that are in ``tensors``, or that decided what ``config`` says.
    """

    config: ModelConfig
    classes: Mapping[str, Classes]
    tensors: Mapping[str, Tensor]
    used: frozenset[str]


def _fcn(
    stride: int,
    input: str,
    tables: Mapping[str, Classes],
    *,
    backbone: str = "vgg16",
    suffixes: Mapping[str, str] | None = None,
    at_once: bool = False,
    scaled: bool = False,
) -> Kind:
    """One of the authors' nets of a single stream, in their geometry.

    Args:
        suffixes: what the names of each head's layers end in.
        scaled: the file holds the scales of the skips as layers.
    """
    modules = {layer: f"backbone.net.{module}" for layer, module in list(CLASSIFIERS[backbone].items())[:-1]}
    kernels = {}
    for head, suffix in (suffixes or {"out": ""}).items():
        score = f"heads.{head}.score"
        modules |= {f"score_fr{suffix}": f"{score}.fc7.0"}
        modules |= {f"score_{tap}{suffix}": f"{score}.{tap}.0" for tap in FINER[stride]}
        # Each is named after its factor, but for the second of two by 2, and the one by 32.
        between = dict(zip((f"upscore2{suffix}", f"upscore_pool4{suffix}"), FINER[stride], strict=False))
        # CaffeNet's scores lie on whole pixels, for which an odd kernel has a middle.
        size = 2 * stride - (backbone == "caffenet")
        kernels[head] = Kernels(between, f"upscore{'' if stride == 32 else stride}{suffix}", size)
    model = partial(
        fcn, stride, backbone, weights=None, input=INPUTS[input], geometry="pad100", context=0, at_once=at_once
    )
    scales = {"scale_pool4": 1e-2, "scale_pool3": 1e-4} if scaled else {}
    return Kind(model, tables, modules, kernels, scales)


def _late_fusion(tables: Mapping[str, Classes]) -> Kind:
    """The authors' net of two streams: each layer's name ends in the stream's."""
    modules: dict[str, str] = {}
    for stream in STREAMS:
        trunk = f"backbone.streams.{stream}.net"
        modules |= {f"{layer}{stream}": f"{trunk}.{path}" for layer, path in list(CLASSIFIERS["vgg16"].items())[:-1]}
        modules[f"score_fr{stream}"] = f"heads.out.score.{stream}/fc7.0"
    inputs = {stream: INPUTS[name] for stream, name in STREAMS.items()}
    model = partial(late_fusion, inputs, "vgg16", weights=None, geometry="pad100")
    return Kind(model, tables, modules, {"out": Kernels({}, "upscore", 64)})


def _torchvision(name: str, tables: Mapping[str, Classes]) -> Kind:
    def model(classes: Mapping[str, int]) -> ModelConfig:
        return single_tap("head", name, classes, weights=None).model_copy(update={"align": "interpolate"})

    modules = {
        "backbone": "backbone.net.net.backbone",
        "classifier": "backbone.net.net.head",
        "classifier.4": "heads.out.score.head.0",
    }
    return Kind(model, tables, modules)


_VOC = {"out": voc.CLASSES}
_NYUD = {"out": nyud.CLASSES}
_CONTEXT = {"out": pascal_context.CLASSES}
_SUFFIXES = {"semantic": "_sem", "geometric": "_geo"}

KINDS: Mapping[str, Kind] = {
    **{f"voc-fcn{stride}s": _fcn(stride, "caffe", _VOC) for stride in (32, 16, 8)},
    "voc-fcn8s-atonce": _fcn(8, "caffe", _VOC, at_once=True, scaled=True),
    "voc-fcn-alexnet": _fcn(32, "caffe", _VOC, backbone="caffenet"),
    "nyud-fcn32s-color": _fcn(32, "nyud-color", _NYUD),
    "nyud-fcn32s-hha": _fcn(32, "nyud-hha", _NYUD),
    "nyud-fcn32s-color-hha": _late_fusion(_NYUD),
    **{f"siftflow-fcn{s}s": _fcn(s, "siftflow", siftflow.CLASSES, suffixes=_SUFFIXES) for s in (32, 16, 8)},
    **{f"pascalcontext-fcn{stride}s": _fcn(stride, "caffe", _CONTEXT) for stride in (32, 16, 8)},
    **{f"torchfcn-fcn{stride}s": _fcn(stride, "caffe", _VOC) for stride in (32, 16, 8)},
    "torchfcn-fcn8s-atonce": _fcn(8, "caffe", _VOC, at_once=True),
    "fcn_resnet50": _torchvision("fcn_resnet50", _VOC),
    "fcn_resnet101": _torchvision("fcn_resnet101", _VOC),
}
"""Nets by the name of what was published."""


def convert(path: str | PathLike[str], kind: str, out: str | PathLike[str]) -> Conversion:
    """Make a file that somebody else published into a model folder, or into weights of a classifier.

    Args:
        path: a .caffemodel, or a .pth that holds a state dict; read without running anything in it.
        kind: a name in `KINDS`, or in `fullyconv.caffe.CLASSIFIERS`.
        out: what to write: a model folder, or, for a classifier, a .safetensors file for ``--weights``.

    Raises:
        UnknownName: no such kind.
        CheckpointError: the file is not whole, lacks something that the net needs or has it in another shape, holds a
            different net, or ``out`` is there already. Nothing is written then.
    """
    path, out = Path(path), Path(out)
    classifier = kind in CLASSIFIERS
    if not classifier:
        lookup("kind", kind, {**KINDS, **dict.fromkeys(CLASSIFIERS)})
    if out.exists():
        raise CheckpointError(f"{out}: is there already; name another place, or remove it")
    if classifier and out.suffix != ".safetensors":
        raise CheckpointError(f"{out}: {kind} is a classifier; expected the name of a .safetensors file to write")
    source = read_caffemodel(path) if path.suffix == ".caffemodel" else read_weights(path)
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    try:
        net, named, taken = (_classifier if classifier else _model)(kind, source)
        tensors, missing = _fitted(named, net.state_dict(), kind)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}", missing=error.missing, reshaped=error.reshaped) from None
    used, unused = (tuple(name for name in source if (name in taken) == is_used) for is_used in (True, False))
    origin = {"file": path.name, "kind": kind, "sha256": sha256}
    if isinstance(net, FCN):
        net.load_state_dict(tensors, assign=True)
        save(net, out, provenance={"converted_from": {**origin, "unused": list(unused)}})
    else:
        _write(out, tensors, {**origin, "input": "caffe"})
    return Conversion(kind, sha256, used, unused, missing, out)


def tensors_for(kind: str, tensors: Mapping[str, Tensor]) -> Mapped:
    """Give the tensors of a file of some kind our names, and say which net they belong to.

    Args:
        kind: a name in `KINDS`.
        tensors: of the file, as `fullyconv.weights.read_caffemodel` or `read_weights` give them.

    Returns:
        The net has as many classes as the file. Its transposed convolutions are bilinear and fixed, or learned for each
        class alone, or from class to class, as the file's kernels are.

    Raises:
        UnknownName: no such kind.
        CheckpointError: layers are missing, it is another kind, or a kernel or scale is not as published.
    """
    known = lookup("kind", kind, KINDS)
    _check_layers(kind, known, tensors)
    for layer, number in known.scales.items():
        found = tensors[f"{layer}.weight"]
        if not torch.allclose(found.double(), torch.tensor(number, dtype=torch.float64), rtol=1e-5, atol=0):
            low, high = found.min().item(), found.max().item()
            raise CheckpointError(
                f"{layer} holds numbers from {low:g} to {high:g}, expected {number:g} alone for {kind}"
            )
    goals = {name: goal for name in tensors if (goal := _goal(name, known.modules)) is not None}
    named = {goal: tensors[name] for name, goal in goals.items()}
    scorers = {head: next(m for m in known.modules.values() if m.startswith(f"heads.{head}.")) for head in known.tables}
    counts = {head: len(named[f"{module}.weight"]) for head, module in scorers.items()}
    config = known.model(counts)
    heads = dict(config.heads)
    for head, (between, last, size) in known.kernels.items():
        steps = {f"heads.{head}.align.{tap}.weight": _kernel(tensors, layer, 4) for layer, tap in between.items()}
        whole = {f"heads.{head}.upsample.weight": _kernel(tensors, last, size)}
        sorts: dict[str, Upsampling] = {"upsampling": _sort(steps), "last_upsampling": _sort(whole)}
        heads[head] = heads[head].model_copy(update=sorts)
        for group, sort in zip((steps, whole), sorts.values(), strict=True):
            if sort != "fixed":
                named |= {name: _diagonal(k) if sort == "learned" else k for name, k in group.items()}
    deciding = {f"{layer}.weight" for layer in known.layers - set(known.modules)}
    classes = {head: table for head, table in known.tables.items() if len(table) == counts[head]}
    return Mapped(config.model_copy(update={"heads": heads}), classes, named, frozenset(goals) | deciding)


def _model(kind: str, source: Mapping[str, Tensor]) -> tuple[nn.Module, Mapping[str, Tensor], frozenset[str]]:
    """A net without memory for weights, its weights, and the names of those in the file."""
    mapped = tensors_for(kind, source)
    with torch.device("meta"):
        return build(mapped.config, weights=False, classes=mapped.classes), mapped.tensors, mapped.used


def _classifier(kind: str, source: Mapping[str, Tensor]) -> tuple[nn.Module, Mapping[str, Tensor], frozenset[str]]:
    """As `_model`, of a classifier, whose layers may have Caffe's names or our modules'."""
    other = classifier_of({name.rpartition(".")[0] for name in source})
    if other not in (None, kind):
        raise CheckpointError(f"not {kind}: it has the layers of {other}; use --as {other}")
    modules = {**CLASSIFIERS[kind], **{module: module for module in CLASSIFIERS[kind].values()}}
    goals = {name: goal for name in source if (goal := _goal(name, modules)) is not None}
    with torch.device("meta"):
        return BACKBONES[kind].classifier(), {goal: source[n] for n, goal in goals.items()}, frozenset(goals)


def _goal(name: str, modules: Mapping[str, str]) -> str | None:
    """Our name of a tensor: the longest part of its own that names a module is replaced."""
    part = name
    while part:
        part = part.rpartition(".")[0]
        if part in modules:
            return modules[part] + name[len(part) :]
    return None


def _check_layers(kind: str, known: Kind, tensors: Mapping[str, Tensor]) -> None:
    """Refuse a file that lacks a layer, or that holds all of this kind and all that another kind has besides."""
    there = {name.rsplit(".", i)[0] for name in tensors for i in range(1, name.count(".") + 1)}
    missing = sorted(known.layers - there)
    others = [name for name, other in KINDS.items() if other.layers <= there]
    if missing:
        hint = f"it fits {', '.join(others)}" if others else f"it has {', '.join(sorted(there)[:3]) or 'none'}"
        raise CheckpointError(
            f"not {kind}: {len(missing)} of its {len(known.layers)} layers are missing "
            f"({', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}); {hint}",
            missing=missing,
        )
    larger = [name for name in others if KINDS[name].layers > known.layers]
    if larger:
        more = ", ".join(sorted(KINDS[larger[0]].layers - known.layers))
        raise CheckpointError(f"not {kind}: it has {more} besides; use --as {larger[0]}")


def _kernel(tensors: Mapping[str, Tensor], layer: str, size: int) -> Tensor:
    """Kernels of a transposed convolution: (K, K, size, size), or (K, 1, size, size) where each class has its own."""
    kernel = tensors[f"{layer}.weight"]
    if kernel.ndim != 4 or kernel.shape[2:] != (size, size) or kernel.shape[1] not in (1, len(kernel)):
        shape = "x".join(map(str, kernel.shape))
        raise CheckpointError(f"{layer} has kernels of {shape}, expected classes x classes x {size}x{size}")
    return kernel


def _diagonal(kernel: Tensor) -> Tensor:
    """From each class to itself, (K, 1, size, size)."""
    classes = range(len(kernel))
    return kernel if kernel.shape[1] == 1 else kernel[classes, classes].unsqueeze(1)


def _sort(kernels: Mapping[str, Tensor]) -> Upsampling:
    """What kernels must be to do what these do: fixed where all are bilinear, learned where none mixes classes."""
    sort: Upsampling = "fixed"
    for kernel in kernels.values():
        diagonal = _diagonal(kernel)
        if kernel.count_nonzero() > diagonal.count_nonzero():
            return "full"
        bilinear = bilinear_kernel(kernel.shape[-1]).to(kernel.dtype)
        if not torch.allclose(diagonal, bilinear.expand_as(diagonal), rtol=0, atol=1e-6):
            sort = "learned"
    return sort


def _fitted(
    tensors: Mapping[str, Tensor], own: Mapping[str, Tensor], kind: str
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Every tensor of a net, in its shape and dtype, and the names of counters that were not there.

    Raises:
        CheckpointError: lists what is missing and what has another shape.
    """
    counters = tuple(name for name in own if name not in tensors and name.endswith("num_batches_tracked"))
    missing = [name for name in own if name not in tensors and name not in counters]
    # An InnerProduct's weights (N, C*h*w) are those of a convolution (N, C, h, w), and the reverse.
    reshaped = [
        name
        for name in own
        if name in tensors
        and (tensors[name].shape[:1], tensors[name].numel()) != (own[name].shape[:1], own[name].numel())
    ]
    if missing or reshaped:
        first = next(iter(reshaped), None)
        shapes = f": {first} is {tuple(tensors[first].shape)}, expected {tuple(own[first].shape)}" if first else ""
        raise CheckpointError(
            f"not {kind}: {len(missing)} tensors are missing ({', '.join(missing[:3]) or 'none'}) and {len(reshaped)} "
            f"have another shape{shapes}; give the file that was published as {kind}",
            missing=missing,
            reshaped=reshaped,
        )
    given = {name: tensors[name].reshape(of.shape).to(of.dtype) for name, of in own.items() if name in tensors}
    return given | {name: torch.zeros(own[name].shape, dtype=own[name].dtype) for name in counters}, counters


def _write(out: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a file of weights, whole or not at all."""
    beside = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        # One entry only: safetensors writes several in no fixed order, and equal weights should be equal files.
        write_weights(beside, tensors, {"converted_from": json.dumps(metadata)})
        beside.replace(out)
    except Exception as error:
        beside.unlink(missing_ok=True)
        # The writer of safetensors reports a full disk in a class of its own.
        if isinstance(error, OSError) or "SafetensorError" in type(error).__name__:
            raise CheckpointError(f"{out}: cannot be written: {error}") from None
        raise
