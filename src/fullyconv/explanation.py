"""What was done to a net, where its maps lie, and what it costs: as text and as JSON."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import FlopCounterMode

from fullyconv.backbones import Backbone
from fullyconv.backbones import backbone as as_backbone
from fullyconv.edits import Edit
from fullyconv.model import FCN, Head
from fullyconv.upsample import Steps, Upsample, transposed_geometry


@dataclass(frozen=True)
class TapReport:
    """A map that a head may read; ``used`` where one does."""

    name: str
    channels: int
    stride: float
    offset: float
    receptive_field: float
    used: bool


@dataclass(frozen=True)
class Cost:
    """Parameters and floating-point operations (a multiply-add is 2) of one part, on the picture in question."""

    part: str
    parameters: int
    flops: int


@dataclass(frozen=True)
class Report:
    """Everything `explain` finds.

    Attributes:
        name: of the backbone.
        edits: of the surgery, in order; empty where there was none.
        notes: of the surgery.
        taps: finest first.
        crops: for each upsampling, coarse to fine: the rows and columns that the paper's transposed convolution would
            have cut from its front, and its kernel and stride.
        parameters: of the whole.
        receptive_field: pixels, of the coarsest map that is read; ``inf`` for the whole picture. Where surgery dropped
            the classifier's last pool, that is counted in, as table 1 of the paper does for GoogLeNet; ``taps`` has the
            field without it.
        stride: of that map, in pixels.
        costs: by part.
        size: (height, width) of the picture that the operations are counted on.
        geometry: "same" or "pad100" (`fullyconv.config.Geometry`).
        frame: pixels that the net adds on each side of such a picture.
    """

    name: str
    edits: tuple[Edit, ...]
    notes: tuple[str, ...]
    taps: tuple[TapReport, ...]
    crops: tuple[dict[str, Any], ...]
    parameters: int
    receptive_field: float
    stride: float
    costs: tuple[Cost, ...]
    size: tuple[int, int]
    geometry: str = "same"
    frame: dict[str, int] = field(default_factory=dict)

    def json(self) -> dict[str, Any]:
        """Plain data; an unbounded field is the string "inf", since JSON knows no such number."""

        def plain(value: Any) -> Any:
            if isinstance(value, dict):
                return {k: plain(v) for k, v in value.items()}
            if isinstance(value, list | tuple):
                return [plain(v) for v in value]
            return (
                "inf" if value == math.inf else int(value) if isinstance(value, float) and value.is_integer() else value
            )

        data: dict[str, Any] = plain(asdict(self))
        return data | {"flops": sum(cost.flops for cost in self.costs)}

    def text(self) -> str:
        """For reading in a terminal."""
        height, width = self.size
        flops = sum(cost.flops for cost in self.costs)
        lines = [
            f"{self.name}: {self.parameters / 1e6:.2f} M parameters, {flops / 1e9:.2f} GFLOPs at {height}x{width}",
            f"stride {self.stride:g}, receptive field {self.receptive_field:g}, geometry {self.geometry}",
        ]
        if self.edits:
            lines += ["", "surgery"]
            width_of_path = max(len(edit.path) for edit in self.edits)
            for edit in self.edits:
                lines.append(f"  {edit.path:<{width_of_path}}  {edit.before} -> {edit.after or 'removed'}: {edit.why}")
        lines += [f"  note: {note}" for note in self.notes]
        lines += [
            "",
            "taps (finest first)",
            f"  {'':1} {'name':<12}{'channels':>9}{'stride':>8}{'offset':>8}{'field':>8}",
        ]
        for tap in self.taps:
            mark = "*" if tap.used else " "
            row = f"{tap.channels:>9}{tap.stride:>8g}{tap.offset:>8g}{tap.receptive_field:>8g}"
            lines.append(f"  {mark} {tap.name:<12}{row}")
        if any(tap.used for tap in self.taps):
            lines.append("  * read by a head")
        if self.crops:
            lines += ["", "upsampling"]
            for crop in self.crops:
                lines.append(
                    f"  {crop['head']}: {crop['from']} -> {crop['to']}, x{crop['factor']:g}, kernel {crop['kernel']}, "
                    f"crop {crop['crop']:g}"
                )
        lines += ["", "cost", f"  {'part':<24}{'parameters':>12}{'MFLOPs':>12}"]
        lines += [f"  {cost.part:<24}{cost.parameters:>12,}{cost.flops / 1e6:>12,.1f}" for cost in self.costs]
        return "\n".join(lines)


def explain(model: FCN | nn.Module, *, size: tuple[int, int] = (500, 500)) -> Report:
    """What was done to a net, where its maps lie, and what it costs.

    Args:
        model: a model, a backbone alone, or a classifier, which goes through surgery first.
        size: (height, width) of the picture that operations are counted on.

    Example:
        >>> from fullyconv.backbones import describe
        >>> explain(describe("vgg16")).receptive_field
        404.0
    """
    if not isinstance(model, FCN | Backbone):
        model = as_backbone(model)
    backbone = model.backbone if isinstance(model, FCN) else model
    heads = (
        {name: head for name, head in model.heads.items() if isinstance(head, Head)} if isinstance(model, FCN) else {}
    )
    used = {skip.tap for head in heads.values() for skip in head.skips}
    read = [tap for name, tap in backbone.taps.items() if name in used or not used]
    coarsest = max(read, key=lambda tap: (tap.grid.stride, tap.grid.field))
    taps = tuple(
        TapReport(
            name, tap.channels, float(tap.grid.stride), float(tap.grid.offset), float(tap.grid.field), name in used
        )
        for name, tap in backbone.taps.items()
    )
    field_px, notes = float(coarsest.grid.field), list(backbone.plan.notes) if backbone.plan is not None else []
    for edit in backbone.plan.edits if backbone.plan is not None else ():
        if edit.kind == "remove" and edit.kernel != (1, 1):
            without, field_px = field_px, field_px + (edit.kernel[0] - 1) * float(coarsest.grid.stride)
            notes.append(
                f"without '{edit.path}', which is dropped, a score sees {without:g} pixels; with it, {field_px:g}"
            )
    config = model.config if isinstance(model, FCN) else None
    title = config.backbone if config is not None else backbone.plan.name if backbone.plan else "backbone"
    if config is not None and (looks := config.multiscale).looks > 1:
        notes.append(f"a picture is looked at {looks.looks} times, {looks}: {looks.cost:g} times the operations below")
    plan = backbone.plan
    return Report(
        name=title,
        edits=plan.edits if plan is not None else (),
        notes=tuple(notes),
        taps=taps,
        crops=tuple(crop for name, head in heads.items() for crop in _crops(name, head)),
        parameters=sum(p.numel() for p in model.parameters()),
        receptive_field=field_px,
        stride=float(coarsest.grid.stride),
        costs=tuple(_costs(model, size)),
        size=size,
        geometry="same" if backbone.border is None else "pad100",
        frame=model.frame(*size)._asdict() if isinstance(model, FCN) else {},
    )


def _crops(name: str, head: Head) -> Iterator[dict[str, Any]]:
    steps = [(skip.tap, head.align[skip.tap]) for skip in head.skips[1:]] + [("pixels", head.upsample)]
    coarse = head.skips[0].tap
    for target, step in steps:
        if isinstance(step, Upsample | Steps):
            kernel, crop = transposed_geometry(step.source, step.target)
            yield {
                "head": name,
                "from": coarse,
                "to": target,
                "factor": float(step.factor),
                "kernel": kernel,
                # Of the coarse scores; where those are all kept, of the finer ones that they are joined with.
                "crop": float(crop) or float(head.crops.get(target, (0, 0))[1]),
                "learned": step.learned,
            }
        coarse = target


class _OnMeta(TorchDispatchMode):
    """While active, constants that are neither parameters nor buffers are meta tensors, like all others."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        args, kwargs = tree_map_only(Tensor, lambda t: t if t.is_meta else t.to("meta"), (args, kwargs or {}))
        return func(*args, **kwargs)


