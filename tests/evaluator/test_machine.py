"""CPU and memory, from files as the kernels of several machines write them."""

import os
import sys

import pytest

from resnet8_quant import machine
from resnet8_quant.machine import cpu_description, peak_rss_mb

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
def four_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3}, raising=False)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (X86, "Intel(R) Xeon(R) Processor, 4 cores, avx2 avx512f avx512_vnni amx_int8"),
        (ARM, "Raspberry Pi 5 Model B Rev 1.0, 4 cores, asimddp i8mm"),
        ("model name : 80486\nflags : fpu\n", "80486, 4 cores"),
    ],
)
def test_linux_lists(tmp_path, four_cores, text, expected):
    (tmp_path / "cpuinfo").write_text(text)
    assert cpu_description(tmp_path / "cpuinfo") == expected


@pytest.mark.parametrize(
    ("processor", "machine_name", "expected"),
    [("arm", "arm64", "arm, 4 cores"), ("", "riscv64", "riscv64, 4 cores"), ("", "", "unknown CPU, 4 cores")],
)
def test_elsewhere_the_name_is_pythons(tmp_path, four_cores, monkeypatch, processor, machine_name, expected):
    monkeypatch.setattr(machine.platform, "processor", lambda: processor)
    monkeypatch.setattr(machine.platform, "machine", lambda: machine_name)
    assert cpu_description(tmp_path / "missing") == expected


def test_one_core_without_affinity(tmp_path, monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert ", 1 core" in cpu_description(tmp_path / "missing")


def test_this_machine_says_something():
    assert " core" in cpu_description()
    assert "\n" not in cpu_description()


def test_peak_memory_from_linux(tmp_path):
    (tmp_path / "status").write_text("Name:\tpython\nVmHWM:\t  250000 kB\n")
    assert peak_rss_mb(tmp_path / "status") == 256.0


def test_peak_memory_from_getrusage(tmp_path):
    peak = peak_rss_mb(tmp_path / "missing")
    if sys.platform == "win32":
        assert peak is None
    else:
        assert 5 < peak < 1e6


def test_peak_memory_without_getrusage_is_unknown(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "resource", None)
    assert peak_rss_mb(tmp_path / "missing") is None


def test_peak_memory_grows_with_what_is_held():
    before = peak_rss_mb()
    held = bytearray(os.urandom(1)) * 300_000_000
    if before is not None and before < 250:
        assert peak_rss_mb() > before
    assert len(held) == 300_000_000
