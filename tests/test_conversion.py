"""Published files become our nets: every name of every kind, and the numbers that the peers' own nets give."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_caffe import NET, blob, layer
from torch import Tensor, nn
from torchvision.models import VGG
from torchvision.models.segmentation import fcn_resnet50
from torchvision.models.vgg import make_layers

from fullyconv.backbones import BACKBONES, _from_classifier
from fullyconv.building import build
from fullyconv.caffe import CLASSIFIERS
from fullyconv.checkpoint import load
from fullyconv.config import INPUTS
from fullyconv.conversion import KINDS, convert, tensors_for
from fullyconv.errors import CheckpointError, UnknownName
from fullyconv.model import FCN
from fullyconv.upsample import bilinear_kernel
from fullyconv.weights import read_metadata, read_weights

PUBLISHED = (
    *("voc-fcn32s", "voc-fcn16s", "voc-fcn8s", "voc-fcn8s-atonce", "voc-fcn-alexnet"),
    *("nyud-fcn32s-color", "nyud-fcn32s-hha", "nyud-fcn32s-color-hha"),
    *("siftflow-fcn32s", "siftflow-fcn16s", "siftflow-fcn8s"),
    *("pascalcontext-fcn32s", "pascalcontext-fcn16s", "pascalcontext-fcn8s"),
)
TORCHFCN = ("torchfcn-fcn32s", "torchfcn-fcn16s", "torchfcn-fcn8s", "torchfcn-fcn8s-atonce")

# What the files hold, written down once more: layer, then outputs, inputs, and the side of the kernel.

# fmt: off
VGG16 = (
    ("conv1_1", 64, 3, 3), ("conv1_2", 64, 64, 3), ("conv2_1", 128, 64, 3), ("conv2_2", 128, 128, 3),
    ("conv3_1", 256, 128, 3), ("conv3_2", 256, 256, 3), ("conv3_3", 256, 256, 3),
    ("conv4_1", 512, 256, 3), ("conv4_2", 512, 512, 3), ("conv4_3", 512, 512, 3),
    ("conv5_1", 512, 512, 3), ("conv5_2", 512, 512, 3), ("conv5_3", 512, 512, 3),
    ("fc6", 4096, 512, 7), ("fc7", 4096, 4096, 1),
)
CAFFENET = (
    ("conv1", 96, 3, 11), ("conv2", 256, 48, 5), ("conv3", 384, 256, 3), ("conv4", 384, 192, 3), ("conv5", 256, 192, 3),
    ("fc6", 4096, 256, 6), ("fc7", 4096, 4096, 1),
)
INCEPTION = {
    "3a": (192, 64, 96, 128, 16, 32, 32), "3b": (256, 128, 128, 192, 32, 96, 64), "4a": (480, 192, 96, 208, 16, 48, 64),
    "4b": (512, 160, 112, 224, 24, 64, 64), "4c": (512, 128, 128, 256, 24, 64, 64),
    "4d": (512, 112, 144, 288, 32, 64, 64), "4e": (528, 256, 160, 320, 32, 128, 128),
    "5a": (832, 256, 160, 320, 32, 128, 128), "5b": (832, 384, 192, 384, 48, 128, 128),
}
# fmt: on

Shapes = dict[str, tuple[int, ...]]


def convolutions(layers: tuple[tuple[str, int, int, int], ...], suffix: str = "") -> Shapes:
    weights = {f"{name}{suffix}.weight": (out, into, k, k) for name, out, into, k in layers}
    return weights | {f"{name}{suffix}.bias": (out,) for name, out, *_ in layers}


def scores(classes: int, stride: int, suffix: str = "") -> Shapes:
    """Score layers and transposed convolutions of the VGG nets."""
    finer = {32: (), 16: (("score_pool4", 512),), 8: (("score_pool4", 512), ("score_pool3", 256))}[stride]
    layers = tuple((name, classes, into, 1) for name, into in (("score_fr", 4096), *finer))
    kernels = {32: {"upscore": 64}, 16: {"upscore2": 4, "upscore16": 32}}
    kernels[8] = {"upscore2": 4, "upscore_pool4": 4, "upscore8": 16}
    return convolutions(layers, suffix) | {
        f"{name}{suffix}.weight": (classes, classes, k, k) for name, k in kernels[stride].items()
    }


def shapes_of(kind: str) -> Shapes:
    if kind == "voc-fcn-alexnet":
        return convolutions((*CAFFENET, ("score_fr", 21, 4096, 1))) | {"upscore.weight": (21, 21, 63, 63)}
    if kind == "nyud-fcn32s-color-hha":
        layers = (*VGG16, ("score_fr", 40, 4096, 1))
        return convolutions(layers, "color") | convolutions(layers, "hha") | {"upscore.weight": (40, 40, 64, 64)}
    stride = next(s for s in (32, 16, 8) if f"fcn{s}s" in kind)
    if kind.startswith("siftflow"):
        return convolutions(VGG16) | scores(33, stride, "_sem") | scores(3, stride, "_geo")
    classes = {"voc": 21, "torchfcn": 21, "nyud": 40, "pascalcontext": 60}[kind.split("-")[0]]
    shapes = convolutions(VGG16) | scores(classes, stride)
    return shapes | ({"scale_pool4.weight": (512,), "scale_pool3.weight": (256,)} if kind == "voc-fcn8s-atonce" else {})


def full_bilinear(classes: int, size: int) -> Tensor:
    kernel = torch.zeros(classes, classes, size, size)
    kernel[range(classes), range(classes)] = bilinear_kernel(size)
    return kernel


def published(kind: str) -> dict[str, Tensor]:
    """A file's tensors; those whose numbers nobody looks at take no memory."""
    tensors = {name: torch.empty(shape, device="meta") for name, shape in shapes_of(kind).items()}
    for name, tensor in tensors.items():
        if name.startswith("upscore"):
            tensors[name] = full_bilinear(len(tensor), tensor.shape[-1])
        elif name.startswith("scale"):
            tensors[name] = torch.full(tensor.shape, {"scale_pool4": 1e-2, "scale_pool3": 1e-4}[name.split(".")[0]])
    return tensors


