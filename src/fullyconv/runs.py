"""A run folder: what was asked for, what happened, what came of it.

recipe.json        the recipe with nothing left open; `train` repeats the run from it
run.json           command, versions, machine, class tables, notes
log.jsonl          one event a line
STAGE/best, last   models; STAGE/resume while it trains; STAGE/results.json when it is done
config.json, model.safetensors, results.json    the best model of the last stage and its scores
report.html        all of it for the eye
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shlex
import shutil
import sys
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import version
from importlib.util import find_spec
from itertools import zip_longest
from pathlib import Path
from typing import Any, TextIO

from fullyconv import __version__
from fullyconv.checkpoint import load_state, read_json, refuse_others, remove, tidy, write_json
from fullyconv.config import RUN_FILES, Config, Recipe
from fullyconv.datasets import ABOUT, SegmentationDataset
from fullyconv.errors import ConfigError, FullyConvError
from fullyconv.events import Evaluated, Event, Step, as_json
from fullyconv.records import flush, writing

MAY_CHANGE = {"fit.device", "data.workers", "data.remember"}
"""Settings of a stage that may differ when a run is resumed: they say where to compute, not what. So may ``data.root``,
where the folder has moved and holds the same pictures."""


LOCK = ".lock"
"""In the folder of a run while a process learns there: which."""


class Run:
    """The folder of a run, open for writing.

    Args:
        folder: created where missing.
        recipe: what is to be trained, resolved.
        facts: of each stage by name, what the recipe does not say of its data: ``classes`` and ``pictures``, the names
            of those of train and val.
        resume: go on with the run that is there, if there is one.

    Attributes:
        folder: the folder.
        resumed: whether there was a run to go on with.

    Raises:
        ConfigError: there is a run and ``resume`` is False, or it is a run of another recipe or on other pictures; or
            there is a model, or something else that the run would replace.
        CheckpointError: the same of the folder of a model of a stage that is still to learn.
    """

    def __init__(self, folder: Path, recipe: Recipe, facts: Mapping[str, Any], *, resume: bool) -> None:
        self.folder = folder
        path = folder / "recipe.json"
        self.resumed = holds_run(folder)
        if not self.resumed and not _was_begun(folder):
            # A model, what predict has written, or somebody's own log or recipe, has files of the same names.
            for name in sorted(RUN_FILES):
                if (folder / name).exists():
                    raise ConfigError(
                        f"{folder / name}: no run has written it, and it would be replaced; choose another folder",
                        where="out",
                    )
        if self.resumed and not resume:
            raise ConfigError(f"{folder}: holds a run; resume it, or choose another folder", where="out")
        if self.resumed:
            begun, before = Recipe.read(path), _facts_of(folder)
            if _begun_with(folder) not in ("", _told(read_json(path))):
                raise ConfigError(
                    f"{path}: was changed since the run began with it, and a run goes on as it began; put it back, or "
                    "name another --out for a run with other settings",
                    where="recipe",
                )
            for where in _differences(begun, recipe, moved=_moved(begun, recipe, before)):
                raise ConfigError(
                    f"{folder}: {where} differs from the run's own recipe.json; "
                    f"fullyconv train --out {folder} --resume goes on with that; another recipe takes another folder",
                    where=where,
                )
            _refuse_other_pictures(folder, before, facts)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"{folder}: cannot be made a folder for the run: {error.strerror or error}; name another", where="out"
            ) from None
        self._boards: dict[str, Any] = {}
        self._lock = _locked(folder)
        try:
            self._begin(recipe, facts)
        except BaseException:
            self.close()
            raise

    def _begin(self, recipe: Recipe, facts: Mapping[str, Any]) -> None:
        """Tidy the folder up, and write down what is to be trained."""
        places = [self.folder / stage.name for stage in recipe.stages]
        for place in places:
            if not (place / "results.json").exists():
                for name in ("best", "last"):
                    refuse_others(place / name)  # before it learns, since the model could not be kept
        with writing(self.folder):
            for place in (self.folder, *places):
                tidy(place)
        path, plain = self.folder / "recipe.json", recipe.model_dump(mode="json")
        if not self.resumed or read_json(path) != plain:
            write_json(path, plain)  # first, since it tells whose the folder is
        self._keep(read_log(self.folder))  # without half a line, to which the next would be glued
        self._note(facts, recipe)

    def _note(self, facts: Mapping[str, Any], recipe: Recipe) -> None:
        """Write run.json: these facts, the recipe's digest, and how the run was started, each time that it was."""
        path = self.folder / "run.json"
        now = datetime.now(UTC).isoformat(timespec="seconds")
        before = read_json(path)["started"] if path.exists() else []
        started = [*before, {"at": now, "command": command(), "versions": versions()}]
        write_json(path, {"started": started, "recipe_sha256": _told(recipe.model_dump(mode="json")), "stages": facts})

    def rewind(self, stage: str) -> None:
        """Drop the events of a stage that are about to happen again."""
        resume = self.folder / stage / "resume"
        step = load_state(resume)[1]["step"] if resume.exists() else -1
        self._keep([e for e in read_log(self.folder) if e.get("stage") != stage or e["step"] <= step])

    def _keep(self, events: Sequence[Mapping[str, Any]]) -> None:
        """Make these the log."""
        path = self.folder / "log.jsonl"
        partial = path.with_name(".log.jsonl")
        with writing(path):
            partial.write_text("".join(json.dumps(event) + "\n" for event in events), encoding="utf-8")
            partial.replace(path)

    def write(self, event: Event) -> None:
        """Append one event to the log, and its numbers to TensorBoard where that is installed."""
        line = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), **as_json(event)}
        path = self.folder / "log.jsonl"
        with writing(path), path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        if isinstance(event, Step | Evaluated) and find_spec("tensorboard"):
            with writing(self.folder / "tensorboard"):
                self._show(event)

    def _show(self, event: Step | Evaluated) -> None:
        from torch.utils.tensorboard import SummaryWriter

        if event.stage not in self._boards:
            folder = self.folder / "tensorboard" / event.stage
            self._boards[event.stage] = SummaryWriter(str(folder), purge_step=event.step)
        board = self._boards[event.stage]
        if isinstance(event, Step):
            numbers = {"loss": event.loss, "lr": event.lr, "images_per_s": event.images_per_s}
        else:
            numbers = {"val/mean_iu": event.mean_iu} | {
                f"val/{head}/{name}": scores[name]
                for head, scores in event.scores.items()
                for name in ("pixel_accuracy", "mean_accuracy", "mean_iu", "fw_iu")
                if scores[name] is not None
            }
        for name, value in numbers.items():
            board.add_scalar(name, value, event.step)
        if isinstance(event, Evaluated):
            board.flush()

    def finish(self, stage: str, model: Path, results: Mapping[str, Any]) -> None:
        """Write a stage's scores, which marks it as done, and make ``model`` the run's; the resume point goes."""
        for name in ("model.safetensors", "config.json"):
            beside = self.folder / f".{name}"
            with writing(self.folder / name):
                shutil.copyfile(model / name, beside)
                flush(beside)
                beside.replace(self.folder / name)
        write_json(self.folder / "results.json", results)
        write_json(self.folder / stage / "results.json", results)
        with writing(self.folder / stage):
            remove(self.folder / stage / "resume")

    def close(self) -> None:
        """Flush what TensorBoard still holds, and let others have the folder."""
        for board in self._boards.values():
            board.close()
        self._boards.clear()
        if self._lock is not None:
            (self.folder / LOCK).unlink(missing_ok=True)
            self._lock.close()


