"""Which contexts a plane has: products of features, each named by the features' names with spaces between them."""

from __future__ import annotations

from budgetopt.packing.layout import Plane

REDUCED = 4  # neighbours are reduced to at most so many values; a capital letter is a neighbour as it is

# name → (channels back, rows down, columns right) of a neighbour; `a` and `b` are replaced by what `Parents` finds
NEIGHBOURS = {
    "w": (0, 0, -1),
    "n": (0, -1, 0),
    "nw": (0, -1, -1),
    "ne": (0, -1, 1),
    "ww": (0, 0, -2),
    "nn": (0, -2, 0),
    "nne": (0, -2, 1),
    "nww": (0, -1, -2),
    "nnw": (0, -2, -1),
    "www": (0, 0, -3),
    "nnn": (0, -3, 0),
    "p": (1, 0, 0),
    "pw": (1, 0, -1),
    "pn": (1, -1, 0),
    "pe": (1, 0, 1),
    "ps": (1, 1, 0),
    "q": (2, 0, 0),
    "qw": (2, 0, -1),
    "qn": (2, -1, 0),
    "a": (1, 0, 0),
    "b": (2, 0, 0),
}
MIRRORED = {"mirror": 0, "mirror_e": -1, "mirror_w": 1}  # columns right of the same row's opposite cell

FOUR = "w n ne nw"
SIX = FOUR + " ww nn"
MIRROR = "mirror mirror_e mirror_w w n ne half"

COLUMNS = [
    "one",
    "a",
    "class",
    "ch",
    "ch class",
    "ch P",
    "ch P q",
    "ch A",
    "ch A b",
    "ch A class",
    "a b p",
    "ch P q class",
    "ch A b class",
]
TWO_LEVELS = [
    "pos class",
    "pos w n",
    "pos class w n",
    FOUR + " p ch",
    SIX + " p ch",
    FOUR + " class",
    SIX + " nne nww nnw www",
    FOUR + " nww nne www nnw nnn",
    "area class " + FOUR,
]
FEW_LEVELS = [
    "pos class",
    "pos w n",
    "pos class w n",
    FOUR + " p ch",
    SIX + " p ch",
    FOUR + " class",
    SIX + " nne",
    SIX + " class",
    FOUR + " nww nne",
    "area class " + FOUR,
]
MANY_LEVELS = [
    "pos class",
    "pos w n",
    "ch N w",
    FOUR,
    FOUR + " class",
    SIX + " ch",
    "row class w n",
    "area class w n ne",
]
COLOUR = [
    "ch P Q w",
    "ch P pw w",
    "ch P pn n",
    "ch p pw pn w n",
    "ch p pw pn pe ps w n",
    "ch p q w n nw ne",
]


def context_names(plane: Plane, levels: int, hint: bool, under: bool) -> list[str]:
    """The contexts of a plane. `hint`: a hint is given; `under`: another plane was coded before."""
    single = plane.height * plane.width == 1
    if single:
        names = list(COLUMNS)
    elif levels > REDUCED:
        names = [*MANY_LEVELS, "ch W N" if levels <= 16 else "ch W n", *["ch P w"] * (plane.channels > 1)]
    else:
        names = list(TWO_LEVELS if levels == 2 else FEW_LEVELS)
        if plane.channels > 1:
            names.remove("pos class w n")
            names.append("ch p q pw pn pe ps w n nw ne")
        else:
            names += ["row class " + FOUR, "col class " + FOUR]
    if not single and plane.channels > 1:
        names += COLOUR
    elif not single and plane.width > 3:
        names += ["class " + MIRROR] + [MIRROR] * (levels <= REDUCED)
    if hint:
        names += ["hint ch", "hint ch class a"] if single else ["hint ch", "hint ch w n"]
    if under:
        names += ["under ch a"] if single else ["under ch", "under ch w n"]
    return names


def selector_names(plane: Plane, levels: int) -> list[str]:
    """What chooses the set of weights of each mixer."""
    if plane.height * plane.width == 1:
        return ["one", "class", "a p"]
    if plane.channels > 1:
        return ["class ch", "p w n ch", "stripe"]
    return ["class", FOUR if levels == 2 else "w n ne", "stripe"]
