"""Build a folder in which an Arm Python with ONNX Runtime runs on an x86 PC, by QEMU's user emulation.

In:  the package sources that this machine's apt-get and pip are set up with; constraints.txt for the versions.
Out: the folder, about 200 MB, with Debian's Python and libraries for arm64 and the aarch64 wheels of NumPy and ONNX
     Runtime. Nothing is installed and no setting of the machine is changed. Needs Debian or a descendant, not root.

    python tools/arm_root.py outputs/arm_root
    python benchmarks/cpus.py --arm-root outputs/arm_root
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

CONSTRAINTS = Path(__file__).resolve().parent.parent / "constraints.txt"
# apt-get takes what these need with them. libstdc++6 is ONNX Runtime's.
DEBIAN = ("libstdc++6", "{python}-minimal", "lib{python}-stdlib")
WHEELS = ("numpy", "onnxruntime", "flatbuffers", "packaging", "protobuf")
PLATFORMS = ("manylinux_2_28_aarch64", "manylinux_2_27_aarch64", "manylinux2014_aarch64")
# QEMU passes these files of the PC through unless the folder has its own, and ONNX Runtime, built for Arm, crashes on
# an x86 list of CPUs. The features are those of Neoverse N1; what the emulated CPU really has is QEMU's option -cpu.
CORES = 2
CORE = """\
processor\t: {core}
BogoMIPS\t: 50.00
Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x3
CPU part\t: 0xd0c
CPU revision\t: 1

"""


class Failed(Exception):
    """A step that did not work, in words for the user."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="where to build it; must not exist or be empty")
    folder: Path = parser.parse_args().folder.resolve()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        parser.error(f"{folder} exists and is not an empty folder; remove it or give another one")
    for program in ("apt-get", "apt-cache", "dpkg"):
        if shutil.which(program) is None:
            parser.error(f"{program} is missing: the folder is made of Debian's packages, on Debian or a descendant")
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Beside the goal, so that a finished folder appears there in one step.
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as temporary:
        root, work = Path(temporary) / "root", Path(temporary) / "work"
        try:
            python = add_debian(root, work)
            add_wheels(root, work, python)
        except (Failed, OSError) as error:
            parser.exit(1, f"{parser.prog}: {error}\n")
        add_cpu(root)
        if folder.exists():
            folder.rmdir()
        root.chmod(0o755)
        root.rename(folder)
    print(f"{folder}: {python} and onnxruntime {pinned('onnxruntime')} for aarch64")


def add_debian(root: Path, work: Path) -> str:
    """Unpack Python and its libraries for arm64 into ``root``; the name of the interpreter, e.g. python3.11."""
    lists, packages, status = work / "lists", work / "archives", work / "status"
    for empty in (root, lists / "partial", packages / "partial"):
        empty.mkdir(parents=True)
    status.touch()  # as if nothing were installed: apt-get then fetches everything that is needed
    options = [
        "-oAPT::Architecture=arm64",
        "-oAPT::Architectures=arm64",
        "-oAPT::Sandbox::User=",  # its own user may not read this folder
        "-oDebug::NoLocking=true",
        f"-oDir::State={work}",
        f"-oDir::State::status={status}",
        f"-oDir::State::lists={lists}",
        f"-oDir::Cache={work}",
        f"-oDir::Cache::archives={packages}",
    ]
    # A source without arm64 fails here and does no harm; whether the others suffice shows when Python is looked for.
    updated = subprocess.run(["apt-get", *options, "-qq", "update"], capture_output=True, text=True)
    unlisted = "apt-get's sources list no Python for arm64; is there a network?"
    found = run(["apt-cache", *options, "depends", "python3-minimal"], unlisted, updated)
    match = re.search(r"Depends: (python3\.\d+)-minimal", found)
    if match is None:
        raise Failed("apt-cache does not say which Python python3-minimal is")
    python = match[1]
    names = [name.format(python=python) for name in DEBIAN]
    get = ["apt-get", *options, "-qq", "-y", "--no-install-recommends", "--download-only", "install", *names]
    run(get, "apt-get cannot download Debian's packages for arm64; is there a network?", updated)
    for package in sorted(packages.glob("*.deb")):
        run(["dpkg", "-x", str(package), str(root)], f"dpkg cannot unpack {package.name}")
    if not (root / "usr/bin" / python).is_file():
        raise Failed(f"Debian's packages hold no usr/bin/{python}")
    return python


def add_wheels(root: Path, work: Path, python: str) -> None:
    """Unzip the aarch64 wheels into ``root``'s dist-packages."""
    wheels = work / "wheels"
    words = [sys.executable, "-m", "pip", "download", "--quiet", "--only-binary=:all:", "--no-deps"]
    words += [f"--dest={wheels}", f"--python-version={python.removeprefix('python')}"]
    words += [f"--platform={platform}" for platform in PLATFORMS]
    words += [f"{name}=={pinned(name)}" for name in WHEELS]
    run(words, "pip cannot download the aarch64 wheels; is pip there, and a network?")
    target = root / "usr/lib/python3/dist-packages"
    for wheel in sorted(wheels.glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(target)


def add_cpu(root: Path) -> None:
    """Write the system's files that describe an Arm CPU."""
    info = root / "proc/cpuinfo"
    info.parent.mkdir(parents=True, exist_ok=True)
    info.write_text("".join(CORE.format(core=core) for core in range(CORES)))
    system = root / "sys/devices/system/cpu"
    system.mkdir(parents=True, exist_ok=True)
    for name in ("possible", "present", "online"):
        (system / name).write_text(f"0-{CORES - 1}\n")


def pinned(name: str) -> str:
    """The package's version in constraints.txt."""
    match = re.search(rf"^{re.escape(name)}==(\S+)", CONSTRAINTS.read_text(), re.MULTILINE)
    if match is None:
        raise Failed(f"{CONSTRAINTS} pins no version of {name}")
    return match[1]


def run(words: list[str], problem: str, before: subprocess.CompletedProcess[str] | None = None) -> str:
    """Run a program to its end; what it wrote to stdout.

    Args:
        words: the command.
        problem: what a failure means.
        before: an earlier command whose complaints may be the reason.

    Raises:
        Failed: it did not end with 0; with the last lines that it and ``before`` wrote.
    """
    done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode == 0:
        return done.stdout
    said = (done.stderr or done.stdout).splitlines()
    if before is not None:
        said = before.stderr.splitlines() + said
    raise Failed("\n  ".join([problem, *said[-6:]]))


if __name__ == "__main__":
    main()
