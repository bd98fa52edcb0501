"""The command line: the verbs of `fullyconv.commands` under one name, and how a run ends.

Nothing but typer is imported until a command runs, so that ``--help`` answers at once. Help is printed plain: rich
alone would take longer to load than all the rest.
"""

from __future__ import annotations

import signal
import sys
import threading
from typing import Annotated

import typer

from fullyconv import __version__
from fullyconv.commands import check, convert, datasets, demo, evaluate, explain, hha, info, predict, study, train, tune
from fullyconv.errors import FullyConvError

app = typer.Typer(
    name="fullyconv",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="""\b
Three commands from a folder of labelled pictures to segmented ones:
  fullyconv check DATA
  fullyconv train DATA --out runs/x
  fullyconv predict runs/x PICTURES --out segmented""",
)


def main(args: list[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 1 done in part, 2 a user's error (one line on stderr), 130 Ctrl-C."""
    before = None
    if threading.current_thread() is threading.main_thread():
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # whoever ends us wants what Ctrl-C does
    try:
        app(args, prog_name="fullyconv")
    except FullyConvError as error:
        print(f"fullyconv: error: {error}", file=sys.stderr)
        sys.exit(2)
    except (MemoryError, RuntimeError) as error:
        from fullyconv.devices import out_of_memory

        if not out_of_memory(error):
            raise
        print("fullyconv: error: memory ran out; give it more, or smaller pictures", file=sys.stderr)
        sys.exit(2)
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"fullyconv {__version__}")
        raise typer.Exit


@app.callback(help="Fully convolutional networks: from any classifier and a labelled folder to segmented pictures.")
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None: ...


app.command(epilog=train.EXAMPLES)(train.train)
app.command(epilog=predict.EXAMPLES)(predict.predict)
app.command(epilog=evaluate.EXAMPLES)(evaluate.evaluate)
app.command(epilog=check.EXAMPLES)(check.check)
app.command(epilog=explain.EXAMPLES)(explain.explain)
app.command(epilog=convert.EXAMPLES)(convert.convert)
app.command(epilog=demo.EXAMPLES)(demo.demo)
app.command(epilog=tune.EXAMPLES)(tune.tune)
app.command()(info.info)
app.command(epilog=datasets.EXAMPLES)(datasets.datasets)
app.command(epilog=hha.EXAMPLES)(hha.hha)
app.add_typer(study.app, name="study")
