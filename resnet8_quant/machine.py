"""The machine that a number was measured on.

Out: a line that names the CPU with what decides about int8 speed and rounding, and this process's peak memory.
"""

from __future__ import annotations

import os
import platform
from pathlib import Path

# Instruction sets that decide which kernels run, as /proc/cpuinfo spells them: x86, then Arm.
CPU_FLAGS = (
    *("avx2", "avx512f", "avx_vnni", "avx512_vnni", "amx_int8"),
    *("asimddp", "i8mm", "sve"),
)
NAME_FIELDS = ("model name", "Model", "Hardware")  # x86, Arm boards, old Arm kernels
FLAG_FIELDS = ("flags", "Features")  # x86, Arm


def cpu_description(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Name, usable cores and int8 instruction sets, e.g. "Intel(R) Xeon(R) Processor, 2 cores, avx2 avx512_vnni".

    Args:
        cpuinfo: Linux' list; where there is none the name is Python's and the instruction sets are left out.
    """
    fields = _first_fields(cpuinfo)
    names = (*(fields.get(field, "") for field in NAME_FIELDS), platform.processor(), platform.machine())
    name = next((" ".join(name.split()) for name in names if name.strip()), "unknown CPU")
    cores = usable_cores()
    present = {flag for field in FLAG_FIELDS for flag in fields.get(field, "").split()}
    flags = " ".join(flag for flag in CPU_FLAGS if flag in present)
    return ", ".join(part for part in (name, f"{cores} core{'s' if cores > 1 else ''}", flags) if part)


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def peak_rss_mb(status: Path = Path("/proc/self/status")) -> float | None:
    """The largest resident memory of this process so far, in 10^6 bytes; None where the system does not tell.

    Args:
        status: Linux' account. It comes first because getrusage there also counts what the parent process had used
            when it started this one.
    """
    peak = _first_fields(status).get("VmHWM", "").removesuffix("kB").strip()
    if peak.isdecimal():
        return int(peak) * 1024 / 1e6
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if platform.system() == "Darwin" else 1024  # bytes on macOS, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def _first_fields(path: Path) -> dict[str, str]:
    """The "field : value" lines of a file in /proc, the first of each field; empty if it cannot be read."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return {}
    pairs = (line.partition(":") for line in lines)
    return {field.strip(): value.strip() for field, _, value in reversed([*pairs])}
