"""CPU, load and memory, from what several machines say of themselves."""

import os
import sys
import time
from collections import namedtuple

import psutil
import pytest

from resnet8_quant import machine
from resnet8_quant.machine import cpu_description, load_per_core, peak_rss_mb, watch_other_processes

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
def share(monkeypatch):
    """(busy percent of each core, CPU seconds of this process, seconds) -> the share that others took."""

    def measure(percents, own, seconds=2.0):
        monkeypatch.setattr(psutil, "cpu_percent", lambda percpu: percents if percpu else None)
        with monkeypatch.context() as clocks:
            clocks.setattr(time, "perf_counter", iter([7.0, 7.0 + seconds]).__next__)
            clocks.setattr(time, "process_time", iter([5.0, 5.0 + own]).__next__)
            return watch_other_processes()()

    return measure


@pytest.mark.parametrize(
    ("core0", "core1", "own", "expected"),
    [
        (0.0, 0.0, 0.0, 0.0),
        (100.0, 0.0, 2.0, 0.0),  # only this process
        (100.0, 50.0, 2.0, 0.25),
        (100.0, 0.0, 2.1, 0.0),  # the percents are coarser than the process's time
    ],
)
def test_share_that_others_took(usable, share, core0, core1, own, expected):
    usable([0, 1])
    assert share([core0, core1, 70.0], own) == pytest.approx(expected, abs=1e-9)  # the last core is not ours


def test_share_without_affinity_is_that_of_all_cores(share, monkeypatch):
    monkeypatch.delattr(psutil.Process, "cpu_affinity", raising=False)
    assert share([25.0] * 4, 1.0) == pytest.approx(0.125)


def test_share_where_it_cannot_be_told(usable, share, monkeypatch):
    assert share([0.0] * 4, 0.0, seconds=0.09) is None
    assert share([], 0.0) is None
    assert share([0.0] * 2, 0.0) is None  # four cores are usable, two have an entry
    monkeypatch.setattr(psutil, "cpu_percent", refuse)
    assert watch_other_processes()() is None


def test_this_machine_tells():
    assert " core" in cpu_description()
    assert "\n" not in cpu_description()
    share_of_others, end = watch_other_processes(), time.monotonic() + 0.3
    while time.monotonic() < end:
        pass
    share = share_of_others()
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
