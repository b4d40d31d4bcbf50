"""The yardstick's problems: chains of 4 to 8 steps, each of which needs the result of the one before.

A question lists facts in any order, more than are needed, and the steps look them up. A worked answer is a line per
step, which names its fact and restates its operands. Totals keep within 10 to 999, other numbers are of two or three
digits, factors of one.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from examples.tiny_d3llm.problems import Cast, Problem, Template, worked_problem

LEAST, MOST = 10, 999  # of a running total
NEAREST = 10  # distance of a limit from the total that is compared with it
LONG_SHARE, MANY = 0.1, 14  # a share of the questions lists many facts which no step needs
GOODS = (
    "apples", "pears", "plums", "lamps", "drums", "hats", "mugs", "books", "pens", "eggs", "coats", "boots", "rings",
    "bells", "cakes", "ropes", "balls", "cards", "coins", "nuts", "beans", "forks",
)  # fmt: skip
PLACES = (
    "park", "mill", "school", "lake", "zoo", "bank", "port", "farm", "tower", "beach", "castle", "garden", "hall",
    "inn", "pond", "barn", "gate", "hill",
)  # fmt: skip
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
ROUNDS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth")
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")

Fact = tuple[str, int]  # a sign of + - * and a number
Chain = Callable[[random.Random, Cast, int, int], Problem]  # of so many steps, and facts that none of them needs


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


def _chosen(rng: random.Random, words: Sequence[str], steps: int, spare: int) -> tuple[list[str], list[str]]:
    """The words of the steps in order, and all words that the question lists, shuffled."""
    listed = rng.sample(words, min(steps + spare, len(words)))
    needed = listed[:steps]
    rng.shuffle(listed)
    return needed, listed


def _in_a_row(words: Sequence[str]) -> str:
    return " and ".join(part for part in (", ".join(words[:-1]), words[-1]) if part)


def _chain(template: str, start: int, question: str, lines: Iterable[str], result: int) -> Problem:
    numbers = tuple(int(word) for word in "".join(c if c.isdigit() else " " for c in question).split())
    return worked_problem(template, (start, *numbers), question, "\n".join(lines), result)


def _rooms(rng: random.Random, c: Cast, steps: int, spare: int) -> Problem:
    """The last digit of each total says which fact comes next."""
    start = total = rng.randint(100, 500)
    rooms: list[Fact] = [(rng.choice("+-"), _two_digits(rng)) for _ in range(10)]
    verbs = {"+": "has", "-": "takes"}
    told = [f"Room {DIGITS[room]} {verbs[sign]} {amount}" for room, (sign, amount) in enumerate(rooms)]
    lines, visited = [], []
    for number in range(1, steps + 1):
        visited.append(total % 10)
        text, total = _step(total, rooms[visited[-1]])
        lines.append(f"{number}. {told[visited[-1]]}: {text}")
    listed = sorted(set(visited)) + [room for room in rng.sample(range(10), 10) if room not in visited][:spare]
    question = (
        f"{' '.join(f'{told[room]}.' for room in rng.sample(listed, len(listed)))} {c.name} starts with {start} coins. "
        f"The last digit of the coins is always the next room. "
        f"How many coins does {c.name} have after {DIGITS[steps]} rooms?"
    )
    return _chain("rooms", start, question, lines, total)


def _market(rng: random.Random, c: Cast, steps: int, spare: int) -> Problem:
    """Each step multiplies a price that was looked up, then adds or subtracts."""
    start = rng.randint(200, 900)
    needed, listed = _chosen(rng, GOODS, steps, spare)
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


def _bus(rng: random.Random, c: Cast, steps: int, spare: int) -> Problem:
    """Two operations a line, at places whose numbers were looked up."""
    start = rng.randint(60, 500)
    needed, listed = _chosen(rng, PLACES, steps, spare)
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


def _days(rng: random.Random, c: Cast, steps: int, spare: int) -> Problem:
    """Which of two facts holds depends on the total so far."""
    start, first = rng.randint(100, 700), rng.randrange(7)
    week = [DAYS[(first + number) % 7] for number in range(min(steps + spare, 7))]
    needed = week[:steps]
    rules = {day: (rng.randint(100, 700), _two_digits(rng), _two_digits(rng)) for day in rng.sample(week, len(week))}
    total, lines = start, []
    for day in needed:
        _, less, more = rules[day]
        limit = total + rng.choice((-1, 1)) * rng.randint(NEAREST, 150)
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


def _rounds(rng: random.Random, c: Cast, steps: int, spare: int) -> Problem:
    """Also doubles and triples the total."""
    start = rng.randint(11, 200)
    rounds = [_round(rng) for _ in range(min(steps + spare, len(ROUNDS)))]
    verbs = {"+": "adds", "-": "takes", "*": "multiplies by"}
    told = [f"The {ROUNDS[at]} round {verbs[sign]} {number}" for at, (sign, number) in enumerate(rounds)]
    facts = " ".join(f"{text}." for text in rng.sample(told, len(told)))
    question = (
        f"{facts} {c.name} has {start} points before the first round and stops after the {ROUNDS[steps - 1]} round. "
        f"How many points does {c.name} have then?"
    )
    total, lines = start, []
    for text, fact in zip(told[:steps], rounds, strict=False):
        step, total = _step(total, fact)
        lines.append(f"{text}: {step}")
    return _chain("rounds", start, question, lines, total)


def _round(rng: random.Random) -> Fact:
    sign = rng.choice("++--*")
    return sign, rng.randint(2, 3) if sign == "*" else _two_digits(rng)


def _full(template: Chain, least: int, most: int) -> Template:
    """Problems of ``least`` to ``most`` steps, among facts that no step needs."""

    def sizes(rng: random.Random) -> tuple[int, int]:
        return rng.randint(least, most), MANY if rng.random() < LONG_SHARE else rng.randint(1, 4)

    return partial(_in_range, template, sizes)


def _short(template: Chain) -> Template:
    """Exercises of 1 to 3 steps, from which looking up is learned sooner."""
    return partial(_in_range, template, lambda rng: (rng.randint(1, 3), rng.randint(0, 2)))


def _in_range(
    template: Chain, sizes: Callable[[random.Random], tuple[int, int]], rng: random.Random, c: Cast
) -> Problem:
    """A problem of the template, drawn until every total is in range."""
    while True:
        try:
            return template(rng, c, *sizes(rng))
        except OutOfRange:
            continue


CHAINS: tuple[Template, ...] = (
    _full(_rooms, 5, 8), _full(_market, 4, 6), _full(_bus, 4, 6), _full(_days, 4, 7), _full(_rounds, 5, 8)
)  # fmt: skip
EXERCISES: tuple[Template, ...] = tuple(_short(template) for template in (_rooms, _market, _bus, _days, _rounds))
