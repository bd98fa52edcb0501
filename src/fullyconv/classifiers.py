"""The papers' own classifiers, layer by layer as published, and a small one of ours.

torchvision's AlexNet and GoogLeNet are later variants: other widths, 3x3 for 5x5 kernels, batch norm, no local response
normalisation. Weights of the Caffe release fit `CaffeNet` and `BVLCGoogLeNet` (paper, section 4.1 and table 1).
FCN-VGG16 needs nothing here, since torchvision's VGG16 is the published one.
"""

from __future__ import annotations

import functools
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LocalResponseNorm(nn.LocalResponseNorm):
    """Divides each channel by the energy of its neighbours (Krizhevsky et al. 2012, section 3.3).

    ``x / (k + alpha / size * sum of squares over size channels) ** beta``, zeros beyond the first and the last channel:
    the numbers of `torch.nn.LocalResponseNorm` and of Caffe's LRN layer. The sum is of shifted slices, not torch's
    average pool over a volume, which takes three times as long on a CPU.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape."""
        before = self.size // 2
        # Squares of half-precision activations overflow; autocast takes a power in float32.
        squares = F.pad(input.pow(2), (0, 0, 0, 0, before, self.size - 1 - before))
        window = [squares[:, i : 1 + i - self.size or None] for i in range(self.size)]
        energy = functools.reduce(torch.add, window)
        return input / (self.k + self.alpha / self.size * energy).pow(self.beta)


def _fill(layer: nn.Conv2d | nn.Linear, std: float | None, bias: float) -> None:
    """Initialise as Caffe's fillers do: a Gaussian, or (``std=None``) its Xavier, uniform of variance 1 / fan in."""
    if std is None:
        bound = math.sqrt(3 / layer.weight[0].numel())
        nn.init.uniform_(layer.weight, -bound, bound)
    else:
        nn.init.normal_(layer.weight, std=std)
    assert layer.bias is not None
    nn.init.constant_(layer.bias, bias)


def _pool() -> nn.MaxPool2d:
    # Caffe pools in ceil mode: a last window that hangs over the edge counts.
    return nn.MaxPool2d(3, stride=2, ceil_mode=True)


class CaffeNet(nn.Module):
    """AlexNet as the Caffe release has it (bvlc_reference_caffenet): pooling before normalisation, two groups.

    Layers have the release's names. Made for 227x227 pictures, BGR minus mean (`fullyconv.config.INPUTS`, "caffe").

    Args:
        classes: entries of the score vector.

    Example:
        >>> with torch.device("meta"):
        ...     CaffeNet(classes=21)(torch.empty(2, 3, 227, 227)).shape
        torch.Size([2, 21])
    """

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 96, 11, stride=4)
        self.relu1 = nn.ReLU(inplace=True)
        self.pool1 = _pool()
        self.norm1 = LocalResponseNorm(5)
        self.conv2 = nn.Conv2d(96, 256, 5, padding=2, groups=2)
        self.relu2 = nn.ReLU(inplace=True)
        self.pool2 = _pool()
        self.norm2 = LocalResponseNorm(5)
        self.conv3 = nn.Conv2d(256, 384, 3, padding=1)
        self.relu3 = nn.ReLU(inplace=True)
        self.conv4 = nn.Conv2d(384, 384, 3, padding=1, groups=2)
        self.relu4 = nn.ReLU(inplace=True)
        self.conv5 = nn.Conv2d(384, 256, 3, padding=1, groups=2)
        self.relu5 = nn.ReLU(inplace=True)
        self.pool5 = _pool()
        self.fc6 = nn.Linear(256 * 6 * 6, 4096)
        self.relu6 = nn.ReLU(inplace=True)
        self.drop6 = nn.Dropout(0.5)
        self.fc7 = nn.Linear(4096, 4096)
        self.relu7 = nn.ReLU(inplace=True)
        self.drop7 = nn.Dropout(0.5)
        self.fc8 = nn.Linear(4096, classes)
        for conv, bias in ((self.conv1, 0), (self.conv2, 1), (self.conv3, 0), (self.conv4, 1), (self.conv5, 1)):
            _fill(conv, 0.01, bias)
        for linear, std, bias in ((self.fc6, 0.005, 1), (self.fc7, 0.005, 1), (self.fc8, 0.01, 0)):
            _fill(linear, std, bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, 227, 227) -> class scores (B, classes)."""
        x = self.norm1(self.pool1(self.relu1(self.conv1(x))))
        x = self.norm2(self.pool2(self.relu2(self.conv2(x))))
        x = self.relu3(self.conv3(x))
        x = self.relu4(self.conv4(x))
        x = self.pool5(self.relu5(self.conv5(x)))
        x = self.drop6(self.relu6(self.fc6(torch.flatten(x, 1))))
        x = self.drop7(self.relu7(self.fc7(x)))
        scores: Tensor = self.fc8(x)
        return scores


class Inception(nn.Module):
    """Four views of one map side by side: 1x1, 3x3, 5x5 and a pool (Szegedy et al. 2015, figure 2b).

    Args:
        inputs: channels that come in.
        ones: channels of the 1x1 branch.
        threes: channels of the 3x3 branch, before (reduced) and after.
        fives: channels of the 5x5 branch, before (reduced) and after.
        project: channels of the pooled branch.
    """

    def __init__(self, inputs: int, ones: int, threes: tuple[int, int], fives: tuple[int, int], project: int) -> None:
        super().__init__()
        self.branch1x1 = nn.Conv2d(inputs, ones, 1)
        self.reduce3x3 = nn.Conv2d(inputs, threes[0], 1)
        self.branch3x3 = nn.Conv2d(*threes, 3, padding=1)
        self.reduce5x5 = nn.Conv2d(inputs, fives[0], 1)
        self.branch5x5 = nn.Conv2d(*fives, 5, padding=2)
        self.pool = nn.MaxPool2d(3, stride=1, padding=1)
        self.project = nn.Conv2d(inputs, project, 1)
        self.relu = nn.ReLU(inplace=True)
        # Gives the joined map a name of its own in the graph, by which a tap may ask for it.
        self.output = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, ones + threes[1] + fives[1] + project, H, W)."""
        branches = (
            self.relu(self.branch1x1(x)),
            self.relu(self.branch3x3(self.relu(self.reduce3x3(x)))),
            self.relu(self.branch5x5(self.relu(self.reduce5x5(x)))),
            self.relu(self.project(self.pool(x))),
        )
        joined: Tensor = self.output(torch.cat(branches, 1))
        return joined


