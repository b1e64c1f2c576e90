"""`python -m benchmarks NAME [NAME...] [--quick] [--json] [--write FILE]`."""

import argparse
import importlib
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from benchmarks.measure import Result, Say
from benchmarks.report import render
from shared.settings import ROOT

# Each is a module beside this one with `run(quick: bool, say: Say) -> Result`, and this line is what --help says of it.
BENCHMARKS = {
    "worker": "stored films to rows, against what the cores could do if they never waited: at least 0.9",
    "usual_way": "the same films through a worker as it is usually written: at least 5 times",
    "peers": "ready squares through our batcher, against LitServe with the same model: at least as fast",
    "urgent": "an urgent study's wait while 10,000 routine ones are queued: at most 2 batch times",
    "night": "what a night of second looks adds to the wait of a live study: at most 1 batch time",
    "fairness": "routine never behind backlog, nothing starves behind urgent studies, no queue flooded with messages",
    "memory": "resident memory of a worker over 20,000 films: flat within 5 %",
    "control_plane": "messages, claims and rows with an instant model: at least 300 studies/s, however long the queue",
    "upload": "films to the API until the receipt says stored, against an S3 client's put of them: at least 0.7",
    "worklist": "a page among 1,000,000 studies, first, deep, filtered, against one study by its key: p95, at most 5",
    "viewer": "a reader's click to the picture, in a real browser: at most 300 ms",
    "heatmap": "the network that says where, against the same one that does not: share of forward time, at most 3 %",
}
ALL = "all"


def measure(name: str, quick: bool, say: Say) -> Result:  # noqa: FBT001 - one signature for all
    """Run one benchmark in this process."""
    result: Result = importlib.import_module(f"benchmarks.{name}").run(quick, say)
    return result


def _apart(name: str, quick: bool) -> Result:  # noqa: FBT001 - as measure
    """Run one benchmark in a process of its own: what one leaves in memory must not slow the next.

    Raises RuntimeError when it failed; its words stand on stderr.
    """
    command = [sys.executable, "-m", "benchmarks", name, "--json", *(["--quick"] if quick else [])]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, check=False)
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
    parser.add_argument("--json", action="store_true", help="print one JSON object a line for each benchmark")
    parser.add_argument("--write", type=Path, metavar="FILE", help="also write a report, as benchmarks/RESULTS.md is")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is named; the exit code is 1 if one failed to run, whether or not the goals are met."""
    parser = _parser()
    given = parser.parse_args(arguments)
    names = list(BENCHMARKS) if ALL in given.names else list(dict.fromkeys(given.names))
    unknown = [name for name in names if name not in BENCHMARKS]
    if unknown:
        _refuse(parser, f"there is no benchmark {', '.join(unknown)}; there are {', '.join([*BENCHMARKS, ALL])}")
    results: list[Result] = []
    failed: dict[str, str] = {}
    for name in names:
        try:
            result = measure(name, given.quick, _say) if len(names) == 1 else _apart(name, given.quick)
        except Exception as wrong:
            if len(names) == 1:
                raise
            failed[name] = str(wrong)
            _say(f"{name} failed: {wrong}")
        else:
            results.append(result)
            print(json.dumps(result.as_json()) if given.json else result.as_text(), flush=True)
        if given.write:  # after each: an hour's run may be cut short
            given.write.write_text(render(results, failed))
    return 1 if failed else 0


def _refuse(parser: argparse.ArgumentParser, why: str) -> NoReturn:
    parser.error(why)


def _say(text: str) -> None:
    print(f"  {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
