"""Packs a trained run as a release asset: the model, a card that says what it is, and check sums, in one archive.

    python release/pack.py RUN --out build --data CAMVID --weights WEIGHTS

The archive is ``fullyconv-camvid-VERSION.zip``. Equal runs give equal bytes: members are sorted and carry one date, and
paths of this machine are replaced by the names of the options. `make model` trains and packs.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fullyconv import __version__, checkpoint
from fullyconv.config import ModelConfig
from fullyconv.errors import FullyConvError
from fullyconv.records import read_json

EPOCH = (1980, 1, 1, 0, 0, 0)
"""The date of every member: the first that a zip file can hold."""
CARD = """# fullyconv-camvid {version}

A {net} for the 11 classes of street scenes of CamVid: {parameters:,} parameters. It takes RGB pictures of any size.

    fullyconv predict fullyconv-camvid-{version} PICTURES --out segmented

- **Data**: CamVid (Brostow, Shotton, Fauqueur, Cipolla, ECCV 2008; Brostow, Fauqueur, Cipolla, PRL 2009), {train}
  pictures to learn from, {val} of val. CamVid is for personal and research use only; treat the model alike.
- **Weights to start from**: {weights}.
- **Trained** for {minutes} on {device}, seed {seed}, {steps:,} steps, with fullyconv {version}:
  `{command}`
- **Scores on val**, {val} pictures at their own size, one table of counts over all: mean IU {mean_iu:.1f} %, pixel
  accuracy {pixel_accuracy:.1f} %, mean accuracy {mean_accuracy:.1f} %. The best of several scorings on val was kept,
  so expect less on pictures that chose nothing.

| class | IU, % |
|---|---|
{per_class}

`SHA256SUMS` holds the check sums of the other files: `sha256sum --check SHA256SUMS`.
"""


def anonymous(value: Any, names: Mapping[str, str]) -> Any:
    """Plain data in which paths of this machine, as they stand or within a text, are replaced by names.

    Example:
        >>> anonymous({"data": ["/home/x/camvid"]}, {"/home/x/camvid": "CAMVID"})
        {'data': ['CAMVID']}
    """
    if isinstance(value, dict):
        return {key: anonymous(each, names) for key, each in value.items()}
    if isinstance(value, list):
        return [anonymous(each, names) for each in value]
    if isinstance(value, str):
        for path in sorted(names, key=len, reverse=True):
            value = value.replace(path, names[path])
    return value


def contents(run: Path, names: Mapping[str, str]) -> dict[str, bytes]:
    """The files of the archive, by name.

    Args:
        run: a run folder of one stage, done.
        names: what stands for paths of this machine.

    Raises:
        CheckpointError: it is none, or damaged.
    """
    results, recipe, facts = (read_json(run / f"{name}.json") for name in ("results", "recipe", "run"))
    (stage,) = recipe["stages"]
    model, made = checkpoint.load(run), anonymous(checkpoint.provenance(run), names)
    assert model.config is not None
    (head,) = model.heads.values()
    model.config = ModelConfig.parse(anonymous(model.config.model_dump(mode="json"), names))
    fit, learnt = stage["fit"], facts["stages"][stage["name"]]
    budget = next(f"{fit[unit]:g} {unit}" for unit in ("minutes", "epochs", "steps") if fit[unit] is not None)
    card = CARD.format(
        version=__version__,
        net=f"fully convolutional network that predicts at stride {head.grid.stride}, on {model.config.backbone}",
        parameters=sum(p.numel() for p in model.parameters()),
        train=len(learnt["pictures"]["train"]),
        val=results["protocol"]["pictures"],
        weights="none" if model.config.weights is None else f"{model.config.weights}, an ImageNet classifier",
        minutes=budget,
        device=facts["started"][-1]["versions"]["machine"],
        seed=fit["seed"],
        steps=made["step"],
        command=made["command"],
        per_class="\n".join(
            f"| {name} | {'-' if one['iu'] is None else format(100 * one['iu'], '.1f')} |"
            for name, one in results["per_class"].items()
        ),
        **{name: 100 * results[name] for name in ("mean_iu", "pixel_accuracy", "mean_accuracy")},
    )
    with tempfile.TemporaryDirectory() as scratch:
        saved = checkpoint.save(model, Path(scratch) / "model", provenance=made)
        files = {path.name: path.read_bytes() for path in saved.iterdir()}
    files["README.md"] = card.encode()
    sums = "".join(f"{hashlib.sha256(files[name]).hexdigest()}  {name}\n" for name in sorted(files))
    return files | {"SHA256SUMS": sums.encode()}


def write_archive(path: Path, files: Mapping[str, bytes]) -> None:
    """A zip file with these members in a folder of the archive's name; equal members give equal bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}")
    with zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name in sorted(files):
            member = zipfile.ZipInfo(f"{path.stem}/{name}", EPOCH)
            member.compress_type, member.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
            archive.writestr(member, files[name])
    partial.replace(path)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run folder of fullyconv train")
    parser.add_argument("--out", type=Path, default=Path("build"), help="folder of the archive")
    parser.add_argument("--data", default="", help="the folder that was learnt from, called CAMVID in the archive")
    parser.add_argument("--weights", default="", help="the file that it started from, called WEIGHTS in the archive")
    options = parser.parse_args()
    names = {str(options.run): "RUN"}
    for given, name in ((options.data, "CAMVID"), (options.weights, "WEIGHTS")):
        if given not in ("", "none", "default"):
            names |= {given: name, str(Path(given).resolve()): name}
    try:
        files = contents(options.run, names)
    except FullyConvError as error:
        print(f"{options.run}: {error}", file=sys.stderr)
        return 2
    archive = options.out / f"fullyconv-camvid-{__version__}.zip"
    write_archive(archive, files)
    print(
        f"{archive}: {archive.stat().st_size / 1e6:.1f} MB, sha256 {hashlib.sha256(archive.read_bytes()).hexdigest()}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
