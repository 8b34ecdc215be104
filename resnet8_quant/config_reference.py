"""The config in words: the text of ``--help``, and docs/config.md (``python -m resnet8_quant.config_reference``).

In: the dataclasses of config.py with the descriptions of their fields, and the option files. Out: text.
"""

from __future__ import annotations

import dataclasses
import inspect
import textwrap
from collections.abc import Hashable, Iterable, Iterator
from pathlib import Path
from typing import Any, cast

from resnet8_quant.config import Config
from resnet8_quant.errors import COMMAND
from resnet8_quant.options import CONF, GROUPS, options
from resnet8_quant.settings import enum_fields, word
from resnet8_quant.terminal import show

_INTRODUCTION = """\
resnet8-quant: post-training quantization of ResNet8 on ONNX Runtime

What does a quantization cost in accuracy, what does it save in bytes and
microseconds, and is the difference real? One run answers it for one
configuration, -m for a grid.

Usage
  {command} quant=int8
  {command} quant=u8s8 calibration=percentile seed=7
  {command} -m quant=int8,uint8 calibration=minmax,entropy
  {command} -m quant=int8,uint8 hydra/launcher=joblib resume=true
  {command} experiment=seed_table
  {summary} outputs --sort -accuracy --top 10
"""
_CLOSING = """\
Outputs
  outputs/runs/DATE_TIME/     results.csv, per_class.csv, predictions.npy,
                              model.onnx, run.json, run.log
  outputs/sweeps/DATE_TIME/   one such folder per job, summary.csv,
                              summary.md, report.html

More
  --cfg job           show the configuration and stop
  -m                  run a grid; values separated by commas
  --config-dir DIR    a folder with option files of your own, as quant/mine.yaml
  --hydra-help        Hydra's own options (shell completion, hydra.run.dir, ...)
"""


_REFERENCE = """\
# Settings

Written by `python -m resnet8_quant.config_reference > docs/config.md`; a test checks that it is current.
`GROUP=OPTION` chooses a file of `conf/GROUP/`, which holds what differs from the defaults below;
`SETTING=VALUE` sets one value. What may be combined with what: `resnet8_quant/validation.py`.

An option of your own is a file with the lines that differ, for example `conf/quant/mine.yaml`, or
`quant/mine.yaml` in a folder that `--config-dir` names:

```yaml
activation_type: uint8
weight_bits: 5
```

`quant=mine` then runs it, and the results call it `mine`; changed settings show in the name, as in
`mine+weight_bits=4`.
"""

# Group -> what it is; the settings at the top level last.
_GROUPS = {
    name: inspect.getdoc(type(part)) or "" for name, part in vars(Config()).items() if dataclasses.is_dataclass(part)
} | {"": "Settings without a group"}


def help_text(command: str = COMMAND, folders: tuple[Path, ...] = (CONF,)) -> str:
    """What ``--help`` prints, in 80 columns.

    Args:
        command: how the program is called.
        folders: that hold option files.
    """
    summary = "python -m resnet8_quant.summary" if command == COMMAND else f"{command} summary"
    lines = [
        _INTRODUCTION.format(command=command, summary=summary),
        "Groups (GROUP=OPTION) and their settings (SETTING=VALUE), with the defaults",
        "",
    ]
    for group, title in _GROUPS.items():
        lines += _wrapped(f"{group}: {title[0].lower()}{title[1:].removesuffix('.')}" if group else title, "", "  ")
        if group in GROUPS:
            lines += _wrapped(f"{group}={' | '.join(options(group, folders))}", "  ", "      ")
        for field, default, description in _settings(group):
            lines += [f"  {field}={default}", *_wrapped(description, "      ", "      ")]
        lines.append("")
    studies = ", ".join(options("experiment", folders))
    lines += [*_wrapped(f"experiment=STUDY: a sweep by one word. Studies: {studies}", "", "  "), ""]
    return "\n".join(lines) + "\n" + _CLOSING.format(command=command)


def reference() -> str:
    """The text of docs/config.md."""
    lines = [_REFERENCE]
    for group, title in _GROUPS.items():
        lines += [f"## {group}", "", title, ""] if group else ["## Top level", ""]
        if group in GROUPS:
            lines += _table(("option", "what it is"), _options(group))
        settings = ((f"`{field}`", f"`{default}`", about) for field, default, about in _settings(group))
        lines += _table(("setting", "default", "what it is"), settings)
    lines += ["## experiment", "", *_table(("study", "what it is"), _options("experiment"))]
    return "\n".join(lines)


def _options(group: str) -> Iterator[tuple[str, str]]:
    return ((f"`{group}={name}`", about) for name, about in options(group).items())


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> list[str]:
    """The lines of a Markdown table, the last one empty."""
    cells = [head, ["---"] * len(head), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return [*(f"| {' | '.join(row)} |" for row in cells), ""]


def _settings(group: str) -> Iterator[tuple[str, str, str]]:
    """(setting as typed, default, description with the choices) of a group, or of the top level."""
    part: Any = getattr(Config(), group) if group else Config()
    enums = enum_fields(cast(Hashable, type(part)))
    for each in dataclasses.fields(part):
        if "help" not in each.metadata or each.name == "name":
            continue
        description = each.metadata["help"]
        members = list(enums[each.name].__members__) if each.name in enums else []
        if not all(member in description for member in members):
            description += f"; {' | '.join(members)}"
        yield f"{group}.{each.name}".lstrip("."), word(getattr(part, each.name)), description


def _wrapped(text: str, first: str, rest: str) -> list[str]:
    return textwrap.wrap(
        text, 80, initial_indent=first, subsequent_indent=rest, break_long_words=False, break_on_hyphens=False
    )


if __name__ == "__main__":
    show(reference().rstrip("\n"))