def without_weights(kind: str, tensors: Mapping[str, Tensor]) -> tuple[FCN, dict[str, Tensor]]:
    mapped = tensors_for(kind, tensors)
    assert mapped.used == set(tensors)
    with torch.device("meta"):
        return build(mapped.config, weights=False, classes=mapped.classes), dict(mapped.tensors)


def test_every_published_net_has_a_kind() -> None:
    assert len(PUBLISHED) == 14
    assert set(KINDS) == {*PUBLISHED, *TORCHFCN, "fcn_resnet50", "fcn_resnet101"}


@pytest.mark.parametrize("kind", [*PUBLISHED, *TORCHFCN])
def test_every_parameter_gets_one_tensor_of_its_shape(kind: str) -> None:
    model, named = without_weights(kind, published(kind))
    assert {n: t.shape for n, t in named.items()} == {n: t.shape for n, t in model.state_dict().items()}
    assert model.config is not None
    assert model.config.geometry == "pad100"
    assert all(head.upsampling == head.last_upsampling == "fixed" for head in model.config.heads.values())
    sizes = {"nyud": [40], "siftflow": [33, 3], "pascalcontext": [60]}.get(kind.split("-")[0], [21])
    assert [len(table) for table in model.classes.values()] == sizes
    scales = [skip.scale for skip in next(iter(model.config.heads.values())).skips]
    assert scales == ([1, 1e-2, 1e-4] if "atonce" in kind else [1] * len(scales))


def test_inputs_and_heads_are_those_of_the_release() -> None:
    def inputs(kind: str) -> list[object]:
        config = tensors_for(kind, published(kind)).config
        return [stream.input for stream in config.streams.values()] or [config.input]

    assert inputs("voc-fcn32s") == inputs("pascalcontext-fcn32s") == inputs("torchfcn-fcn32s") == [INPUTS["caffe"]]
    assert inputs("nyud-fcn32s-color") == [INPUTS["nyud-color"]]
    assert inputs("nyud-fcn32s-hha") == [INPUTS["nyud-hha"]]
    assert inputs("nyud-fcn32s-color-hha") == [INPUTS["nyud-color"], INPUTS["nyud-hha"]]
    assert inputs("siftflow-fcn8s") == [INPUTS["siftflow"]]
    sift = tensors_for("siftflow-fcn32s", published("siftflow-fcn32s"))
    assert sift.tensors["heads.geometric.score.fc7.0.bias"].shape == (3,)


