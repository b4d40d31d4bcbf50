"""The yardstick's problems: chains of 4 to 8 steps, each of which needs the result of the one before.

A question lists facts in any order, more than are needed, and the steps look them up. A worked answer is a line per
step, which names its fact and restates its operands. Totals keep within 10 to 999, other numbers are of two or three
digits, factors of one.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence

from examples.tiny_d3llm.problems import Cast, Problem, worked_problem

LEAST, MOST = 10, 999  # of a running total
LONG_SHARE = 0.15  # of questions that list many facts which no step needs
GOODS = (
    "apples", "pears", "plums", "lamps", "drums", "hats", "mugs", "books", "pens", "eggs", "coats", "boots", "rings",
    "bells", "cakes", "ropes", "balls", "cards", "coins", "nuts", "beans", "forks",
)  # fmt: skip
PLACES = (
    "park", "mill", "school", "lake", "zoo", "bank", "port", "farm", "tower", "beach", "castle", "garden", "hall",
    "inn", "pond", "barn", "gate", "hill",
)  # fmt: skip
COLOURS = (
    "red", "blue", "green", "black", "white", "brown", "grey", "pink", "gold", "round", "tall", "old", "new", "big",
    "small", "fast", "slow",
)  # fmt: skip
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")

Fact = tuple[str, int]  # a sign of + - * and a number


class OutOfRange(ValueError):
    """A running total left LEAST..MOST: the problem is drawn again."""


def applied(total: int, fact: Fact) -> int:
    """The total after a step. Raises OutOfRange."""
    sign, number = fact
    result = {"+": total + number, "-": total - number, "*": total * number}[sign]
    if not LEAST <= result <= MOST:
        raise OutOfRange
    return result


def _step(total: int, fact: Fact) -> tuple[str, int]:
    """``a + b = c`` and c."""
    result = applied(total, fact)
    return f"{total} {fact[0]} {fact[1]} = {result}", result


def _two_digits(rng: random.Random) -> int:
    return rng.randint(11, 99)


def _chosen(rng: random.Random, words: Sequence[str], steps: int) -> tuple[list[str], list[str]]:
    """The words of the steps in order, and all words that the question lists, shuffled."""
    spare = rng.randint(0, len(words) - steps) if rng.random() < LONG_SHARE else rng.randint(1, 4)
    listed = rng.sample(words, min(steps + spare, len(words)))
    needed = listed[:steps]
    rng.shuffle(listed)
    return needed, listed


def _in_a_row(words: Sequence[str]) -> str:
    return f"{', '.join(words[:-1])} and {words[-1]}"


def _chain(template: str, start: int, question: str, lines: Iterable[str], result: int) -> Problem:
    numbers = tuple(int(word) for word in "".join(c if c.isdigit() else " " for c in question).split())
    return worked_problem(template, (start, *numbers), question, "\n".join(lines), result)


def _rooms(rng: random.Random, c: Cast) -> Problem:
    """The last digit of each total says which fact comes next."""
    start, steps = rng.randint(100, 500), rng.randint(5, 8)
    rooms: list[Fact] = [(rng.choice("+-"), _two_digits(rng)) for _ in range(10)]
    listed = rng.sample(range(10), 10)
    verbs = {"+": "has", "-": "takes"}
    facts = " ".join(f"Room {room} {verbs[rooms[room][0]]} {rooms[room][1]}." for room in listed)
    question = (
        f"{facts} {c.name} starts with {start} coins. The last digit of the coins is always the next room. "
        f"How many coins does {c.name} have after {steps} rooms?"
    )
    total, lines = start, []
    for number in range(1, steps + 1):
        room = total % 10
        sign, amount = rooms[room]
        text, total = _step(total, (sign, amount))
        lines.append(f"{number}. Room {room} {verbs[sign]} {amount}: {text}")
    return _chain("rooms", start, question, lines, total)


def _market(rng: random.Random, c: Cast) -> Problem:
    """Each step multiplies a price that was looked up, then adds or subtracts."""
    start, steps = rng.randint(200, 900), rng.randint(4, 6)
    needed, listed = _chosen(rng, GOODS, steps)
    prices = {goods: rng.randint(11, 60) for goods in listed}
    deals = [(rng.choice("+-"), rng.randint(2, 9), goods) for goods in needed]
    verbs = {"+": "sells", "-": "buys"}
    story = _in_a_row([f"{verbs[sign]} {count} {goods}" for sign, count, goods in deals])
    question = (
        f"Prices: {', '.join(f'{goods} ${price}' for goods, price in prices.items())}. "
        f"{c.name} has ${start}, then {story}. How many dollars does {c.name} have now?"
    )
    total, lines = start, []
    for sign, count, goods in deals:
        cost = count * prices[goods]
        text, total = _step(total, (sign, cost))
        lines.append(f"{verbs[sign].capitalize()} {count} {goods}: {count} * {prices[goods]} = {cost}, {text}")
    return _chain("market", start, question, lines, total)


def _bus(rng: random.Random, c: Cast) -> Problem:
    """Two operations a line, at places whose numbers were looked up."""
    start, steps = rng.randint(60, 500), rng.randint(4, 6)
    needed, listed = _chosen(rng, PLACES, steps)
    stops = {place: (_two_digits(rng), _two_digits(rng)) for place in listed}
    facts = " ".join(f"At the {place} {off} people get off and {on} get on." for place, (off, on) in stops.items())
    question = (
        f"{facts} The bus of {c.name} has {start} people and goes to the {_in_a_row(needed)}. "
        "How many people are on it then?"
    )
    total, lines = start, []
    for place in needed:
        off, on = stops[place]
        left, total = _step(total, ("-", off))
        more, total = _step(total, ("+", on))
        lines.append(f"At the {place}: {left}, {more}")
    return _chain("bus", start, question, lines, total)


def _days(rng: random.Random, c: Cast) -> Problem:
    """Which of two facts holds depends on the total so far."""
    start, steps, first = rng.randint(100, 700), rng.randint(4, 7), rng.randrange(7)
    needed = [DAYS[(first + number) % 7] for number in range(steps)]
    rules = {day: (rng.randint(100, 700), _two_digits(rng), _two_digits(rng)) for day in rng.sample(DAYS, 7)}
    total, lines = start, []
    for day in needed:
        _, less, more = rules[day]
        limit = total + rng.choice((-1, 1)) * rng.randint(3, 150)
        if not 20 <= limit <= MOST:
            raise OutOfRange
        rules[day] = (limit, less, more)
        above = total > limit
        text, result = _step(total, ("-", less) if above else ("+", more))
        lines.append(f"{day}: {total} is {'above' if above else 'below'} {limit}, so {text}")
        total = result
    told = (f"{day}: above {limit} sell {less}, below make {more}." for day, (limit, less, more) in rules.items())
    question = (
        f"{' '.join(told)} {c.name} has {start} coins and does this from {needed[0]} to {needed[-1]}. "
        "How many coins are there then?"
    )
    return _chain("days", start, question, lines, total)


def _machines(rng: random.Random, c: Cast) -> Problem:
    """Also doubles and triples the total."""
    total, steps = rng.randint(11, 200), rng.randint(5, 8)
    needed, listed = _chosen(rng, COLOURS, steps)
    facts = {colour: _machine(rng) for colour in listed}
    verbs = {"+": "adds", "-": "takes", "*": "multiplies by"}
    told = ", ".join(f"the {colour} one {verbs[sign]} {number}" for colour, (sign, number) in facts.items())
    question = f"Of the machines {told}. {c.name} puts in {total} and uses the {_in_a_row(needed)} one. What comes out?"
    start, lines = total, []
    for colour in needed:
        sign, number = facts[colour]
        text, total = _step(total, (sign, number))
        lines.append(f"The {colour} one {verbs[sign]} {number}: {text}")
    return _chain("machines", start, question, lines, total)


def _machine(rng: random.Random) -> Fact:
    sign = rng.choice("++--*")
    return sign, rng.randint(2, 3) if sign == "*" else _two_digits(rng)


def _in_range(template: Callable[[random.Random, Cast], Problem]) -> Callable[[random.Random, Cast], Problem]:
    """The template, drawn until every total is in range."""

    def drawn(rng: random.Random, c: Cast) -> Problem:
        while True:
            try:
                return template(rng, c)
            except OutOfRange:
                continue

    return drawn


CHAINS = tuple(_in_range(template) for template in (_rooms, _market, _bus, _days, _machines))
