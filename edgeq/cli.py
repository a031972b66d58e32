"""The command line: `edgeq`.

Exit status: 0 done and verified; 1 verification failed; 2 the user must change something; 130
interrupted. A failure prints one message on standard error, and a traceback only with --debug.
"""

import os
import signal
import sys
import traceback
from collections.abc import Sequence
from types import FrameType
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

import edgeq
from edgeq.commands import check, compile, inspect, models, names, sensitivity, trajectories
from edgeq.errors import EdgeqError


class _Signal:
    """The last signal that asked this process to stop; None until one comes."""

    number: int | None = None


class Commands(TyperGroup):
    """All commands; turns what goes wrong in one into a message and an exit status."""

    def invoke(self, ctx: Any) -> Any:  # noqa: ANN401  # typer's own signature, its classes private
        """Run the command.

        Raises:
            typer.Exit: With the exit status, when the command failed.
        """
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as interrupt:
            what = next(iter(interrupt.args), "nothing was written")
            _fail(f"interrupted; {what}", 130)
        except EdgeqError as error:
            _fail_if_stopped()
            _show_traceback(ctx)
            _fail(str(error), error.exit_status)
        except BrokenPipeError:
            # `edgeq inspect MODEL | head`: nobody reads on. Nothing more may be written at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            raise typer.Exit(0) from None
        except MemoryError:
            _show_traceback(ctx)
            _fail("out of memory: use fewer samples or a smaller model", 2)
        except Exception as error:  # the last resort: no user shall meet a traceback
            # Usage errors and typer.Exit print and exit by themselves.
            if isinstance(error, typer.Exit | typer.Abort) or hasattr(error, "show"):
                raise
            _fail_if_stopped()
            _show_traceback(ctx)
            text = str(error).strip().splitlines()
            what = f"{type(error).__name__}: {text[0]}" if text else type(error).__name__
            _fail(f"edgeq failed unexpectedly ({what}); run it again with --debug and report it", 2)


def _fail(message: str, status: int) -> NoReturn:
    # Names of a model may hold what a terminal obeys.
    text = "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in message)
    print(f"error: {text}", file=sys.stderr)
    raise typer.Exit(status)


def _fail_if_stopped() -> None:
    # A signal during the import of a C extension, say, comes out as an ImportError.
    if _Signal.number is not None:
        _fail("interrupted; nothing was written", 128 + _Signal.number)


def _show_traceback(ctx: Any) -> None:  # noqa: ANN401  # typer's context is private
    if ctx.params.get("debug"):
        traceback.print_exc()


app = typer.Typer(
    cls=Commands,
    name="edgeq",
    help="Quantize a float model for an edge device, and prove that its bits are the same there.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"edgeq {edgeq.__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show tracebacks; may stand behind the command too.")
    ] = False,
) -> None:
    """Quantize a float model for an edge device, and prove that its bits are the same there."""


app.command("compile")(compile.command)
app.command("export")(models.export)
app.command("check")(check.command)
app.command("simulate")(models.simulate)
app.command("compare")(models.compare)
app.command("sensitivity")(sensitivity.command)
app.command("inspect")(inspect.command)
app.command("lint")(models.lint)
app.add_typer(trajectories.app, name="trajectories")
app.command("targets")(names.targets)
app.command("recipes")(names.recipes)
app.command("passes")(names.passes)


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    # As an exception, so that folders half written are removed on the way out.
    _Signal.number = number
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + number)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; the entry point of `edgeq` and `python -m edgeq`."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    end = given.index("--") if "--" in given else len(given)
    if "--debug" in given[:end]:
        given = ["--debug", *(a for i, a in enumerate(given) if i > end or a != "--debug")]
    signal.signal(signal.SIGTERM, _stop)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not where it is ignored
        signal.signal(signal.SIGINT, _stop)
    # MODULE:FACTORY names a module of the folder that the user is in.
    sys.path.append(os.getcwd())  # noqa: PTH109  # a text is what sys.path holds
    try:
        app(given, prog_name="edgeq")
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        sys.exit(130)
