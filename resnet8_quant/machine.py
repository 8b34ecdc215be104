"""The machine that a number was measured on.

Out: a line that names the CPU with what decides about int8 speed and rounding, how busy the machine was, and this
process's peak memory.
"""

from __future__ import annotations

import os
import platform
import time
from pathlib import Path

# Instruction sets that decide which kernels run, as /proc/cpuinfo spells them: x86, then Arm.
CPU_FLAGS = (
    *("avx2", "avx512f", "avx_vnni", "avx512_vnni", "amx_int8"),
    *("asimddp", "i8mm", "sve"),
)
NAME_FIELDS = ("model name", "Model", "Hardware")  # x86, Arm boards, old Arm kernels
FLAG_FIELDS = ("flags", "Features")  # x86, Arm
# Columns of a CPU's line in /proc/stat; the guests' after them are also counted in user and nice.
CPU_TIMES = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal")
IDLE_TIMES = ("idle", "iowait")
MIN_TICKS = 10  # /proc/stat counts ticks of 10 ms: from fewer of them no share can be told


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


def runtime_version() -> str:
    """ONNX Runtime's, whatever the name of the package that it was installed from."""
    import onnxruntime

    return str(onnxruntime.__version__)


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def load_per_core() -> float | None:
    """Processes that ran or waited to run, this one included, per usable core: the average of the last minute.

    Returns:
        None where the system does not tell.
    """
    try:
        return os.getloadavg()[0] / usable_cores()
    except (AttributeError, OSError):  # Windows, and where it cannot be obtained
        return None


class Busy:
    """The share of the usable cores' time that others took between ``start`` and ``stop``.

    Others are the processes of this machine and, as steal, the other guests of its host. All threads of this process
    are its own; processes that it starts are others.

    Args:
        stat: Linux' account.
    """

    def __init__(self, stat: Path = Path("/proc/stat")) -> None:
        self._stat = stat
        self._before: tuple[float, float, float] | None = None

    def start(self) -> None:
        """Count from now on."""
        self._before = self._now()

    def stop(self) -> float | None:
        """The share since ``start``, 0..1, to a few percent if it was less than a second ago; may be called again.

        Returns:
            None where the system does not tell, without ``start``, or if it was too short ago.
        """
        now = self._now()
        if self._before is None or now is None:
            return None
        busy, total, own = (after - before for before, after in zip(self._before, now, strict=True))
        if total < MIN_TICKS / _ticks_per_second():
            return None
        return min(1.0, max(0.0, (busy - own) / total))  # ticks are coarse: the difference may be slightly negative

    def _now(self) -> tuple[float, float, float] | None:
        """Seconds that the usable cores were busy, all their seconds, and this process's CPU seconds."""
        cores = _cpu_ticks(self._stat)
        if not cores:
            return None
        total = sum(sum(ticks.values()) for ticks in cores)
        idle = sum(ticks[name] for ticks in cores for name in IDLE_TIMES)
        return (total - idle) / _ticks_per_second(), total / _ticks_per_second(), time.process_time()


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


def _cpu_ticks(stat: Path) -> list[dict[str, int]]:
    """Column -> ticks for each core that this process may run on; empty if the file cannot be read."""
    try:
        lines = stat.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    usable = {f"cpu{core}" for core in os.sched_getaffinity(0)} if hasattr(os, "sched_getaffinity") else None
    cores = []
    for name, *ticks in (line.split() for line in lines if line.startswith("cpu")):
        if name != "cpu" and (usable is None or name in usable):  # "cpu" alone is the sum
            # Kernels before 2.6.11 have fewer columns.
            cores.append(dict.fromkeys(CPU_TIMES, 0) | dict(zip(CPU_TIMES, map(int, ticks), strict=False)))
    return cores


def _ticks_per_second() -> int:
    return os.sysconf("SC_CLK_TCK")


def _first_fields(path: Path) -> dict[str, str]:
    """The "field : value" lines of a file in /proc, the first of each field; empty if it cannot be read."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return {}
    pairs = (line.partition(":") for line in lines)
    return {field.strip(): value.strip() for field, _, value in reversed([*pairs])}
