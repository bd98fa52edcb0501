"""What a study finds: one table, with what it was measured on, drawn and written in one way for all studies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from textwrap import fill
from typing import Any

from fullyconv.errors import ConfigError
from fullyconv.records import write_json
from fullyconv.runs import command, versions

Value = float | str | None
"""A cell of a table: a number in its column's unit, a word, or None where there is nothing to say."""

COLOURS = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#000000", "#999999")
"""Okabe and Ito's, which the colour-blind tell apart."""


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        name: such as "mean IU".
        unit: of its numbers, "%", "ms", or "" where they are counts.
        digits: after the point.
    """

    name: str
    unit: str = "%"
    digits: int = 1

    @property
    def title(self) -> str:
        """Name and unit."""
        return f"{self.name}, {self.unit}" if self.unit else self.name

    def text(self, value: Value) -> str:
        """A value as it is printed; a dash for none.

        Example:
            >>> Column("mean IU").text(63.64), Column("steps", "", 0).text(1200), Column("mean IU").text(None)
            ('63.6', '1,200', '-')
        """
        if value is None or value != value:
            return "-"
        return value if isinstance(value, str) else f"{value:,.{self.digits}f}"


SCORES = (Column("pixel acc."), Column("mean acc."), Column("mean IU"), Column("f.w. IU"))
"""The papers' four scores; `fullyconv.metrics.ConfusionMatrix` says what they are."""


@dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes:
        name: what the numbers are of; equal names are drawn beside each other.
        values: one for each column.
        source: who published them, and where; "" for those that were measured now.
    """

    name: str
    values: Sequence[Value]
    source: str = ""


@dataclass(frozen=True)
class Panel:
    """One drawing of a figure: lines over an axis.

    Attributes:
        across, up: what the axes are, with units.
        lines: for each name its points (x, y), in order.
        logarithmic: whether x doubles where it is a step on.
    """

    across: str
    up: str
    lines: Mapping[str, Sequence[tuple[float, float]]]
    logarithmic: bool = False


@dataclass(frozen=True)
class Result:
    """What a study found.

    Attributes:
        study: its name.
        question: that it answers.
        columns: what is in each row.
        rows: what was measured now.
        published: rows that others have published, each with its source.
        paper: what the papers say to the question, in words, with the section; "" where they say nothing.
        data: which data, and which pictures of it were scored, in words.
        net: which net, and the weights that it started from, in words; "" where there is none.
        minutes: that all of it took.
        seed: of everything that was random; None where nothing was.
        notes: what a reader must know to read the table rightly: what differs from the papers, which of their orderings
            does not appear, and why.
        shown: name of the column that the figure draws as bars; "" where there are panels instead.
        panels: of the figure.
        settings: whatever else the numbers depend on, as plain data.
        command: that gave it.
        versions: of what decides a result, and the machine.

    Example:
        >>> result = Result("strides", "What does a skip bring?", SCORES[2:3], [Row("32s", [48.0])], data="1 picture")
        >>> print(result.markdown().splitlines()[6])
        | 32s | 48.0 |
    """

    study: str
    question: str
    columns: Sequence[Column]
    rows: Sequence[Row]
    published: Sequence[Row] = ()
    paper: str = ""
    data: str = ""
    net: str = ""
    minutes: float = 0.0
    seed: int | None = None
    notes: Sequence[str] = ()
    shown: str = ""
    panels: Sequence[Panel] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    command: str = field(default_factory=command)
    versions: Mapping[str, str] = field(default_factory=versions)

    def __post_init__(self) -> None:
        for row in (*self.rows, *self.published):
            assert len(row.values) == len(self.columns), f"{self.study}: row {row.name!r} has another number of values"
        assert not self.shown or self.shown in {column.name for column in self.columns}, self.shown

    @property
    def made(self) -> str:
        """How it was measured, in a line."""
        seed = "" if self.seed is None else f", seed {self.seed}"
        machine = f"{self.versions['machine']}, torch {self.versions['torch']}, fullyconv {self.versions['fullyconv']}"
        return ". ".join(part for part in (self.data, self.net, f"{self.minutes:.1f} minutes{seed}; {machine}") if part)

    def table(self) -> list[tuple[str, list[list[str]]]]:
        """The table as text: for each source of rows ("" first, what was measured) names and values."""
        sources = dict.fromkeys(row.source for row in (*self.rows, *self.published))
        return [
            (
                source,
                [
                    [row.name, *(column.text(value) for column, value in zip(self.columns, row.values, strict=True))]
                    for row in (*self.rows, *self.published)
                    if row.source == source
                ],
            )
            for source in sources
        ]

    def json(self) -> dict[str, Any]:
        """Plain data; numbers as they were measured, in the units of their columns."""

        def plain(rows: Sequence[Row]) -> list[dict[str, Any]]:
            return [
                {"name": row.name}
                | {c.title: None if v != v else v for c, v in zip(self.columns, row.values, strict=True)}
                | ({"source": row.source} if row.source else {})
                for row in rows
            ]

        return {
            "study": self.study,
            "question": self.question,
            "columns": [column.title for column in self.columns],
            "rows": plain(self.rows),
            "published": plain(self.published),
            "paper": self.paper,
            "data": self.data,
            "net": self.net,
            "minutes": round(self.minutes, 2),
            "seed": self.seed,
            "notes": list(self.notes),
            "panels": [
                {
                    "across": panel.across,
                    "up": panel.up,
                    "lines": {name: [list(point) for point in points] for name, points in panel.lines.items()},
                }
                for panel in self.panels
            ],
            "settings": dict(self.settings),
            "command": self.command,
            "versions": dict(self.versions),
        }

    def markdown(self) -> str:
        """A section for a page of results: question, command, table, notes."""
        lines = [f"## {self.question}", "", f"`{self.command}`", ""]
        lines.append(f"| {' | '.join(['', *(column.title for column in self.columns)])} |")
        lines.append(f"|{'|'.join(['---', *('---:' for _ in self.columns)])}|")
        for source, rows in self.table():
            if source:
                lines.append(f"| *{source}* |{' |' * len(self.columns)}")
            # A name must neither end its cell nor be taken for HTML.
            cells = [[escape(cell, quote=False).replace("|", "\\|") for cell in row] for row in rows]
            lines += [f"| {' | '.join(row)} |" for row in cells]
        lines += ["", f"Measured: {self.made}."]
        lines += ["", f"The papers: {self.paper}"] if self.paper else []
        lines += ["", *(f"- {note}" for note in self.notes)] if self.notes else []
        return "\n".join(lines) + "\n"

    def write(self, folder: Path) -> list[Path]:
        """Write ``NAME.json``, ``NAME.md`` and the figure ``NAME.png`` into a folder; returns their paths.

        Raises:
            ConfigError: the folder cannot be made or written to.
        """
        paths = [folder / f"{self.study}.{kind}" for kind in ("json", "md", "png")]
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_json(paths[0], self.json())
            paths[1].write_text(self.markdown(), encoding="utf-8")
            self.draw(paths[2])
        except OSError as error:
            raise ConfigError(f"{folder}: cannot be written: {error.strerror or error}", where="out") from None
        return paths

    def draw(self, path: Path) -> None:
        """Draw the figure: each panel, or one of bars of the column that is shown, the papers' beside ours."""
        import matplotlib
        from matplotlib.figure import Figure
        from matplotlib.rcsetup import cycler

        look: dict[Any, Any] = {
            "font.size": 9,
            "text.parse_math": False,
            "axes.prop_cycle": cycler(color=COLOURS),
        }
        with matplotlib.rc_context(look):
            panels = [panel for panel in self.panels if panel.lines]
            count = len(panels) + bool(self.shown)
            tall = max(3.6, 1.2 + self._bar_count() * 0.22) if self.shown else 3.6
            figure = Figure(figsize=(5.6 * max(count, 1), tall), layout="constrained")
            axes = figure.subplots(1, max(count, 1), squeeze=False)[0]
            figure.suptitle(self.question, x=0.01, ha="left", fontweight="bold", wrap=True)
            if self.shown:
                self._bars(axes[0], 70 * count)
                if self.published or self.net or self.data:
                    figure.legend(*axes[0].get_legend_handles_labels(), frameon=False, loc="outside lower left")
            # Colours of bars say who measured, those of lines what: no colour does both.
            bars = len({row.source for row in (*self.rows, *self.published)}) if self.shown else 0
            for panel, axis in zip(panels, axes[bool(self.shown) :], strict=True):
                axis.set_prop_cycle(color=COLOURS[bars:] + COLOURS[:bars])
                for name, points in panel.lines.items():
                    marker = "o" if len(points) <= 30 else ""
                    axis.plot(*zip(*points, strict=True), label=name, marker=marker, markersize=3.5)
                if panel.logarithmic:
                    axis.set_xscale("log", base=2)
                    axis.xaxis.set_major_formatter("{x:g}")
                axis.set_xlabel(panel.across)
                axis.set_ylabel(panel.up)
                axis.grid(alpha=0.2)
                axis.spines[["top", "right"]].set_visible(False)
                axis.legend(frameon=False, fontsize=9)
            figure.savefig(path, dpi=150)

    def _names(self) -> list[str]:
        return list(dict.fromkeys(row.name for row in (*self.rows, *self.published)))

    def _bar_count(self) -> int:
        """Places for bars: of each name one for each source."""
        return len(self._names()) * (1 + len({row.source for row in self.published}))

    def _bars(self, axis: Any, letters: int) -> None:
        """Draw the bars, with ``letters`` of room in a line of the legend."""
        at = next(i for i, column in enumerate(self.columns) if column.name == self.shown)
        names = self._names()
        sources = dict.fromkeys(row.source for row in (*self.rows, *self.published))
        for number, source in enumerate(sources):
            rows = [row for row in (*self.rows, *self.published) if row.source == source]
            drawn = [(row.name, value) for row in rows if isinstance(value := row.values[at], int | float)]
            thick = 0.8 / len(sources)
            places = [names.index(name) + (number - (len(sources) - 1) / 2) * thick for name, _ in drawn]
            here = "; ".join(part for part in ("measured here", self.net, self.data) if part)
            bars = axis.barh(places, [value for _, value in drawn], 0.9 * thick, label=fill(source or here, letters))
            axis.bar_label(bars, [self.columns[at].text(value) for _, value in drawn], padding=2, fontsize=8)
        axis.set_yticks(range(len(names)), names)
        axis.invert_yaxis()
        axis.set_xlabel(self.columns[at].title)
        axis.spines[["top", "right"]].set_visible(False)
