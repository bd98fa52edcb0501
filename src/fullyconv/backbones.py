"""Image in, maps out: classifiers by name, with the taps at which a head may read them.

A backbone is data: a line in `BACKBONES`. Surgery is general, so channels, strides, offsets and receptive fields are
measured from the net, never typed in. ``timm/<name>`` needs no line. An object is taken wherever a name is.
"""

from __future__ import annotations

import bisect
import difflib
import functools
import math
import urllib.error
import warnings
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal, get_args

import torch
import torch.fx
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fullyconv.classifiers import BVLCGoogLeNet, CaffeNet, TinyVGG
from fullyconv.config import INPUTS, Geometry, InputConfig
from fullyconv.errors import CheckpointError, ConfigError, SurgeryError, UnknownName, first_line
from fullyconv.locate import locate, locate_outputs, positions
from fullyconv.lookup import lookup
from fullyconv.maps import Maps, Tap, measure, refuse_moved, runs, smallest
from fullyconv.surgery import Plan, Pool, plan, refuse_mistaken
from fullyconv.taps import cut, find_taps
from fullyconv.transplant import transplant
from fullyconv.variants import convolve_pools, widen_input
from fullyconv.weights import input_of, read_weights

CHANNELS = 3
"""Of the pictures that classifiers known by name are made for."""
PAD = 100
"""Pixels by which the authors' first layers pad: for any picture, fc6 then finds its 7x7 cells."""


class Backbone(nn.Module):
    """Image (B, C, H, W) float -> maps by tap name, finest first.

    Attributes:
        taps: what there is to read, finest first.
        inputs: the preprocessing that its weights expect; one for each of its streams, of which there is one mostly.
        minimum: pixels along one side from which on every map inside has a cell.
        plan: the surgery that made it, or None where there was none to do.
        border: pixels of zeros that a picture needs on all sides, in the authors' geometry; None in ours, where they
            depend on its size.
    """

    def __init__(
        self,
        net: nn.Module,
        taps: Mapping[str, Tap],
        *,
        input: InputConfig | tuple[InputConfig, ...],
        minimum: int = 1,
        plan: Plan | None = None,
        border: int | None = None,
    ) -> None:
        super().__init__()
        self.net = net
        self.taps = dict(taps)
        self.inputs = input if isinstance(input, tuple) else (input,)
        self.minimum = minimum
        self.plan = plan
        self.border = border

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        maps = self.net(image)
        return dict(zip(self.taps, maps, strict=True))

    def extra_repr(self) -> str:
        return "\n".join(f"{name}: {tap.channels} channels, {tap.grid}" for name, tap in self.taps.items())


class Streams(Backbone):
    """Several backbones side by side, each of which reads channels of its own: taps are named ``STREAM/TAP``.

    The paper's late fusion (section 5, NYUDv2): a head that reads ``color/fc7`` and ``hha/fc7`` adds up their scores.

    Raises:
        ConfigError: the name of a stream cannot name a module, or the streams differ in what they do about borders.

    Example:
        >>> both = Streams({"color": backbone("tinyvgg"), "hha": backbone("tinyvgg")})
        >>> sorted(both.taps)[:2], len(both.inputs)
        (['color/stride16', 'color/stride2'], 2)
    """

    def __init__(self, streams: Mapping[str, Backbone]) -> None:
        borders = {one.border for one in streams.values()}
        wrong = next((name for name in streams if not name.isidentifier() or hasattr(nn.ModuleDict(), name)), None)
        if wrong is not None or len(borders) > 1:
            found = f"{wrong!r} cannot name a stream" if wrong is not None else f"borders of {borders} pixels"
            raise ConfigError(f"streams: {found}; expected letters, digits and underscores, and one geometry")
        # By stride, so that taps are listed finest first.
        taps = {f"{name}/{tap}": of for name, one in streams.items() for tap, of in one.taps.items()}
        super().__init__(
            nn.Identity(),
            dict(sorted(taps.items(), key=lambda item: item[1].grid.stride)),
            input=tuple(config for one in streams.values() for config in one.inputs),
            minimum=max(one.minimum for one in streams.values()),
            plan=next(iter(streams.values())).plan,
            border=borders.pop(),
        )
        self.streams = nn.ModuleDict(dict(streams))

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        maps: dict[str, Tensor] = {}
        first = 0
        for name, one in self.streams.items():
            assert isinstance(one, Backbone)
            channels = sum(len(config.mean) for config in one.inputs)
            maps |= {f"{name}/{tap}": of for tap, of in one(image[:, first : first + channels]).items()}
            first += channels
        return maps


