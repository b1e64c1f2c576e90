"""RESULTS.md: what was measured, on which kind of machine, and when. No host name, no path."""

import functools
import importlib.metadata
import os
import platform
import re
import subprocess
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.measure import Case, Result
from infra.embedded import postgres, valkey
from shared.errors import StackError
from shared.settings import cpu_count

PACKAGES = ("torch", "openvino", "celery", "fastapi", "sqlalchemy")
# the kernel's names of what decides how fast a network runs
FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_int8", "amx_bf16")
ARM_FLAGS = ("asimd", "sve", "bf16", "i8mm")


@functools.cache
def machine() -> dict[str, str]:
    """Name the kind of machine and the versions that decide about speed."""
    gigabytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    found = {
        "processor": _processor(),
        "cores": str(cpu_count()),
        "CPU flags": _flags(),
        "memory": f"{gigabytes:.0f} GiB",
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    found["postgres"] = _version(lambda: postgres.binaries() / "postgres")
    found["valkey"] = _version(valkey.binary)
    return found | {"GPU": _gpu()}


def in_words() -> str:
    """Give `machine` in a line."""
    return "; ".join(f"{name} {value}" for name, value in machine().items())


def _version(program: Callable[[], Path]) -> str:
    """Read the version that a server's program prints: the first number with dots."""
    try:
        done = subprocess.run([program(), "--version"], capture_output=True, text=True, timeout=30, check=True)
    except (StackError, OSError, subprocess.SubprocessError):
        return "not installed"
    found = re.search(r"\d+\.[\d.]+", done.stdout)
    return found.group() if found else "unknown"


def _flags() -> str:
    """List those of FLAGS that the processor has; "unknown" if the system does not say."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    words = next((line.partition(":")[2].split() for line in lines if line.startswith(("flags", "Features"))), None)
    if words is None:
        return "unknown"
    return " ".join(flag for flag in (*FLAGS, *ARM_FLAGS) if flag in words) or "none of interest"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown"


def _gpu() -> str:
    if not any(Path("/dev").glob("nvidia*")) and not Path("/dev/dxg").exists():
        return "none"  # torch takes seconds to be imported
    try:
        import torch
    except ModuleNotFoundError:
        return "none"
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "none"


def render(results: Sequence[Result], failed: Mapping[str, str], now: datetime | None = None) -> str:
    """Write the whole of RESULTS.md.

    Args:
        results: of the benchmarks that ran, in this order.
        failed: what went wrong, by the name of the benchmark.
        now: its day is written; None: today.

    Returns:
        Markdown.
    """
    now = now or datetime.now(UTC)
    lines = [
        "# Benchmark results",
        "",
        f"Written by `make bench` on {now.astimezone(UTC):%Y-%m-%d}. A ratio is the median over interleaved repeats,",
        "its spread the 95 % sign-test interval of that median, or lowest to highest under six repeats (`measure.py`).",
        "",
        *(f"- {name}: {value}" for name, value in machine().items()),
        "",
        "| benchmark | case | ratio | spread | repeats | subject to baseline | goal | met |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    lines += [_row(result, case) for result in results for case in result.cases]
    lines += [f"| {name} | failed | | | | | | no |" for name in failed]
    for result in results:
        lines += ["", f"## {result.name}", "", f"{result.compares}. Goal {result.goal}: {result.verdict()}."]
        lines += ["", *(f"- {name}: {value}" for name, value in result.details.items())] if result.details else []
    for name, why in failed.items():
        lines += ["", f"## {name}", "", f"Failed: {why}"]
    return "\n".join(lines) + "\n"


def _row(result: Result, case: Case) -> str:
    name = f"{result.name} (quick)" if result.quick else result.name
    cells = (
        name,
        case.label,
        f"{case.ratio:.3g}",
        f"{case.spread[0]:.3g} - {case.spread[1]:.3g}",
        str(case.repeats),
        f"{case.subject:.4g} to {case.baseline:.4g} {case.unit}",
        str(result.goal_of(case)),
        "yes" if result.goal_of(case).met(case.ratio) else "no",
    )
    return f"| {' | '.join(cells)} |"
