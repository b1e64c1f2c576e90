"""How sure a rate is, and when readers agree with a model less than they used to."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

BASELINE = 50  # the first answers, which tell how often readers disagree
LEAST = 20  # answers after them before a chart says anything
ODDS = 2.0  # the shift that the chart is tuned to: twice the odds of disagreement
ANSWERS_PER_FALSE_ALARM = 1000  # at least so many on average, while nothing shifts
LIMIT = math.log(ANSWERS_PER_FALSE_ALARM)
LEAST_RATE, MOST_RATE = 0.02, 0.9  # a first rate of nothing or all would make one answer an alarm


@dataclass(frozen=True)
class Rate:
    """A share with its 95 % interval."""

    hits: int
    of: int
    low: float
    high: float

    @property
    def share(self) -> float | None:
        """Hits / of, None where there is nothing."""
        return self.hits / self.of if self.of else None


def wilson(hits: int, of: int, z: float = 1.96) -> Rate:
    """A share's interval; z: 1.96 for 95 %. Right for few cases and for shares near 0 and 1, unlike the usual formula.

    Raises ValueError unless 0 <= hits <= of. Without cases the interval is 0..1.
    Source: Wilson 1927, J. Am. Stat. Assoc. 22, 209; Brown, Cai, DasGupta 2001, Statist. Sci. 16, 101.
    """
    if not 0 <= hits <= of:
        raise ValueError(f"{hits} of {of} is no share")
    if of == 0:
        return Rate(0, 0, 0.0, 1.0)
    share, spread = hits / of, z * z / of
    centre = (share + spread / 2) / (1 + spread)
    half = z * math.sqrt(share * (1 - share) / of + spread / (4 * of)) / (1 + spread)
    return Rate(hits, of, max(0.0, min(centre - half, share)), min(1.0, max(centre + half, share)))


@dataclass(frozen=True)
class Chart:
    """A control chart of one bundle in one region or on one scanner."""

    answers: int
    expected: float | None  # disagreement that counts as unchanged; None while the first answers are still coming in
    values: Sequence[float]  # the chart after each answer past the first BASELINE; 0..LIMIT
    alarm_at: int | None  # the answer, 1 for the first, at which the alarm that still holds began

    @property
    def enough(self) -> bool:
        """Whether the chart says anything yet."""
        return self.answers >= BASELINE + LEAST


def chart(agrees: Sequence[bool]) -> Chart:
    """A one-sided CUSUM of disagreement, answer by answer; agrees: in order of answering.

    Each answer adds the log likelihood ratio of doubled odds of disagreement against the expected rate; the sum is
    never below 0. It alarms at LIMIT = log(ANSWERS_PER_FALSE_ALARM), which bounds the average run to a false alarm from
    below, and the alarm holds until the sum is back at 0. The expected rate is the upper end of the 80 % interval of
    the first BASELINE answers, not their share: few answers know it badly, and one expected too low cries wolf.
    Source: Page 1954, Biometrika 41, 100; Reynolds and Stoumbos 1999, J. Qual. Technol. 31, 87; the bound is that of
    Lorden 1971, Ann. Math. Statist. 42, 1897.
    """
    first, rest = agrees[:BASELINE], agrees[BASELINE:]
    if len(first) < BASELINE:
        return Chart(len(agrees), None, [], None)
    expected = min(MOST_RATE, max(LEAST_RATE, wilson(len(first) - sum(first), len(first), 1.2816).high))
    values, alarm = cusum([not one for one in rest], expected)
    return Chart(len(agrees), expected, values, None if alarm is None else BASELINE + alarm)


def cusum(disagrees: Sequence[bool], expected: float) -> tuple[list[float], int | None]:
    """The sums after each answer, and the answer at which the alarm that still holds at the end began, if one does."""
    shifted = ODDS * expected / (1 - expected + ODDS * expected)
    up, down = math.log(shifted / expected), math.log((1 - shifted) / (1 - expected))
    total, alarm, values = 0.0, None, []
    for place, disagreed in enumerate(disagrees, start=1):
        total = min(LIMIT, max(0.0, total + (up if disagreed else down)))
        if total >= LIMIT and alarm is None:
            alarm = place
        elif total == 0:
            alarm = None
        values.append(total)
    return values, alarm
