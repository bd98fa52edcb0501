"""What the commands show while they work and when they are done. Progress goes to stderr, results to stdout."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console, Group
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table
from rich.text import Text

from fullyconv.archives import Archive
from fullyconv.config import Published
from fullyconv.datasets.base import About
from fullyconv.events import Alarm, Evaluated, Event, Said, Saved, Step
from fullyconv.findings import KINDS, Finding

if TYPE_CHECKING:
    from fullyconv.studies.base import Result

LINE_EVERY_S = 30.0
"""How often a line is printed where there is no terminal to draw a bar on."""
SCORES = (
    ("pixel_accuracy", "pixel acc."),
    ("mean_accuracy", "mean acc."),
    ("mean_iu", "mean IU"),
    ("fw_iu", "f.w. IU"),
)
"""The papers' four scores, and what they are called in tables."""


def duration(seconds: float) -> str:
    """A length of time as people say it.

    Example:
        >>> duration(75), duration(7300)
        ('1:15', '2:01:40')
    """
    minutes, s = divmod(round(max(seconds, 0)), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02}:{s:02}" if hours else f"{m}:{s:02}"


class TrainingDisplay:
    """Shows training events: one live line on a terminal, a line now and then elsewhere. Pass it as ``on_event``."""

    def __init__(self) -> None:
        self.console = Console(stderr=True, highlight=False)
        self.progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:>3.0f} %  {task.fields[state]}", markup=False),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self.tasks: dict[str, Any] = {}
        self.mean_iu = ""
        self._line_due = time.monotonic() + LINE_EVERY_S

    def __enter__(self) -> Self:
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.stop()

    def __call__(self, event: Event) -> None:
        """Show one event."""
        match event:
            case Step():
                self._step(event)
            case Evaluated():
                self.mean_iu = f"  val mean IU {event.mean_iu:.1%}".replace("%", " %")
                self._say(
                    f"{event.stage}  step {event.step}{self.mean_iu}{', the best so far' if event.best else ''}",
                    "green" if event.best else "",
                )
            case Alarm():
                self._say(f"alarm: {event.message}", "bold red")
            case Said():
                self._say(event.message, "dim")
            case Saved():
                pass  # said once at the end, by the command

    def _step(self, step: Step) -> None:
        task = self.tasks.get(step.stage)
        if task is None:
            task = self.tasks[step.stage] = self.progress.add_task(step.stage, total=1.0, state="")
            self.mean_iu = ""
        stalls = step.seconds_waiting > 0.1 * step.seconds
        waits = f"  {step.seconds_waiting / step.seconds:.0%} waiting for pictures" if stalls else ""
        state = (
            f"step {step.step}  loss {step.loss:.3f} a pixel  {step.images_per_s:.1f} images/s{waits}"
            f"{self.mean_iu}  {duration(step.seconds_left)} left"
        )
        self.progress.update(task, completed=step.progress, state=state)
        if not self.console.is_terminal and time.monotonic() >= self._line_due:
            self._line_due = time.monotonic() + LINE_EVERY_S
            self._say(f"{step.stage}  {step.progress:.0%}  {state}".replace("%", " %"), "")

    def _say(self, message: str, style: str) -> None:
        self.console.print(Text(message, style=style), soft_wrap=True)


@contextmanager
def counting(what: str, total: int | None) -> Iterator[Progress]:
    """A bar on stderr that counts things; its first task is the count, ``progress.advance(progress.task_ids[0])``.

    None where stderr is no terminal, so that nothing but what went wrong lies in a log.
    """
    console = Console(stderr=True, highlight=False)
    progress = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=32),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )
    with progress:
        progress.add_task(what, total=total)
        yield progress


@contextmanager
def checking(splits: Mapping[str, Sized]) -> Iterator[Callable[[str, int, int], None]]:
    """A bar on stderr for each split that is looked through; what is given is called with it, and its counts."""
    with counting("checking", sum(map(len, splits.values()))) as progress:
        before: dict[str, int] = {}

        def show(split: str, done: int, total: int) -> None:
            before[split] = done
            progress.update(progress.task_ids[0], description=f"checking {split}", completed=sum(before.values()))

        yield show


PRINTED = 10
"""Findings of a kind that are printed; files hold all."""


def print_findings(console: Console, findings: Mapping[str, Sequence[Finding]]) -> None:
    """Findings by kind, each kind with what it would do to training and how to mend it.

    Args:
        console: to print to.
        findings: of each split.
    """
    found = [(split, finding) for split, of_split in findings.items() for finding in of_split]
    for kind, said in KINDS.items():
        those = [(split, finding) for split, finding in found if finding.kind == kind]
        for split, finding in those[:PRINTED]:
            line = f"{finding.severity}: {split}: {finding.detail}"
            console.print(line, markup=False, highlight=False, soft_wrap=True)
        if len(those) > PRINTED:
            console.print(
                f"... and {len(those) - PRINTED} more of kind {kind} (--json and --html have all)", markup=False
            )
        if those:
            advice = f"  {kind}: it would do: {said.effect}; what to do: {said.mend}"
            console.print(advice, style="dim", markup=False, highlight=False, soft_wrap=True)
    if found:
        errors = sum(finding.severity == "error" for _, finding in found)
        console.print(f"{errors} errors, {len(found) - errors} warnings", highlight=False)


def percent(value: float | None) -> str:
    """A share of 0..1 in percent; a dash for none.

    Example:
        >>> percent(0.684), percent(None)
        ('68.4', '-')
    """
    return "-" if value is None or value != value else f"{100 * value:.1f}"


