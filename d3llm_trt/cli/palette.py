"""How passes are coloured and tokens are shown: the same in the live view and in traces."""

from __future__ import annotations

Colour = tuple[int, int, int]

# Dark violet to yellow with even steps in lightness, so that it also reads in grey and for the colour-blind.
ANCHORS: tuple[Colour, ...] = ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37))
_VISIBLE = {"\n": "⏎", "\r": "␍", "\t": "⇥", " ": "␣"}


def pass_colour(step: int, last: int) -> Colour:
    """The colour of pass ``step`` of ``last``; the first pass is the darkest."""
    share = min(max((step - 1) / max(last - 1, 1), 0.0), 1.0) * (len(ANCHORS) - 1)
    low = min(int(share), len(ANCHORS) - 2)
    red, green, blue = (
        round(start + (end - start) * (share - low)) for start, end in zip(ANCHORS[low], ANCHORS[low + 1], strict=True)
    )
    return red, green, blue


def hex_colour(colour: Colour) -> str:
    """``#rrggbb``."""
    return "#{:02x}{:02x}{:02x}".format(*colour)


def ink_on(colour: Colour) -> str:
    """Black or white, whichever reads better on ``colour``."""
    red, green, blue = colour
    return "#000000" if 0.299 * red + 0.587 * green + 0.114 * blue > 115 else "#ffffff"


def printable(text: str, keep: str = "") -> str:
    """``text`` with every space and control character made visible, except the characters in ``keep``."""
    return "".join(char if char in keep else _VISIBLE.get(char) or _escaped(char) for char in text)


def _escaped(char: str) -> str:
    return char if char.isprintable() else char.encode("unicode_escape").decode("ascii")
