"""``fullyconv datasets``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fullyconv.commands.options import Json, output_json
from fullyconv.errors import ConfigError, DatasetError

if TYPE_CHECKING:
    from fullyconv.datasets import About

EXAMPLES = """\b
Examples:
  fullyconv datasets
  fullyconv datasets voc
  fullyconv datasets camvid --download data/camvid"""


def datasets(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="One of them only, with all of its classes.")
    ] = None,
    download: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Download NAME into this folder and unpack it there; see its licence first."),
    ] = None,
    json: Json = None,
) -> None:
    """Show the kinds of data that DATA can be.

    Of each its classes, its pictures as published, the layout of folders that is expected, its licence, and where it
    comes from. What has a published checksum is checked on download; a download that was interrupted is gone on with.
    """
    from rich.console import Console

    from fullyconv.archives import obtain
    from fullyconv.datasets import ABOUT
    from fullyconv.display import about_table, downloading
    from fullyconv.lookup import lookup

    chosen = ABOUT if name is None else {name: lookup("dataset", name, ABOUT)}
    if download is None:
        if str(json) != "-":
            for key, about in chosen.items():
                Console(soft_wrap=True).print(about_table(key, about, whole=name is not None), "")
        output_json(json, {key: _about_json(about) for key, about in chosen.items()})
        return
    if json is not None:
        raise ConfigError(
            "--json and --download: got both; --json is of what is shown; drop one of the two", where="json"
        )
    if name is None:
        raise ConfigError("--download: of which? name one, as in: fullyconv datasets voc --download DIR", where="name")
    about = chosen[name]
    if not about.archives:
        where = f"; see {about.home}" if about.home else ""
        raise DatasetError(f"{name}: nothing that can be downloaded{where}. {about.remark}")
    print(f"{about.title}: licence: {about.licence}; {about.home}", file=sys.stderr)
    with downloading() as show:
        for fetched in obtain(about.archives, download, on_progress=show):
            said = "as published" if fetched.checked else "none is published; it is recorded beside the file"
            print(f"{fetched.path}: {fetched.digest.replace(':', ' ')} ({said})")
    print(f"next:    fullyconv check {download} --dataset {name}")


def _about_json(about: About) -> dict[str, Any]:
    return {
        "title": about.title,
        "classes": {head: list(table.names) for head, table in about.classes.items()},
        "pictures": dict(about.pictures),
        "layout": about.layout.splitlines(),
        "licence": about.licence,
        "home": about.home,
        "archives": [{"url": archive.url, "digest": archive.digest or None} for archive in about.archives],
        "remark": about.remark,
    }
