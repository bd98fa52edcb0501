"""A run as one page of HTML that opens anywhere, offline, and is meant for people.

`write_report` makes the page of a run folder. What it is made of (`page`, `section`, `cards`, `table`, `bars`, `strip`,
`curves`, `heat_map`) returns HTML and serves other pages as well. Every name that comes from outside is escaped.
"""

from __future__ import annotations

import base64
import io
import math
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from os import PathLike
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import numpy.typing as npt

from fullyconv import checkpoint, images
from fullyconv.config import Classes, Recipe
from fullyconv.datasets import SegmentationDataset, dataset
from fullyconv.inference import Predictor
from fullyconv.metrics import ConfusionMatrix
from fullyconv.model import FCN
from fullyconv.records import writing
from fullyconv.runs import flat, read_log
from fullyconv.sampling import View, evenly

UInt8 = npt.NDArray[np.uint8]

STYLE = """
:root { color-scheme: light dark; --ink: #1d2330; --dim: #667085; --paper: #fff; --card: #f5f6f8; --line: #e1e4ea;
  --mark: #2563eb; --warn: #b54708; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ef; --dim: #98a2b3; --paper: #12151c; --card: #1b202a;
  --line: #2c3340; --mark: #7aa7ff; --warn: #fdb022; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2.5rem 1.25rem 4rem; max-width: 68rem; color: var(--ink); background: var(--paper);
  font: 16px/1.55 system-ui, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 .4rem; }
h2 { font-size: 1.2rem; margin: 2.8rem 0 .3rem; }
p { margin: .3rem 0 .8rem; max-width: 46rem; } .dim, figcaption, details { color: var(--dim); }
.lead { font-size: 1.12rem; } .warn { border-left: 4px solid var(--warn); padding: .2rem 0 .2rem .9rem; }
.cards { display: flex; flex-wrap: wrap; gap: .8rem; margin: 1.4rem 0; }
.card { background: var(--card); border-radius: .7rem; padding: .8rem 1.1rem; min-width: 9rem; flex: 1; }
.card b { display: block; font-size: 1.55rem; font-variant-numeric: tabular-nums; }
.scroll { overflow-x: auto; } svg { max-width: 100%; height: auto; color: var(--ink); }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: .6rem 0; }
th, td { text-align: left; padding: .25rem .9rem .25rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
td.n, th.n { text-align: right; } td.code { font: .85rem/1.5 ui-monospace, monospace; word-break: break-word; }
.bar { display: inline-block; height: .75rem; border-radius: .2rem; background: var(--mark); vertical-align: middle; }
.swatch { display: inline-block; width: .8rem; height: .8rem; border-radius: .2rem; margin-right: .5rem;
  border: 1px solid var(--line); vertical-align: -1px; }
.strip { display: grid; gap: .4rem; margin: .9rem 0 1.4rem; }
.strip figure { margin: 0; } .strip img { width: 100%; display: block; border-radius: .35rem; background: var(--card); }
.strip .name { grid-column: 1 / -1; font-size: .92rem; } figcaption { font-size: .82rem; }
details { margin: 1rem 0; } summary { cursor: pointer; color: var(--ink); }
pre { background: var(--card); border-radius: .5rem; padding: .7rem .9rem; overflow-x: auto; font-size: .85rem; }
"""


# What a page is made of ----------------------------------------------------------------------------------------------