def _locked(folder: Path) -> TextIO | None:
    """Hold the folder of a run until this process ends, or `Run.close`; None where the system has no such locks.

    Raises:
        ConfigError: another process holds it, or it cannot be written to.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        return None
    with writing(folder):
        file = (folder / LOCK).open("a+", encoding="utf-8")
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        file.seek(0)
        other = file.read().strip() or "of another machine"
        file.close()
        raise ConfigError(
            f"{folder}: process {other} learns here; wait until it ends, or name another --out", where="out"
        ) from None
    except OSError:  # a file system without locks
        file.close()
        return None
    file.truncate(0)
    file.write(f"{os.getpid()}\n")
    file.flush()
    return file


def _told(recipe: Any) -> str:
    """SHA-256 of what recipe.json settles of a run, as it stands there, without what may change while it goes on."""
    settings = flat(recipe)
    may = {*MAY_CHANGE, "data.root"}
    kept = {where: value for where, value in settings.items() if where.split(".", 2)[-1] not in may}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def _begun_with(folder: Path) -> str:
    """Digest of the recipe that a run began with; "" where it was not written down."""
    path = folder / "run.json"
    found = read_json(path).get("recipe_sha256", "") if path.exists() else ""
    return found if isinstance(found, str) else ""


def holds_run(folder: Path) -> bool:
    """Whether there is a run to go on with, or to lose: a recipe, and something that was learnt by it.

    A start that failed before, for want of weights say, leaves no run.
    """
    # A process that is killed while it replaces one leaves it under another name for a moment.
    learnt = (f"*/{name}" for name in ("resume", "last", ".resume.previous", ".last.previous"))
    return (folder / "recipe.json").exists() and any(any(folder.glob(name)) for name in learnt)


def _was_begun(folder: Path) -> bool:
    """Whether a run was begun here: its recipe has nothing left open, which nobody writes by hand."""
    try:
        plain = read_json(folder / "recipe.json")
        return bool(Recipe.parse(plain).model_dump(mode="json") == plain)
    except FullyConvError:
        return False


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The events of a run; lines that a crash or a full disk has cut off are left out."""
    path = folder / "log.jsonl"
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n") if path.exists() else []
    events = []
    for line in lines:
        with suppress(ValueError):
            events.append(json.loads(line))
    return [event for event in events if isinstance(event, dict)]


def command() -> str:
    """The command line of this process."""
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])


