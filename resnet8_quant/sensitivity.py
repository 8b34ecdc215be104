"""Which layer of a run hurts: ``python -m resnet8_quant.sensitivity RUN``, or analyze=layers beside the run itself.

In: the folder of a run. Out: layers.csv and tensors.csv in it, a table of its layers with the most harmful first, and
the command that gives the three worst of them more bits, or keeps them in float.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from resnet8_quant import terminal
from resnet8_quant.config import Analysis, Config, DType, Runtime
from resnet8_quant.errors import COMMAND as PROGRAM
from resnet8_quant.errors import ExperimentError, as_typed_here, completed, own_folders
from resnet8_quant.files import read_json, read_regular, sha256_bytes
from resnet8_quant.options import CONF, GROUPS, options, overrides_of
from resnet8_quant.profile import shortened
from resnet8_quant.results import ANALYSIS_FILES, RECORD, qdq_file
from resnet8_quant.validation import FLOAT, allocates

COMMAND = "python -m resnet8_quant.sensitivity"
LAYER_WIDTH = 14  # columns of a layer's name; the table then has 80
WORST = 3
PORTABLE_BITS = 7  # of weights that saturate on no CPU


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0, or 1 after an error."""
    return terminal.exit_code(lambda: run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: Sequence[str]) -> None:
    """What the command line ``arguments`` asks for."""
    parser = argparse.ArgumentParser(prog=as_typed_here(COMMAND), description="Which layer of a run hurts.")
    parser.add_argument("run", metavar="RUN", type=Path, help="folder of a run of a quantized model")
    options = terminal.parsed(parser, arguments, COMMAND)
    config, record = read_record(options.run)
    analyze_run(options.run, config, record)
    written = [f"  {terminal.shown(options.run / name)}" for name in ANALYSIS_FILES]
    lines = lines_of(options.run, config, record["result"].get("overrides") or "")
    terminal.show("\n".join([*lines, "", "Written to", *written]))


def read_record(folder: Path) -> tuple[Config, dict[str, Any]]:
    """The config of the run in ``folder``, and its run.json.

    Raises:
        ExperimentError: there is no such run, another version wrote it, or it quantized nothing.
    """

    record = read_json(folder / RECORD)
    written, result = record.get("config"), record.get("result")
    if not isinstance(written, dict) or not isinstance(result, dict):
        raise ExperimentError(f"{folder} holds no finished run ({RECORD})", f"{PROGRAM} quant=w4a8 analyze=layers")
    again = f"{PROGRAM} {result.get('overrides') or 'quant=w4a8'} analyze=layers"  # the config may not be readable
    values: dict[str, Any] = {}
    try:
        shlex.split(result.get("overrides") or "")
        for field in dataclasses.fields(Config):
            default = getattr(Config(), field.name)
            value = written.get(field.name, default)
            values[field.name] = type(default)(**value) if isinstance(value, dict) else value
        values["analyze"] = Analysis.layers
        config = Config(**values)
    except (TypeError, ValueError, AttributeError, ExperimentError) as error:
        raise ExperimentError(f"{folder}: another version wrote {RECORD} ({error})", again) from error
    if config.quant.activation_type is DType.float32:
        raise ExperimentError(
            f"{folder} is a float run, which has nothing quantized to analyze", f"{PROGRAM} quant=w4a8 analyze=layers"
        )
    return config, record


def analyze_run(folder: Path, config: Config, record: dict[str, Any]) -> None:
    """Analyze a finished run and write layers.csv and tensors.csv beside its results; nothing is quantized again.

    Args:
        folder: of the run.
        config: of the run.
        record: its run.json.

    Raises:
        ExperimentError: data, float model or quantized model are others now or gone, or all training images calibrate.
    """
    from resnet8_quant.evaluator.sensitivity import write
    from resnet8_quant.experiment import analyze_layers, prepare
    from resnet8_quant.inputs.model import LARGEST_FILE as LARGEST_MODEL

    result = record["result"]
    words = [*words_of(config, result.get("overrides") or ""), "analyze=layers"]
    again = f"{PROGRAM} {shlex.join(words)}"
    try:
        prepared = prepare(config, quantizes=False)
    except ExperimentError as error:
        raise completed(error, words) from error

    def check(name: str, digest: str | None, found: str) -> None:
        if digest != found:
            raise ExperimentError(f"{folder}: {name} is not the one of the run any more", again)

    check("the data", result.get("data_sha256"), prepared.data.digest)
    check("the float model", result.get("float_model_sha256"), prepared.model.digest)
    path = folder / qdq_file(config)
    try:
        named = read_regular(path, LARGEST_MODEL)
    except OSError as error:
        earlier = "; versions before this one did not write it" if isinstance(error, FileNotFoundError) else ""
        raise ExperimentError(f"{path} cannot be read ({error.strerror}{earlier})", again) from error
    check(path.name, record.get("qdq_sha256") or result.get("model_sha256"), sha256_bytes(named))
    write(analyze_layers(config, prepared, named), folder)


def words_of(config: Config, overrides: str) -> list[str]:
    """Overrides that repeat a run: as typed, or from its config where an experiment file or Python set some of it."""
    words, folders = shlex.split(overrides), (CONF, *own_folders())
    chosen = [word.lstrip("+").partition("=")[::2] for word in words]
    if not words or any(
        group == "experiment" or (group in GROUPS and option not in options(group, folders)) for group, option in chosen
    ):
        words = overrides_of(config, folders)
    return [word for word in words if not re.match(r"\+*(analyze|resume|hydra)\b", word)]