def page(title: str, sections: Iterable[str]) -> str:
    """A whole page: nothing in it is loaded from anywhere."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(sections)
        + "\n</body>\n</html>\n"
    )


def section(title: str, text: str, *content: str) -> str:
    """A heading, a sentence that says how to read what follows, and that."""
    return f'<h2>{escape(title)}</h2>\n<p class="dim">{escape(text)}</p>\n' + "\n".join(content)


def cards(values: Mapping[str, str]) -> str:
    """A few numbers, large, each over its name."""
    items = "".join(f'<div class="card"><b>{escape(v)}</b>{escape(k)}</div>' for k, v in values.items())
    return f'<div class="cards">{items}</div>'


def table(header: Sequence[str], rows: Iterable[Sequence[str | float | int]]) -> str:
    """A table; numbers stand to the right, fractions with three digits."""

    def cell(value: str | float | int) -> str:
        if isinstance(value, str):
            return f"<td>{escape(value)}</td>"
        return f'<td class="n">{value:,}</td>' if isinstance(value, int) else f'<td class="n">{number(value)}</td>'

    head = "".join(f"<th>{escape(name)}</th>" for name in header)
    body = "".join(f"<tr>{''.join(cell(value) for value in row)}</tr>\n" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table></div>'


def settings_table(values: Mapping[str, Any]) -> str:
    """Names and values as they are written in files."""
    rows = "".join(
        f'<tr><td class="code">{escape(name)}</td><td class="code">{escape(str(value))}</td></tr>\n'
        for name, value in values.items()
    )
    return f'<div class="scroll"><table><tbody>\n{rows}</tbody></table></div>'


def folded(title: str, *content: str) -> str:
    """Content that shows when its title is clicked."""
    return f"<details><summary>{escape(title)}</summary>\n" + "\n".join(content) + "</details>"


def bars(classes: Classes, matrix: ConfusionMatrix) -> str:
    """Each class with its colour, its IU as a bar, and its share of the pixels; the best first."""
    total = max(int(matrix.pixels.sum()), 1)
    order = np.argsort(-np.nan_to_num(matrix.iu, nan=-1.0), kind="stable")
    rows = []
    for k in order:
        info, iu = classes.used[k], float(matrix.iu[k])
        width = 0.0 if math.isnan(iu) else 100 * iu
        swatch = f'<span class="swatch" style="background: rgb{info.colour}"></span>'
        numbers = "not there" if math.isnan(iu) else number(iu), number(float(matrix.accuracy[k]))
        rows.append(
            f'<tr><td>{swatch}{escape(info.name)}</td><td style="width: 45%"><span class="bar" style="width: '
            f'{width:.1f}%"></span></td><td class="n">{numbers[0]}</td><td class="n">{numbers[1]}</td>'
            f'<td class="n">{matrix.pixels[k] / total:.2%}</td></tr>\n'
        )
    head = '<th>class</th><th></th><th class="n">IU</th><th class="n">found</th><th class="n">of all pixels</th>'
    return f'<table style="width: 100%"><thead><tr>{head}</tr></thead><tbody>\n{"".join(rows)}</tbody></table>'


@dataclass(frozen=True)
class Picture:
    """A picture of a strip: (H, W, 3) uint8 RGB and what it is."""

    pixels: UInt8
    caption: str


def strip(pictures: Sequence[Picture], *, title: str = "", widest: int = 420) -> str:
    """Pictures side by side, shrunk to ``widest`` pixels and held in the page itself."""
    name = f'<div class="name">{escape(title)}</div>' if title else ""
    figures = "".join(
        f'<figure><img src="{data_url(shrink(p.pixels, widest))}" alt="{escape(p.caption)}">'
        f"<figcaption>{escape(p.caption)}</figcaption></figure>\n"
        for p in pictures
    )
    return f'<div class="strip" style="grid-template-columns: repeat({len(pictures)}, 1fr)">{name}{figures}</div>'


def data_url(pixels: UInt8) -> str:
    """A picture as the text of an ``img``'s ``src``."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "picture.jpg"
        images.write_image(path, pixels)
        return "data:image/jpeg;base64," + base64.b64encode(path.read_bytes()).decode("ascii")


