"""The help and docs/config.md describe every setting, from the one place where each is documented."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import time
from pathlib import Path

from resnet8_quant.config import Config
from resnet8_quant.config_reference import help_text, reference
from resnet8_quant.options import GROUPS, options
from resnet8_quant.settings import flatten

ROOT = Path(__file__).resolve().parents[1]


def test_every_setting_is_documented() -> None:
    config = Config()
    for part in (config, *(part for part in vars(config).values() if dataclasses.is_dataclass(part))):
        for each in dataclasses.fields(part):
            assert each.metadata.get("help") or dataclasses.is_dataclass(getattr(part, each.name)), each.name


def test_help_names_every_setting_and_option_in_80_columns() -> None:
    text = help_text()
    assert max(map(len, text.splitlines())) <= 80
    for setting, default in flatten(Config()).items():
        assert setting.endswith(".name") or f"{setting}={default}\n" in text
    for group in GROUPS:
        assert all(option in text for option in options(group))


def test_help_survives_a_pipe_and_starts_without_hydra(tmp_path: Path) -> None:
    (tmp_path / "quant").mkdir()
    (tmp_path / "quant" / "mine.yaml").write_text("# Mine.\nweight_bits: 5\n")
    code = (
        "import sys; from resnet8_quant.cli import main; "
        f"code = main(['--help', '--config-dir', {str(tmp_path)!r}]); "
        "sys.exit(code or bool({'hydra', 'onnxruntime'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "| mine |" in done.stdout


def test_help_starts_fast() -> None:
    def seconds() -> float:
        start = time.perf_counter()
        subprocess.run([sys.executable, "run.py", "--help"], cwd=ROOT, stdout=subprocess.DEVNULL, check=True)
        return time.perf_counter() - start

    assert min(seconds() for _ in range(5)) < 0.6


def test_docs_config_md_is_current() -> None:
    assert (ROOT / "docs" / "config.md").read_text(encoding="utf-8") == reference()