@pytest.mark.parametrize("name", ["fcn_resnet50", "fcn_resnet101"])
def test_torchvisions_nets_are_mapped_whole(name: str) -> None:
    import torchvision

    with torch.device("meta"):
        theirs = torchvision.models.get_model(name, weights=None, weights_backbone=None, aux_loss=True).state_dict()
    mapped = tensors_for(name, theirs)
    with torch.device("meta"):
        model = build(mapped.config, weights=False)
    assert {n: t.shape for n, t in mapped.tensors.items()} == {n: t.shape for n, t in model.state_dict().items()}
    assert {n for n in theirs if n not in mapped.used} == {n for n in theirs if n.startswith("aux_classifier.")}


# What kernels say

KINDS_OF_KERNEL = ("fixed", "learned", "full")


def small(kind: str, *, classes: int = 3) -> dict[str, Tensor]:
    """A file of one channel everywhere: what is looked at is its names and kernels."""
    tensors = {name: torch.ones([1] * len(shape)) for name, shape in shapes_of(kind).items()}
    for name, shape in shapes_of(kind).items():
        if name.startswith("upscore"):
            tensors[name] = full_bilinear(classes, shape[-1])
        elif name.startswith("score"):
            tensors[name] = torch.ones(classes, *[1] * (len(shape) - 1))
        elif name.startswith("scale"):
            tensors[name] = torch.full((4,), 1e-2 if "pool4" in name else 1e-4)
    return tensors


@pytest.mark.parametrize("between", KINDS_OF_KERNEL)
@pytest.mark.parametrize("last", KINDS_OF_KERNEL)
def test_kernels_decide_what_upsampling_is(between: str, last: str) -> None:
    tensors = small("voc-fcn8s")
    for layer_name, sort in (("upscore_pool4", between), ("upscore8", last)):
        kernel = tensors[f"{layer_name}.weight"]
        if sort == "learned":
            kernel[1, 1, 2, 1] += 1e-3
        if sort == "full":
            kernel[1, 2, 2, 1] += 1e-3
    mapped = tensors_for("voc-fcn8s", tensors)
    head = mapped.config.heads["out"]
    assert (head.upsampling, head.last_upsampling) == (between, last)
    expected = {"fixed": None, "learned": (3, 1, 4, 4), "full": (3, 3, 4, 4)}
    for tap in ("pool4", "pool3"):
        found = mapped.tensors.get(f"heads.out.align.{tap}.weight")
        assert (None if found is None else tuple(found.shape)) == expected[between]
    whole = mapped.tensors.get("heads.out.upsample.weight")
    if last == "learned":
        assert whole is not None
        assert torch.equal(whole[:, 0], tensors["upscore8.weight"][range(3), range(3)])
    assert (whole is None) == (last == "fixed")


def test_kernels_of_each_class_alone_may_be_stored_so() -> None:
    tensors = small("voc-fcn32s")
    tensors["upscore.weight"] = tensors["upscore.weight"][range(3), range(3)].unsqueeze(1)
    assert tensors_for("voc-fcn32s", tensors).config.heads["out"].last_upsampling == "fixed"


def test_a_net_with_classes_of_its_own_has_no_table() -> None:
    mapped = tensors_for("siftflow-fcn16s", small("siftflow-fcn16s", classes=3))
    assert [head.classes for head in mapped.config.heads.values()] == [3, 3]
    assert list(mapped.classes) == ["geometric"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"scale_pool4.weight": torch.tensor([1e-2, 2e-2])},
            "scale_pool4 holds numbers from 0.01 to 0.02, expected 0.01",
        ),
        ({"upscore8.weight": torch.ones(3, 3, 12, 12)}, "upscore8 has kernels of 3x3x12x12, expected .* 16x16"),
        ({"upscore2.weight": torch.ones(3, 2, 4, 4)}, "upscore2 has kernels of 3x2x4x4"),
        ({"fc7.weight": None, "fc7.bias": None}, r"1 of its 23 layers are missing \(fc7\); it has"),
    ],
)
def test_what_is_not_as_published_is_refused(change: dict[str, Tensor | None], message: str) -> None:
    tensors = small("voc-fcn8s-atonce") | change
    with pytest.raises(CheckpointError, match=message) as caught:
        tensors_for("voc-fcn8s-atonce", {n: t for n, t in tensors.items() if t is not None})
    assert "\n" not in str(caught.value)