def _costs(model: FCN | Backbone, size: tuple[int, int]) -> Iterator[Cost]:
    """By stage, which is all layers that work at one stride. Run on meta tensors: nothing is computed."""
    backbone = model.backbone if isinstance(model, FCN) else model
    strides = sorted({1.0, *(float(tap.grid.stride) for tap in backbone.taps.values())})
    stages: dict[str, list[int]] = {f"backbone stride {stride:g}": [0, 0] for stride in strides}
    rows = size[0]
    if isinstance(model, FCN):
        frame = model.frame(*size)
        rows += frame.top + frame.bottom
        stages |= {f"head {name}": [0, 0] for name in model.heads}
    seen: set[nn.Module] = set()

    def count(stage: str, module: nn.Module, outputs: int) -> None:
        weight = module.weight
        assert isinstance(weight, Tensor)
        if module not in seen:
            stages[stage][0] += sum(p.numel() for p in module.parameters())
            seen.add(module)
        if isinstance(module, nn.Conv2d | nn.Linear):
            stages[stage][1] += 2 * weight[0].numel() * outputs

    def of_backbone(module: nn.Module, _: Any, out: Tensor) -> None:
        height = out.shape[2] if out.dim() == 4 and not isinstance(module, nn.Linear) else out.shape[1]
        nearest = min(strides, key=lambda stride: abs(stride - rows / height))
        count(f"backbone stride {nearest:g}", module, out.numel())

    def of_head(name: str) -> Any:
        return lambda module, _, out: count(f"head {name}", module, out.numel())

    hooks = [m.register_forward_hook(of_backbone) for m in backbone.modules() if _has_weight(m)]
    if isinstance(model, FCN):
        for name, head in model.heads.items():
            hooks += [m.register_forward_hook(of_head(name)) for m in head.modules() if _has_weight(m)]
    weights = {
        name: torch.empty_like(t, device="meta") for name, t in [*model.named_parameters(), *model.named_buffers()]
    }
    training = [m for m in model.modules() if m.training]
    model.eval()
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter, _OnMeta():  # type: ignore[no-untyped-call]
            channels = sum(len(config.mean) for config in backbone.inputs)
            dtype = next((t.dtype for t in weights.values() if t.is_floating_point()), torch.float32)
            image = torch.empty(1, channels, *size, device="meta", dtype=dtype)
            torch.func.functional_call(model, weights, (image,))
    finally:
        for hook in hooks:
            hook.remove()
        for m in training:
            m.training = True
    for stage, (parameters, flops) in stages.items():
        if parameters or flops:
            yield Cost(stage, parameters, flops)
    rest = sum(p.numel() for p in model.parameters()) - sum(parameters for parameters, _ in stages.values())
    beyond = counter.get_total_flops() - sum(flops for _, flops in stages.values())
    yield Cost("upsampling and the rest", rest, max(0, int(beyond)))


def _has_weight(module: nn.Module) -> bool:
    return isinstance(getattr(module, "weight", None), Tensor) and next(module.children(), None) is None
