"""The machine that a number was measured on.

Out: a line that names the CPU with what decides about int8 speed and rounding, how busy the machine was, and this
process's peak memory.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

# Instruction sets that decide which kernels run, as /proc/cpuinfo spells them: x86, then Arm.
CPU_FLAGS = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "amx_int8", "asimddp", "i8mm", "sve")
NAME_FIELDS = ("model name", "Model", "Hardware")  # x86, Arm boards, old Arm kernels
FLAG_FIELDS = ("flags", "Features")  # x86, Arm
MIN_SECONDS = 0.1  # systems count ticks of about 10 ms: fewer than ten of them give no share


def cpu_description(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Name, usable cores and int8 instruction sets, e.g. "Intel(R) Xeon(R) Processor, 2 cores, avx2 avx512_vnni".

    Where there is no Linux' ``cpuinfo`` the name is Python's and the instruction sets are left out.
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
    return len(_usable() or ()) or os.cpu_count() or 1


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Let NumPy's BLAS compute on one thread, within a ``with`` or, as a decorator, a function.

    The number of threads changes the last bits of its sums, and with them the weights that a refinement chooses.
    """
    from threadpoolctl import threadpool_limits

    with threadpool_limits(limits=1, user_api="blas"):
        yield


def load_per_core() -> float | None:
    """Processes that ran or waited to run, this one included, per usable core: the average of the last minute.

    None where the system does not tell.
    """
    import psutil

    try:
        return float(psutil.getloadavg()[0]) / usable_cores()
    except OSError:
        return None


def watch_other_processes() -> Callable[[], float | None]:
    """Watch the usable cores from now on; one watch at a time in each thread.

    Returns:
        A function to call once: the share of the cores' time that other processes have taken since, 0..1; those that
        this one started are others, too. After less than a second it is right to a few percent. None where the system
        does not tell, or after less than ``MIN_SECONDS``.
    """
    import psutil

    def percents() -> list[float]:
        """How busy each core was since the last call; waiting for a disk is idle, time for the host's guests is not."""
        try:
            return list(psutil.cpu_percent(percpu=True))
        except (OSError, ValueError, IndexError):  # no account, or one that psutil cannot read
            return []

    def share() -> float | None:
        seconds, own, cores = time.perf_counter() - start, time.process_time() - own_start, percents()
        usable = _usable() or range(len(cores))
        # Cores that are switched off have no entry: then the numbers of the others are unknown.
        if seconds < MIN_SECONDS or not cores or max(usable) >= len(cores):
            return None
        busy = sum(cores[core] for core in usable) / 100 - own / seconds
        return min(1.0, max(0.0, busy / len(usable)))  # ticks are coarse: it may be slightly negative

    percents()
    start, own_start = time.perf_counter(), time.process_time()
    return share


def peak_rss_mb(status: Path = Path("/proc/self/status")) -> float | None:
    """The largest resident memory of this process so far, in 10^6 bytes; None where the system does not tell.

    Linux' ``status``, which psutil does not read, comes first because getrusage there also counts what the parent
    process had used when it started this one.
    """
    peak = _first_fields(status).get("VmHWM", "").removesuffix("kB").strip()
    if peak.isdecimal():
        return int(peak) * 1024 / 1e6
    try:
        import resource
    except ImportError:  # Windows
        import psutil

        size = getattr(psutil.Process().memory_info(), "peak_wset", None)
        return None if size is None else size / 1e6
    unit = 1 if platform.system() == "Darwin" else 1024  # bytes on macOS, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def _usable() -> list[int] | None:
    """Numbers of the cores that this process may run on; None where the system cannot restrict them."""
    import psutil

    process = psutil.Process()
    return sorted(process.cpu_affinity()) if hasattr(process, "cpu_affinity") else None


def _first_fields(path: Path) -> dict[str, str]:
    """The "field : value" lines of a file in /proc, the first of each field; empty if it cannot be read."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return {}
    pairs = (line.partition(":") for line in lines)
    return {field.strip(): value.strip() for field, _, value in reversed([*pairs])}
