"""The studies that a backtest replays: a CSV of what arrived, or a synthetic department."""

import csv
import json
import math
import random
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from shared.domain.findings import Assessment, Extent
from shared.domain.study import Priority
from shared.domain.worklist import PENDING, TURNAROUND_TARGETS
from shared.errors import OsteonError

COLUMNS = ("arrived_at", "priority", "class", "probability", "fracture", "reading_minutes")
DAY = 1440.0
PREVALENCE = 717 / 4083  # fractured radiographs of FracAtlas (doi:10.1038/s41597-023-02432-4)
URGENT = 0.2
READING_MINUTES, READING_SPREAD = 4.0, 0.5  # of the synthetic department: mean, and standard deviation over mean
# share of a day's studies by hour of their arrival: a morning, an afternoon, and the emergency department at night
BY_HOUR = (1, 1, 1, 1, 1, 1, 2, 4, 8, 10, 10, 9, 7, 8, 9, 8, 6, 5, 4, 3, 3, 2, 2, 1)
START = datetime(2026, 1, 5)  # noqa: DTZ001 - a Monday of no particular zone


@dataclass(frozen=True)
class Arrival:
    """One study as the list sees it."""

    at: float  # minutes since the midnight before the first arrival, by the clock on the wall
    priority: Priority
    kind: str  # its row of TURNAROUND_TARGETS once it is analysed
    probability: float | None  # of a fracture, 0..1
    fracture: bool | None  # the truth, if it is known
    reading_minutes: float | None  # None: as the backtest says for its class


def read_arrivals(path: Path) -> list[Arrival]:
    """Read arrivals in order of time; raises OsteonError naming the line that cannot be understood."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except UnicodeDecodeError:
        raise OsteonError(f"{path} is not written in UTF-8; save it as CSV UTF-8") from None
    if not rows or "arrived_at" not in rows[0]:
        raise OsteonError(f"{path} holds no arrivals: its first line must name the columns {', '.join(COLUMNS)}")
    if "class" not in rows[0] and "assessment" not in rows[0]:
        raise OsteonError(f"{path} needs a column class, or the columns assessment and severity")
    found: list[tuple[datetime, dict[str, Any]]] = []
    for number, row in enumerate(rows, start=2):
        try:
            values = {
                "priority": Priority(row.get("priority") or Priority.ROUTINE),
                "kind": _kind(row),
                "probability": _number(row.get("probability"), 1.0),
                "fracture": _truth(row.get("fracture")),
                "reading_minutes": _number(row.get("reading_minutes"), DAY),
            }
            found.append((datetime.fromisoformat(row["arrived_at"]), values))
        except (ValueError, TypeError) as error:
            raise OsteonError(f"{path}, line {number}: {error}") from None
    try:
        found.sort(key=lambda each: each[0])
    except TypeError:
        raise OsteonError(
            f"{path}: some times have a time zone and others have none; write all of them alike"
        ) from None
    midnight = found[0][0].replace(hour=0, minute=0, second=0, microsecond=0)
    return [Arrival((moment - midnight).total_seconds() / 60, **values) for moment, values in found]


def _kind(row: dict[str, str]) -> str:
    kind = (row.get("class") or "").strip()
    if not kind:
        assessment = (row.get("assessment") or "").strip()
        severe = assessment == Assessment.POSITIVE and row.get("severity") == Extent.SEVERE
        kind = "positive severe" if severe else assessment or PENDING
    if kind not in TURNAROUND_TARGETS:
        raise ValueError(f"{kind!r} is no class; there are: {', '.join(TURNAROUND_TARGETS)}")
    return kind


def _number(text: str | None, maximum: float) -> float | None:
    if not text:
        return None
    value = float(text)
    if not 0 <= value <= maximum:
        raise ValueError(f"{text} is not within 0 and {maximum:g}")
    return value


def _truth(text: str | None) -> bool | None:
    known = {"": None, "1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
    if (text or "").lower() not in known:
        raise ValueError(f"fracture is {text!r}; it must be yes, no, or empty")
    return known[(text or "").lower()]


def write_arrivals(path: Path, arrivals: Sequence[Arrival], midnight: datetime = START) -> None:
    """Write arrivals as `read_arrivals` takes them.

    Args:
        path: CSV file; one that is there is replaced.
        arrivals: in any order.
        midnight: from when their minutes count.
    """
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(COLUMNS)
        for each in arrivals:
            moment = midnight + timedelta(minutes=each.at)
            truth = "" if each.fracture is None else "yes" if each.fracture else "no"
            cells = moment.isoformat(timespec="seconds"), each.priority, each.kind, each.probability, truth
            table.writerow(["" if cell is None else cell for cell in (*cells, each.reading_minutes)])


def manifest_of(bundle: Path) -> dict[str, Any]:
    """Read the manifest in a bundle's safetensors header; raises OsteonError if the file is no bundle."""
    try:
        with bundle.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            manifest: dict[str, Any] = json.loads(json.loads(file.read(length))["__metadata__"]["manifest"])
        return manifest
    except (ValueError, KeyError, struct.error) as error:
        raise OsteonError(
            f"{bundle} is no intact Osteon model bundle; give a file that `osteon export` wrote"
        ) from error