@dataclass(frozen=True)
class Spec:
    """One line of the table of backbones.

    Attributes:
        torchvision: name there; "" for a net of our own.
        weights: torchvision's name of the published weights; "" where there are none.
        image_size: side of the picture that the classifier was made for.
        input: the preprocessing that goes with the published weights.
        pool: "drop" discards a last global pool, as the paper does with GoogLeNet's.
        context: channels of the block that presets put before the coarsest scores; None: 256 where there are no hidden
            linear layers, else none.
        taps: names for taps and the modules whose output they are, finest first; empty: one tap a stride, named
            ``stride2``, ``stride4``, ..., each the last map through which all that is coarser must pass.
        make: builds a net of our own.
    """

    torchvision: str = ""
    weights: str = "IMAGENET1K_V1"
    image_size: int = 224
    input: str = "imagenet"
    pool: Pool = "keep"
    context: int | None = None
    taps: Mapping[str, str] = field(default_factory=dict)
    make: Callable[[], nn.Module] | None = None

    def classifier(self) -> nn.Module:
        """The classifier with fresh random weights."""
        if self.make is not None:
            return self.make()
        # Not where the classifier is to be made: modules make tensors of their own while they are imported.
        with torch.device("cpu"):
            import torchvision

        with warnings.catch_warnings():
            # GoogLeNet announces a future default of init_weights, which is what we want.
            warnings.simplefilter("ignore", FutureWarning)
            net: nn.Module = torchvision.models.get_model(self.torchvision, weights=None)
        return net


class TorchvisionFCN(nn.Module):
    """A ResNet dilated to stride 8 and all but the last layer of the head of torchvision's ``fcn_resnet50`` or 101.

    Its one map of 512 channels is what the published score layer reads.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        with torch.device("cpu"):  # as in `Spec.classifier`
            import torchvision

        net = torchvision.models.get_model(name, weights=None, weights_backbone=None)
        self.backbone = net.backbone
        self.head = nn.Sequential(*list(net.classifier)[:-1])

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, 512, H/8, W/8)."""
        maps: Tensor = self.head(self.backbone(image)["out"])
        return maps


def _vgg(name: str, pools: tuple[int, ...]) -> Spec:
    taps = {f"pool{i}": f"features.{layer}" for i, layer in enumerate(pools, start=1)}
    return Spec(name, taps=taps | {"fc7": "classifier.5"})


BACKBONES: Mapping[str, Spec] = {
    "caffenet": Spec(
        make=CaffeNet,
        weights="",
        image_size=227,
        input="caffe",
        taps={"conv1": "relu1", "pool1": "pool1", "pool2": "pool2", "pool5": "pool5", "fc7": "drop7"},
    ),
    "bvlc_googlenet": Spec(
        make=BVLCGoogLeNet,
        weights="",
        input="caffe",
        pool="drop",
        context=0,
        taps={
            "conv1": "relu1",
            "pool1": "pool1",
            "inception_3b": "inception_3b.output",
            "inception_4e": "inception_4e.output",
            "inception_5b": "inception_5b.output",
        },
    ),
    "alexnet": Spec(
        "alexnet",
        taps={"pool1": "features.2", "pool2": "features.5", "pool5": "features.12", "fc7": "classifier.5"},
    ),
    "vgg11": _vgg("vgg11", (2, 5, 10, 15, 20)),
    "vgg13": _vgg("vgg13", (4, 9, 14, 19, 24)),
    "vgg16": _vgg("vgg16", (4, 9, 16, 23, 30)),
    "vgg19": _vgg("vgg19", (4, 9, 18, 27, 36)),
    "vgg11_bn": _vgg("vgg11_bn", (3, 7, 14, 21, 28)),
    "vgg13_bn": _vgg("vgg13_bn", (6, 13, 20, 27, 34)),
    "vgg16_bn": _vgg("vgg16_bn", (6, 13, 23, 33, 43)),
    "vgg19_bn": _vgg("vgg19_bn", (6, 13, 26, 39, 52)),
    "googlenet": Spec("googlenet"),
    "squeezenet1_0": Spec("squeezenet1_0"),
    "squeezenet1_1": Spec("squeezenet1_1"),
    "resnet18": Spec("resnet18"),
    "resnet34": Spec("resnet34"),
    "resnet50": Spec("resnet50", weights="IMAGENET1K_V2"),
    "resnet101": Spec("resnet101", weights="IMAGENET1K_V2"),
    "resnet152": Spec("resnet152", weights="IMAGENET1K_V2"),
    "mobilenet_v2": Spec("mobilenet_v2", weights="IMAGENET1K_V2"),
    "mobilenet_v3_small": Spec("mobilenet_v3_small"),
    "mobilenet_v3_large": Spec("mobilenet_v3_large", weights="IMAGENET1K_V2"),
    "densenet121": Spec("densenet121"),
    "efficientnet_b0": Spec("efficientnet_b0"),
    "convnext_tiny": Spec("convnext_tiny"),
    "fcn_resnet50": Spec(make=partial(TorchvisionFCN, "fcn_resnet50"), weights="", context=0),
    "fcn_resnet101": Spec(make=partial(TorchvisionFCN, "fcn_resnet101"), weights="", context=0),
    "tinyvgg": Spec(make=TinyVGG, weights="", image_size=96),
}


