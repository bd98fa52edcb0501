"""Other people's packages, as `accuracy.py` lets them compete, each as its documentation trains it."""

from __future__ import annotations

import json
import os
import tempfile
import threading
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from learning import MEAN, Labels, Loop, Predict, Task, stage_of
from PIL import Image
from torch import Tensor, nn

from fullyconv import losses
from fullyconv.checking import check
from fullyconv.datasets import Sample
from fullyconv.devices import computes_bf16
from fullyconv.optim import class_weights, rate
from fullyconv.sampling import choose_crop, sizes
from fullyconv.transforms import Tensors, TrainTransform
from fullyconv.tuning import tune


def smp(task: Task, architecture: str, encoder: str) -> Loop:
    """segmentation_models.pytorch as its CamVid example trains it, in batches of a size for small machines."""
    import segmentation_models_pytorch as smp  # type: ignore[import-not-found, unused-ignore]

    net = _smp_net(task, architecture, encoder)
    lr, lowest, batch = 2e-4, 1e-5, 8
    crop = _crop(320, task.size)
    dice = smp.losses.DiceLoss(smp.losses.MULTICLASS_MODE, from_logits=True, ignore_index=task.void)
    return Loop(
        task,
        net,
        torch.optim.Adam(net.parameters(), lr=lr),
        Albumentations(crop, task.void),
        batch,
        dice,
        lambda progress: (lowest + (lr - lowest) * (1 + np.cos(np.pi * progress)) / 2) / lr,
        {
            "source": "segmentation_models.pytorch, examples/camvid_segmentation_multiclass.ipynb",
            "net": f"{architecture} on {encoder}",
            "precision": "float32",
            "batch": batch,
            "crop": crop,
            "augmentation": "as there: mirror, scale 0.5..1.5, shift, noise, perspective, colour, sharpness and blur",
            "loss": "Dice",
            "optimizer": f"Adam, rate {lr:g}, cosine to {lowest:g} over the budget",
            "differs": "batch 32 there, a quarter of the steps; starts from ImageNet's weights there; "
            "Affine for ShiftScaleRotate, its name before; padding is void; pictures are divided by 255 "
            "before mean and deviation. albumentations 2 scales height and width each by a factor of its own, and "
            "its noise is ten times that of the versions at the time of the example",
        },
    )


def smp_in_our_recipe(task: Task, architecture: str, encoder: str) -> Loop:
    """The same net, learning as ``fullyconv train`` has ours learn: what is the recipe's doing, and what the net's."""
    tune()
    net = _smp_net(task, architecture, encoder)
    options = ["--weights", "none", "--steps", str(task.steps), "--seed", str(task.seed)]
    stage = stage_of(task, options)
    fit, data = stage.fit, stage.data
    crop, bf16 = choose_crop(sizes(task.train)), computes_bf16(torch.device("cpu"))
    weights = class_weights(check(task.train).counts["out"])
    groups = [
        {"params": [p for p in net.parameters() if p.ndim > 1], "weight_decay": fit.weight_decay},
        {"params": [p for p in net.parameters() if p.ndim == 1], "weight_decay": 0.0},
    ]

    def loss(output: Tensor, labels: Tensor) -> Tensor:
        # Ours sorts the cells of its score map, which has a quarter of the picture's side.
        some, truth = output[..., ::4, ::4], labels[:, ::4, ::4]
        each = losses.cross_entropy(output, labels, void=task.void, weights=weights)
        return each + fit.lovasz * losses.lovasz(some, truth, void=task.void)

    return Loop(
        task,
        net,
        torch.optim.AdamW(groups, lr=fit.lr, fused=True),
        TrainTransform(crop, data.scale, data.mirror, data.jitter, void=task.void, fill=tuple(255 * m for m in MEAN)),
        fit.batch,
        loss,
        lambda progress: rate(fit.schedule, progress=progress, step=round(progress * task.steps), warmup=fit.warmup),
        {
            "source": "the defaults of fullyconv train",
            "net": f"{architecture} on {encoder}",
            "precision": "bf16" if bf16 else "float32",
            "batch": fit.batch,
            "crop": crop,
            "augmentation": f"scale {data.scale[0]:g}..{data.scale[1]:g}, mirror, colour jitter {data.jitter:g}",
            "loss": f"cross-entropy with weights of classes, Lovász {fit.lovasz:g} on every fourth pixel of a side",
            "optimizer": f"AdamW, rate {fit.lr:g}, decay {fit.weight_decay:g}, {fit.schedule} over the budget, warm-up "
            f"of {fit.warmup} steps, average of weights {fit.ema:g}; channels last",
            "differs": "nothing of the recipe but for where the Lovász loss looks",
        },
        bf16=bf16,
        average=fit.ema,
    )


