"""What a person reads: tables and sentences at the end of a run or a sweep, errors, and log lines.

In: `RunResult`s. Out: Markdown tables, within 80 columns for ResNet8, the same in a window, a pipe and a file.
"""

from __future__ import annotations

import argparse
import logging
import os
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, TextIO

from resnet8_quant.errors import ExperimentError, as_typed_here, similar_word
from resnet8_quant.files import refuse_pipe
from resnet8_quant.results import RunResult

BASELINES = ("FP32", "original")  # names of the first row: of a float model, of another one
RUN_COLUMNS = ("Model", "Top-1", "Delta", "95 % CI", "Size", "Latency")
CONTROL = re.compile(
    "[\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f\\u200e\\u200f\\u202a-\\u202e\\u2066-\\u2069]"
)  # all but \\t and \\n
MANY_CHANGED = 0.002  # predictions of a target's runtime that differ from the exact ones, a ratio


def percent(ratio: float | None) -> str:
    """0.87194 -> "87.19 %"."""
    return "" if ratio is None else f"{100 * ratio:.2f} %"


def points(ratio: float | None) -> str:
    """-0.0053 -> "-0.53", in percentage points; no sign at zero."""
    return "" if ratio is None else "0.00" if ratio == 0 else f"{100 * ratio:+.2f}"


def size(count: int | None) -> str:
    """97455 -> "97,455 B"."""
    return "" if count is None else f"{count:,} B"


def microseconds(value: float | None) -> str:
    """231.8 -> "232 us"."""
    return "" if value is None else f"{value:.0f} us"


def interval(low: float | None, high: float | None) -> str:
    """Both ends in percent."""
    return "" if low is None or high is None else f"{100 * low:.2f}-{100 * high:.2f}"


def run_table(result: RunResult) -> str:
    """The baseline row, then the quantized row; the baseline alone where the run changed nothing."""
    from resnet8_quant.evaluator.statistics import wilson_interval

    baseline, images = result.float_accuracy, result.eval_images
    assert baseline is not None
    assert images is not None

    def row(name: str, accuracy: float, count: int, bytes_: int | None, latency: float | None = None) -> list[str]:
        delta = "" if count != images or name in BASELINES else points(accuracy - baseline)
        ends = interval(*wilson_interval(round(accuracy * count), count))
        return [name, percent(accuracy), delta, ends, size(bytes_), microseconds(latency)]

    is_float = result.calibration_method or result.activation_type == "float32"
    name = BASELINES[0 if is_float else 1]
    rows = [row(name, baseline, images, result.float_model_bytes, result.float_latency_us_median)]
    if is_changed(result) and result.accuracy is not None:
        quantization = result.quant_type if result.calibration_method else "deployed"
        name = f"{quantization}{'*' if changes(result) else ''}"
        rows.append(row(name, result.accuracy, images, result.model_bytes, result.latency_us_median))
    for name, accuracy in (("in LiteRT", result.tflite_accuracy), ("in TFLite Micro", result.tflm_accuracy)):
        if accuracy is not None and result.verified_images is not None:
            rows.append(row(name, accuracy, result.verified_images, result.tflite_bytes))
    return markdown(RUN_COLUMNS, rows)


def is_changed(result: RunResult) -> bool:
    """Whether the run quantized or deployed its model."""
    return result.model_sha256 != result.float_model_sha256


def changes(result: RunResult) -> list[str]:
    """Overrides that make the run's quantization another than its name says."""
    return [
        word
        for word in shlex.split(result.overrides or "")
        if word.startswith(("quant.", "refine", "allocate", "deploy"))
    ]


def verdict(result: RunResult) -> list[str]:
    """What an asterisk stands for, and whether the difference is real; none where there is nothing to compare."""
    if not is_changed(result) or result.mcnemar_p is None:
        return []
    changed = [f"* with {' '.join(changes(result))}"] if changes(result) else []
    return [
        *changed,
        f"{result.flips_to_wrong} images flipped to wrong, {result.flips_to_right} to right: "
        f"McNemar p = {result.mcnemar_p:.3g}, {_significance(result.mcnemar_p)}.",
    ]


def _significance(p: float) -> str:
    return "real at the 5 % level" if p < 0.05 else "within noise"


def _target_sentences(result: RunResult) -> list[str]:
    """What the runtimes of the target make of the model, and what it takes there; none without deploy=tflite."""
    if result.tflite_bytes is None or result.verified_images is None:
        return []
    sentences = [
        f"{name} differs from the exact integers in {changed} of {result.verified_images:,} predictions"
        + (f": McNemar p = {p:.3g}, {_significance(p)}." if changed and p is not None else ".")
        for name, changed, p in (
            ("LiteRT", result.tflite_changed, result.tflite_mcnemar_p),
            ("TensorFlow Lite Micro", result.tflm_changed, result.tflm_mcnemar_p),
        )
        if changed is not None
    ]
    changes_of_runtimes = [changed for changed in (result.tflite_changed, result.tflm_changed) if changed is not None]
    if max(changes_of_runtimes, default=0) > MANY_CHANGED * result.verified_images:
        sentences.append(
            "They round otherwise than ONNX Runtime: judge by the accuracy of the runtime that you ship to."
        )
    arena = "" if result.arena_bytes is None else f", arena in TensorFlow Lite Micro {size(result.arena_bytes)}"
    peak = result.peak_activation_bytes
    needs = f"{size(result.tflite_bytes)} of flash for the file, {size(peak)} of RAM for activations{arena}"
    return [*sentences, f"On the target: {needs}; {result.macs or 0:,} multiply-accumulates an image."]


