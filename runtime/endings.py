"""What ends an answer: ids, and strings in its text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from d3llm_trt.runtime.decoding.sampling_params import SamplingParams
from d3llm_trt.tokenizer import Tokenizer

StopReason = str | int | None


@dataclass(frozen=True)
class Endings:
    """What ends one request's answer.

    Args:
        ids: those that end it, with the stop reason that is told; None for the checkpoint's own end.
        end_of_turn: the id behind which the text never goes on, if there is one.
        strings: those that end it where they stand in its text.
        mixed: those that hold special tokens beside text, so that they stand only in the text that shows them.
        beginnings: the text in each of ``mixed`` before its first special token.
    """

    ids: Mapping[int, StopReason]
    end_of_turn: int | None
    strings: tuple[str, ...]
    mixed: tuple[str, ...]
    beginnings: tuple[str, ...]

    @classmethod
    def of(cls, params: SamplingParams, end_ids: Sequence[int], tokenizer: Tokenizer | None) -> Endings:
        """The endings of a request that ``end_ids`` end; stop strings that are special tokens become ids."""
        ids: dict[int, StopReason] = {i: i if i in params.stop_token_ids else None for i in end_ids}
        strings, mixed, beginnings, end_of_turn = list[str](), list[str](), list[str](), None
        for text in params.stop_strings:
            token_id = None if tokenizer is None else tokenizer.id_of(text)
            begin = len(text) if tokenizer is None else tokenizer.first_special(text)
            if token_id is not None:
                ids[token_id] = text
            elif begin < len(text) and params.skip_special_tokens:
                mixed.append(text)
                beginnings.append(text[:begin])
            else:
                strings.append(text)
        if not params.ignore_eos and tokenizer is not None:
            end_of_turn = tokenizer.end_of_turn_id
        return cls(ids, end_of_turn, tuple(strings), tuple(mixed), tuple(beginnings))

    def first_id(self, ids: Sequence[int]) -> int | None:
        """Where the first id that ends the answer stands."""
        return next((index for index, token_id in enumerate(ids) if token_id in self.ids), None)

    def first_turn(self, ids: Sequence[int]) -> int | None:
        """Where the first turn ends."""
        return next((index for index, token_id in enumerate(ids) if token_id == self.end_of_turn), None)

    def held_back(self, text: str) -> int:
        """How many characters at the end of ``text`` may become a string that ends the answer."""
        sizes = [_overlap(text, stop, len(stop) - 1) for stop in self.strings]
        return max(sizes + [_overlap(text, part, len(part)) for part in self.beginnings], default=0)


def first_of(strings: Sequence[str], text: str) -> tuple[int, str] | None:
    """Where the first of ``strings`` begins in ``text``, and which it is."""
    places = [(at, string) for string in strings if (at := text.find(string)) >= 0]
    return min(places, key=lambda place: place[0], default=None)


def _overlap(text: str, stop: str, most: int) -> int:
    """Length of the longest end of ``text``, up to ``most``, that begins ``stop``."""
    return next((size for size in range(min(most, len(text)), 0, -1) if text.endswith(stop[:size])), 0)