def _smp_net(task: Task, architecture: str, encoder: str) -> nn.Module:
    import segmentation_models_pytorch as smp  # type: ignore[import-not-found, unused-ignore]

    torch.manual_seed(task.seed)
    net: nn.Module = getattr(smp, architecture)(encoder, encoder_weights=None, in_channels=3, classes=len(task.classes))
    return net


class Albumentations:
    """The augmentation of smp's CamVid example."""

    def __init__(self, crop: tuple[int, int], void: int) -> None:
        import albumentations as A  # type: ignore[import-not-found, unused-ignore]
        import cv2  # type: ignore[import-not-found, unused-ignore]

        cv2.setNumThreads(1)
        height, width = crop
        self._compose = A.Compose(
            [
                A.HorizontalFlip(p=0.5),
                # ShiftScaleRotate(scale_limit=0.5, rotate_limit=0, shift_limit=0.1), under its present name.
                A.Affine(scale=(0.5, 1.5), translate_percent=(-0.1, 0.1), balanced_scale=False, p=1, fill_mask=void),
                A.PadIfNeeded(min_height=height, min_width=width, fill_mask=void),
                A.RandomCrop(height=height, width=width),
                A.GaussNoise(p=0.2),
                A.Perspective(p=0.5, fill_mask=void),
                A.OneOf([A.CLAHE(p=1), A.RandomBrightnessContrast(p=1), A.RandomGamma(p=1)], p=0.9),
                A.OneOf([A.Sharpen(p=1), A.Blur(blur_limit=3, p=1), A.MotionBlur(blur_limit=3, p=1)], p=0.9),
                A.OneOf([A.RandomBrightnessContrast(p=1), A.HueSaturationValue(p=1)], p=0.9),
            ]
        )

    def __call__(self, sample: Sample, generator: torch.Generator) -> Tensors:
        self._compose.set_random_seed(int(torch.randint(1 << 31, (), generator=generator)))
        found = self._compose(image=sample.image, mask=sample.labels["out"])
        return torch.from_numpy(found["image"].transpose(2, 0, 1).copy()), {"out": torch.from_numpy(found["mask"])}


def lraspp(task: Task) -> Loop:
    """torchvision's lraspp_mobilenet_v3_large as its reference scripts train it on one device."""
    from torchvision.models.segmentation import lraspp_mobilenet_v3_large

    torch.manual_seed(task.seed)
    net = lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=len(task.classes))
    base, crop, batch, lr = 520, 480, 8, 0.01
    side = base / min(task.size)
    return Loop(
        task,
        net,
        torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9, weight_decay=1e-6),
        TrainTransform((crop, crop), (side / 2, side * 2), jitter=0, void=task.void, fill=(0, 0, 0)),
        batch,
        lambda output, labels: F.cross_entropy(output["out"], labels, ignore_index=task.void),
        lambda progress: (1 - progress) ** 0.9,
        {
            "source": "torchvision, references/segmentation: README.md, train.py, presets.py",
            "net": "lraspp_mobilenet_v3_large",
            "precision": "float32",
            "batch": batch,
            "crop": (crop, crop),
            "augmentation": f"scaled to 0.5..2 of a shorter side of {base}, mirror; labelled at {base}",
            "loss": "cross-entropy",
            "optimizer": f"SGD, rate {lr:g}, momentum 0.9, decay 1e-6, poly 0.9 over the budget",
            "differs": "batch 32 there, on 8 GPUs; factors of scale are drawn evenly on a logarithmic scale",
        },
        logits=lambda output: output["out"],
        resize=base,
    )