def test_a_file_of_another_kind_is_told() -> None:
    with pytest.raises(
        CheckpointError, match="not voc-fcn8s: it has scale_pool3, scale_pool4 besides; use --as voc-fcn8s-a"
    ):
        tensors_for("voc-fcn8s", small("voc-fcn8s-atonce"))
    with pytest.raises(CheckpointError, match=r"\(upscore\); it fits voc-fcn16s, ") as caught:
        tensors_for("voc-fcn32s", small("voc-fcn16s"))
    assert caught.value.missing == ("upscore",)
    with pytest.raises(UnknownName, match=r"no kind 'voc-fcn-8s'; did you mean 'voc-fcn8s'"):
        tensors_for("voc-fcn-8s", {})


# Whole files


def caffe_types(name: str) -> str:
    return "Deconvolution" if name.startswith("upscore") else "InnerProduct" if name.startswith("fc") else "Convolution"


def caffemodel(path: Path, tensors: Mapping[str, np.ndarray], *, old: bool = False) -> Path:
    names = list(dict.fromkeys(name.rpartition(".")[0] for name in tensors))
    content = [NET]
    for name in names:
        blobs = [blob(tensors[f"{name}.{part}"]) for part in ("weight", "bias") if f"{name}.{part}" in tensors]
        content.append(layer(name, caffe_types(name), blobs, old=4 if old else None))
    path.write_bytes(b"".join(content))
    return path


def googlenet_shapes() -> Shapes:
    layers = [("conv1/7x7_s2", 64, 3, 7), ("conv2/3x3_reduce", 64, 64, 1), ("conv2/3x3", 192, 64, 3)]
    for name, (into, one, reduce3, three, reduce5, five, project) in INCEPTION.items():
        layers += [
            (f"inception_{name}/1x1", one, into, 1),
            (f"inception_{name}/3x3_reduce", reduce3, into, 1),
            (f"inception_{name}/3x3", three, reduce3, 3),
            (f"inception_{name}/5x5_reduce", reduce5, into, 1),
            (f"inception_{name}/5x5", five, reduce5, 5),
            (f"inception_{name}/pool_proj", project, into, 1),
        ]
    shapes = convolutions(tuple(layers)) | {"loss1/classifier.weight": (1000, 8), "loss1/classifier.bias": (1000,)}
    return shapes | {"loss3/classifier.weight": (1000, 1024), "loss3/classifier.bias": (1000,)}


@pytest.fixture(scope="module")
def googlenet(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, np.ndarray]]:
    random = np.random.default_rng(0)
    tensors = {name: random.random(shape, np.float32) for name, shape in googlenet_shapes().items()}
    return caffemodel(tmp_path_factory.mktemp("caffe") / "googlenet.caffemodel", tensors, old=True), tensors


def test_a_classifier_becomes_weights_for_training(
    googlenet: tuple[Path, dict[str, np.ndarray]], tmp_path: Path
) -> None:
    file, tensors = googlenet
    done = convert(file, "bvlc_googlenet", tmp_path / "new" / "googlenet.safetensors")
    assert set(done.unused) == {"loss1/classifier.weight", "loss1/classifier.bias"}
    assert len(done.used) == len(tensors) - 2
    assert done.missing == ()
    with torch.device("meta"):
        net = BACKBONES["bvlc_googlenet"].classifier()
    weights = read_weights(done.out)
    assert {n: w.shape for n, w in weights.items()} == {n: w.shape for n, w in net.state_dict().items()}
    assert np.array_equal(weights["inception_4c.reduce5x5.weight"], tensors["inception_4c/5x5_reduce.weight"])
    assert np.array_equal(weights["fc.weight"], tensors["loss3/classifier.weight"])
    origin = json.loads(read_metadata(done.out)["converted_from"])
    told = {"file": "googlenet.caffemodel", "kind": "bvlc_googlenet", "sha256": done.sha256, "input": "caffe"}
    assert origin == told
    assert done.sha256 in str(done)
    assert "2 unused (loss1/classifier.weight, loss1/classifier.bias), 0 missing" in str(done)


def test_a_classifiers_file_can_be_read_in_place(googlenet: tuple[Path, dict[str, np.ndarray]]) -> None:
    file, tensors = googlenet
    weights = read_weights(file)
    assert np.array_equal(weights["conv1.weight"], tensors["conv1/7x7_s2.weight"])
    assert "loss1/classifier.weight" in weights


@pytest.mark.parametrize("kind", sorted(CLASSIFIERS))
def test_every_module_of_a_classifier_has_a_layer(kind: str) -> None:
    with torch.device("meta"):
        names = BACKBONES[kind].classifier().state_dict()
    assert {name.rpartition(".")[0] for name in names} == set(CLASSIFIERS[kind].values())