def shrink(pixels: UInt8, widest: int) -> UInt8:
    """The picture at a whole fraction of its size, at most ``widest`` wide; a pixel is the mean of its block."""
    step = -(-pixels.shape[1] // widest)
    height, width = pixels.shape[0] // step * step, pixels.shape[1] // step * step
    if step == 1 or height == 0:
        return pixels
    blocks = pixels[:height, :width].reshape(height // step, step, width // step, step, 3)
    means: UInt8 = blocks.mean((1, 3)).round().astype(np.uint8)
    return means


def curves(
    lines: Mapping[str, tuple[Sequence[float], Sequence[float]]], *, title: str, across: str, bottom: float = 0.0
) -> str:
    """Lines of (x, y) by name as an SVG in the page's colours; the last stands out. The y axis starts at ``bottom``."""
    import matplotlib
    from matplotlib.figure import Figure

    ink, mark = "#010203", "#040506"  # stand for the page's colours, which matplotlib cannot name
    settings: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": title,
        "font.family": "sans-serif",
        "font.size": 11,
        "text.parse_math": False,
        "text.color": ink,
    }
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(5.2, 3.1), layout="constrained")
        axes = figure.add_subplot()
        for name, (xs, ys) in lines.items():
            last = name == list(lines)[-1]
            marker = "o" if len(xs) <= 30 else ""
            (line,) = axes.plot(xs, ys, color=mark, marker=marker, markersize=3.5, label=name)
            line.set(alpha=None if last else 0.25, linewidth=2.0 if last else 1.0)
        axes.set_title(title, loc="left")
        axes.set_xlabel(across, color=ink)
        axes.set_ylim(bottom=bottom)
        axes.grid(color=ink, alpha=0.12, linewidth=0.8)
        axes.tick_params(colors=ink, length=0)
        axes.spines[:].set_visible(False)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].replace(ink, "currentColor").replace(mark, "var(--mark)")
    return f'<figure style="margin: 0">{svg}</figure>'


