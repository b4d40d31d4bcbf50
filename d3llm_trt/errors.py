"""Every error this package raises on purpose: one line that names the value, what is allowed and the fix."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class D3llmError(Exception):
    """Base of all errors raised on purpose by d3llm_trt."""


class ConfigError(D3llmError, ValueError):
    """A setting has a value that is not allowed, or an unknown key was given."""


class CheckpointError(D3llmError, ValueError):
    """A checkpoint directory cannot be read as a d3LLM checkpoint."""


class BuildError(D3llmError, RuntimeError):
    """An engine could not be built; nothing was published."""


class EngineError(D3llmError, RuntimeError):
    """An engine is missing, damaged, foreign, closed or broken, or does not fit this machine."""


class RequestError(D3llmError, ValueError):
    """One request is not acceptable; other requests are not affected."""


class PluginError(D3llmError, RuntimeError):
    """The compiled kernels are missing, of another version, or refused what they were called with."""


@contextmanager
def only_this_request(problem: str) -> Iterator[None]:
    """Turn whatever is raised inside into the RequestError of one request, also the panic of a native library.

    Errors raised on purpose stay as they are, and so does what ends a thread or the process.
    """
    try:
        yield
    except (D3llmError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        raise RequestError(f"{problem}: {type(error).__name__}: {error}") from error
