"""CPU, load and memory, from what several machines say of themselves."""

import os
import sys
import time
from collections import namedtuple

import psutil
import pytest

from resnet8_quant import machine
from resnet8_quant.machine import cpu_description, cpu_times, load_per_core, other_processes_share, peak_rss_mb

X86 = """processor\t: 0
model\t\t: 143
model name\t: Intel(R) Xeon(R)   Processor
flags\t\t: fpu sse2 amx_int8 avx avx2 avx512f avx512_vnni

processor\t: 1
model name\t: another
flags\t\t: avx_vnni
"""
ARM = """processor\t: 0
Features\t: fp asimd crc32 asimddp i8mm
CPU part\t: 0xd0c

Model\t\t: Raspberry Pi 5 Model B Rev 1.0
"""
LINUX = namedtuple("LINUX", "user nice system idle iowait irq softirq steal guest guest_nice")
WINDOWS = namedtuple("WINDOWS", "user system idle interrupt dpc")


@pytest.fixture
def usable(monkeypatch):
    """Cores 0 to 3, or those that the test says."""

    def restrict(cores):
        monkeypatch.setattr(psutil.Process, "cpu_affinity", lambda self: cores, raising=False)

    restrict([0, 1, 2, 3])
    return restrict


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (X86, "Intel(R) Xeon(R) Processor, 4 cores, avx2 avx512f avx512_vnni amx_int8"),
        (ARM, "Raspberry Pi 5 Model B Rev 1.0, 4 cores, asimddp i8mm"),
        ("model name : 80486\nflags : fpu\n", "80486, 4 cores"),
    ],
)
def test_linux_lists(tmp_path, usable, text, expected):
    (tmp_path / "cpuinfo").write_text(text)
    assert cpu_description(tmp_path / "cpuinfo") == expected


@pytest.mark.parametrize(
    ("processor", "machine_name", "expected"),
    [("arm", "arm64", "arm, 4 cores"), ("", "riscv64", "riscv64, 4 cores"), ("", "", "unknown CPU, 4 cores")],
)
def test_elsewhere_the_name_is_pythons(tmp_path, usable, monkeypatch, processor, machine_name, expected):
    monkeypatch.setattr(machine.platform, "processor", lambda: processor)
    monkeypatch.setattr(machine.platform, "machine", lambda: machine_name)
    assert cpu_description(tmp_path / "missing") == expected
    monkeypatch.delattr(psutil.Process, "cpu_affinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert cpu_description(tmp_path / "missing") == expected.replace("4 cores", "1 core")


def refuse(*_, **__):
    raise OSError("unobtainable")


def test_load_is_per_usable_core(usable, monkeypatch):
    monkeypatch.setattr(psutil, "getloadavg", lambda: (3.0, 100.0, 100.0))
    assert load_per_core() == 0.75

    monkeypatch.setattr(psutil, "getloadavg", refuse)
    assert load_per_core() is None


@pytest.fixture
def shares(monkeypatch):
    """(seconds of each core before, after, own CPU seconds) -> the share that others took in between."""

    def measure(before, after, own):
        readings = []
        for cores, used in ((before, 5.0), (after, 5.0 + own)):
            monkeypatch.setattr(psutil, "cpu_times", lambda percpu, cores=cores: cores if percpu else None)
            monkeypatch.setattr(time, "process_time", lambda used=used: used)
            readings.append(cpu_times())
        return other_processes_share(*readings)

    return measure


# user nice system idle iowait irq softirq steal guest guest_nice, seconds
@pytest.mark.parametrize(
    ("core0", "core1", "own", "expected"),
    [
        ((0, 0, 0, 1.0), (0, 0, 0, 1.0), 0.0, 0.0),
        ((1.0,), (0, 0, 0, 1.0), 1.0, 0.0),  # only this process
        ((1.0,), (0.5, 0, 0, 0.5), 1.0, 0.25),
        ((0.1, 0.1, 0.1, 0.4, 0, 0.1, 0.1, 0.1), (0, 0, 0, 0, 1.0), 0.2, 0.2),  # waiting for a disk is idle
        ((0, 0, 0, 0.6, 0, 0, 0, 0.4), (0, 0, 0, 1.0), 0.0, 0.2),  # steal is busy
        ((0.5, 0, 0, 0.5, 0, 0, 0, 0, 0.5), (0, 0.5, 0, 0.5, 0, 0, 0, 0, 0, 0.5), 0.0, 0.5),  # guests are counted once
        ((1.0,), (0, 0, 0, 1.0), 1.04, 0.0),  # the ticks are coarser than the process's time
        ((0.04,), (0.05,), 0.0, None),  # 9 ticks are too few
    ],
)
def test_share_that_others_took(usable, shares, core0, core1, own, expected):
    usable([0, 1])
    before = LINUX(10, 0.2, 3, 40, 0.5, 0.06, 0.07, 0.8, 9, 0.1)

    def after(added):
        return LINUX(*(old + new for old, new in zip(before, (*added, *[0] * (10 - len(added))), strict=True)))

    not_ours = after((70.0,))
    share = shares([before] * 3, [after(core0), after(core1), not_ours], own)
    assert share == (expected if expected is None else pytest.approx(expected, abs=1e-9))


def test_share_without_affinity_is_that_of_all_cores(shares, monkeypatch):
    monkeypatch.delattr(psutil.Process, "cpu_affinity", raising=False)
    before = [WINDOWS(0, 0, 0, 0, 0)] * 4
    assert shares(before, [WINDOWS(1, 0, 0, 0, 0), *[WINDOWS(0, 0, 1, 0, 0)] * 3], 0.5) == pytest.approx(0.125)


def test_share_where_the_system_does_not_tell(usable, shares, monkeypatch):
    full = [LINUX(*[0] * 10)] * 2
    assert shares([], [], 0.0) is None
    assert shares(full, full, 0.0) is None  # four cores are usable, two have an entry

    monkeypatch.setattr(psutil, "cpu_times", refuse)
    assert cpu_times() is None
    assert other_processes_share(None, None) is None


def test_this_machine_tells():
    assert " core" in cpu_description()
    assert "\n" not in cpu_description()
    before, end = cpu_times(), time.monotonic() + 0.3
    while time.monotonic() < end:
        pass
    share = other_processes_share(before, cpu_times())
    assert share is None or 0 <= share <= 1


def test_peak_memory(tmp_path, monkeypatch):
    (tmp_path / "status").write_text("Name:\tpython\nVmHWM:\t  250000 kB\n")
    assert peak_rss_mb(tmp_path / "status") == 256.0
    if sys.platform != "win32":
        assert 5 < peak_rss_mb(tmp_path / "missing") < 1e6  # getrusage
    monkeypatch.setitem(sys.modules, "resource", None)
    monkeypatch.setattr(psutil.Process, "memory_info", lambda self: namedtuple("pmem", "rss peak_wset")(1, 3_000_000))
    assert peak_rss_mb(tmp_path / "missing") == 3.0
    monkeypatch.setattr(psutil.Process, "memory_info", lambda self: namedtuple("pmem", "rss")(1))
    assert peak_rss_mb(tmp_path / "missing") is None


def test_peak_memory_grows_with_what_is_held():
    before = peak_rss_mb()
    held = bytearray(os.urandom(1)) * 300_000_000
    if before is not None and before < 250:
        assert peak_rss_mb() > before
    assert len(held) == 300_000_000
