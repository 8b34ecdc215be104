"""Copy this virtual environment and take from the copy's ONNX Runtime what a CPU without VNNI lacks.

In:  the environment that runs this script, on an x86-64 PC.
Out: a folder, an environment of its own, whose ONNX Runtime chooses its AVX2 kernels: at full speed, with the
     saturation that they have. Checked by the probe of resnet8_quant.graphs.session.

    python tools/avx2_environment.py outputs/avx2
    outputs/avx2/bin/python -m pytest
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

# ONNX Runtime asks XGETBV (xor ecx, ecx; xgetbv) whether the system keeps the AVX-512 and AMX registers. In place of
# that instruction: the answer "x87, SSE and AVX registers only" (push 7; pop rax), of the same length.
# AVX-VNNI is bit 4 of CPUID's leaf 7.1 (cpuid; test al, 16): test no bit.
REPLACEMENTS = (
    (b"\x31\xc9\x0f\x01\xd0", b"\x31\xc9\x6a\x07\x58"),
    (b"\x0f\xa2\xa8\x10", b"\x0f\xa2\xa8\x00"),
)
PROBE = "from resnet8_quant.graphs.session import kernels_saturate as probe; raise SystemExit(0 if probe() else 1)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="where the copy goes; must not exist")
    folder: Path = parser.parse_args().folder.absolute()
    if folder.exists():
        parser.error(f"{folder} exists; remove it or give another one")
    if sys.prefix == sys.base_prefix:
        parser.error(
            "this Python is not of a virtual environment; make one with python -m venv and run me with its python"
        )
    shutil.copytree(sys.prefix, folder, symlinks=True)
    for library in folder.glob("lib/python*/site-packages/onnxruntime/capi/onnxruntime_pybind11_state*.so"):
        code = library.read_bytes()
        for original, replacement in REPLACEMENTS:
            if original not in code:
                parser.error(
                    f"{library.name} is another build of ONNX Runtime: the instruction {original.hex()} is not in it"
                )
            code = code.replace(original, replacement)
        library.write_bytes(code)
    # From the checkout, so that the probe is there whether the package is installed editable or not.
    root = Path(__file__).resolve().parent.parent
    if subprocess.run([folder / "bin" / "python", "-c", PROBE], cwd=root).returncode:
        parser.error("the copy's kernels still do not saturate: this build finds its kernels in another way")
    print(f"{folder}/bin/python runs ONNX Runtime on its AVX2 kernels")


if __name__ == "__main__":
    main()