def scores_table(results: Mapping[str, Any], title: str) -> Table:
    """The four scores and those of each class, in percent."""
    table = Table(title=title, title_justify="left", caption_justify="left")
    table.add_column("class")
    for column in ("IU", "accuracy", "share of truth"):
        table.add_column(column, justify="right")
    pixels = sum(one["pixels"] for one in results["per_class"].values()) or 1
    for name, one in results["per_class"].items():
        share = one["pixels"] / pixels
        table.add_row(Text(name), percent(one["iu"]), percent(one["accuracy"]), percent(share))
    table.add_section()
    table.add_row("mean", percent(results["mean_iu"]), percent(results["mean_accuracy"]), "")
    absent = f"; not in the truth, so left out: {', '.join(results['absent'])}" if results["absent"] else ""
    table.caption = (
        f"mean IU {percent(results['mean_iu'])}, frequency-weighted IU {percent(results['fw_iu'])}, "
        f"pixel accuracy {percent(results['pixel_accuracy'])}, mean accuracy {percent(results['mean_accuracy'])} (%)"
        f"{absent}"
    )
    return table


def published_table(published: Sequence[Published], results: Mapping[str, Any]) -> Table:
    """What others have published for a recipe, and what this run has reached, in percent.

    Args:
        published: of the recipe.
        results: of the run, as `fullyconv.evaluation.results` gives them.
    """
    table = Table(title="published, and this run", title_justify="left", caption_justify="left")
    table.add_column("scores, %")
    for _, column in SCORES:
        table.add_column(column, justify="right")
    protocol = results["protocol"]
    heads = results.get("heads", {"out": results})
    for head in dict.fromkeys(entry.head for entry in published):
        label = f"{head}: " if len(heads) > 1 else ""
        for entry in published:
            if entry.head == head:
                table.add_row(Text(f"{label}{entry.source}"), *(percent(getattr(entry, score)) for score, _ in SCORES))
        # A model of one head has its scores at the top, whatever the head is called.
        own = heads.get(head, results if len(heads) == 1 else {})
        said = f"{label}this run, {protocol['split']}, {protocol['pictures']} pictures"
        table.add_row(Text(said, style="bold"), *(percent(own.get(score)) for score, _ in SCORES))
        table.add_section()
    if protocol["pictures"] < protocol["pictures_of_split"]:
        table.caption = f"scored on {protocol['pictures']} of the {protocol['pictures_of_split']} pictures of the split"
    return table


def study_table(result: Result) -> Group:
    """What a study has measured, and the published rows below it, whose sources the lines after them name."""
    table = Table()  # with neither title nor caption, which it would wrap to its own width
    table.add_column("", no_wrap=True)
    for column in result.columns:
        table.add_column(column.title, justify="right")
    said = [f"{result.made}."]
    for number, (source, rows) in enumerate(result.table()):
        if source:
            table.add_section()
            said.append(f"[{number}] {source}")
        for name, *values in rows:
            row = Text(f"{name} [{number}]", "dim") if source else Text(name, "bold")
            table.add_row(row, *(Text(value) for value in values))
    said += [f"The papers: {result.paper}"] if result.paper else []
    return Group(Text(result.question, "italic"), table, Text("\n".join((*said, *result.notes)), "dim"))


def counts_table(pixels: Mapping[str, int], void: int, title: str) -> Table:
    """How often each class occurs."""
    table = Table(title=title, title_justify="left")
    table.add_column("class")
    table.add_column("pixels", justify="right")
    table.add_column("share, %", justify="right")
    total = sum(pixels.values()) or 1
    for name, count in pixels.items():
        table.add_row(Text(name), f"{count:,}", percent(count / total))
    table.add_section()
    table.add_row("void", f"{void:,}", "")
    return table


def about_table(name: str, about: About, *, whole: bool) -> Table:
    """What there is to say of a kind of data: a line for each thing, under its name.

    Args:
        name: that it is opened by.
        about: what is known of it.
        whole: whether all classes are named, or the first few.
    """
    table = Table.grid(padding=(0, 2))
    table.title, table.title_justify = Text(f"{name}: {about.title}", style="bold"), "left"
    table.add_column(style="dim", width=11)
    table.add_column(overflow="fold")
    for head, classes in about.classes.items():
        shown = classes.names if whole else classes.names[:5]
        names = ", ".join(shown) + (", ..." if len(shown) < len(classes) else "")
        table.add_row("classes", Text(f"{len(classes)}{f' ({head})' if len(about.classes) > 1 else ''}: {names}"))
    if about.pictures:
        table.add_row("pictures", Text(", ".join(f"{split} {count:,}" for split, count in about.pictures.items())))
    table.add_row("layout", Text(about.layout))
    table.add_row("licence", Text(about.licence))
    if about.home:
        table.add_row("from", Text(about.home))
    if about.archives:
        files = ", ".join(
            f"{archive.name} ({archive.digest.partition(':')[0] or 'no checksum published'})"
            for archive in about.archives
        )
        table.add_row("download", Text(f"fullyconv datasets {name} --download DIR: {files}"))
    if about.remark:
        table.add_row("mind", Text(about.remark))
    return table


@contextmanager
def downloading() -> Iterator[Callable[[Archive, int, int | None], None]]:
    """Bars on stderr, one for each archive; what is given is called with the archive, its bytes so far, and all."""
    console = Console(stderr=True, highlight=False)
    progress = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=32),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )
    tasks: dict[str, TaskID] = {}

    def show(archive: Archive, done: int, total: int | None) -> None:
        if archive.url not in tasks:
            tasks[archive.url] = progress.add_task(archive.name, total=None)
        progress.update(tasks[archive.url], completed=done, total=total)

    with progress:
        yield show