def backbone(
    name: str | nn.Module,
    *,
    weights: str | None = None,
    input: InputConfig | None = None,
    image_size: int = 224,
    taps: Mapping[str, str] | None = None,
    geometry: Geometry = "same",
    pools: Literal["keep", "convolution"] = "keep",
) -> Backbone:
    """A backbone by name, or from a net of your own.

    Args:
        name: a name in `BACKBONES`, ``timm/<name>``, or a module: a classifier, which goes through surgery, or a net
            that returns one or several maps, which is taken as it is.
        weights: "default" (the published ones), a .safetensors, .pth or .caffemodel file of the classifier's weights,
            or of a model of ours on the same backbone, or None for random ones (a module keeps its own).
        input: the preprocessing that the weights expect; None: what their file tells, or the published weights' own.
            With more than three channels, the first layer is widened: new channels get the mean of the others'
            weights, as the authors did (`fullyconv.variants.widen_input`; a module of your own reads what it reads).
        image_size: side of the picture that a module of your own was made for, in pixels.
        taps: names for the maps of a classifier of your own and the modules whose output they are, finest first; None:
            one a stride (`Spec`).
        geometry: "same", or "pad100", the authors' (`fullyconv.config.Geometry`), for classifiers only.
        pools: "convolution" makes every pool a strided convolution, which starts as an average.

    Raises:
        UnknownName: no such backbone, geometry or pools.
        SurgeryError: the classifier cannot be made fully convolutional; says where and why.
        ConfigError: the published weights cannot be had; or a setting is not for such a net, or not what a `Backbone`
            that is given was made with.
        CheckpointError: the file of weights does not fit.

    Example:
        >>> sorted(backbone("resnet18").taps)
        ['stride16', 'stride2', 'stride32', 'stride4', 'stride8']
    """
    lookup("geometry", geometry, dict.fromkeys(get_args(Geometry)))
    lookup("pools", pools, dict.fromkeys(("keep", "convolution")))
    if taps and isinstance(name, (str, Backbone)):
        raise ConfigError(f"taps: got {', '.join(taps)}; they are named in classifiers of your own only", where="taps")
    if isinstance(name, nn.Module):
        if weights not in (None, "default"):
            raise ConfigError(
                f"weights {weights}: a net that is given keeps its own; load the file into it first, or name a net",
                where="model.weights",
            )
        made = _from_object(name, input, image_size, taps or {}, geometry, pools)
    elif name.startswith("timm/"):
        made = _from_timm(name.removeprefix("timm/"), weights, input)
    else:
        spec = lookup("backbone", name, BACKBONES)
        classifier = spec.classifier()
        named = frozenset(classifier.state_dict())
        told = None if weights is None or weights == "default" else input_of(weights)
        expected = input or lookup("input", told or spec.input, INPUTS)
        made = _from_spec(name, spec, classifier, expected, geometry, pools)
        if weights == "default":
            transplant_all(_published(name, spec), made.net, f"the published weights of {name}", only=named)
        elif weights is not None:
            transplant_all(_own(read_weights(weights)), made.net, weights, only=named)
    if not isinstance(name, Backbone) and made.plan is None and (geometry, pools) != ("same", "keep"):
        raise ConfigError(f"{name}: gives maps and is taken as it is; geometry and pools are for classifiers")
    reads = sum(len(config.mean) for config in made.inputs)
    if not isinstance(name, nn.Module) and reads != CHANNELS:
        made.net = widen_input(made.net, reads)
    return made