def heat_map(matrix: ConfusionMatrix) -> str:
    """The confusion matrix as an SVG: a row for each true class, strong where its pixels went."""
    names, count = matrix.classes, len(matrix.classes)
    shares = np.nan_to_num(matrix.counts / np.maximum(matrix.pixels, 1)[:, None])
    cell = max(9, min(34, 620 // count))
    side, text = count * cell, min(13, max(8, cell - 2))
    left = top = int(min(max(map(len, names)), 22) * text * 0.65) + 12  # room for the longest name
    parts = []
    for row in range(count):
        for column in np.flatnonzero((shares[row] >= 0.005) | (np.arange(count) == row)):
            share = float(shares[row, column])
            place = f'x="{left + column * cell}" y="{top + row * cell}" width="{cell - 1}" height="{cell - 1}"'
            told = f"{escape(names[row])} labelled {escape(names[column])}: {share:.1%}"
            parts.append(
                f'<rect {place} rx="2" fill="var(--mark)" fill-opacity="{0.04 + 0.96 * share:.3f}">'
                f"<title>{told}</title></rect>"
            )
    for index, name in enumerate(names):
        short = escape(name if len(name) <= 22 else name[:21] + "…")
        middle = index * cell + cell / 2 + text / 3
        parts.append(f'<text x="{left - 6}" y="{top + middle:.1f}" text-anchor="end">{short}</text>')
        parts.append(f'<text transform="translate({left + middle:.1f} {top - 6}) rotate(-90)">{short}</text>')
    size = left + side + 4
    return (
        f'<div class="scroll"><svg viewBox="0 0 {size} {size}" width="{size}" height="{size}" role="img" '
        f'aria-label="confusion matrix" font-size="{text}" fill="currentColor">{"".join(parts)}</svg></div>'
    )


def number(value: float) -> str:
    """A fraction with three digits; a dash for nan.

    Example:
        >>> number(0.68412), number(float("nan"))
        ('0.684', '–')
    """
    return "–" if math.isnan(value) else f"{value:.3f}"


# The page of a run ---------------------------------------------------------------------------------------------------


def score_each(
    model: FCN, data: SegmentationDataset, *, device: str = "auto", precision: str = "auto"
) -> dict[str, list[ConfusionMatrix]]:
    """For each head a confusion matrix of each picture; their sums are what `evaluate` gives."""
    predictor = Predictor(model, device=device, precision=precision)
    each = {head: [ConfusionMatrix(data.classes[head].names) for _ in range(len(data))] for head in model.heads}
    for index in range(len(data)):
        sample = data[index]
        found = predictor(sample.image).labels
        for head, matrices in each.items():
            matrices[index].update(sample.labels[head], found[head], data.classes[head].void)
    return each


def write_report(
    run: str | PathLike[str],
    *,
    model: FCN | None = None,
    data: SegmentationDataset | None = None,
    each: Mapping[str, Sequence[ConfusionMatrix]] | None = None,
    rows: int = 8,
) -> Path:
    """Write ``report.html`` into a run folder.

    Args:
        run: as `fullyconv.training.train` left it.
        model: the run's best; None: read from the folder.
        data: the pictures to show and to count, with labels; None: those that the last stage was scored on.
        each: what `score_each` gives for them; None: scored now.
        rows: pictures to show for each head.

    Returns:
        the file.

    Raises:
        CheckpointError: the folder holds no run.
    """
    run = Path(run)
    recipe = Recipe.read(run / "recipe.json")
    last = recipe.stages[-1]
    device, precision = last.fit.device, last.fit.precision
    model = checkpoint.load(run) if model is None else model
    if data is None:
        val = dataset(last.data.name, last.data.root, split=last.data.val, inputs=last.data.inputs)
        data = View(val, evenly(len(val), last.fit.val_pictures))
    if each is None:
        each = score_each(model, data, device=device, precision=precision)
    predictor = Predictor(model, device=device, precision=precision)
    total = {head: sum(matrices[1:], matrices[0]) for head, matrices in each.items()}

    log, started = read_log(run), checkpoint.read_json(run / "run.json")["started"][-1]
    place = Path(last.data.root).name or last.data.name
    looks = predictor.multiscale
    sections = [
        f"<h1>{escape(recipe.name)}: {escape(last.model.backbone)} on {escape(place)}</h1>",
        *(f'<p class="lead">{escape(_summary(matrix, len(data)))}</p>' for matrix in total.values()),
        *(f'<p class="warn">{escape(line)}</p>' for line in _warnings(log)),
        *(cards(_scores(matrix)) for matrix in total.values()),
        section(
            "How it learnt",
            "The loss is what training lowers, per pixel; mean IU is the score on pictures that it did not learn from."
            + (f" It is that of one look at each; above and below it is {looks}." if looks.looks > 1 else ""),
            *(_learning(log, stage.name) for stage in recipe.stages),
        ),
    ]
    for head, matrix in total.items():
        of = "" if len(total) == 1 else f" ({head})"
        shown = _chosen(each[head], rows)
        sections += [
            section(
                f"How well it knows each class{of}",
                "IU, intersection over union: of all pixels that are this class or were called it, the share that is "
                "both. Found: of the pixels of this class, the share that was called it.",
                bars(data.classes[head], matrix),
            ),
            section(
                f"What it takes for what{of}",
                "A row for each true class; the stronger a cell, the larger the share of the row's pixels that was "
                "given the class of the column. A perfect network fills the diagonal alone. Point at a cell for its "
                "share.",
                heat_map(matrix),
            ),
            section(
                f"Pictures that it has not learnt from{of}",
                f"{len(shown)} of {len(data)}, the worst first; half of them are the worst there are. Errors are red; "
                "pixels without a true label are grey and do not count.",
                *(_row(predictor, data, head, index, each[head][index]) for index in shown),
            ),
        ]
    versions = {"command": started["command"], "started": started["at"], **started["versions"]}
    sections += [
        section("To use it", "On pictures of your own, of any size:"),
        f"<pre>fullyconv predict {escape(str(run))} PICTURES --out DIR --overlay</pre>",
        folded("Settings", settings_table(flat(recipe.model_dump(mode="json")))),
        folded("Versions and command", settings_table(versions)),
    ]
    path, beside = run / "report.html", run / ".report.html"
    with writing(path):
        # A file name need not be text; its other bytes are shown as escapes.
        beside.write_text(page(f"{recipe.name}: report", sections), encoding="utf-8", errors="backslashreplace")
        beside.replace(path)
    return path


def _summary(matrix: ConfusionMatrix, pictures: int) -> str:
    order = [k for k in np.argsort(np.nan_to_num(matrix.iu, nan=2.0), kind="stable") if not math.isnan(matrix.iu[k])]
    if not order:
        return f"None of the {pictures} pictures held out has a pixel with a true label, so there is no score."
    best, worst = matrix.classes[order[-1]], matrix.classes[order[0]]
    return (
        f"On {pictures} pictures that it has not learnt from, the network names {matrix.pixel_accuracy:.1%} of the "
        f"pixels rightly; over {len(order)} classes its areas and the true ones overlap by {matrix.mean_iu:.1%} "
        f"(mean IU). It is best at {best} ({matrix.iu[order[-1]]:.0%}) and weakest at {worst} "
        f"({matrix.iu[order[0]]:.0%})."
    )


def _scores(matrix: ConfusionMatrix) -> dict[str, str]:
    return {
        "mean IU": number(matrix.mean_iu),
        "pixel accuracy": number(matrix.pixel_accuracy),
        "mean accuracy": number(matrix.mean_accuracy),
        "frequency-weighted IU": number(matrix.fw_iu),
    }


def _warnings(log: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for event in log:
        if event["event"] == "alarm":
            yield f"{event['stage']}, step {event['step']}: {event['message']}"


def _learning(log: Sequence[Mapping[str, Any]], stage: str) -> str:
    """The two curves of a stage."""
    steps = [e for e in log if e["event"] == "step" and e["stage"] == stage and e["loss"] is not None]
    scored = [e for e in log if e["event"] == "evaluated" and e["stage"] == stage and e["mean_iu"] is not None]
    xs, ys = [float(e["step"]) for e in steps], [float(e["loss"]) for e in steps]
    # A screen has no room for more than some hundred points; each stands for its neighbours.
    many = -(-len(xs) // 400)
    thin = [fmean(ys[i : i + many]) for i in range(0, len(ys), many or 1)] if ys else []
    wide = max(1, len(thin) // 20)
    smooth = [fmean(thin[max(0, i - wide) : i + wide + 1]) for i in range(len(thin))]
    at = xs[:: many or 1]
    loss = curves(
        {"loss": (at, thin), "smoothed": (at, smooth)}, title=f"{stage}: loss per pixel", across="step", bottom=0
    )
    points = [float(e["step"]) for e in scored], [float(e["mean_iu"]) for e in scored]
    score = curves({"mean IU": points}, title=f"{stage}: mean IU on val", across="step")
    return f'<div style="display: flex; flex-wrap: wrap; gap: 1rem">{loss}{score if scored else ""}</div>'


def _chosen(matrices: Sequence[ConfusionMatrix], rows: int) -> list[int]:
    """Half of the rows the worst pictures, the rest from there to the best at even distances."""
    order = sorted((i for i, m in enumerate(matrices) if not math.isnan(m.mean_iu)), key=lambda i: matrices[i].mean_iu)
    worst, rest = order[: -(-rows // 2)], order[-(-rows // 2) :]
    count = min(len(rest), rows - len(worst))
    return worst + [rest[(i + 1) * len(rest) // count - 1] for i in range(count)]


def _row(predictor: Predictor, data: SegmentationDataset, head: str, index: int, matrix: ConfusionMatrix) -> str:
    sample, classes = data[index], data.classes[head]
    truth, found = sample.labels[head], predictor(sample.image).labels[head]
    counted = truth != classes.void
    shown = images.visible(sample.image)
    errors = (shown.mean(2, keepdims=True) * 0.5 + 96).astype(np.uint8).repeat(3, axis=2)
    errors[counted & (truth != found)] = (214, 40, 40)
    errors[~counted] = (128, 128, 128)
    pictures = [
        Picture(shown, "picture"),
        Picture(images.overlay(sample.image, truth, classes, 0.75), "truth"),
        Picture(images.overlay(sample.image, found, classes, 0.75), "prediction"),
        Picture(errors, f"errors: {1 - matrix.pixel_accuracy:.1%} of the pixels"),
    ]
    return strip(pictures, title=f"{sample.name}: mean IU {number(matrix.mean_iu)}")