def versions() -> dict[str, str]:
    """Versions of all that decides a result, and the machine."""
    packages = ("torch", "torchvision", "timm", "numpy", "pillow")
    return {
        "fullyconv": __version__,
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
    }


def _differences(before: Config, now: Config, *, moved: Collection[str]) -> list[str]:
    """Dotted paths of settings that differ, but for ``moved`` and those of `MAY_CHANGE`."""
    old, new = flat(before.model_dump(mode="json")), flat(now.model_dump(mode="json"))
    differ = sorted(where for where in old.keys() | new.keys() if old.get(where) != new.get(where))
    # A preprocessing that a run did not record is what its weights tell of, as it was then.
    unset = tuple(where for where, value in old.items() if value is None and where.endswith(".input"))
    told = tuple(f"{where}." for where in unset)
    differ = [where for where in differ if where not in unset and not where.startswith(told)]
    return [where for where in differ if where not in moved and where.split(".", 2)[-1] not in MAY_CHANGE]


def _moved(before: Recipe, now: Recipe, facts: Mapping[str, Any]) -> set[str]:
    """Dotted paths of the folders of data that may have moved: the run has recorded which pictures they held.

    Names are all that is compared, so folders that were two stay two: they may hold the same names in two sizes.
    """
    roots = [(old.data.root, new.data.root) for old, new in zip(before.stages, now.stages, strict=False)]
    if not len(set(roots)) == len({old for old, _ in roots}) == len({new for _, new in roots}):
        return set()
    return {
        f"stages.{number}.data.root"
        for number, stage in enumerate(now.stages)
        if "pictures" in facts.get(stage.name, {}) and Path(stage.data.root).exists()
    }


def _facts_of(folder: Path) -> Mapping[str, Any]:
    """What a run has recorded of the data of each stage."""
    path = folder / "run.json"
    facts: Mapping[str, Any] = read_json(path).get("stages", {}) if path.exists() else {}
    return facts


def learnt_before(model: Path, data: SegmentationDataset) -> list[str]:
    """The pictures of a published data set that the run of a model has learnt, by name, in the order of the data set.

    SBD and VOC, say, share pictures. In folders of one's own equal names say nothing, and of a model that is in no run
    nothing is known: then there are none.

    Args:
        model: the folder of a run, or of a model in it.
        data: what it is to be scored on.
    """
    folder = next((place for place in (model, *model.absolute().parents[:2]) if (place / "run.json").is_file()), None)
    if folder is None or data.name not in ABOUT or not ABOUT[data.name].home:
        return []
    try:
        facts, stages = _facts_of(folder), Recipe.read(folder / "recipe.json").stages
    except FullyConvError:  # a model can be scored without the record of its run
        return []
    learnt: set[str] = set()
    for stage in stages:
        if stage.data.name in ABOUT and ABOUT[stage.data.name].home:
            learnt.update(facts.get(stage.name, {}).get("pictures", {}).get("train", ()))
    return [name for name in data.names if name in learnt]


def _refuse_other_pictures(folder: Path, before: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    """Refuse to go on with a run on pictures that are not those, by name and order, with which it began.

    Raises:
        ConfigError: they are others, or their classes are.
    """
    for stage, now in facts.items():
        then = before.get(stage, {})
        for split, old in then.get("pictures", {}).items():
            new = now["pictures"][split]
            if old == new:
                continue
            gone, more = (sorted(set(some) - set(others)) for some, others in ((old, new), (new, old)))
            example = f"{gone[0]!r} is missing" if gone else f"{more[0]!r} is new" if more else "their order is another"
            raise ConfigError(
                f"{folder}: began with {len(old)} pictures of {split} and would go on with {len(new)}: {example}; "
                "resume with the same pictures, or choose another folder",
                where="data",
            )
        for head, table in then.get("classes", {}).items():
            old, new = (some.get("entries", ()) for some in (table, now["classes"].get(head, {})))
            for place, (was, is_now) in enumerate(zip_longest(old, new)):
                if was != is_now:
                    raise ConfigError(
                        f"{folder}: began with another table of classes of head {head!r}: entry {place} was "
                        f"{_spelled(was)} and is {_spelled(is_now)}; resume with the same table, or choose another "
                        "folder",
                        where="data",
                    )


def _spelled(entry: Mapping[str, Any] | None) -> str:
    """One line of a table of classes, in words."""
    if entry is None:
        return "none"
    return f"{entry['name']!r}, id {entry['id']}, colour {entry['colour']}{', ignored' * entry['ignore']}"


def flat(settings: Any, prefix: str = "") -> dict[str, Any]:
    """Nested settings by their dotted paths.

    Example:
        >>> flat({"fit": {"lr": 0.1}, "sizes": [3, 5]})
        {'fit.lr': 0.1, 'sizes.0': 3, 'sizes.1': 5}
    """
    if isinstance(settings, dict):
        items = list(settings.items())
    elif isinstance(settings, list):
        items = list(enumerate(settings))
    else:
        return {prefix: settings}
    dot = f"{prefix}." if prefix else ""
    return {path: leaf for name, value in items for path, leaf in flat(value, f"{dot}{name}").items()}