def test_nothing_is_written_where_something_is_missing_or_there_already(tmp_path: Path) -> None:
    file = caffemodel(tmp_path / "a.caffemodel", {n: t.numpy() for n, t in small("voc-fcn8s").items()})
    with pytest.raises(
        CheckpointError, match=r"a\.caffemodel: not voc-fcn8s: 0 tensors are missing .* another shape: ba"
    ):
        convert(file, "voc-fcn8s", tmp_path / "out")
    with pytest.raises(
        CheckpointError, match=r"a\.caffemodel: not vgg16: 2 tensors are missing \(classifier\.6\.weight"
    ):
        convert(file, "vgg16", tmp_path / "out.safetensors")
    with pytest.raises(CheckpointError, match=r"vgg16 is a classifier; expected the name of a \.safetensors file"):
        convert(file, "vgg16", tmp_path / "out")
    with pytest.raises(CheckpointError, match="is there already; name another place"):
        convert(file, "voc-fcn8s", tmp_path)
    with pytest.raises(UnknownName, match="did you mean 'vgg19' or 'vgg16'"):
        convert(file, "vgg61", tmp_path / "out")
    with pytest.raises(CheckpointError, match=r"no such file"):
        convert(tmp_path / "b.caffemodel", "vgg16", tmp_path / "out.safetensors")
    assert list(tmp_path.iterdir()) == [file]


def test_a_vgg_of_another_depth_is_told(tmp_path: Path) -> None:
    tensors = {f"{name}.weight": np.ones((1, 1), np.float32) for name in CLASSIFIERS["vgg19"]}
    with pytest.raises(CheckpointError, match="not vgg16: it has the layers of vgg19; use --as vgg19"):
        convert(caffemodel(tmp_path / "a.caffemodel", tensors), "vgg16", tmp_path / "out.safetensors")


# The peers' own nets


