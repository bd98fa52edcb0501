"""FCN-8s as wkentaro's torchfcn 1.9.7 (2021) builds it, from its published layer list; the package needs dead ones."""

from __future__ import annotations

from torch import Tensor, nn


class TorchFCN8s(nn.Module):
    """VGG16 whose first layer pads by 100; fc6 pads by none; scores are cropped by 5, 9 and 31."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        blocks, channels = [], 3
        for block, (width, depth) in enumerate(((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))):
            layers: list[nn.Module] = []
            for i in range(depth):
                layers += [nn.Conv2d(channels, width, 3, padding=100 if block == i == 0 else 1), nn.ReLU(inplace=True)]
                channels = width
            blocks.append(nn.Sequential(*layers, nn.MaxPool2d(2, stride=2, ceil_mode=True)))
        self.blocks = nn.ModuleList(blocks)
        self.fc = nn.Sequential(
            nn.Conv2d(512, 4096, 7), nn.ReLU(inplace=True), nn.Dropout2d(),
            nn.Conv2d(4096, 4096, 1), nn.ReLU(inplace=True), nn.Dropout2d(),
        )  # fmt: skip
        self.scores = nn.ModuleList([nn.Conv2d(n, classes, 1) for n in (4096, 512, 256)])
        self.ups = nn.ModuleList([nn.ConvTranspose2d(classes, classes, 2 * f, stride=f, bias=False) for f in (2, 2, 8)])

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        maps = []
        for block in self.blocks:
            x = block(x)
            maps.append(x)
        total = self.ups[0](self.scores[0](self.fc(x)))
        for i, (tap, crop) in enumerate(((3, 5), (2, 9)), start=1):
            skip = self.scores[i](maps[tap])[:, :, crop : crop + total.shape[2], crop : crop + total.shape[3]]
            total = self.ups[i](total + skip)
        cut: Tensor = total[:, :, 31 : 31 + height, 31 : 31 + width]
        return cut.contiguous()