def segformer(task: Task) -> Loop:
    """SegFormer-b0 as its authors' configuration trains it."""
    from transformers import (  # type: ignore[import-not-found, unused-ignore]
        SegformerConfig,
        SegformerForSemanticSegmentation,
    )

    torch.manual_seed(task.seed)
    # The defaults of SegformerConfig are the sizes of b0.
    net = SegformerForSemanticSegmentation(SegformerConfig(num_labels=len(task.classes)))
    lr, batch, warm = 6e-5, 8, 1500 / 160_000
    crop = _crop(512, task.size)
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in net.named_parameters():
        factor = 10.0 if name.startswith("decode_head") else 1.0
        decay = 0.0 if "norm" in name else 0.01
        groups.setdefault((factor, decay), []).append(parameter)
    optimizer = torch.optim.AdamW(
        [{"params": p, "lr": lr * factor, "weight_decay": decay} for (factor, decay), p in groups.items()]
    )

    def loss(output: Any, labels: Tensor) -> Tensor:
        logits = F.interpolate(output.logits, size=labels.shape[1:], mode="bilinear")
        return F.cross_entropy(logits, labels, ignore_index=task.void)

    return Loop(
        task,
        net,
        optimizer,
        TrainTransform(crop, (0.5, 2.0), jitter=0.5, void=task.void, fill=(0, 0, 0)),
        batch,
        loss,
        lambda progress: min(1.0, progress / warm) * (1 - progress),
        {
            "source": "NVlabs/SegFormer, local_configs/segformer/B0/segformer.b0.512x512.ade.160k.py and its bases",
            "net": "SegformerForSemanticSegmentation of transformers, b0",
            "precision": "float32",
            "batch": batch,
            "crop": crop,
            "augmentation": "scale 0.5..2, crop of 512 (here no larger than the pictures), mirror, colour jitter",
            "loss": "cross-entropy",
            "optimizer": f"AdamW, rate {lr:g} (head x 10), decay 0.01 (norms 0), linear to 0, warm-up of 0.9 %",
            "differs": "batch 16 there; pictures are not enlarged to 512; crops of one class are not drawn again; "
            "padding is black and not the mean; jitter by 0.5 without hue, scale drawn evenly on a logarithmic scale",
        },
        logits=lambda output: output.logits,
    )


