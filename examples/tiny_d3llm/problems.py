"""Synthetic grade-school word problems with worked answers that end in ``#### N``.

Every problem is drawn from a seed. Training and held-out problems never share a template with the same numbers.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

Split = Literal["train", "heldout"]
HELDOUT_SHARE = 10  # one in so many number combinations is held out

NAMES = {
    "Tom": "He", "Ben": "He", "Leo": "He", "Max": "He", "Sam": "He", "Omar": "He", "Ivan": "He", "Raj": "He",
    "Paul": "He", "Hugo": "He", "Anna": "She", "Mia": "She", "Lucy": "She", "Nina": "She", "Zoe": "She",
    "Emma": "She", "Sara": "She", "Kate": "She", "Lily": "She", "Maya": "She",
}  # fmt: skip
THINGS = (
    "apples", "pears", "cookies", "marbles", "stickers", "pencils", "books", "cards", "shells", "eggs",
    "plums", "candles", "balloons", "buttons", "muffins", "coins",
)  # fmt: skip
GOODS = ("ball", "kite", "lamp", "drum", "hat", "mug", "clock", "scarf")


@dataclass(frozen=True)
class Problem:
    """A question, its worked answer, and the numbers that decide which split it is in."""

    template: str
    numbers: tuple[int, ...]
    question: str
    answer: str
    result: int

    @property
    def split(self) -> Split:
        """Held out or not: a hash of the template and its numbers, whatever the names and things are."""
        digest = hashlib.sha256(f"{self.template}:{self.numbers}".encode()).digest()
        return "heldout" if int.from_bytes(digest[:4], "big") % HELDOUT_SHARE == 0 else "train"


@dataclass(frozen=True)
class Cast:
    """The words that fill a template."""

    name: str
    pronoun: str
    friend: str
    things: str
    other: str
    good: str


def _cast(rng: random.Random) -> Cast:
    name, friend = rng.sample(list(NAMES), 2)
    things, other = rng.sample(THINGS, 2)
    return Cast(name, NAMES[name], friend, things, other, rng.choice(GOODS))


def _boxes(rng: random.Random, c: Cast) -> Problem:
    a, b = rng.randint(2, 9), rng.randint(3, 12)
    eaten = rng.randint(1, min(a * b - 1, 30))
    total, left = a * b, a * b - eaten
    question = (
        f"{c.name} has {a} boxes with {b} {c.things} in each box. {c.pronoun} gives {eaten} {c.things} to {c.friend}. "
        f"How many {c.things} does {c.name} have left?"
    )
    answer = (
        f"{c.name} has {a} * {b} = {total} {c.things}. "
        f"After giving {eaten} away, {c.name} has {total} - {eaten} = {left} {c.things} left."
    )
    return worked_problem("boxes", (a, b, eaten), question, answer, left)


def _shop(rng: random.Random, c: Cast) -> Problem:
    a, b, price = rng.randint(2, 9), rng.randint(2, 12), rng.randint(5, 40)
    cost, total = a * b, a * b + price
    question = (
        f"{c.name} buys {a} {c.things} for ${b} each and a {c.good} for ${price}. "
        f"How much money does {c.name} spend in total?"
    )
    answer = (
        f"The {c.things} cost {a} * {b} = {cost} dollars. In total, {c.name} spends {cost} + {price} = {total} dollars."
    )
    return worked_problem("shop", (a, b, price), question, answer, total)


def _times_as_many(rng: random.Random, c: Cast) -> Problem:
    a, times, lost = rng.randint(3, 20), rng.randint(2, 6), rng.randint(1, 20)
    lost = min(lost, a * times)
    more, together = a * times, a * times + a
    left = together - lost
    question = (
        f"{c.name} has {a} {c.things}. {c.friend} has {times} times as many {c.things} as {c.name}. "
        f"Together they lose {lost} {c.things}. How many {c.things} do they have now?"
    )
    answer = (
        f"{c.friend} has {a} * {times} = {more} {c.things}. Together they have {more} + {a} = {together}. "
        f"Now they have {together} - {lost} = {left} {c.things}."
    )
    return worked_problem("times", (a, times, lost), question, answer, left)


def _give_and_find(rng: random.Random, c: Cast) -> Problem:
    a, found = rng.randint(20, 99), rng.randint(2, 60)
    given = rng.randint(2, a - 5)
    rest, now = a - given, a - given + found
    question = (
        f"{c.name} collects {c.things} and has {a} of them. {c.pronoun} gives {given} to {c.friend} and then finds "
        f"{found} more. How many {c.things} does {c.name} have now?"
    )
    answer = (
        f"After giving some to {c.friend}, {c.name} has {a} - {given} = {rest} {c.things}. "
        f"Then {c.name} finds more and has {rest} + {found} = {now} {c.things}."
    )
    return worked_problem("give", (a, given, found), question, answer, now)


def _share(rng: random.Random, c: Cast) -> Problem:
    people, each = rng.randint(2, 9), rng.randint(2, 12)
    total = people * each
    first = rng.randint(1, total - 1)
    question = (
        f"{c.name} has {first} {c.things} and {c.friend} has {total - first} {c.things}. They put them together and "
        f"share them equally among {people} children. How many {c.things} does each child get?"
    )
    answer = (
        f"Together there are {first} + {total - first} = {total} {c.things}. "
        f"Each child gets {total} / {people} = {each} {c.things}."
    )
    return worked_problem("share", (first, total, people), question, answer, each)


def _baskets(rng: random.Random, c: Cast) -> Problem:
    a, b, d, e = rng.randint(2, 9), rng.randint(2, 12), rng.randint(2, 9), rng.randint(2, 10)
    first, second = a * b, d * e
    question = (
        f"{c.name} fills {a} baskets with {b} {c.things} each and {d} bags with {e} {c.other} each. "
        f"How many {c.things} and {c.other} are there in all?"
    )
    answer = (
        f"There are {a} * {b} = {first} {c.things}. There are {d} * {e} = {second} {c.other}. "
        f"In all, there are {first} + {second} = {first + second}."
    )
    return worked_problem("baskets", (a, b, d, e), question, answer, first + second)


def _change(rng: random.Random, c: Cast) -> Problem:
    a, b, price = rng.randint(2, 9), rng.randint(2, 9), rng.randint(3, 30)
    cost = a * b
    spent = cost + price
    money = spent + rng.randint(1, 50)
    question = (
        f"{c.name} has ${money}. {c.pronoun} buys {a} {c.things} for ${b} each and a {c.good} for ${price}. "
        f"How many dollars does {c.name} have left?"
    )
    answer = (
        f"The {c.things} cost {a} * {b} = {cost} dollars. "
        f"With the {c.good}, that is {cost} + {price} = {spent} dollars. "
        f"{c.name} has {money} - {spent} = {money - spent} dollars left."
    )
    return worked_problem("change", (money, a, b, price), question, answer, money - spent)


def _ages(rng: random.Random, c: Cast) -> Problem:
    a, times, years = rng.randint(3, 15), rng.randint(2, 5), rng.randint(2, 30)
    old = a * times
    question = (
        f"{c.name} is {a} years old. {c.friend} is {times} times as old as {c.name}. "
        f"How old will {c.friend} be in {years} years?"
    )
    answer = (
        f"{c.friend} is {a} * {times} = {old} years old. "
        f"In {years} years, {c.friend} will be {old} + {years} = {old + years}."
    )
    return worked_problem("ages", (a, times, years), question, answer, old + years)


Template = Callable[[random.Random, Cast], Problem]
TEMPLATES: tuple[Template, ...] = (
    _boxes, _shop, _times_as_many, _give_and_find, _share, _baskets, _change, _ages
)  # fmt: skip


def worked_problem(template: str, numbers: tuple[int, ...], question: str, answer: str, result: int) -> Problem:
    """A problem whose answer ends in its result."""
    return Problem(template, numbers, question, f"{answer}\n#### {result}", result)


def problem_stream(seed: int, split: Split, templates: Sequence[Template] = TEMPLATES) -> Iterator[Problem]:
    """Problems of one split without end, the same ones for the same seed."""
    rng = random.Random(f"{split}:{seed}")
    while True:
        problem = rng.choice(templates)(rng, _cast(rng))
        if problem.split == split:
            yield problem


def make_problems(count: int, seed: int, split: Split, templates: Sequence[Template] = TEMPLATES) -> list[Problem]:
    """The first ``count`` problems of a stream."""
    stream = problem_stream(seed, split, templates)
    return [next(stream) for _ in range(count)]


def is_exact(text: str, problem: Problem) -> bool:
    """Whether a generated answer ends in the right result."""
    _, found, result = text.strip().rpartition("#### ")
    return bool(found) and result.strip() == str(problem.result)