def synthetic_arrivals(manifest: dict[str, Any], seed: int, days: int, per_day: float) -> list[Arrival]:
    """Make up a department whose studies are fractured as often as FracAtlas' and are called as the bundle calls them.

    Calls follow the sensitivities and specificities in its manifest, abstentions its share on held-out radiographs.
    Within an assessment's band of probabilities a fracture leans upwards and a sound bone downwards, evenly on the
    logit scale.

    Args:
        manifest: of a bundle, with its metrics.
        seed: the same one makes the same arrivals.
        days: how many, from midnight.
        per_day: mean number of studies a day.

    Returns:
        Arrivals in order of time.
    """
    chance = random.Random(seed)  # noqa: S311 - a simulation
    metrics = manifest["metrics"]
    points = metrics["operating_points"]
    usual = [counts for kind, counts in metrics["scope"].items() if kind.startswith("held-out") and "without" in kind]
    abstains = sum(counts["abstained"] for counts in usual) / sum(counts["images"] for counts in usual)
    # share of fractured radiographs that are called severe; + 0.5, since none among the held-out ones does not mean
    # never
    predicted = [sum(row[column] for row in metrics["severity_confusion"][1:]) + 0.5 for column in range(4)]
    severe = predicted[3] / sum(predicted)
    bands = (1e-4, manifest["sensitive"], manifest["specific"], 0.999)
    found = []
    for day in range(days):
        for hour, weight in enumerate(BY_HOUR):
            moments = _poisson(chance, per_day * weight / sum(BY_HOUR))
            for at in sorted(chance.uniform(0, 60) for _ in range(moments)):
                fracture = chance.random() < PREVALENCE
                high, low = points["specific"], points["sensitive"]
                likely = high["sensitivity"][0] if fracture else 1 - high["specificity"][0]
                possible = (low["sensitivity"][0] if fracture else 1 - low["specificity"][0]) - likely
                draw = chance.random()
                band = 2 if draw < likely else 1 if draw < likely + possible else 0
                kind = ("negative", "unclear", "positive")[band]
                if kind == "positive" and chance.random() < severe:
                    kind = "positive severe"
                if chance.random() < abstains:
                    kind = "abstained"
                lean = max if fracture else min
                probability = _between(bands[band], bands[band + 1], lean(chance.random(), chance.random()))
                urgent = chance.random() < URGENT
                spread = math.sqrt(math.log(1 + READING_SPREAD**2))
                minutes = chance.lognormvariate(math.log(READING_MINUTES) - spread**2 / 2, spread)
                at_minute = round(day * DAY + hour * 60 + at, 2)
                priority = Priority.URGENT if urgent else Priority.ROUTINE
                found.append(
                    Arrival(at_minute, priority, kind, round(probability, 4), fracture, max(0.1, round(minutes, 2)))
                )
    return found


def _between(low: float, high: float, share: float) -> float:
    """Interpolate between two probabilities on the logit scale; a share of 0 gives the low one."""
    start, end = (math.log(value / (1 - value)) for value in (low, high))
    return 1 / (1 + math.exp(-(start + share * (end - start))))


def _poisson(chance: random.Random, mean: float) -> int:
    """Draw the number of events of a Poisson process (Knuth's algorithm; fine for means to some hundreds)."""
    count, product, least = 0, chance.random(), math.exp(-mean)
    while product > least:
        count += 1
        product *= chance.random()
    return count