def final_lines(result: RunResult) -> list[str]:
    """The end of a run: its table, whether the difference is real, and advice; for the terminal and for run.log."""
    from resnet8_quant.evaluator.advice import advise

    sentences = [*verdict(result), *_target_sentences(result), *map(as_typed_here, advise(result))]
    return [*run_table(result).splitlines(), "", *map(wrapped, sentences)]


def log_to_file(logger: logging.Logger, text: str) -> None:
    """Log ``text`` to run.log and other log files alone, where the terminal shows it by other means."""
    record = logger.makeRecord(logger.name, logging.INFO, __file__, 0, text, (), None)
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.FileHandler):
            handler.handle(record)


class FileHandler(logging.FileHandler):
    """Python's own, of run.log; a pipe in its place is an OSError and not a wait for its reader."""

    def _open(self) -> Any:
        refuse_pipe(Path(self.baseFilename))
        return super()._open()


class ConsoleHandler(logging.StreamHandler[TextIO]):
    """Log lines for a person: in a window they break between words; in a pipe each stays one line."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as text; a traceback, an indented line, and a word that is too long stay as they are."""
        text = harmless(super().format(record))
        if record.exc_info or not self.stream.isatty():
            return text
        width = shutil.get_terminal_size().columns
        return wrapped(text, columns=width)


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first column is left-aligned, the others right. No cell is ever cut or wrapped."""
    cells = [[cell.replace("|", "\\|") for cell in row] for row in (columns, *rows)]
    widths = [max(3, *(len(row[i]) for row in cells)) for i in range(len(columns))]

    def line(row: Sequence[str]) -> str:
        aligned = (c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        return "| " + " | ".join(aligned) + " |"

    rule = "|" + "|".join(("-" * (w + 2) if i == 0 else "-" * (w + 1) + ":") for i, w in enumerate(widths)) + "|"
    return "\n".join([line(cells[0]), rule, *(line(row) for row in cells[1:])])


def show(text: str, *, error: bool = False) -> None:
    """Write ``text`` and a newline to stdout, or to stderr.

    A reader who has seen enough, as `| head`, gets no more, and that is no error.

    Raises:
        ExperimentError: stdout cannot be written to.
    """
    stream: TextIO | None = sys.stderr if error else sys.stdout
    if stream is None:  # closed by the shell: COMMAND >&-
        return
    encoding = stream.encoding or "utf-8"
    try:
        stream.write(harmless(text).encode(encoding, "replace").decode(encoding) + "\n")
        stream.flush()
    except OSError as problem:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())  # for what is still to come
        if not error and not isinstance(problem, BrokenPipeError):
            reason = f"cannot write to stdout: {problem.strerror}"
            raise ExperimentError(reason, "free some space, or send it elsewhere: COMMAND > FILE") from problem


def harmless(text: str) -> str:
    """``text`` without what a terminal would obey, which may come from a CSV or the name of a model."""
    return CONTROL.sub("?", text)


def show_error(error: ExperimentError) -> None:
    """The problem and the remedy, wrapped for an 80-column window."""
    show(wrapped(error.problem, "error: ", "       "), error=True)
    show(wrapped(as_typed_here(error.remedy), "  try: ", "       "), error=True)


def counted(count: int, noun: str) -> str:
    """1 and "run" -> "1 run"; 2,000 and "run" -> "2,000 runs"."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def parsed(parser: argparse.ArgumentParser, words: Sequence[str], command: str) -> argparse.Namespace:
    """What ``words``, the arguments of ``command``, say, options before or after the rest.

    Raises:
        ExperimentError: a wrong argument, in whose place the remedy has what was probably meant, or one is missing.
    """

    def refuse(message: str) -> NoReturn:
        wrong = re.search(r"(?:unrecognized arguments: |invalid choice: ')([\w-]+)", message)
        known = [
            *parser._option_string_actions,
            *(choice for action in parser._actions for choice in action.choices or ()),
        ]
        similar = similar_word(wrong[1], known) if wrong else None
        missing = re.search("arguments are required: (.*)", message)
        remedy = [*words, missing[1]] if missing else ["--help"]
        if wrong and similar:
            remedy = [re.sub(rf"^{re.escape(wrong[1])}(?=$|=)", similar, word) for word in words]
        raise ExperimentError(message, f"{command} {shlex.join(remedy)}")

    setattr(parser, "error", refuse)  # noqa: B010 (a method, to a type checker)
    return parser.parse_intermixed_args(words)


def exit_code(command: Callable[[], None]) -> int:
    """Run a command: 0, or 1 after an error that was shown."""
    try:
        command()
    except ExperimentError as error:
        show_error(error)
        return 1
    return 0


def wrapped(text: str, first: str = "", rest: str = "  ", columns: int = 80) -> str:
    """``text`` in lines of at most ``columns``; a path or a word is never broken, an indented line (a command) neither.

    ``first`` goes before the first line of the result, ``rest`` before the lines that continue one.
    """
    import textwrap

    lines = text.split("\n")
    wrap = textwrap.TextWrapper(
        columns, initial_indent=first, subsequent_indent=rest, break_long_words=False, break_on_hyphens=False
    )
    lines[0] = wrap.fill(lines[0])
    wrap.initial_indent = rest if first else ""
    lines[1:] = [line if line.startswith("  ") else wrap.fill(line) for line in lines[1:]]
    return "\n".join(lines)


def shown(path: Path) -> str:
    """``path`` from the current folder where it lies below it."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
