"""Who competes in `accuracy.py`, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from learning import Competitor, Ours, Task
from peers import Ultralytics, lraspp, segformer, smp, smp_in_our_recipe


def _ours(*options: str, weights: bool = False) -> Callable[[Task], Competitor]:
    return lambda task: Ours(task, *options, weights=weights)


COMPETITORS: Mapping[str, Callable[[Task], Competitor]] = {
    "ours FCN-4s SqueezeNet ImageNet": _ours("--backbone", "squeezenet1_0", "--model", "fcn4s", weights=True),
    "ours FCN-8s SqueezeNet ImageNet": _ours("--backbone", "squeezenet1_0", "--model", "fcn8s", weights=True),
    "ours FCN-4s SqueezeNet": _ours("--backbone", "squeezenet1_0", "--model", "fcn4s"),
    "ours FCN-8s SqueezeNet": _ours("--backbone", "squeezenet1_0", "--model", "fcn8s"),
    "ours ResNet-18": _ours("--backbone", "resnet18"),
    "ours MobileNetV2": _ours("--backbone", "mobilenet_v2"),
    "ours MobileNetV3": _ours("--backbone", "mobilenet_v3_large"),
    "smp Unet ResNet-18": partial(smp, architecture="Unet", encoder="resnet18"),
    "smp FPN ResNet-18": partial(smp, architecture="FPN", encoder="resnet18"),
    "smp Unet MobileNetV3": partial(smp, architecture="Unet", encoder="tu-mobilenetv3_large_100"),
    "smp FPN MobileNetV3": partial(smp, architecture="FPN", encoder="tu-mobilenetv3_large_100"),
    "smp FPN ResNet-18 in our recipe": partial(smp_in_our_recipe, architecture="FPN", encoder="resnet18"),
    "torchvision LRASPP": lraspp,
    "SegFormer-b0": segformer,
    "Ultralytics YOLO26n-sem": Ultralytics,
}
"""By name. Those that start from weights have ImageNet in their name."""
NEEDS = {"smp": "segmentation_models_pytorch", "SegFormer": "transformers", "Ultralytics": "ultralytics"}
"""What has to be installed for those whose names begin so."""
