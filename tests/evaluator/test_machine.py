"""CPU, load and memory, from files as the kernels of several machines write them."""

import os
import sys
import time

import pytest

from resnet8_quant import machine
from resnet8_quant.machine import Busy, cpu_description, load_per_core, peak_rss_mb

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


def test_load_is_per_usable_core(four_cores, monkeypatch):
    monkeypatch.setattr(os, "getloadavg", lambda: (3.0, 100.0, 100.0), raising=False)
    assert load_per_core() == 0.75


def test_load_where_the_system_does_not_tell(monkeypatch):
    def refuse():
        raise OSError("unobtainable")

    monkeypatch.setattr(os, "getloadavg", refuse, raising=False)
    assert load_per_core() is None
    monkeypatch.delattr(os, "getloadavg")
    assert load_per_core() is None


class Account:
    """/proc/stat as the test says, at 100 ticks a second, and this process's CPU seconds."""

    def __init__(self, path, monkeypatch):
        self.path, self.own = path, 5.0
        monkeypatch.setattr(os, "sysconf", lambda name: {"SC_CLK_TCK": 100}[name], raising=False)
        monkeypatch.setattr(time, "process_time", lambda: self.own)

    def write(self, *cores):
        lines = [f"cpu{number} {ticks}" for number, ticks in enumerate(cores)]
        total = " ".join(str(sum(map(int, column))) for column in zip(*(core.split() for core in cores), strict=True))
        self.path.write_text("\n".join([f"cpu  {total}", *lines, "intr 12 0 0", "ctxt 5", ""]))


@pytest.fixture
def account(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1}, raising=False)
    return Account(tmp_path / "stat", monkeypatch)


# user nice system idle iowait irq softirq steal guest guest_nice
@pytest.mark.parametrize(
    ("core0", "core1", "own", "expected"),
    [
        ("0 0 0 100 0 0 0 0 0 0", "0 0 0 100 0 0 0 0 0 0", 0.0, 0.0),
        ("100 0 0 0 0 0 0 0 0 0", "0 0 0 100 0 0 0 0 0 0", 1.0, 0.0),  # only this process
        ("100 0 0 0 0 0 0 0 0 0", "50 0 0 50 0 0 0 0 0 0", 1.0, 0.25),
        ("10 10 10 40 0 10 10 10 0 0", "0 0 0 0 100 0 0 0 0 0", 0.2, 0.2),  # waiting for a disk is idle, steal is not
        ("0 0 0 60 0 0 0 40 0 0", "0 0 0 100 0 0 0 0 0 0", 0.0, 0.2),
        ("50 0 0 50 0 0 0 0 50 0", "0 50 0 50 0 0 0 0 0 50", 0.0, 0.5),  # guests are in user and nice already
        ("100 0 0 0 0 0 0 0 0 0", "0 0 0 100 0 0 0 0 0 0", 1.04, 0.0),  # the ticks are coarser than the process's time
        ("4 0 0 0 0 0 0 0 0 0", "5 0 0 0 0 0 0 0 0 0", 0.0, None),  # 9 ticks are too few
    ],
)
def test_share_that_others_took(account, core0, core1, own, expected):
    before = "1000 20 300 4000 50 6 7 80 900 10"
    account.write(before, before, before)
    busy = Busy(account.path)
    busy.start()

    def after(added):
        return " ".join(str(int(old) + int(new)) for old, new in zip(before.split(), added.split(), strict=True))

    account.write(after(core0), after(core1), after("7000 0 0 0 0 0 0 0 0 0"))  # not our core
    account.own += own
    share = busy.stop()
    assert share == (expected if expected is None else pytest.approx(expected, abs=1e-9))


def test_share_without_affinity_is_that_of_all_cores(account, monkeypatch):
    """With the four columns of an old kernel."""
    monkeypatch.delattr(os, "sched_getaffinity")
    busy = Busy(account.path)
    account.write(*["0 0 0 0"] * 4)
    busy.start()
    account.write("100 0 0 0", *["0 0 0 100"] * 3)
    account.own += 0.5
    assert busy.stop() == pytest.approx(0.125)


def test_share_where_the_system_does_not_tell(tmp_path, account):
    missing = Busy(tmp_path / "missing")
    missing.start()
    assert missing.stop() is None
    account.write("0 0 0 0", "0 0 0 0")
    never_started = Busy(account.path)
    account.write("0 0 0 100", "0 0 0 100")
    assert never_started.stop() is None
    (tmp_path / "empty").write_text("")
    empty = Busy(tmp_path / "empty")
    empty.start()
    assert empty.stop() is None


@pytest.mark.skipif(sys.platform != "linux", reason="/proc/stat is Linux's")
def test_share_on_this_machine():
    busy = Busy()
    busy.start()
    end = time.monotonic() + 0.3
    while time.monotonic() < end:
        pass
    assert 0 <= busy.stop() <= 1


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