class BVLCGoogLeNet(nn.Module):
    """GoogLeNet as the Caffe release has it (bvlc_googlenet), without the two auxiliary classifiers of its training.

    Made for 224x224 pictures, BGR minus mean (`fullyconv.config.INPUTS`, "caffe").

    Args:
        classes: entries of the score vector.

    Example:
        >>> with torch.device("meta"):
        ...     BVLCGoogLeNet(classes=21)(torch.empty(2, 3, 224, 224)).shape
        torch.Size([2, 21])
    """

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3)
        self.relu1 = nn.ReLU(inplace=True)
        self.pool1 = _pool()
        self.norm1 = LocalResponseNorm(5)
        self.conv2_reduce = nn.Conv2d(64, 64, 1)
        self.relu2_reduce = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(64, 192, 3, padding=1)
        self.relu2 = nn.ReLU(inplace=True)
        self.norm2 = LocalResponseNorm(5)
        self.pool2 = _pool()
        self.inception_3a = Inception(192, 64, (96, 128), (16, 32), 32)
        self.inception_3b = Inception(256, 128, (128, 192), (32, 96), 64)
        self.pool3 = _pool()
        self.inception_4a = Inception(480, 192, (96, 208), (16, 48), 64)
        self.inception_4b = Inception(512, 160, (112, 224), (24, 64), 64)
        self.inception_4c = Inception(512, 128, (128, 256), (24, 64), 64)
        self.inception_4d = Inception(512, 112, (144, 288), (32, 64), 64)
        self.inception_4e = Inception(528, 256, (160, 320), (32, 128), 128)
        self.pool4 = _pool()
        self.inception_5a = Inception(832, 256, (160, 320), (32, 128), 128)
        self.inception_5b = Inception(832, 384, (192, 384), (48, 128), 128)
        self.pool5 = nn.AvgPool2d(7, stride=1)
        self.drop = nn.Dropout(0.4)
        self.fc = nn.Linear(1024, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                _fill(module, None, 0.2)
        _fill(self.fc, None, 0)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, 224, 224) -> class scores (B, classes)."""
        x = self.norm1(self.pool1(self.relu1(self.conv1(x))))
        x = self.relu2(self.conv2(self.relu2_reduce(self.conv2_reduce(x))))
        x = self.pool2(self.norm2(x))
        x = self.pool3(self.inception_3b(self.inception_3a(x)))
        x = self.inception_4c(self.inception_4b(self.inception_4a(x)))
        x = self.pool4(self.inception_4e(self.inception_4d(x)))
        x = self.inception_5b(self.inception_5a(x))
        scores: Tensor = self.fc(self.drop(torch.flatten(self.pool5(x), 1)))
        return scores


class TinyVGG(nn.Module):
    """Five blocks of convolution and pooling and two linear layers: a VGG that a laptop trains in a minute.

    For demonstrations and tests: it has a flatten and hidden linear layers as the paper's nets have, 0.3 M parameters,
    and needs no download. Made for 96x96 pictures.
    """

    def __init__(self, classes: int = 8) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = 3
        for width in (16, 32, 48, 64, 96):
            convolution = nn.Conv2d(inputs, width, 3, padding=1, bias=False)
            layers += [convolution, nn.BatchNorm2d(width), nn.ReLU(inplace=True), nn.MaxPool2d(2)]
            inputs = width
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Linear(inputs * 3 * 3, 192), nn.ReLU(inplace=True), nn.Dropout(0.1), nn.Linear(192, classes)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, 96, 96) -> class scores (B, classes)."""
        scores: Tensor = self.classifier(torch.flatten(self.features(x), 1))
        return scores