class TorchFCN(nn.Module):
    """pytorch-fcn's nets by the facts of the release: names, pads, crops. ``width`` divides the channels."""

    def __init__(self, stride: int, classes: int, *, at_once: bool = False, width: int = 16) -> None:
        super().__init__()
        self.stride, self.at_once = stride, at_once
        for name, out, into, kernel in VGG16:
            padding = 100 if name == "conv1_1" else kernel // 2 if name.startswith("conv") else 0
            into = into if into == 3 else into // width
            self.add_module(name, nn.Conv2d(into, out // width, kernel, padding=padding))
        for name, shape in scores(classes, stride).items():
            module, _, kind = name.partition(".")
            if module.startswith("upscore"):
                factor = shape[-1] // 2
                self.add_module(module, nn.ConvTranspose2d(classes, classes, shape[-1], stride=factor, bias=False))
            elif kind == "weight":
                self.add_module(module, nn.Conv2d(shape[1] // width, classes, 1))

    def block(self, number: int, x: Tensor) -> Tensor:
        for name, *_ in VGG16:
            if name.startswith(f"conv{number}"):
                x = F.relu(self.get_submodule(name)(x))
        return F.max_pool2d(x, 2, stride=2, ceil_mode=True)

    def forward(self, x: Tensor) -> Tensor:
        def apply(name: str, x: Tensor) -> Tensor:
            return self.get_submodule(name)(x)

        def cropped(x: Tensor, offset: int, size: torch.Size) -> Tensor:
            return x[:, :, offset : offset + size[2], offset : offset + size[3]]

        pool3 = self.block(3, self.block(2, self.block(1, x)))
        pool4 = self.block(4, pool3)
        top = F.relu(apply("fc7", F.relu(apply("fc6", self.block(5, pool4)))))
        h = apply("score_fr", top)
        if self.stride == 32:
            return cropped(apply("upscore", h), 19, x.shape)
        h = apply("upscore2", h)
        h = h + cropped(apply("score_pool4", pool4 * (0.01 if self.at_once else 1)), 5, h.shape)
        if self.stride == 16:
            return cropped(apply("upscore16", h), 27, x.shape)
        h = apply("upscore_pool4", h)
        h = h + cropped(apply("score_pool3", pool3 * (0.0001 if self.at_once else 1)), 9, h.shape)
        return cropped(apply("upscore8", h), 31, x.shape)


def lively(net: nn.Module) -> nn.Module:
    """Random weights under which no map dies or explodes on the way."""
    torch.manual_seed(0)
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            nn.init.normal_(module.bias, std=0.1) if module.bias is not None else None
    return net.double().eval()


def narrow_vgg16() -> VGG:
    """torchvision's VGG16 with a sixteenth of the channels."""
    cfg = [n if isinstance(n, str) else n // 16 for n in (64, 64, "M", 128, 128, "M", 256, 256, 256, "M")]
    cfg += [n if isinstance(n, str) else n // 16 for n in (512, 512, 512, "M", 512, 512, 512, "M")]
    net = VGG(make_layers(cfg))  # type: ignore[arg-type]
    net.classifier[0], net.classifier[3], net.classifier[6] = (
        nn.Linear(32 * 49, 256),
        nn.Linear(256, 256),
        nn.Linear(256, 10),
    )
    return net


def pictures(*sizes: tuple[int, int]) -> Iterator[tuple[Tensor, Tensor]]:
    """RGB in 0..255 as we read it, and BGR without the mean as Caffe does."""
    mean = torch.tensor([104.00699, 116.66877, 122.67892]).double().view(1, 3, 1, 1)
    for height, width in sizes:
        image = torch.rand(1, 3, height, width, dtype=torch.float64) * 255
        yield image, image.flip(1) - mean


def close(ours: Tensor, theirs: Tensor, tolerance: float = 1e-12) -> bool:
    return ours.shape == theirs.shape and bool((ours - theirs).abs().max() <= tolerance * theirs.abs().max())


@pytest.mark.parametrize(
    ("kind", "sort"),
    [
        *((kind, "full") for kind in TORCHFCN),
        *(("torchfcn-fcn8s", "fixed"), ("torchfcn-fcn8s", "learned")),
        *(("torchfcn-fcn16s", "fixed"), ("torchfcn-fcn32s", "learned")),
    ],
)
def test_torchfcns_nets_give_their_own_logits(kind: str, sort: str) -> None:
    stride = next(s for s in (32, 16, 8) if f"fcn{s}s" in kind)
    theirs = lively(TorchFCN(stride, 5, at_once="atonce" in kind))
    for module in theirs.modules():
        if isinstance(module, nn.ConvTranspose2d):
            kernel = full_bilinear(5, module.kernel_size[0]).double()
            mask = torch.ones_like(kernel) if sort == "full" else (kernel != 0).any(-1, True).any(-2, True).double()
            noise = 0 if sort == "fixed" else 0.1 * torch.rand_like(kernel) * mask
            module.weight.data.copy_(kernel + noise)
    mapped = tensors_for(kind, theirs.state_dict())
    assert mapped.config.heads["out"].last_upsampling == sort
    trunk = _from_classifier(
        narrow_vgg16(), BACKBONES["vgg16"].taps, 224, INPUTS["caffe"], geometry="pad100", pools="keep"
    )
    ours = FCN(trunk, mapped.config.heads).double().eval()
    own = ours.state_dict()
    assert set(own) == set(mapped.tensors)
    ours.load_state_dict({name: tensor.reshape(own[name].shape) for name, tensor in mapped.tensors.items()})
    with torch.no_grad():
        for image, blob_ in pictures((37, 61), (1, 1), (70, 83)):
            expected = theirs(blob_)
            assert expected.std() > 0
            assert close(ours(image)["out"], expected)


def test_torchvisions_net_gives_its_own_logits(tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = fcn_resnet50(weights=None, weights_backbone=None, aux_loss=True).eval()
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    torch.save(theirs.state_dict(), tmp_path / "fcn.pth")
    done = convert(tmp_path / "fcn.pth", "fcn_resnet50", tmp_path / "model")
    assert all(name.startswith("aux_classifier.") for name in done.unused)
    provenance = json.loads((tmp_path / "model" / "config.json").read_text())["provenance"]
    assert provenance["converted_from"] == {
        "file": "fcn.pth",
        "kind": "fcn_resnet50",
        "sha256": done.sha256,
        "unused": list(done.unused),
    }
    ours = load(done.out).double()
    theirs = theirs.double()
    mean, std = (
        torch.tensor(v, dtype=torch.float64).view(1, 3, 1, 1) for v in (INPUTS["imagenet"].mean, INPUTS["imagenet"].std)
    )
    assert ours.classes["out"].names[15] == "person"
    with torch.no_grad():
        for image, _ in pictures((33, 47), (65, 50), (71, 71)):
            assert close(ours(image)["out"], theirs((image - mean) / std)["out"], 1e-6)