def lines_of(folder: Path, config: Config, overrides: str) -> list[str]:
    """The analysis in ``folder`` as lines for a terminal: a table, what it says, and the command for the worst layers.

    Args:
        config: of the run.
        overrides: of its command line.
    """
    with (folder / ANALYSIS_FILES[0]).open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    lines = [*table(rows).splitlines(), "", *_summary(rows[0]).splitlines()]
    if layers := worst_layers(rows, config):
        allocated = _allocated(rows, config, read_json(folder / RECORD)) if allocates(config) else {}
        lines += [
            f"More for the {len(layers)} that hurt most:",
            f"  {as_typed_here(pasted(layers, config, overrides, allocated))}",
        ]
    return lines


def table(rows: Sequence[dict[str, str]]) -> str:
    """The rows of layers.csv in 80 columns."""
    names = shortened([row["layer"] for row in rows], LAYER_WIDTH)

    def kl(row: dict[str, str], part: str) -> str:
        return f"{float(row[f'{part}_kl']):.4f}" if row[f"{part}_kl"] else ""

    cells = [
        (
            name,
            f"{row['weight_bits']}/{row['activation_bits']}" if row["weight_bits"] else "",
            *(kl(row, part) for part in ("weights", "activations", "both")),
            row["both_flips"],
            kl(row, "kept_float"),
            f"{float(row['output_snr_db']):.1f}" if row["output_snr_db"] else "",
        )
        for name, row in zip(names, rows, strict=True)
    ]
    return terminal.markdown(("Layer", "W/A", "Weights", "Input", "Both", "Flips", "Without", "dB"), cells)


def _summary(row: dict[str, str]) -> str:
    """What the columns mean, and the figures of the whole model."""
    accuracies = [terminal.percent(float(row[name])) for name in ("float_accuracy", "quantized_accuracy")]
    return terminal.wrapped(
        f"On {int(row['images']):,} training images: {accuracies[0]} top-1 in float, {accuracies[1]} quantized; all "
        f"quantized, KL {float(row['quantized_kl']):.4f} and {row['quantized_flips']} flips. Weights, Input, Both: KL "
        "divergence from the float model's class probabilities with that alone quantized, and with both the "
        "predictions that flip. Without: that of the quantized model with this layer in float. dB: signal-to-noise "
        "ratio of the layer's output in the quantized model."
    )


def worst_layers(rows: Sequence[dict[str, str]], config: Config) -> dict[str, dict[str, int | bool]]:
    """Exceptions for quant.layers that help the most harmful layers: more bits where there are, else float.

    Args:
        rows: of layers.csv, the most harmful first.
        config: of the run.
    """
    quant = config.quant
    wide = min(PORTABLE_BITS, quant.weight_type.bits)
    layers: dict[str, dict[str, int | bool]] = {}
    for row in rows:
        if not row["weight_bits"] or len(layers) == WORST:
            continue
        weights, activations = float(row["weights_kl"]), float(row["activations_kl"])
        if weights >= activations and int(row["weight_bits"]) < wide:
            layers[row["layer"]] = {"weight_bits": wide}
        elif weights < activations and int(row["activation_bits"]) < quant.activation_type.bits:
            layers[row["layer"]] = {"activation_bits": quant.activation_type.bits}
        elif config.deploy.runtime is not Runtime.tflite:
            layers[row["layer"]] = {"float": True}
    return layers


def _allocated(
    rows: Sequence[dict[str, str]], config: Config, record: dict[str, Any]
) -> dict[str, dict[str, int | bool]]:
    """What ``allocate`` chose for each layer, as in quant.layers."""
    choices = [choice for choice in config.allocate.choices if choice != FLOAT]
    layers: dict[str, dict[str, int | bool]] = {name: {"float": True} for name in record.get("float_layers", ())}
    for row in rows:
        if row["weight_bits"]:
            bits = int(row["weight_bits"])  # that its codes take
            layers[row["layer"]] = {"weight_bits": min((c for c in choices if c >= bits), default=bits)}
    return layers


def pasted(
    layers: dict[str, dict[str, int | bool]],
    config: Config,
    overrides: str,
    allocated: dict[str, dict[str, int | bool]] | None = None,
) -> str:
    """The run's command with ``layers`` added to its quant.layers.

    Args:
        layers: exceptions.
        config, overrides: of the run.
        allocated: bit widths that take the place of ``allocate``, whose limit has no room for more; None: it stays.
    """
    merged: dict[str, dict[str, Any]] = dict(config.quant.layers)
    for name, settings in (*(allocated or {}).items(), *layers.items()):
        # what Hydra or the shell's patterns would read in a name is matched by any character
        pattern = re.sub(r"[^\w./+$%@-]", "?", name, flags=re.ASCII)
        if not re.match("[A-Za-z_/?]", pattern) or pattern.lower() in ("true", "false", "null", "inf", "nan"):
            pattern = f"?{pattern[1:]}"  # Hydra would read a number, not a name
        old = merged.pop(pattern, {})
        merged[pattern] = settings if "float" in settings else old | settings
    changed = dataclasses.replace(config, quant=dataclasses.replace(config.quant, layers=merged))
    (layers_word,) = (word for word in overrides_of(changed) if word.startswith("quant.layers="))
    dropped = r"\+*(quant\.layers|allocate)\b" if allocated else r"\+*quant\.layers\b"
    kept = [word for word in words_of(config, overrides) if not re.match(dropped, word)]
    return f"{PROGRAM} {shlex.join([*kept, layers_word])}"


if __name__ == "__main__":
    sys.exit(main())
