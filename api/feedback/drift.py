"""How sure a rate is, and when readers agree with a model less than they used to."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

BASELINE_VERDICTS = 50  # the first verdicts, which show how often readers disagree
MIN_VERDICTS = 20  # verdicts after them before a chart says anything
ALARM_ODDS_RATIO = 2.0  # the shift that the chart is tuned to: twice the odds of disagreement
VERDICTS_PER_FALSE_ALARM = 1000  # at least so many on average, while nothing shifts
LIMIT = math.log(VERDICTS_PER_FALSE_ALARM)
MIN_RATE, MAX_RATE = 0.02, 0.9  # a first rate of nothing or all would make one verdict an alarm


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
    """Find the interval of a share; unlike the usual formula, right for few cases and for shares near 0 and 1.

    Source: Wilson 1927, J. Am. Stat. Assoc. 22, 209; Brown, Cai, DasGupta 2001, Statist. Sci. 16, 101.

    Args:
        hits: of the cases.
        of: number of cases.
        z: 1.96 for 95 %.

    Returns:
        The share; its interval is 0..1 without cases.

    Raises:
        ValueError: not 0 <= hits <= of.
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

    verdicts: int
    expected: float | None  # disagreement that counts as unchanged; None while the first verdicts are still coming in
    values: Sequence[float]  # the chart after each verdict past the first BASELINE_VERDICTS; 0..LIMIT
    alarm_at: int | None  # the verdict, 1 for the first, at which the alarm that still holds began

    @property
    def enough(self) -> bool:
        """Whether the chart says anything yet."""
        return self.verdicts >= BASELINE_VERDICTS + MIN_VERDICTS


def cusum_chart(agrees: Sequence[bool]) -> Chart:
    """Draw a one-sided CUSUM of disagreement.

    Each verdict adds the log likelihood ratio of doubled odds of disagreement against the expected rate; the sum is
    never below 0. It alarms at LIMIT = log(VERDICTS_PER_FALSE_ALARM), which bounds the average run to a false alarm
    from below, and the alarm holds until the sum is back at 0. The expected rate is the upper end of the 80 % interval
    of the first BASELINE_VERDICTS, not their share: few verdicts estimate it badly, and too low a rate gives false
    alarms.
    Source: Page 1954, Biometrika 41, 100; Reynolds and Stoumbos 1999, J. Qual. Technol. 31, 87; the bound is that of
    Lorden 1971, Ann. Math. Statist. 42, 1897.

    Args:
        agrees: whether the reader agreed, in their order.

    Returns:
        The chart.
    """
    first, rest = agrees[:BASELINE_VERDICTS], agrees[BASELINE_VERDICTS:]
    if len(first) < BASELINE_VERDICTS:
        return Chart(len(agrees), None, [], None)
    expected = min(MAX_RATE, max(MIN_RATE, wilson(len(first) - sum(first), len(first), 1.2816).high))
    values, alarm = cusum([not one for one in rest], expected)
    return Chart(len(agrees), expected, values, None if alarm is None else BASELINE_VERDICTS + alarm)


def cusum(disagrees: Sequence[bool], expected: float) -> tuple[list[float], int | None]:
    """Add up disagreement.

    Args:
        disagrees: whether the reader disagreed, in their order.
        expected: rate of disagreement that counts as unchanged, above 0 and below 1.

    Returns:
        The sum after each verdict, and the number of the verdict, from 1, at which the alarm that holds at the end
        began; None if there is no alarm.
    """
    shifted = ALARM_ODDS_RATIO * expected / (1 - expected + ALARM_ODDS_RATIO * expected)
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
