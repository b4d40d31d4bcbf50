"""The text of an answer while it grows."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from d3llm_trt.tokenizer import Tokenizer

REPLACEMENT = "\ufffd"


class IncrementalText:
    """Text of a growing list of ids, decoded piece by piece; holds back a character that is not complete yet."""

    def __init__(self, tokenizer: Tokenizer, skip_special_tokens: bool = True) -> None:
        self._decode = partial(tokenizer.decode, skip_special_tokens=skip_special_tokens)
        self._restart()

    def _restart(self) -> None:
        self._ids: list[int] = []
        self._text = ""
        self._done = 0  # ids[:_done] are in _text
        self._context = 0  # decoders that treat a text's start differently see ids from here on again

    def update(self, ids: Sequence[int], final: bool = False) -> str:
        """The text of ``ids``, all of it if ``final``. Cheap if ``ids`` begin with the ids of the call before."""
        if list(ids[: len(self._ids)]) != self._ids:
            self._restart()
        self._ids = list(ids)
        before = self._decode(self._ids[self._context : self._done])
        new = self._decode(self._ids[self._context :])[len(before) :]
        if new and not new.endswith(REPLACEMENT):
            self._text += new
            self._context, self._done = self._done, len(self._ids)
            return self._text
        return self._text + (new if final else new.rstrip(REPLACEMENT))