def _from_spec(
    name: str,
    spec: Spec,
    classifier: nn.Module,
    input: InputConfig,
    geometry: Geometry,
    pools: Literal["keep", "convolution"],
) -> Backbone:
    if isinstance(classifier, TorchvisionFCN):
        made = _from_maps(classifier, name, input, spec.image_size)
        (tap,) = made.taps.values()
        made.taps = {"head": tap}
        return made
    return _from_classifier(
        classifier, spec.taps, spec.image_size, input, geometry=geometry, pools=pools, pool=spec.pool
    )


@functools.lru_cache(maxsize=64)
def describe(name: str) -> Backbone:
    """A backbone by name on the meta device: its taps and its surgery, without memory for weights or time for them.

    Raises:
        UnknownName, SurgeryError: as `backbone`.
    """
    # Kept for all callers, whatever mode the first of them is in.
    with torch.inference_mode(False), torch.device("meta"):
        return backbone(name)


def transplant_all(
    source: Mapping[str, Tensor],
    target: nn.Module,
    origin: str,
    *,
    rename: Callable[[str], str | None] = lambda name: name,
    only: Collection[str] | None = None,
) -> None:
    """Give every parameter of a backbone's net its value from a classifier's weights.

    Args:
        only: the names that have to get one; None: all. Convolutions that stand for pools have none to get.

    Raises:
        CheckpointError: some parameter gets none; lists them.
    """
    done = transplant(source, target, rename=rename)
    missing = [name for name in done.missing if only is None or name in only]
    if missing:
        raise CheckpointError(
            f"{origin}: fits {len(done.used)} of the backbone's {len(done.used) + len(missing)} tensors; missing "
            f"{', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}, and it has "
            f"{', '.join(done.unexpected[:3]) or 'nothing else'}; expected the state dict of this classifier",
            missing=missing,
            unexpected=done.unexpected,
        )


def _own(source: Mapping[str, Tensor], inside: str = "") -> Mapping[str, Tensor]:
    """Weights of a classifier; of a whole model of ours, which may go on from where it is, those of its backbone.

    Args:
        source: by name, as in the file.
        inside: how the names of the backbone's own net go on in a model of ours.
    """
    prefix = f"backbone.net.{inside}"
    own = {name.removeprefix(prefix): tensor for name, tensor in source.items() if name.startswith(prefix)}
    return own or source


def _published(name: str, spec: Spec) -> Mapping[str, Tensor]:
    if not spec.weights:
        raise ConfigError(f"no weights are published for {name}; use --weights none or a file", where="model.weights")
    import torchvision

    try:
        entry = torchvision.models.get_model_weights(spec.torchvision)[spec.weights]
        state: Mapping[str, Tensor] = entry.get_state_dict(progress=True, check_hash=True)
    except (urllib.error.URLError, OSError, RuntimeError) as error:
        raise ConfigError(
            f"the published weights of {name} cannot be downloaded ({error}); give a local file with --weights FILE, "
            "or train from random ones with --weights none",
            where="model.weights",
        ) from None
    return state


