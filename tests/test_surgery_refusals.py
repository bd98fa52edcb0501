"""What has no convolutional equal is refused with the place and the reason."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from user_nets import CELLS, SIZE, WIDTH, Net, layers

from fullyconv.backbones import backbone
from fullyconv.errors import ConfigError, SurgeryError
from fullyconv.surgery import convolutionalize


class Branches(Net):
    def forward(self, x: Tensor) -> Tensor:
        x = self.trunk(x)
        return self.fc((x if x.mean() > 0 else -x).mean((2, 3)))


class Scaled(Net):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.trunk(x).flatten(1) * self.fc.weight[0], self.fc.weight)


class Dictionary(Net):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"logits": self.fc(self.trunk(x).mean((2, 3)))}


class SizeOfPicture(Net):
    def forward(self, x: Tensor) -> Tensor:
        x = self.trunk(x)
        return self.fc(F.interpolate(x, (1, 1), mode="nearest").flatten(1))


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (
            layers(nn.Conv2d(WIDTH, 5, 1)),
            "ends in a map and is fully convolutional already",
        ),
        (
            Branches(lambda s, x: x),
            "Branches cannot be traced: .*expected a forward without control flow",
        ),
        (
            Net(lambda s, x: s.fc(x.std((2, 3)))),
            r"the last map is 'trunk.3', and what 'std' \(std\) makes of it is not",
        ),
        (
            Net(lambda s, x: s.fc(x.permute(0, 2, 3, 1).flatten(1)), WIDTH * CELLS),
            "what 'permute'",
        ),
        (
            Scaled(lambda s, x: x, WIDTH * CELLS),
            "'mul' works on vectors in a way that has no convolutional equal",
        ),
        (
            Dictionary(lambda s, x: x),
            "the net returns dict in evaluation mode; expected one tensor of scores",
        ),
        (SizeOfPicture(lambda s, x: x), r"a layer still works on the whole picture"),
        (
            layers(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(WIDTH * 16, 5)),
            "'1' pools 6x6 cells to 4x4, which no fixed pool does; expected whole factors: give the image_size",
        ),
        (
            layers(nn.Flatten(), nn.BatchNorm1d(WIDTH * CELLS), nn.Linear(WIDTH * CELLS, 5)),
            r"'2' \(BatchNorm1d\) normalises a flattened map of 6x6 cells",
        ),
        (
            layers(
                nn.AdaptiveAvgPool2d(1),
                nn.Flatten(),
                nn.GroupNorm(2, WIDTH),
                nn.Linear(WIDTH, 5),
            ),
            r"'3' \(GroupNorm.*would mix the positions of a map",
        ),
        (
            layers(
                nn.AdaptiveAvgPool2d(1),
                nn.Flatten(),
                nn.Linear(WIDTH, 10),
                nn.GLU(),
                nn.Linear(5, 5),
            ),
            "'4' works on vectors",
        ),
        (
            layers(
                nn.AdaptiveAvgPool2d(1),
                nn.Flatten(),
                nn.Linear(WIDTH, 10),
                nn.Unflatten(1, (2, 5)),
            ),
            "expected",
        ),
        (
            Net(lambda s, x: s.fc(F.normalize(x.flatten(1), dim=-1)), WIDTH * CELLS),
            r"'normalize' \(normalize\) takes the length of a flattened map of 6x6 cells",
        ),
        (
            Net(lambda s, x: s.fc(x.flatten(1).narrow(1, 0, 100)), 100),
            "'fc' has 100 inputs, not a multiple of the 6x6 cells of the map before it",
        ),
        (
            Net(lambda s, x: s.fc((x.flatten(2).softmax(-1).reshape(x.shape) * x).mean((2, 3)))),
            "Net is not convolutional up to its classifier: at 'flatten' a reshape takes the rows or columns of",
        ),
        (
            Net(lambda s, x: s.fc(x.mean((2, 3))).view(x.size(0), 5, 1, 1)),
            r"'view' reshapes vectors \(5,\) to \(5, 1, 1\), which has no convolutional equal",
        ),
        (
            Net(
                lambda s, x: s.fc(torch.cat([x.flatten(1), x.flatten(1)], 1)),
                2 * WIDTH * CELLS,
            ),
            "'cat' puts flattened maps of 6x6 cells one after the other",
        ),
        (
            layers(nn.Flatten(), nn.utils.parametrizations.weight_norm(nn.Linear(WIDTH * CELLS, 5))),
            r"'2' \(Linear\(288, 5\)\) computes its weight from others, .*parametrize.remove_parametrizations",
        ),
        (
            layers(nn.Flatten(), nn.utils.spectral_norm(nn.Linear(WIDTH * CELLS, 5))),
            r"'2' \(Linear\(288, 5\)\) computes its weight from others, .*utils.remove_weight_norm",
        ),
        (
            layers(nn.Flatten(), nn.Linear(17, 5)),
            f"does not run on a {SIZE}x{SIZE} picture",
        ),
    ],
)
def test_what_has_no_convolutional_equal_is_refused_in_one_line(
    net: nn.Module, message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SurgeryError, match=message) as caught:
        convolutionalize(net.eval(), image_size=SIZE)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == "", "torch.fx prints a traceback of its own"


@pytest.mark.parametrize(
    ("net", "image_size", "said"),
    [
        ("resnet18", 224, "classifier: got 'resnet18'; expected a torch.nn.Module; fullyconv.backbones.backbone takes"),
        (nn.Flatten(), (32, 32), r"image_size: got \(32, 32\); expected the side, in pixels, of the square pictures"),
        (nn.Flatten(), 0, "image_size: got 0; expected the side"),
    ],
)
def test_a_name_for_a_net_and_two_sides_for_one_are_told(net: Any, image_size: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        convolutionalize(net, image_size=image_size)
    if isinstance(net, nn.Module):
        with pytest.raises(ConfigError, match=said):
            backbone(net, image_size=image_size)
