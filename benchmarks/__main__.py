"""`python -m benchmarks NAME [NAME...] [--quick] [--check] [--json] [--write FILE]`."""

import argparse
import functools
import importlib
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from benchmarks.check import check, exit_code, table
from benchmarks.measure import MissingRequirement, Result, Say
from benchmarks.report import in_words, machine, render
from shared.settings import ROOT

# Each is a module beside this one with `run(quick: bool, say: Say) -> Result`, and this line is what --help says of it.
BENCHMARKS = {
    "worker": "stored radiographs to rows, against what the cores could do if they never waited: at least 0.9",
    "naive_baseline": "the same radiographs through a worker as it is usually written: at least 5 times",
    "predict": "osteon predict on 500 radiographs, its start included, to a warm worker's pace: at least 0.85",
    "peers": "ready squares through our batcher, against LitServe with the same model: at least as fast",
    "urgent": "an urgent study beside 10,000 routine ones, less its time in an idle system: p95 at most 2 batch times",
    "backfill": "what reruns of a backfill run add to the wait of a live study: at most 1 batch time",
    "fairness": "routine never behind backlog, nothing starves behind urgent studies, no queue flooded with messages",
    "memory": "resident memory of a worker over 20,000 radiographs: flat within 5 %",
    "control_plane": "studies/s with an instant model, to a bare Celery application's: at least 0.6, flat to 100,000",
    "upload": "radiographs to the API until the receipt says stored, against an S3 client's put of them: at least 0.7",
    "dicom_in": "C-STORE, against dcmtk's storescp: at least 0.7; STOW-RS, to Orthanc's: 1.5; QIDO-RS to look-ups: 5",
    "arrival": "a study's first C-STORE byte to its last result in Orthanc, by Orthanc's clock: p95 at most 60 s",
    "worklist": "a page among 1,000,000 studies, first, deep, filtered, against one study by its key: p95, at most 5",
    "viewer": "a reader's click to the picture, in a real browser: at most 300 ms",
    "reading": "from Done to the next study's first image: at most 150 ms; to all its pixels: 500 ms; memory flat",
    "heatmap": "the network that says where, against the same one that does not: share of forward time, at most 3 %",
}
ALL = "all"
MISSING = 3  # exit code: what the benchmark needs is not on this machine
LIMIT_S, QUICK_LIMIT_S = 3600.0, 600.0  # of one benchmark; many times what any takes


def measure(name: str, quick: bool, say: Say) -> Result:  # noqa: FBT001 - one signature for all
    """Run one benchmark in this process.

    Args:
        name: a key of BENCHMARKS.
        quick: the small form.
        say: is called with a line of progress.

    Returns:
        What it found.

    Raises:
        MissingRequirement: Something that it needs is not on this machine.
    """
    result: Result = importlib.import_module(f"benchmarks.{name}").run(quick, say)
    return result


def _in_own_process(name: str, quick: bool) -> Result:  # noqa: FBT001 - as measure
    """Run one benchmark in a process of its own, so that what it leaves in memory does not slow the next.

    Raises MissingRequirement, or RuntimeError when it failed; its words stand on stderr.
    """
    command = [sys.executable, "-m", "benchmarks", name, "--json", *(["--quick"] if quick else [])]
    limit_s = QUICK_LIMIT_S if quick else LIMIT_S
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, timeout=limit_s, check=False)
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"it did not end within {limit_s:.0f} s") from error
    if done.returncode == MISSING:
        raise MissingRequirement(json.loads(done.stdout)["missing"])
    if done.returncode:
        raise RuntimeError(f"it ended with exit code {done.returncode}")
    return Result.from_json(json.loads(done.stdout))


def _parser() -> argparse.ArgumentParser:
    lines = [f"  {name:<14}{about}" for name, about in {**BENCHMARKS, ALL: "every one of them"}.items()]
    parser = argparse.ArgumentParser(
        "python -m benchmarks",
        description="Measure Osteon against what it could be at best; every ratio is taken within one run.",
        epilog="benchmarks:\n" + "\n".join(lines),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="+", metavar="NAME", help="which to run, one after the other")
    parser.add_argument(
        "--quick", action="store_true", help="smaller: under a minute each on two idle cores; a wider spread"
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="as --quick, and again (three times at most) what is not certain; then one table, and exit code 1 where a "
        "goal is certainly missed",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object a line for each benchmark")
    parser.add_argument("--write", type=Path, metavar="FILE", help="also write a report, as benchmarks/RESULTS.md is")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the named benchmarks; return 1 if one failed to run, or with --check if a goal is missed."""
    parser = _parser()
    given = parser.parse_args(arguments)
    names = list(BENCHMARKS) if ALL in given.names else list(dict.fromkeys(given.names))
    unknown = [name for name in names if name not in BENCHMARKS]
    if unknown:
        _refuse(parser, f"there is no benchmark {', '.join(unknown)}; there are {', '.join([*BENCHMARKS, ALL])}")
    if given.check and given.write:
        _refuse(parser, "--write takes what --check does not measure: leave one of them out")
    if given.check:
        return _check(names, as_json=given.json)
    if len(names) > 1:
        return _all(names, given)
    try:
        result = measure(names[0], given.quick, _say)
    except MissingRequirement as error:
        _say(f"{names[0]} cannot be run here: {error}")
        if given.json:
            print(json.dumps({"name": names[0], "missing": str(error)}))
        return MISSING
    print(_result_text(result, as_json=given.json), flush=True)
    if given.write:
        given.write.write_text(render([result], {}))
    return 0


def _all(names: Sequence[str], given: argparse.Namespace) -> int:
    """Run one after the other, each in a process of its own."""
    results: list[Result] = []
    failed: dict[str, str] = {}
    for name in names:
        try:
            result = _in_own_process(name, given.quick)
        except Exception as error:  # noqa: BLE001 - the others are to be run all the same
            failed[name] = str(error)
            _say(f"{name} failed: {error}")
        else:
            results.append(result)
            print(_result_text(result, as_json=given.json), flush=True)
        if given.write:  # after each: an hour's run may be cut short
            given.write.write_text(render(results, failed))
    return 1 if failed else 0


def _check(names: Sequence[str], *, as_json: bool) -> int:
    checked = []
    for name in names:
        _say(f"{name}: {BENCHMARKS[name]}")
        checked.append(check(name, functools.partial(_in_own_process, name, quick=True)))
    if as_json:
        for one in checked:
            print(json.dumps(one.as_json() | {"machine": machine()}))
    else:
        print(f"machine: {in_words()}\n\n{table(checked)}")
    return exit_code(checked)


def _result_text(result: Result, *, as_json: bool) -> str:
    if as_json:
        return json.dumps(result.as_json() | {"machine": machine()})
    return f"{result.as_text()}\n  machine: {in_words()}"


def _refuse(parser: argparse.ArgumentParser, why: str) -> NoReturn:
    parser.error(why)


def _say(text: str) -> None:
    print(f"  {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
