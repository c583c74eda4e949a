"""The largest set that fits: few packings, since each one costs up to a second."""

from __future__ import annotations

from collections.abc import Callable

STRETCH = 8  # the most by which a guess may exceed what is known to fit: nothing much larger is ever packed


def largest_fitting(size: Callable[[int], int], limit: float, least: int, most: int, slack: float = 0.0) -> int | None:
    """The largest m in least … most with size(m) ≤ limit; None if size(least) is above it. With `slack`, an m that
    leaves at most that share of the limit is good enough.

    Sizes grow nearly linearly with m, so the next guess is on the line through the last that fits and the first that
    does not (before one is known, through the origin); every third guess bisects, which bounds the number of calls by
    3·log2(most). Where sizes are not monotone, it is an m that fits and whose successor does not.
    """
    below, at_least = least, size(least)
    if at_least > limit:
        return None
    above, at_above = most + 1, 0.0  # `above` does not fit; its size is unknown while 0
    for attempt in range(1, 4 * most.bit_length() + 4):
        if above - below <= 1 or (slack and at_least >= (1.0 - slack) * limit):
            break
        if not at_above:
            guess = min(int(below * min(STRETCH, limit / max(1, at_least))), most)
        elif attempt % 3:
            guess = below + int((above - below) * (limit - at_least) / (at_above - at_least))
        else:
            guess = (below + above) // 2
        guess = min(above - 1, max(below + 1, guess))
        found = size(guess)
        if found <= limit:
            below, at_least = guess, found
        else:
            above, at_above = guess, float(found)
    return below
