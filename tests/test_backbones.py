"""Backbones: every name gives maps that lie where it says; whatever is not convolutional is refused with the reason."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.error
import warnings
from collections.abc import Callable, Mapping
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from rarefiable import Do
from torch import Tensor, nn

from fullyconv import backbones, checkpoint
from fullyconv.backbones import BACKBONES, PAD, Backbone, Spec, backbone, describe
from fullyconv.building import build
from fullyconv.config import INPUTS, Geometry, HeadConfig, InputConfig, ModelConfig, SkipConfig
from fullyconv.errors import AlignmentError, CheckpointError, ConfigError, SurgeryError, UnknownName
from fullyconv.explanation import explain
from fullyconv.geometry import Grid
from fullyconv.model import FCN, Preprocess
from fullyconv.presets import fcn, fcn8s, fcn16s, fcn32s
from fullyconv.surgery import plan
from fullyconv.tiling import tiled
from fullyconv.weights import read_weights, write_weights


def maps_at(made: Backbone, height: int, width: int) -> dict[str, Tensor]:
    """On the meta device nothing is computed, but every shape is."""
    channels = len(made.inputs[0].mean)
    return made.eval()(torch.zeros(1, channels, height, width, device=next(made.parameters()).device))


# Every entry of the table


WATCHED = """
import sys, torch
from importlib.abc import MetaPathFinder

