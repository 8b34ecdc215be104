"""Where a model's time and memory go: ``python -m resnet8_quant.profile MODEL.onnx``.

In: an ONNX file. Out: a table of the operators that ONNX Runtime runs, with kind of kernel, time and share of each;
with ``--csv`` the same as a file, with ``--by node`` one row per node in the order of execution; with ``--by layer``,
and of a .tflite file, multiply-accumulates, weights and activations of each layer.
"""

from __future__ import annotations

import argparse
import csv
import stat
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from resnet8_quant.errors import ExperimentError, as_typed_here
from resnet8_quant.summary import check_output
from resnet8_quant.terminal import exit_code, markdown, show, shown, wrapped

if TYPE_CHECKING:
    from resnet8_quant.deploy.memory import Memory
    from resnet8_quant.evaluator.profiler import Profile

COMMAND = "python -m resnet8_quant.profile"
OPERATOR_WIDTH = 18  # columns: QLinearAveragePool
NODE_WIDTH = 80 - 58  # the other columns of the table with their frame have 58
LAYER_WIDTH = 17  # of a layer's name; with an operator's and the figures of ResNet8 the table has 80 columns
SPACE = "\N{NO-BREAK SPACE}"  # where a line must not be wrapped
Row = dict[str, str | int | float]


class _Parser(argparse.ArgumentParser):
    """Wrong arguments are errors like any other, with exit code 1."""

    def error(self, message: str) -> NoReturn:
        raise ExperimentError(message, f"{COMMAND} MODEL.onnx (--help lists the options)")


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0, or 1 after an error."""
    return exit_code(lambda: _profile(_parser().parse_args(arguments)))


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog=as_typed_here(COMMAND), description=(__doc__ or "").partition(":")[0] + ".")
    parser.add_argument("model", metavar="MODEL", type=Path, help="an ONNX file, or a .tflite file, shown by layer")
    parser.add_argument("--by", choices=("operator", "node", "layer"), help="what a row is (operator)")
    parser.add_argument("--runs", type=_integer(1), default=300, metavar="N", help="profiled calls (300)")
    parser.add_argument("--warmup", type=_integer(0), default=50, metavar="N", help="calls before them (50)")
    parser.add_argument("--batch", type=_integer(1), metavar="N", help="size of every free axis of the inputs (1)")
    parser.add_argument("--threads", type=_integer(0, 1024), default=1, metavar="N", help="0: all cores (1)")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="where the rows are written too")
    return parser


def _integer(least: int, most: int = 10**9) -> Callable[[str], int]:
    """An argparse type: a whole number from ``least`` to ``most``."""

    def convert(word: str) -> int:
        if not word.isdecimal() or len(word) > len(str(most)) or not least <= int(word) <= most:
            raise argparse.ArgumentTypeError(f"{word!r} is not an integer from {least} to {most}")
        return int(word)

    return convert


def _profile(options: argparse.Namespace) -> None:
    _check_file(options.model)
    if options.csv is not None:
        _check_csv(options.csv, options.model)
    if options.model.suffix == ".tflite" or options.by == "layer":
        memory = _read_memory(options)
        rows = _layer_rows(memory)
        lines = [_layer_table(rows), "", _layer_summary(memory)]
    else:
        from resnet8_quant.evaluator.profiler import profile_model

        profile = profile_model(
            _read(options.model), runs=options.runs, warmup=options.warmup, batch=options.batch, threads=options.threads
        )
        by = options.by or "operator"
        rows = _rows(profile, by)
        lines = [_table(rows, by), "", *_summary(profile, options)]
    written = []
    if options.csv is not None:
        _write(options.csv, rows)
        written = ["", f"Written to {shown(options.csv)}"]
    show("\n".join([*lines, *written]))


def _read_memory(options: argparse.Namespace) -> Memory:
    """Figures of an ONNX or a .tflite file.

    Raises:
        ExperimentError: it cannot be read, it cannot be shown as asked, or a shape is not known.
    """
    if options.model.suffix == ".tflite":
        if options.by not in (None, "layer"):
            raise ExperimentError(
                f"`--by` is {options.by}, but a .tflite file is not run by ONNX Runtime",
                f"{COMMAND} {options.model} --by layer",
            )
        from resnet8_quant.deploy.tflite.file import read

        return read(options.model.read_bytes()).memory()
    import onnx

    from resnet8_quant.deploy.memory import measure

    memory = measure(onnx.load_from_string(_read(options.model)))
    if memory is None:
        raise ExperimentError(
            f"{options.model}: the shape of a tensor is not known before the model runs, or is ONNX Runtime's own "
            "operator's",
            f"show its time: {COMMAND} {options.model} --by node; or give the plain model, not the deployed one",
        )
    return memory


def _layer_rows(memory: Memory) -> list[Row]:
    return [
        {
            "layer": layer.name,
            "operator": layer.operator,
            "macs": layer.macs,
            "weights": layer.weights,
            "weight_bytes": (layer.weights * layer.weight_bits + 7) // 8 + 4 * layer.biases,
            "output_bytes": memory.sizes[layer.output],
            "live_bytes": live,
        }
        for layer, live in zip(memory.layers, memory.live_bytes, strict=True)
    ]


def _layer_table(rows: list[Row]) -> str:
    names = shortened([str(row["layer"]) for row in rows], LAYER_WIDTH)
    operators = list(dict.fromkeys(str(row["operator"]) for row in rows))
    short = dict(zip(operators, shortened(operators, LAYER_WIDTH - 4), strict=True))
    figures = ("macs", "weight_bytes", "output_bytes", "live_bytes")
    cells = [
        (name, short[str(row["operator"])], *(f"{row[figure]:,}" for figure in figures))
        for name, row in zip(names, rows, strict=True)
    ]
    return markdown(("Layer", "Operator", "MACs", "Weights B", "Output B", "Live B"), cells)


def _layer_summary(memory: Memory) -> str:
    weights = sum(layer.weights for layer in memory.layers)
    return wrapped(
        f"For one image: {memory.macs:,} multiply-accumulates, {weights:,} weights, activations of at most "
        f"{memory.peak_activation_bytes:,} bytes in the best order. Weights B: with biases. Activations take one "
        "byte a value, as integers do; Live B: all that are needed while the layer runs, in the order of the file."
    )


def _check_file(path: Path) -> None:
    remedy = f"give an ONNX or a .tflite file: {COMMAND} MODEL.onnx"
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise ExperimentError(f"{path} cannot be read ({error.strerror})", remedy) from error
    if not stat.S_ISREG(mode):
        raise ExperimentError(f"{path} is {'a folder' if stat.S_ISDIR(mode) else 'not a file'}", remedy)


def _read(path: Path) -> bytes:
    """The serialized model, with tensors that lie in files beside it."""
    import onnx

    remedy = f"give an ONNX file: {COMMAND} MODEL.onnx"
    try:
        model = onnx.load(path)
        serialized: bytes = model.SerializeToString()
    except Exception as error:  # protobuf and onnx raise their own kinds
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ExperimentError(f"{path} is not an ONNX model: {reason}", remedy) from error
    if not model.graph.node:
        raise ExperimentError(f"{path} is not an ONNX model, or its graph is empty", remedy)
    return serialized


def _check_csv(path: Path, model: Path) -> None:
    """Refuse a file that the rows cannot be written to, before anything is measured."""
    remedy = "choose another file: --csv profile.csv"
    try:
        if path.is_dir():
            raise ExperimentError(f"`--csv`: {path} is a folder", remedy)
        if path.exists() and path.samefile(model):
            raise ExperimentError(f"`--csv`: {path} is the model itself", remedy)
    except OSError as error:
        raise ExperimentError(f"`--csv`: cannot write {path}: {error.strerror}", remedy) from error
    check_output("--csv", path, "profile.csv")


def _rows(profile: Profile, by: str) -> list[Row]:
    """A row for each node in the order of execution; or for each operator and kind of kernel, the slowest first."""

    def time(microseconds: float) -> Row:
        return {"median_us": round(microseconds, 3), "share": round(microseconds / profile.total_us, 6)}

    if by == "node":
        return [
            {
                "node": node.name,
                "operator": node.operator,
                "kernel": node.kernel,
                **time(node.median_us),
                "inputs": " ".join(node.inputs),
                "outputs": " ".join(node.outputs),
            }
            for node in profile.nodes
        ]
    groups: dict[tuple[str, str], list[float]] = {}
    for node in profile.nodes:
        groups.setdefault((node.operator, node.kernel), []).append(node.median_us)
    return [
        {"operator": operator, "count": len(times), "kernel": kernel, **time(sum(times))}
        for (operator, kernel), times in sorted(groups.items(), key=lambda group: -sum(group[1]))
    ]


def _table(rows: list[Row], by: str) -> str:
    operators = list(dict.fromkeys(str(row["operator"]) for row in rows))
    if by == "node":
        names = shortened([str(row["node"]) for row in rows], NODE_WIDTH)
        short = dict(zip(operators, shortened(operators, OPERATOR_WIDTH), strict=True))
        header, details = "Operator", [short[str(row["operator"])] for row in rows]
    else:
        names = shortened([str(row["operator"]) for row in rows], OPERATOR_WIDTH + NODE_WIDTH - 8)
        header, details = "Count", [str(row["count"]) for row in rows]
    cells = [
        (name, detail, str(row["kernel"]), f"{row['median_us']:.1f}", f"{100 * float(row['share']):.1f} %")
        for name, detail, row in zip(names, details, rows, strict=True)
    ]
    return markdown((by.capitalize(), header, "Kernel", "Median us", "Share"), cells)


def shortened(names: Sequence[str], width: int) -> list[str]:
    """Shorten names to at most ``width`` printable columns each; different names stay different.

    The middle of a long name is left out, wherever that keeps all names apart. Where nothing does, the names that
    clash end in their position; and all do, should one of them look like another name.
    """
    names = [_printable(name) for name in names]
    heads = sorted(range(1, width - 2), key=lambda n: abs(2 * n - width))  # from the middle outwards
    ways = [[_without_middle(name, width, head) for name in names] for head in heads]
    positions = [f"~{position}" for position in range(1, len(names) + 1)]
    marked = [name[: width - len(mark)] + mark for name, mark in zip(names, positions, strict=True)]
    count = Counter(ways[0])
    clashing = [mark if count[name] > 1 else name for name, mark in zip(ways[0], marked, strict=True)]
    return next((way for way in (*ways, clashing) if len(set(way)) == len(way)), marked)


def _without_middle(name: str, width: int, head: int) -> str:
    return name if len(name) <= width else f"{name[:head]}..{name[head + 2 - width :]}"


def _printable(name: str) -> str:
    """Replace control characters, which a terminal would obey, and |, which would end a cell, by question marks."""
    return "".join(c if c.isprintable() and c != "|" else "?" for c in name)


def _summary(profile: Profile, options: argparse.Namespace) -> list[str]:
    """Totals for each kind of kernel, the time of a call without the profiler, the conditions."""
    import onnxruntime

    from resnet8_quant.machine import cpu_description

    kinds: dict[str, float] = {}
    for node in profile.nodes:
        kinds[node.kernel] = kinds.get(node.kernel, 0) + node.median_us
    total = profile.total_us
    slowest_first = sorted(kinds.items(), key=lambda pair: -pair[1])
    parts = [f"{kind} {us:.1f} us ({100 * us / total:.1f} %)".replace(" ", SPACE) for kind, us in slowest_first]
    threads = {0: "all cores", 1: "1 thread"}.get(options.threads, f"{options.threads} threads")
    return [
        wrapped(f"Operators: {len(profile.nodes)}, total {total:.1f} us; {', '.join(parts)}.").replace(SPACE, " "),
        wrapped(
            f"A whole call without the profiler: {profile.call_us:.1f} us. The profiler adds 2 to 4 us to each "
            "operator, so the shares of short ones read too high."
        ),
        wrapped(
            f"Calls behind each median: {profile.runs}; {', '.join(map(_printable, profile.inputs))}, {threads}, "
            f"ONNX Runtime {onnxruntime.__version__}, {cpu_description()}."
        ),
    ]


def _write(path: Path, rows: list[Row]) -> None:
    from resnet8_quant.files import replacing

    try:
        with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    except ExperimentError as error:
        raise ExperimentError(f"`--csv`: {error.problem}", "choose another file: --csv profile.csv") from error


if __name__ == "__main__":
    sys.exit(main())
