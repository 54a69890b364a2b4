"""The table of commands, and what an error or an interruption becomes."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from typing import Any

from cyclopts import App, CycloptsError, MissingArgumentError, UnknownOptionError

from secateur import __version__

COMMANDS = {
    "prune": "Prune MODEL, or what a recipe file says, into a folder that transformers loads.",
    "generate": "Make a calibration set only.",
    "evaluate": "Measure a model; a pruned one is compared with its dense model.",
    "inspect": "Say what a folder or a model is: sparsity, pattern, calibration data, provenance.",
    "profile": "Say what calibration sets are like, before anything is pruned.",
    "export": "Write a calibration set for other tools.",
    "import": "Make a calibration set of token ids from elsewhere.",
    "recommend": "Rank sources of calibration data for a model, before anything is pruned.",
    "mix": "Find the weights of a mixture of calibration sources by trials.",
    "study": "Run a study: prune and evaluate every cell of its axes with every seed, and answer its question.",
    "report": "Make one page of what studies found.",
    "check": "Check a recipe against its model and say what it would do, without doing it.",
    "ls": "List methods, sources, filters, selections, styles, engines, allocations, recipes, studies, tasks, or runs.",
    "demo": "The main job on the bundled model or on MODEL, offline, as one table.",
}

PLACES = {"inspect": "inspect:inspect_", "import": "import_:import_"}
"""Commands whose file or function cannot bear their name."""

app = App(
    name="secateur",
    help="Prune language models with calibration data that the model writes itself.",
    version=__version__,
    help_flags=["--help", "-h"],
    version_flags=["--version"],
    suppress_keyboard_interrupt=False,
)
for _name, _help in COMMANDS.items():
    app.command(f"secateur.cli.{PLACES.get(_name, f'{_name}:{_name}')}", name=_name, help=_help)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0 done, 1 the answer is bad, 2 misuse, 130 interrupted, 143 terminated."""
    from secateur.cli.console import print_error
    from secateur.errors import SecateurError

    try:
        code = app(
            list(sys.argv[1:] if arguments is None else arguments),
            exit_on_error=False,
            print_error=False,
            result_action="return_value",
        )
        return code if isinstance(code, int) else 0
    except CycloptsError as error:
        print_error(misuse(error))
        return 2
    except SecateurError as error:
        print_error(str(error))
        return error.exit_code
    except KeyboardInterrupt as error:
        terminated = isinstance(error, Terminated)
        said = "Terminated" if terminated else "Interrupted"
        print_error(f"{said}. What is finished is kept: run the same command again to go on from there.")
        return 143 if terminated else 130
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        print_error(f"{error.filename or 'The operating system'}: {error.strerror or error}.")
        return 2


def misuse(error: CycloptsError) -> str:
    """What was wrong with the arguments, as a sentence."""
    error.verbose = False
    said, command = str(error), " ".join(["secateur", *(error.command_chain or ())])
    # Not its subclasses: they say how many values an option takes.
    if type(error) is MissingArgumentError and error.argument is not None and not error.argument.tokens:
        if error.keyword is None:
            return f"`{command}` needs {_shown(error.argument)}: `{command} --help` shows how."
    elif isinstance(error, UnknownOptionError) and any("--set" in one.names for one in error.argument_collection):
        option = error.token.keyword or error.token.value
        if paths := _settings(option):
            uses = " or ".join(f"--set {path}=VALUE" for path in paths)
            return f"Unknown option: {option}. It is a value of the recipe: use {uses}."
    return said


def _shown(argument: Any) -> str:
    """What the help calls an argument: NAME for one that is told by its place, else its option."""
    positional = argument.field_info.is_positional and argument.index is not None
    return argument.name.lstrip("-").upper() if positional else argument.name


def _settings(option: str) -> list[str]:
    """The values of a recipe whose last name is that of an option that does not exist."""
    from secateur.pipeline.recipe_file import known_paths

    name = option.lstrip("-").partition("=")[0].replace("-", "_")
    known = known_paths()
    groups = {path.rpartition(".")[0] for path in known}
    return [path for path in known if path.rpartition(".")[2] == name and path not in groups]


class Terminated(KeyboardInterrupt):
    """A job scheduler's SIGTERM: as Ctrl-C, so that workers end, locks go and costs are noted."""


def _terminate(signum: int, frame: Any) -> None:
    raise Terminated


def entry() -> None:
    signal.signal(signal.SIGTERM, _terminate)
    sys.exit(main())