class Ultralytics:
    """Ultralytics' own trainer of its semantic task, stopped before every batch by its callbacks.

    The trainer runs in a thread of its own that waits for `step`; none of its code is replaced. A step is a batch: its
    optimizer moves after up to four of them, as its ``nbs`` has it.
    """

    def __init__(self, task: Task) -> None:
        folder = Path(tempfile.mkdtemp(dir=task.scratch))
        data = _as_ultralytics_wants(task, folder)
        os.environ["YOLO_CONFIG_DIR"], os.environ["YOLO_OFFLINE"] = str(folder), "true"
        os.environ["YOLO_VERBOSE"] = "false"
        from ultralytics.cfg import get_cfg  # type: ignore[import-not-found, unused-ignore]
        from ultralytics.models.yolo.semantic import (  # type: ignore[import-not-found, unused-ignore]
            SemanticSegmentationTrainer,
        )

        self._batch = get_cfg().batch
        epochs = max(1, -(-task.steps * self._batch // len(task.train)))
        settings = {
            "model": "yolo26n-sem.yaml",
            "data": str(data),
            "epochs": epochs,
            "pretrained": False,
            "device": "cpu",
            "cache": "ram",
            "seed": task.seed,
        }
        # What it writes and scores for itself, which is nobody's budget.
        quiet = {"val": False, "save": False, "plots": False, "project": str(folder), "verbose": False}
        self._trainer = SemanticSegmentationTrainer(overrides=settings | quiet)
        self._turn, self._done = threading.Semaphore(0), threading.Semaphore(0)
        self._failed: BaseException | None = None
        self._trainer.add_callback("on_train_start", lambda _: self._wait())
        self._trainer.add_callback("on_train_batch_end", lambda _: self._wait())
        self._classes = len(task.classes)
        self._thread = threading.Thread(target=self._train, daemon=True)
        self._thread.start()
        self._await()
        args = self._trainer.args
        self.parameters = sum(p.numel() for p in self._trainer.model.parameters())
        names = ("imgsz", "batch", "nbs", "optimizer", "lr0", "lrf", "momentum", "weight_decay", "warmup_epochs")
        more = ("mosaic", "close_mosaic", "scale", "translate", "fliplr", "hsv_h", "hsv_s", "hsv_v", "epochs", "amp")
        self.settings = {
            "source": "ultralytics, cfg/default.yaml and cfg/models/26/yolo26-sem.yaml of the installed package",
            "net": "yolo26n-sem",
            "precision": "float32",
            "args": {name: getattr(args, name) for name in (*names, *more)},
            "differs": "pretrained=False, cache=ram; a step is a batch; it leaves one core free, as anywhere",
        }

    def _train(self) -> None:
        try:
            self._trainer.train()
        except BaseException as error:
            self._failed = error
        self._done.release()

    def _wait(self) -> None:
        self._done.release()
        self._turn.acquire()

    def _await(self) -> None:
        self._done.acquire()
        if self._failed is not None:
            raise RuntimeError(f"ultralytics: {self._failed}") from self._failed

    def step(self) -> None:
        self._turn.release()
        self._await()

    def predictor(self) -> Predict:
        from ultralytics.data.augment import LetterBox  # type: ignore[import-not-found, unused-ignore]
        from ultralytics.utils import ops  # type: ignore[import-not-found, unused-ignore]

        net = self._trainer.ema.ema
        letterbox = LetterBox(self._trainer.args.imgsz, auto=True, stride=32)

        @torch.inference_mode()
        def predict(picture: npt.NDArray[np.uint8]) -> Labels:
            """As its own predictor: letterboxed, scaled back, and then the best class."""
            image = torch.from_numpy(letterbox(image=picture).transpose(2, 0, 1).copy())[None].float() / 255
            logits = F.interpolate(net(image), size=image.shape[2:], mode="bilinear")
            return np.asarray(ops.scale_masks(logits, picture.shape[:2])[0].argmax(0).numpy())

        return predict


def _as_ultralytics_wants(task: Task, folder: Path) -> Path:
    """The training pictures in the layout that it reads; its val, which is not looked at, is one of them."""
    for split, count in (("train", len(task.train)), ("val", 1)):
        images, masks = folder / "images" / split, folder / "masks" / split
        images.mkdir(parents=True)
        masks.mkdir(parents=True)
        for index in range(count):
            sample = task.train[index]
            labels = np.where(sample.labels["out"] == task.void, 255, sample.labels["out"]).astype(np.uint8)
            Image.fromarray(sample.image).save(images / f"{index:05}.png", compress_level=1)
            Image.fromarray(labels).save(masks / f"{index:05}.png")
    described = {
        "path": str(folder),
        "train": "images/train",
        "val": "images/val",
        "masks_dir": "masks",
        "names": dict(enumerate(task.classes)),
    }
    (folder / "data.yaml").write_text(json.dumps(described), encoding="utf-8")  # JSON is YAML
    return folder / "data.yaml"


def _crop(side: int, size: tuple[int, int]) -> tuple[int, int]:
    """A square crop, but no larger than the pictures, whose sides are rounded up to multiples of 32."""
    height, width = (min(side, -(-length // 32) * 32) for length in size)
    return height, width
