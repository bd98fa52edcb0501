"""Taps: the maps through which all that is coarser must pass."""

from __future__ import annotations

import copy

import pytest
import torch

from fullyconv.backbones import BACKBONES
from fullyconv.errors import AlignmentError, SurgeryError
from fullyconv.locate import locate
from fullyconv.surgery import plan
from fullyconv.taps import cut, find_taps
from fullyconv.tracing import trace


@pytest.mark.parametrize("name", ["resnet50", "squeezenet1_1", "googlenet", "densenet121"])
def test_all_that_is_coarser_passes_through_a_tap(name: str) -> None:
    torch.manual_seed(0)
    net = BACKBONES[name].classifier().eval()
    made = plan(net)
    dense = made.apply(padding="same", verify=False)
    taps = find_taps(dense, made.scores, locate(dense))
    assert list(taps) == [s for s in (2, 4, 8, 16, 32) if s <= made.stride]
    assert taps[made.stride] == made.scores
    for tap in list(taps.values())[:-1]:

        class Fixed(torch.fx.Interpreter):
            def run_node(self, n: torch.fx.Node, at: str = tap) -> object:
                result = super().run_node(n)
                return torch.ones_like(result) if n.name == at else result

        trunk_only = cut(copy.deepcopy(dense), [tap, made.scores])
        pictures = torch.randn(2, 1, 3, 64, 64)
        with torch.no_grad():
            assert not torch.equal(*(trunk_only(picture)[1] for picture in pictures)), "a dead net shows nothing"
            a, b = (Fixed(trunk_only).run(picture)[1] for picture in pictures)
        assert torch.equal(a, b), f"something reaches the scores past {tap}"


def test_a_cut_net_holds_no_layers_that_it_does_not_run() -> None:
    made = plan(BACKBONES["resnet18"].classifier())
    trunk_only = cut(made.apply(verify=False), ["layer2_1_relu_1"])
    assert not [name for name in trunk_only.state_dict() if name.startswith(("layer3", "layer4", "fc"))]
    (maps,) = trunk_only(torch.zeros(1, 3, 64, 64))
    assert maps.shape == (1, 128, 8, 8)


def test_maps_between_factorised_strides_are_no_taps() -> None:
    def halve() -> tuple[torch.nn.Module, ...]:
        down = torch.nn.Conv2d(3, 3, (3, 1), stride=(2, 1), padding=(1, 0))
        return down, torch.nn.Conv2d(3, 3, (1, 3), stride=(1, 2), padding=(0, 1))

    net = trace(torch.nn.Sequential(*halve(), *halve()))
    assert find_taps(net, "_3", locate(net)) == {2: "_1", 4: "_3"}
    with pytest.raises(AlignmentError, match="expected the same along both axes"):
        find_taps(net, "_2", locate(net))


def test_a_map_that_lies_nowhere_has_no_taps() -> None:
    net = trace(torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, 2, 1), torch.nn.Flatten()))
    with pytest.raises(SurgeryError, match="the map '_1' lies nowhere on the picture: a reshape") as caught:
        find_taps(net, "_1", locate(net))
    assert caught.value.path == "_1"