def _from_classifier(
    classifier: nn.Module,
    names: Mapping[str, str],
    image_size: int,
    input: InputConfig,
    *,
    geometry: Geometry,
    pools: Literal["keep", "convolution"],
    pool: Pool = "keep",
    channels: int = CHANNELS,
    verify: bool = False,
) -> Backbone:
    if pools == "convolution":
        classifier = convolve_pools(classifier, channels=channels, size=image_size)
    surgery = plan(classifier, image_size=image_size, pool=pool, channels=channels)
    if verify:
        surgery.apply()
    dense = surgery.apply(padding="same" if geometry == "same" else "valid", verify=False)
    border = None
    if geometry == "pad100":
        border = PAD - _first_padding(dense)
        for module in dense.modules():
            if isinstance(module, nn.MaxPool2d | nn.AvgPool2d):
                module.ceil_mode = True  # Caffe knows no other
    # A multiple of all strides, so that the number of cells tells how many the borders cost.
    size = -(-image_size // surgery.alignment) * surgery.alignment
    located = locate(dense, channels=channels, size=(size, size))
    if names:
        taps = {name: _node_of(dense, path) for name, path in names.items()}
    else:
        taps = {f"stride{stride}": node for stride, node in find_taps(dense, surgery.scores, located).items()}
    measured = {name: measure(name, located[node], size) for name, node in taps.items()}
    if verify:
        side = 2 * size + surgery.alignment
        others = locate(dense, channels=channels, size=(side, side))
        refuse_moved(type(classifier).__name__, measured, [others[node] for node in taps.values()], size, side)
    trunk = cut(dense, list(taps.values()))
    inside = {node.name for node in trunk.graph.nodes}
    lacking = [
        (1 - (cells - size / grid.stride)) * grid.stride
        for node, place in positions(located)
        for cells, grid in zip(located[node].shape[2:], (place.down, place.across), strict=True)
        if node in inside
    ]
    minimum = math.ceil(max(lacking))
    if border is not None and runs(trunk, channels, 2 * border + 1):
        minimum = 1  # the border makes even a single pixel large enough
    elif border is None and not runs(trunk, channels, minimum):
        # A reflection needs more cells than one.
        minimum += bisect.bisect_left(range(minimum, size), True, key=lambda side: runs(trunk, channels, side))
    # Without the classifier, a second copy of whose weights would be kept, and copied, with the backbone.
    return Backbone(trunk, measured, input=input, minimum=minimum, plan=replace(surgery, net=None), border=border)


def _node_of(dense: torch.fx.GraphModule, path: str) -> str:
    """The last node of a module: its own, or, where it was traced through, the last that lies in it."""
    inside: list[str] = [
        node.name
        for node in dense.graph.nodes
        if str(node.target) == path or path in (name for name, _ in node.meta.get("nn_module_stack", {}).values())
    ]
    if not inside:
        modules = [str(node.target) for node in dense.graph.nodes if node.op == "call_module"]
        raise UnknownName("module to tap", path, difflib.get_close_matches(path, modules, n=3), modules[:20])
    return inside[-1]


def _first_padding(dense: torch.fx.GraphModule) -> int:
    """What the layer that reads the picture pads by itself."""
    picture = next(node for node in dense.graph.nodes if node.op == "placeholder")
    readers = [dense.get_submodule(str(node.target)) if node.op == "call_module" else None for node in picture.users]
    paddings = {reader.padding if isinstance(reader, nn.Conv2d) else None for reader in readers}
    padding = paddings.pop()
    if paddings or not isinstance(padding, tuple) or padding[0] != padding[1]:
        raise SurgeryError(
            f"geometry pad100: the picture is read by {', '.join(node.name for node in picture.users)}; expected one "
            "convolution with the same padding on all sides"
        )
    return int(padding[0])


def _from_maps(net: nn.Module, name: str, input: InputConfig, image_size: int, channels: int = CHANNELS) -> Backbone:
    """A net that returns maps, taken as it is: one tap for each, named by its stride."""
    outputs = locate_outputs(net, channels=channels, size=(image_size, image_size))
    if not outputs:
        raise SurgeryError(
            f"{name} returns no maps: there is no tensor in what it makes of a picture; expected a tensor, or tuples, "
            "lists or dictionaries of them"
        )
    try:
        measured = [measure(f"output {i}", out, image_size) for i, out in enumerate(outputs)]
    except SurgeryError as error:
        raise SurgeryError(f"{name}: {error}", path=error.path) from None
    alignment = math.lcm(*(tap.alignment for tap in measured))
    # A multiple of all strides, so that the number of cells tells how many the borders cost.
    size = -(-image_size // alignment) * alignment
    outputs = locate_outputs(net, channels=channels, size=(size, size))
    plain = [f"stride{tap.grid.stride}".replace("/", "_") for tap in measured]  # a name of modules has no point
    # Of several maps of one stride the last, which is the deepest, has the plain name.
    names = [f"{label}_{i}" if label in plain[i + 1 :] else label for i, label in enumerate(plain)]
    taps = {label: measure(label, out, size) for label, out in zip(names, outputs, strict=True)}
    side = 2 * size + alignment
    if not runs(net, channels, side):
        raise SurgeryError(
            f"{name}: it runs on pictures of {size}x{size} but not on larger ones, as nets with attention over a fixed "
            "number of positions; expected a net for any size"
        )
    refuse_moved(name, taps, locate_outputs(net, channels=channels, size=(side, side)), size, side)
    return Backbone(Maps(net), taps, input=input, minimum=smallest(net, channels, alignment, size))


def _from_object(
    net: nn.Module,
    input: InputConfig | None,
    image_size: int,
    taps: Mapping[str, str],
    geometry: Geometry,
    pools: Literal["keep", "convolution"],
) -> Backbone:
    if isinstance(net, Backbone):
        _refuse_others(net, input, geometry, pools)
        return net
    refuse_mistaken(net, image_size)
    input = input or INPUTS["imagenet"]
    channels = len(input.mean)
    outputs = locate_outputs(net, channels=channels, size=(image_size, image_size))
    rows = [out.shape[2] if len(out.shape) == 4 else 0 for out in outputs]
    # Of several maps the coarsest may have one cell; a single one of one cell is a classifier's vector.
    if min(rows, default=2) > 1 or (min(rows) == 1 and max(rows) > 1):
        if taps:
            raise ConfigError(
                f"taps: got {', '.join(taps)}; {type(net).__name__} returns maps, which are taken as they are",
                where="taps",
            )
        return _from_maps(net, type(net).__name__, input, image_size, channels)
    return _from_classifier(
        net, taps, image_size, input, geometry=geometry, pools=pools, channels=channels, verify=True
    )


def _refuse_others(
    made: Backbone, input: InputConfig | None, geometry: Geometry, pools: Literal["keep", "convolution"]
) -> None:
    """Refuse settings that a backbone was not made with, since it is taken as it is and a config would tell of others.

    Raises:
        ConfigError: the geometry, the preprocessing or the pools are others.
    """
    own: Geometry = "same" if made.border is None else "pad100"
    if geometry != own:
        raise ConfigError(
            f"geometry: got '{geometry}', and the backbone that is given was made in '{own}'; name that",
            where="model.geometry",
        )
    if input is not None and (input,) != made.inputs:
        raise ConfigError(
            "input: another than that of the backbone that is given; name none, or make the backbone with it",
            where="model.input",
        )
    if pools == "convolution" and any(isinstance(module, (nn.MaxPool2d, nn.AvgPool2d)) for module in made.modules()):
        raise ConfigError(
            "pools: got 'convolution', and the backbone that is given has pools; make it with pools='convolution'",
            where="model.pools",
        )


class _EmptyOnMeta(TorchFunctionMode):
    """What is made to be filled later, as layers make their weights, has no memory; all else has values."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.empty and kwargs.get("device") is None:
            kwargs = {**kwargs, "device": "meta"}
        return func(*args, **kwargs)


def _create(name: str) -> nn.Module:
    """A net of timm; where tensors are made on the meta device, on that, though many nets read tensors they compute."""
    import timm

    net: nn.Module
    if not torch.empty(0).is_meta:
        net = timm.create_model(name, features_only=True)
        return net
    with torch.device("cpu"), _EmptyOnMeta():
        net = timm.create_model(name, features_only=True)
    return net.to("meta")


def _from_timm(name: str, weights: str | None, input: InputConfig | None) -> Backbone:
    with torch.device("cpu"):  # as in `Spec.classifier`
        import timm

    if not timm.is_model(name.split(".")[0]):
        known = timm.list_models()
        raise UnknownName("timm model", name, difflib.get_close_matches(name, known, n=3), known[:20])
    try:
        net: Any = _create(name)
    except (RuntimeError, AttributeError, TypeError, ValueError, AssertionError) as error:
        raise SurgeryError(f"timm/{name} gives no maps (features_only): {first_line(error)}") from None
    if weights == "default":
        try:
            net = timm.create_model(name, features_only=True, pretrained=True)
        except (OSError, RuntimeError, ValueError) as error:
            raise ConfigError(
                f"the published weights of timm/{name} cannot be had ({first_line(error)}); give a "
                "local file with --weights FILE, or train from random ones with --weights none",
                where="model.weights",
            ) from None
    settings: Mapping[str, Any] = net.pretrained_cfg
    if input is None:
        scaled = {key: tuple(255 * v for v in settings[key]) for key in ("mean", "std")}
        input = InputConfig(mean=scaled["mean"], std=scaled["std"])
    made = _from_maps(net, f"timm/{name}", input, int(settings["input_size"][-1]))
    if weights not in (None, "default"):
        # timm writes the dots of some module names as underscores when it keeps the maps alone.
        own = {key.removeprefix("model.").replace(".", "_"): key for key in net.state_dict()}
        source = _own(read_weights(weights), inside="net.")
        transplant_all(source, net, weights, rename=lambda key: own.get(key.replace(".", "_")))
    return made