class Watch(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name in ("torchvision", "timm"):
            print(name, torch.empty(0).device)

sys.meta_path.insert(0, Watch())
from fullyconv.backbones import describe
describe({name!r})
"""


@pytest.mark.parametrize(("name", "loaded"), [("resnet18", "torchvision cpu"), ("timm/resnet10t", "timm cpu")])
def test_libraries_are_imported_where_tensors_have_values(name: str, loaded: str) -> None:
    # torchvision imports torch._dynamo, which in torch 2.8 computes with tensors meanwhile and fails on meta ones.
    code = WATCHED.format(name=name)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[0] == loaded


@pytest.mark.parametrize("name", sorted(BACKBONES))
def test_taps_are_as_large_as_they_say(name: str) -> None:
    made = describe(name)
    strides = [tap.grid.stride for tap in made.taps.values()]
    assert strides == sorted(strides)
    coarsest = int(strides[-1])
    if name.startswith("fcn_resnet"):
        assert {tap: of.channels for tap, of in made.taps.items()} == {"head": 512}
        assert coarsest == 8
    else:
        assert len(strides) >= 3
        assert coarsest in (16, 32)
    least = -(-made.minimum // coarsest) * coarsest
    for height, width in ((least, least + 3 * coarsest), (10 * coarsest, 7 * coarsest)):
        maps = maps_at(made, height, width)
        for tap_name, tap in made.taps.items():
            cells = (height / tap.grid.stride + tap.surplus, width / tap.grid.stride + tap.surplus)
            assert tuple(maps[tap_name].shape) == (1, tap.channels, *cells)
    # Published scores are of frames up to multiples of the coarsest stride: no net of the table is coarser inside.
    assert [tap.alignment for tap in made.taps.values()] == strides


@pytest.mark.parametrize("name", ["alexnet", "googlenet", "squeezenet1_0", "squeezenet1_1", "resnet18", "vgg16"])
def test_every_map_inside_has_a_cell_from_the_minimum_on(name: str) -> None:
    made = describe(name)
    assert min(min(m.shape) for m in maps_at(made, made.minimum, made.minimum).values()) > 0


@pytest.mark.parametrize(
    "name",
    ["tinyvgg", "alexnet", "squeezenet1_0", "googlenet", "resnet18", "mobilenet_v2", "timm/tf_efficientnet_lite0"],
)
def test_cells_depend_on_exactly_the_pixels_of_their_field(name: str) -> None:
    made = backbone(name).double().eval()
    coarsest = max(int(tap.grid.stride) for tap in made.taps.values())
    widest = max(int(tap.grid.field) for tap in made.taps.values())
    height = -(-(widest + 4 * coarsest) // coarsest) * coarsest
    for label, tap in list(made.taps.items())[-2:]:
        grid = tap.grid
        cell = int((height / 2 - grid.offset) / grid.stride)
        first = int(grid.offset + grid.stride * cell - (grid.field - 1) / 2)
        last = int(first + grid.field - 1)
        assert 0 < first < last < height - 1
        rows = [first - 1, first, last, last + 1]
        pictures = torch.rand(4, 3, height, max(64, made.minimum), dtype=torch.float64)
        for picture, row in zip(pictures, rows, strict=True):
            picture[:, row] = torch.nan
        with torch.no_grad():
            reached = made(pictures)[label][:, :, cell].isnan().flatten(1).any(1)
        assert reached.tolist() == [False, True, True, False], label


def test_the_papers_receptive_fields_are_measured_from_torchvisions_nets() -> None:
    assert describe("alexnet").taps["fc7"].grid.field == 355
    assert describe("vgg16").taps["fc7"].grid.field == 404
    # torchvision's GoogLeNet has 3x3 kernels where the paper has 5x5, so this is not the paper's 907.
    assert describe("googlenet").taps["stride32"].grid.conv(7).field == 571


def test_vgg16_has_the_papers_taps() -> None:
    taps = describe("vgg16").taps
    assert {name: tap.channels for name, tap in taps.items()} == {
        "pool1": 64, "pool2": 128, "pool3": 256, "pool4": 512, "pool5": 512, "fc7": 4096,
    }  # fmt: skip
    assert taps["pool3"].grid == Grid(Fraction(8), Fraction(7, 2), Fraction(44))


def test_a_description_costs_no_memory_and_is_made_once() -> None:
    made = describe("vgg19")
    assert all(p.is_meta for p in made.parameters())
    assert describe("vgg19") is made


def test_weights_arrive_where_the_classifier_had_them() -> None:
    net = BACKBONES["resnet18"].classifier().eval()
    made = backbone(net)
    picture = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        x = net.maxpool(net.relu(net.bn1(net.conv1(picture))))
        x = net.layer2(net.layer1(x))
        assert torch.equal(made.eval()(picture)["stride8"], x)


# Names


def test_an_unknown_name_is_told_with_near_names() -> None:
    with pytest.raises(UnknownName, match=r"no backbone 'vgg61'; did you mean .*'vgg16'"):
        backbone("vgg61")
    with pytest.raises(UnknownName, match="no timm model 'resnet81'; did you mean 'resnet"):
        backbone("timm/resnet81")


# Published weights


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", fail)
    monkeypatch.setattr(timm.models._builder, "load_state_dict_from_hf", fail)
    monkeypatch.setattr(timm.models._builder, "load_state_dict_from_url", fail)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("name", ["squeezenet1_1", "timm/regnetx_002"])
def test_without_a_network_published_weights_are_refused_with_what_to_do(name: str) -> None:
    with pytest.raises(
        ConfigError, match=f"weights of {name} cannot be .*no route.*--weights FILE.*--weights none"
    ) as e:
        backbone(name, weights="default")
    assert "\n" not in str(e.value)


def test_a_net_without_published_weights_says_so() -> None:
    with pytest.raises(ConfigError, match="no weights are published for tinyvgg; use --weights none or a file"):
        backbone("tinyvgg", weights="default")


def test_published_weights_are_used_under_their_name(monkeypatch: pytest.MonkeyPatch) -> None:
    state = BACKBONES["squeezenet1_1"].classifier().state_dict()
    asked: list[tuple[str, Spec]] = []

    def published(name: str, spec: Spec) -> Mapping[str, Tensor]:
        asked.append((name, spec))
        return state

    monkeypatch.setattr(backbones, "_published", published)
    made = backbone("squeezenet1_1", weights="default")
    assert asked[0][0] == "squeezenet1_1"
    assert all(torch.equal(value, state[key]) for key, value in made.net.state_dict().items())


@pytest.mark.parametrize("name", sorted(name for name, spec in BACKBONES.items() if spec.torchvision))
def test_the_named_weights_exist_and_expect_imagenet_preprocessing(name: str) -> None:
    spec = BACKBONES[name]
    entry = torchvision.models.get_model_weights(spec.torchvision)[spec.weights]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        transform = entry.transforms()
    expected = INPUTS["imagenet"]
    assert [255 * m for m in transform.mean] == pytest.approx(expected.mean)
    assert [255 * s for s in transform.std] == pytest.approx(expected.std)
    assert transform.crop_size == [spec.image_size]


# Weights from files


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("name", ["squeezenet1_1", "timm/regnetx_002"])
def test_a_classifiers_file_fills_the_backbone_whatever_its_classes(tmp_path: Path, name: str, suffix: str) -> None:
    if name.startswith("timm/"):
        net: nn.Module = timm.create_model(name.removeprefix("timm/"), num_classes=7)
    else:
        net = torchvision.models.get_model(name, num_classes=7)
    state = {key: torch.rand_like(value) for key, value in net.state_dict().items() if value.is_floating_point()}
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save({"epoch": 3, "state_dict": {f"module.{key}": value for key, value in state.items()}}, path)
    else:
        from safetensors.torch import save_file

        save_file(state, path)
    made = backbone(name, weights=str(path))
    sums = sorted(float(value.sum()) for value in state.values())
    for key, value in made.net.state_dict().items():
        if value.is_floating_point():
            assert min(abs(float(value.sum()) - s) for s in sums) < 1e-3, key


@pytest.mark.parametrize("name", ["resnet18", "timm/regnetx_002"])
def test_another_nets_file_is_refused_with_names(tmp_path: Path, name: str) -> None:
    path = tmp_path / "vgg.pth"
    torch.save({"features.0.weight": torch.zeros(64, 3, 3, 3)}, path)
    with pytest.raises(CheckpointError, match=r"fits 0 of the backbone's .* missing .* it has features\.0") as caught:
        backbone(name, weights=str(path))
    assert caught.value.unexpected == ("features.0.weight",)
    assert any("weight" in key for key in caught.value.missing)


def test_squeezenet_with_the_real_weights_sees_the_cat_and_where_it_is(shared: Path) -> None:
    data = pytest.importorskip("skimage.data")
    try:
        cat = torch.from_numpy(data.chelsea()).permute(2, 0, 1)[None]
    except (ModuleNotFoundError, OSError) as error:
        pytest.skip(f"scikit-image has no picture of a cat here: {error}")
    net = BACKBONES["squeezenet1_0"].classifier()
    net.load_state_dict(read_weights(shared / "weights" / "squeezenet1_0_imagenet_caffe.safetensors"))
    look = Preprocess(INPUTS["caffe"])
    small = F.interpolate(cat.float(), size=(227, 227), mode="bilinear", antialias=True)
    with torch.no_grad():
        scores = plan(net, image_size=227).apply().eval()(look(small))[0, :, 0, 0].softmax(0)
        heat = plan(net, image_size=227, pool="drop").apply().eval()(look(cat))[0].softmax(0)[285]
    assert int(scores.argmax()) == 285, "Egyptian cat"
    assert float(scores[285]) > 0.6
    grid = describe("squeezenet1_0").taps["stride16"].grid
    row, column = divmod(int(heat.argmax()), heat.shape[1])
    y, x = grid.offset + grid.stride * row, grid.offset + grid.stride * column
    assert 30 <= y <= 260
    assert 90 <= x <= 370, "the head"
    assert float(heat.max()) > 10 * float(heat[-2:, -4:].max()), "and not the floor in the corner"


# Objects in the place of names


class Maps(nn.Module):
    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(channels, 4, 3, 2), nn.Conv2d(4, 6, 3, 2)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        fine = self.a(x)
        return {"fine": fine, "coarse": self.b(fine)}


def test_a_net_of_maps_is_taken_as_it_is() -> None:
    net = Maps()
    made = backbone(net)
    assert list(made.taps) == ["stride2", "stride4"]
    assert made.taps["stride4"].grid == Grid().conv(3, 2).conv(3, 2)
    assert made.taps["stride4"].surplus == -1
    assert made.minimum == 8
    assert made.plan is None
    picture = torch.rand(1, 3, 40, 40)
    assert torch.equal(made(picture)["stride4"], net(picture)["coarse"])


class Returns(nn.Module):
    def __init__(self, what: Callable[[Tensor, Tensor], object]) -> None:
        super().__init__()
        self.maps, self.what = Maps(), what

    def forward(self, x: Tensor) -> object:
        return self.what(*self.maps(x).values())


@pytest.mark.parametrize(
    ("what", "names"),
    [
        (lambda a, b: {"maps": [a, b]}, ["stride2", "stride4"]),
        (lambda a, b: {"out": b, "aux": None}, ["stride4"]),
        (lambda a, b: (a, None, b), ["stride2", "stride4"]),
        (lambda a, b: (a, 3), ["stride2"]),
        (lambda a, b: ((a,), (b,)), ["stride2", "stride4"]),
    ],
)
def test_maps_are_found_in_whatever_a_net_returns(what: Callable[[Tensor, Tensor], object], names: list[str]) -> None:
    net = Returns(what)
    made = backbone(net, image_size=32)
    assert list(made.taps) == names
    picture = torch.rand(1, 3, 40, 40)
    fine, coarse = net.maps(picture).values()
    want = {"stride2": fine, "stride4": coarse}
    assert all(torch.equal(of, want[name]) for name, of in made(picture).items())


@pytest.mark.parametrize("what", [lambda a, b: SimpleNamespace(a=a), lambda a, b: None, lambda a, b: []])
def test_a_net_that_returns_no_tensor_is_refused_in_one_line(what: Callable[[Tensor, Tensor], object]) -> None:
    with pytest.raises(SurgeryError, match=r"^Returns returns no maps: there is no tensor in what it makes") as caught:
        backbone(Returns(what), image_size=32)
    assert "\n" not in str(caught.value)


def test_a_net_that_refines_by_a_fixed_factor_is_taken_at_the_sizes_that_it_takes() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 4, 4), nn.Conv2d(4, 4, 4, 4), nn.Upsample(scale_factor=4))
    made = backbone(Do(lambda x, f, g, h: f(x) + h(g(f(x))), *net))
    assert (made.taps["stride4"].grid.stride, made.taps["stride4"].alignment) == (4, 16)
    assert (made.taps["stride4"].surplus, made.minimum) == (0, 16)


def test_a_net_of_one_map_is_taken_as_it_is() -> None:
    made = backbone(nn.Conv2d(3, 5, 4, 4))
    assert {name: tap.channels for name, tap in made.taps.items()} == {"stride4": 5}
    assert made(torch.rand(1, 3, 8, 12))["stride4"].shape == (1, 5, 2, 3)


def test_a_classifier_object_goes_through_surgery_and_its_check() -> None:
    made = backbone(torchvision.models.resnet18(num_classes=3))
    assert list(made.taps) == ["stride2", "stride4", "stride8", "stride16", "stride32"]
    assert made.plan is not None


def test_a_backbone_is_a_backbone() -> None:
    made = backbone("tinyvgg")
    assert backbone(made) is made


def test_a_net_of_one_channel_takes_a_preprocessing_of_one() -> None:
    grey = InputConfig(mean=(128.0,), std=(64.0,))
    assert backbone(Maps(1), input=grey).taps["stride2"].channels == 4
    with pytest.raises(SurgeryError, match="does not run"):
        backbone(Maps(1))


def test_a_vision_transformer_is_refused_with_the_reason() -> None:
    with torch.device("meta"):
        net = torchvision.models.vit_b_16()
    with pytest.raises(SurgeryError, match="not convolutional up to its classifier: at 'reshape'"):
        backbone(net)


def test_a_net_that_fits_one_size_is_refused() -> None:
    class Fixed(nn.Module):
        """Fails on any other size, as attention with a table of positions does."""

        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 4, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x)
            return x * (1 + x.mean(1).flatten(1).mul(torch.ones(56 * 56)).mean())

    with pytest.raises(SurgeryError, match="Fixed: it runs on pictures of 224x224 but not on larger ones"):
        backbone(Fixed())


def test_a_layer_under_two_names_is_located_once_for_each() -> None:
    net = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.ReLU())
    net.append(net[0])
    assert backbone(net, image_size=32).taps["stride1"].grid.field == 5


# timm


@pytest.mark.parametrize(
    ("name", "strides", "offset"),
    [
        ("resnet10t", (2, 4, 8, 16, 32), 14),
        ("mobilenetv3_small_050", (2, 4, 8, 16, 32), 0),
        ("efficientnet_lite0", (2, 4, 8, 16, 32), 0),
        ("tf_efficientnet_lite0", (2, 4, 8, 16, 32), 31),  # pads as TensorFlow does: at the far side alone
        ("convnext_atto", (4, 8, 16, 32), 15.5),
        ("regnetx_002", (2, 4, 8, 16, 32), 0),
        ("hrnet_w18_small", (2, 4, 8, 16, 32), 0),
        ("dla34", (2, 4, 8, 16, 32), 15),
        ("res2net50_26w_4s", (2, 4, 8, 16, 32), 0),
        ("ese_vovnet19b_dw", (2, 4, 8, 16, 32), 28),
        ("darknet53", (1, 2, 4, 8, 16, 32), 0),
        ("repvgg_a0", (2, 4, 8, 16, 32), 0),
        ("ghostnet_100", (2, 4, 8, 16, 32), 0),
        ("edgenext_xx_small", (4, 8, 16, 32), 15.5),
    ],
)
def test_timm_nets_of_many_families_give_maps(name: str, strides: tuple[int, ...], offset: float) -> None:
    with torch.device("meta"):
        made = backbone(f"timm/{name}")
    assert [tap.grid.stride for tap in made.taps.values()] == list(strides)
    assert float(list(made.taps.values())[-1].grid.offset) == offset
    maps = maps_at(made, 96, 160)
    for label, tap in made.taps.items():
        assert maps[label].shape[1:] == (tap.channels, 96 / tap.grid.stride, 160 / tap.grid.stride)


def test_maps_that_a_net_adds_off_by_a_part_of_a_cell_are_told() -> None:
    # A ResNet-D averages 2x2 cells beside a convolution of stride 2: half a cell of the finer map apart.
    with torch.device("meta"):
        taps = backbone("timm/resnet10t").taps
    assert [int(tap.spread) for tap in taps.values()] == [0, 0, 2, 4, 8]
    assert all(tap.spread == 0 for tap in describe("resnet18").taps.values())


def test_a_net_of_timm_may_read_what_it_computes_while_it_is_described(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = []

    def create_model(name: str, *, features_only: bool) -> nn.Module:
        rates = torch.linspace(0, 0.5, 3).tolist()
        net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(rates[-1]))
        weights.append(net[0].weight)
        return net

    monkeypatch.setattr(timm, "create_model", create_model)
    with torch.device("meta"):
        net = backbones._create("any")
    assert [weight.is_meta for weight in weights] == [True], "it had memory for weights"
    assert {tensor.device.type for tensor in net.state_dict().values()} == {"meta"}
    assert net[2].p == 0.5


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("vit_tiny_patch16_224", "a reshape takes the rows or columns of the map apart"),
        ("swin_tiny_patch4_window7_224", "a reshape takes the rows or columns of the map apart"),
        ("beit_base_patch16_224", "a reshape takes the rows or columns of the map apart"),
        # In timm before 1.0.31 it gives no maps in the first place.
        ("visformer_tiny", "a constant of a fixed size, such as a position embedding|features_only not implemented"),
        ("coatnet_0_rw_224", "it runs on pictures of 224x224 but not on larger ones"),
    ],
)
def test_timm_nets_with_attention_are_refused_with_the_reason(name: str, reason: str) -> None:
    with torch.device("meta"), pytest.raises(SurgeryError, match=f"timm/{name}: .*{reason}") as caught:
        backbone(f"timm/{name}")
    assert "\n" not in str(caught.value)


def test_a_timm_nets_preprocessing_is_its_own() -> None:
    with torch.device("meta"):
        assert backbone("timm/tf_efficientnet_lite0").inputs[0].mean == (127.5, 127.5, 127.5)
        assert backbone("timm/regnetx_002").inputs[0].mean == pytest.approx(INPUTS["imagenet"].mean)


# The paper's nets


@pytest.mark.parametrize(
    ("name", "millions", "parameters", "field"),
    [
        ("caffenet", 57, 56_954_261, 355),
        ("vgg16", 134, 134_346_581, 404),
        ("bvlc_googlenet", 6, 5_995_077, 907),
    ],
)
@pytest.mark.parametrize("geometry", ["same", "pad100"])
def test_parameters_and_receptive_fields_are_those_of_table_1(
    name: str, millions: int, parameters: int, field: int, geometry: Geometry
) -> None:
    with torch.device("meta"):
        report = explain(build(fcn32s(name, 21, weights=None, geometry=geometry)))
    assert (report.parameters, round(parameters / 1e6)) == (parameters, millions)
    assert report.receptive_field == field
    assert report.stride == 32


@pytest.mark.parametrize(
    ("name", "preset", "crops"),
    [
        ("vgg16", fcn32s, [19]),
        ("vgg16", fcn16s, [5, 27]),
        ("vgg16", fcn8s, [5, 9, 31]),
        ("caffenet", fcn32s, [18]),
    ],
)
def test_crops_are_the_numbers_in_the_authors_nets(
    name: str, preset: Callable[..., ModelConfig], crops: list[int]
) -> None:
    with torch.device("meta"):
        report = explain(build(preset(name, 21, weights=None, geometry="pad100")))
    assert [crop["crop"] for crop in report.crops] == crops
    kernels = {"caffenet": [63], "vgg16": [4] * (len(crops) - 1) + [2 * 32 // 2 ** (len(crops) - 1)]}
    assert [crop["kernel"] for crop in report.crops] == kernels[name]


@pytest.mark.parametrize("name", ["caffenet", "vgg16", "bvlc_googlenet"])
def test_the_authors_geometry_covers_every_picture(name: str) -> None:
    with torch.device("meta"):
        made = build(fcn8s(name, 2, weights=None, geometry="pad100")).eval()
    border = {"caffenet": 100, "vgg16": 99, "bvlc_googlenet": 97}[name]
    for size in ((1, 1), (2, 3), (33, 65), (500, 375), (227, 31)):
        assert set(made.frame(*size)) == {border}
        with torch.device("meta"):
            scores = made.score_maps(torch.zeros(1, 3, *size))["out"]
        grid = made.heads["out"].grid
        assert grid.offset <= 0
        for pixels, cells in zip(size, scores.shape[2:], strict=True):
            assert grid.offset + grid.stride * (cells - 1) >= pixels - 1 - grid.stride


def test_pad100_is_refused_where_there_is_no_first_convolution_to_pad() -> None:
    with pytest.raises(SurgeryError, match="geometry pad100: the picture is read by"):
        backbone(
            nn.Sequential(nn.MaxPool2d(2), nn.Flatten(), nn.Linear(3 * 16 * 16, 4)), image_size=32, geometry="pad100"
        )
    with pytest.raises(ConfigError, match="gives maps and is taken as it is"):
        backbone("fcn_resnet50", geometry="pad100")


def test_the_minimum_holds_for_layers_that_reflect_the_border() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 6, 5),
        nn.Conv2d(6, 6, 4, 2, 1),
        nn.Conv2d(6, 4, 3, padding=1, padding_mode="reflect"),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 5),
    )
    made = backbone(net, image_size=32)
    assert made.minimum == 8, "two cells behind the stride"
    model = FCN(made, {"out": HeadConfig(classes=3, skips=(SkipConfig(tap="stride2"),))})
    for size in ((1, 1), (1, 40), (5, 3)):
        assert model(torch.zeros(1, 3, *size))["out"].shape == (1, 3, *size)


def test_taps_of_a_classifier_of_ones_own_can_be_named() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(4 * 64, 5))
    made = backbone(net, image_size=32, taps={"early": "1", "late": "2"})
    assert [(name, int(tap.grid.stride)) for name, tap in made.taps.items()] == [("early", 2), ("late", 4)]


@pytest.mark.parametrize("geometry", ["same", "pad100"])
def test_a_classifier_may_shrink_rows_and_columns_one_after_the_other(geometry: Geometry) -> None:
    down, across = nn.Conv2d(6, 6, (3, 1), stride=(2, 1)), nn.Conv2d(6, 6, (1, 3), stride=(1, 2))
    net = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), down, across, nn.Flatten(), nn.Linear(6 * 49, 5))
    made = backbone(net, image_size=32, geometry=geometry)
    assert {name: tap.grid.stride for name, tap in made.taps.items()} == {"stride2": 2, "stride4": 4}
    assert explain(made, size=(40, 40)).stride == 4
    least = made.minimum if geometry == "same" else 1 + 2 * PAD
    for height, width in ((least, 64 + least), (64 + least, least)):
        assert all(min(of.shape) >= 1 for of in maps_at(made, height, width).values())


@pytest.mark.parametrize("geometry", ["same", "pad100"])
@pytest.mark.parametrize("name", ["caffenet", "vgg16", "bvlc_googlenet"])
def test_the_papers_nets_have_their_taps_without_pools_too(name: str, geometry: Geometry) -> None:
    with torch.device("meta"):
        pooled, convolved = (backbone(name, geometry=geometry, pools=pools) for pools in ("keep", "convolution"))
    grids = {tap: of.grid for tap, of in describe(name).taps.items()}
    if geometry == "same":
        assert {tap: of.grid for tap, of in convolved.taps.items()} == grids
    assert {tap: of.grid for tap, of in convolved.taps.items()} == {tap: of.grid for tap, of in pooled.taps.items()}
    inside = [m for m in convolved.modules() if isinstance(m, nn.MaxPool2d) and m.stride != 1]
    assert not inside


def test_a_tap_on_no_module_is_told_with_near_names() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 256, 5))
    with pytest.raises(UnknownName, match="no module to tap '9'"):
        backbone(net, image_size=32, taps={"late": "9"})


def test_torchvisions_trained_head_is_kept_whole() -> None:
    torch.manual_seed(0)
    theirs = torchvision.models.segmentation.fcn_resnet50(weights=None, weights_backbone=None, num_classes=4).eval()
    ours = build(
        ModelConfig.parse(
            {
                "backbone": "fcn_resnet50",
                "weights": None,
                "align": "interpolate",
                "heads": {"out": {"classes": 4, "skips": [{"tap": "head"}]}},
            }
        )
    ).eval()
    names = {f"backbone.net.net.{n}": n for n in theirs.state_dict()} | {
        f"backbone.net.net.head.{i}.{p}": f"classifier.{i}.{p}"
        for i in range(2)
        for p in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    }
    names |= {f"heads.out.score.head.0.{p}": f"classifier.4.{p}" for p in ("weight", "bias")}
    state = theirs.state_dict()
    ours.load_state_dict({name: state[names[name]] for name in ours.state_dict()})
    for size in ((33, 47), (64, 95), (97, 30)):
        picture = torch.randint(0, 256, (1, 3, *size), dtype=torch.uint8)
        with torch.no_grad():
            want = theirs(ours.normalise(picture))["out"]
            torch.testing.assert_close(ours(picture)["out"], want, rtol=1e-4, atol=1e-4 * float(want.abs().max()))


def test_a_converted_file_tells_its_preprocessing(tmp_path: Path) -> None:
    state = BACKBONES["squeezenet1_0"].classifier().state_dict()
    write_weights(tmp_path / "told.safetensors", state, {"converted_from": json.dumps({"input": "caffe"})})
    write_weights(tmp_path / "silent.safetensors", state, {})
    told, silent, given = (
        backbone("squeezenet1_0", weights=str(tmp_path / f"{file}.safetensors"), input=input)
        for file, input in (("told", None), ("silent", None), ("told", INPUTS["unit"]))
    )
    assert [made.inputs[0] for made in (told, silent, given)] == [INPUTS["caffe"], INPUTS["imagenet"], INPUTS["unit"]]


# --- Nets whose maps lie elsewhere at other sizes, and settings that were not used ------------------------------------


class Moving(nn.Module):
    def __init__(self, how: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.how = nn.Conv2d(3, 8, 3, 2, 1), how

    def forward(self, x: Tensor) -> Tensor:
        return self.how(self.conv, x)


def _padded(conv: nn.Module, x: Tensor) -> Tensor:
    down, across = -x.shape[2] % 64, -x.shape[3] % 64
    return conv(F.pad(x, (across // 2, across - across // 2, down // 2, down - down // 2)))


def _cropped(conv: nn.Module, x: Tensor) -> Tensor:
    y = conv(x)
    return y[..., y.shape[2] // 4 : y.shape[2] - y.shape[2] // 4, y.shape[3] // 4 : y.shape[3] - y.shape[3] // 4]


@pytest.mark.parametrize(
    "how",
    [
        _padded,
        _cropped,
        lambda conv, x: F.interpolate(conv(x), size=(112, 112)),
        lambda conv, x: F.avg_pool2d(conv(x), x.shape[-1] // 8),
    ],
    ids=["padded", "cropped", "resized", "pooled"],
)
def test_maps_that_lie_elsewhere_on_larger_pictures_are_refused(how: Callable[[nn.Module, Tensor], Tensor]) -> None:
    with pytest.raises(SurgeryError, match=r"Moving.* on pictures of \d+x\d+"):
        backbone(Moving(how))
    assert backbone(Moving(lambda conv, x: conv(x))).taps["stride2"].grid == Grid().conv(3, stride=2, padding=1)


def test_the_smallest_picture_of_a_net_that_reflects_far_is_found() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, padding=12, dilation=12, padding_mode="reflect"))
    made = backbone(net)
    assert made.minimum == 26  # 13 cells, one more than are reflected
    model = build(fcn(2, made, classes=3), backbone=made).eval()
    for size in ((1, 1), (20, 300)):
        assert model(torch.zeros(1, 3, *size))["out"].shape == (1, 3, *size)


def test_tiles_are_as_large_as_a_reflection_needs() -> None:
    net = nn.Sequential(nn.ReflectionPad2d(20), nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1)).double()
    model = build(fcn(2, made := backbone(net), classes=3), backbone=made).double().eval()
    nn.init.normal_(model.heads["out"].score["stride2"][-1].weight)
    picture = 255 * torch.rand(1, 3, 60, 50, dtype=torch.float64)
    with torch.no_grad():
        whole, tiles = model.score_maps(picture)["out"], tiled(model, picture, tile=16)["out"]
    assert torch.allclose(whole, tiles, rtol=1e-10, atol=1e-9)


def test_settings_that_a_given_backbone_was_not_made_with_are_refused() -> None:
    plain, wide = backbone("tinyvgg"), backbone("tinyvgg", geometry="pad100")
    for made, geometry in ((plain, "pad100"), (wide, "same")):
        with pytest.raises(
            ConfigError, match=f"geometry: got '{geometry}', and the backbone that is given was made in"
        ):
            build(fcn8s(made, classes=3, geometry=geometry), backbone=made)
    assert build(fcn8s(wide, classes=3, geometry="pad100"), backbone=wide).backbone.border == wide.border
    with pytest.raises(ConfigError, match="input: another than that of the backbone that is given"):
        build(fcn8s(plain, classes=3, input=INPUTS["caffe"]), backbone=plain)
    with pytest.raises(ConfigError, match="pools: got 'convolution', and the backbone that is given has pools"):
        backbone(plain, pools="convolution")
    with pytest.raises(ConfigError, match=r"weights x\.pth: a net that is given keeps its own"):
        build(fcn8s(plain, classes=3, weights="x.pth"), backbone=plain)


def test_choices_that_do_not_exist_or_do_not_apply_are_refused() -> None:
    with pytest.raises(UnknownName, match="no geometry 'pad10'; did you mean 'pad100'"):
        backbone("tinyvgg", geometry="pad10")  # type: ignore[arg-type]
    with pytest.raises(UnknownName, match="no pools 'conv'"):
        backbone("tinyvgg", pools="conv")  # type: ignore[arg-type]
    for net in ("tinyvgg", Moving(lambda conv, x: conv(x))):
        with pytest.raises(ConfigError, match="taps: got x; "):
            backbone(net, taps={"x": "features"})


def test_a_backbone_keeps_no_second_copy_of_its_classifier() -> None:
    net = torchvision.models.alexnet()
    made = backbone(net, taps={"last": "features.12"})
    assert made.plan is not None
    assert made.plan.net is None
    assert made.plan.name == "AlexNet"
    with pytest.raises(SurgeryError, match="AlexNet: this plan was carried out"):
        made.plan.apply()


def test_maps_of_one_cell_and_strides_below_one_have_a_backbone() -> None:
    made = backbone(timm.create_model("resnet18", features_only=True), image_size=32)
    assert [int(tap.grid.stride) for tap in made.taps.values()] == [2, 4, 8, 16, 32]

    class Finer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.down, self.up = nn.Conv2d(3, 8, 3, 2, 1), nn.ConvTranspose2d(8, 8, 4, 4)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return (y := self.down(x)), self.up(y)

    finer = backbone(Finer())
    assert list(finer.taps) == ["stride2", "stride1_2"]
    assert finer.taps["stride1_2"].grid.stride == Fraction(1, 2)
    # A name that a head's layers can have, though no head upsamples to what is coarser.
    config = ModelConfig(backbone="x", heads={"out": HeadConfig(classes=3, skips=(SkipConfig(tap="stride1_2"),))})
    with pytest.raises(AlignmentError, match=r"the coarsest map lies at .*; expected a whole stride"):
        build(config, backbone=finer)


@pytest.mark.parametrize("name", ["tinyvgg", "timm/resnet10t"])
def test_a_model_of_ours_gives_its_backbone_to_the_next(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = build(fcn16s(name, classes=3, weights=None))
    file = checkpoint.save(model, tmp_path / "model") / "model.safetensors"
    other = build(fcn8s(name, classes=7, weights=str(file)))
    kept = {key: value for key, value in model.backbone.state_dict().items() if "num_batches" not in key}
    assert len(kept) > 10
    assert all(torch.equal(other.backbone.state_dict()[key], value) for key, value in kept.items())
