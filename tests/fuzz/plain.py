"""Many calls quickly, from Python's own random numbers: Hypothesis takes as long to draw a call as the call takes.

It is no match for Hypothesis in finding and shrinking, so few calls are drawn by that and very many by this.
"""

import random

from tests.fuzz.strategies import call


def drawn(seed):
    """A source of whole numbers for :func:`call`, and the list of what it gave."""
    generator, given = random.Random(seed), []

    def integer(low, high):
        given.append(generator.randint(low, high))
        return given[-1]

    return integer, given


def replayed(numbers):
    """The same source again; where the list ends or does not fit, the simplest number that does."""
    rest = iter(numbers)

    def integer(low, high):
        return min(max(next(rest, 0), low), high)

    return integer


def smaller(numbers, fails):
    """The numbers, each as near to 0 as it can be while ``fails`` holds."""
    before = None
    while numbers != before:
        before = numbers
        for place in range(len(numbers)):
            for value in (0, numbers[place] // 2, numbers[place] - 1):
                changed = [*numbers[:place], value, *numbers[place + 1 :]]
                if 0 <= value < numbers[place] and fails(changed):
                    numbers = changed
                    break
    return numbers


def run(cases, check, first_seed, emulated=False):
    """``cases`` calls; of one that fails, AssertionError with its seed and the smallest call that fails like it."""
    for seed in range(first_seed * 1_000_000, first_seed * 1_000_000 + cases):
        integer, numbers = drawn(seed)
        case = call(integer, emulated)
        try:
            check(case)
        except Exception as error:
            small = call(replayed(smaller(numbers, _fails_like(error, check, emulated))), emulated)
            raise AssertionError(f"seed {seed} failed; the smallest call that fails like it: {small!r}") from error


def _fails_like(error, check, emulated):
    def fails(numbers):
        try:
            check(call(replayed(numbers), emulated))
        except type(error):
            return True
        except Exception:  # noqa: BLE001  another failure: not what is looked for
            return False
        return False

    return fails
