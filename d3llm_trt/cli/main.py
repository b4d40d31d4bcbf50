"""The command line, ``d3llm-trt COMMAND``; heavy modules load in the commands."""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import click

from d3llm_trt.cli.bench import bench
from d3llm_trt.cli.build import build
from d3llm_trt.cli.cache import cache
from d3llm_trt.cli.chat import chat
from d3llm_trt.cli.generate import generate
from d3llm_trt.cli.log import LEVELS, logging_to_standard_error
from d3llm_trt.cli.options import BAD_INPUT, CLOSED_PIPE, INTERRUPTED, PATH
from d3llm_trt.cli.streams import escape_what_does_not_fit, write_error
from d3llm_trt.cli.triton import triton
from d3llm_trt.errors import ConfigError, D3llmError
from d3llm_trt.termination import tidy_end
from d3llm_trt.version import __version__
from d3llm_trt.write_errors import cause_and_advice

STDERR = 2  # the number of its descriptor, the highest of the three


class OneLineErrors(click.Group):
    """A group whose commands end with one line and an exit code, never a traceback, on anything a user can cause."""

    def main(self, args: Sequence[str] | None = None, prog_name: str | None = None, **extra: Any) -> NoReturn:  # type: ignore[override]
        """Run and exit. Usage errors of click become one line too."""
        try:
            _check_streams()
            escape_what_does_not_fit()
            with tidy_end(), warnings.catch_warnings():
                warnings.showwarning = _show_warning
                code = super().main(args, prog_name, **{**extra, "standalone_mode": False})
            sys.stdout.flush()
        except BrokenPipeError:
            code = _closed_pipe()
        except OSError as error:
            code = _failed_output(error)
        except RecursionError:
            code = _fail("the input is nested too deeply")
        except click.exceptions.NoArgsIsHelpError as error:
            error.show()
            code = BAD_INPUT
        except click.UsageError as error:
            code = _fail(error.format_message() + (f" (see {error.ctx.command_path} --help)" if error.ctx else ""))
        except click.ClickException as error:
            code = _fail(error.format_message())
        except D3llmError as error:
            code = _fail(str(error))
        except click.Abort:
            code = INTERRUPTED
        sys.exit(code if isinstance(code, int) else 0)

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; before click's own handling of a closed pipe."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            return _closed_pipe()


def _check_streams() -> None:
    """Raise ConfigError if nobody can see what is printed.

    No stream's number is left free first: the next file that is opened would get it, and libraries print into that.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= STDERR:
        pass
    os.close(descriptor)
    if sys.stdout is None:
        raise ConfigError("standard output is closed, so no result could be seen; send it somewhere, as in > /dev/null")


def _closed_pipe() -> int:
    """Whoever read our output has gone: leave nothing that the interpreter would flush into the pipe."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return CLOSED_PIPE


def _failed_output(error: OSError) -> int:
    """A file or stream of the user's that cannot be used: a full disk, a name that is too long."""
    if error.filename is None:
        code = _fail(f"output: {cause_and_advice(error, 'send it somewhere else')}")
    else:
        code = _fail(f"{error.filename}: {error.strerror or error}")
    with contextlib.suppress(OSError):
        _closed_pipe()  # what could not be written would be tried again at exit
    return code


def _show_warning(message: Warning | str, *where: Any, **more: Any) -> None:
    click.echo("warning: " + " ".join(str(message).split()), err=True)


def _fail(message: str) -> int:
    write_error(message)
    return BAD_INPUT


def main() -> NoReturn:
    """Run the command line and exit."""
    cli.main(prog_name="d3llm-trt")


@click.group(cls=OneLineErrors, context_settings={"show_default": True, "help_option_names": ["-h", "--help"]})
@click.version_option(__version__, "--version", prog_name="d3llm-trt")
@click.option(
    "--log-level",
    type=click.Choice(LEVELS, case_sensitive=False),
    envvar="D3LLM_TRT_LOG_LEVEL",
    show_envvar=True,
    show_default="warnings that no command reports itself",
    help="What is logged to standard error: where an engine is cached, what is captured, what was refused.",
)
@click.pass_context
def cli(ctx: click.Context, log_level: str | None) -> None:
    """Compiled engines and a fast unmasking loop for d3LLM diffusion language models."""
    ctx.with_resource(logging_to_standard_error(log_level))


@cli.command()
@click.argument("path", type=PATH)
@click.option("--verify", is_flag=True, help="Read every file of an engine and compare its checksum.")
@click.option("--layers", is_flag=True, help="Every layer of a plan too, by TensorRT's inspector; needs a GPU.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def inspect(path: Path, verify: bool, layers: bool, as_json: bool) -> None:
    """Say what the engine or checkpoint directory PATH holds."""
    from d3llm_trt.cli.inspect import inspect_path, layer_facts, print_facts

    facts = inspect_path(path, verify)
    if layers:
        facts["layers"] = layer_facts(path)
    print_facts(facts, as_json)


for command in (bench, build, cache, chat, generate, triton):
    cli.add_command(command)
