"""A digest follows what a job computes: not its paths, not what nothing reads, and nothing else is left out."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest

from resnet8_quant.config import Config, DataConfig, DataKind, ModelConfig, ModelKind
from resnet8_quant.inputs.arrays import NAMES
from resnet8_quant.inputs.model import RESOURCES
from resnet8_quant.sweep import digest
from resnet8_quant.sweep.compose import compose_config
from resnet8_quant.sweep.digest import NEVER, UNREAD, digest_of, effective
from resnet8_quant.validation import validate


def _config(*words: str) -> Config:
    config = compose_config(["data=sample", *words])
    validate(config)
    return config


@pytest.mark.parametrize(
    ("words", "more", "equal"),
    [
        ("quant=float", "calibration=entropy calibration.samples_per_class=7 seed=3", True),
        ("quant=float", "quant.per_channel=true", True),
        ("quant=int8", "refine.damping=0.5 refine.images=7 allocate.validation_images=3", True),
        ("latency.runs=0", "latency.warmup=3 latency.threads=2", True),
        ("quant=int8 calibration.sampling=first", "seed=7", True),
        ("quant=int8", "resume=true cache_dir=elsewhere", True),
        ("quant=int8", "quant.activation_type=uint8 quant.weight_type=uint8", False),
        ("quant=int8", "seed=43", False),
        ("quant=int8", "calibration.samples_per_class=99", False),
        ("quant=int8", "calibration=entropy", False),
        ("quant=w4a8", "refine.damping=0.5", False),
        ("quant=int8 refine=gptq", "refine.images=7", False),
        ("quant=w4a8 refine=distill", "refine.distill_steps=7", False),
        ("quant=w4a8 refine=distill calibration.sampling=first", "seed=7", False),
        ("latency.runs=10", "latency.threads=2", False),
        ("quant=int8", "evaluation.batch_size=1", False),
        ("quant=float", "latency.runs=0", False),
    ],
)
def test_what_nothing_reads_is_left_out_and_all_else_counts(words: str, more: str, equal: bool) -> None:
    first, second = (effective(_config(*overrides.split())) for overrides in (words, f"{words} {more}"))
    assert (first == second) == equal


def test_the_tables_name_fields() -> None:
    settings = dataclasses.asdict(Config())
    for path in [*NEVER, *(path for paths, _ in UNREAD for path in paths)]:
        value: Any = settings
        for part in path.split("."):
            assert part in value, path
            value = value[part]


def test_content_counts_and_not_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def digest_with(name: str) -> str:
        model = ModelConfig(kind=ModelKind.onnx, path=str(tmp_path / name))
        return digest_of(Config(model=model, data=DataConfig(kind=DataKind.sample)))

    shutil.copy(RESOURCES / "resnet8.onnx", tmp_path / "a.onnx")
    shutil.copy(RESOURCES / "resnet8.onnx", tmp_path / "b.onnx")
    first = digest_with("a.onnx")
    assert first == digest_with("b.onnx")
    import onnx

    model = onnx.load(tmp_path / "b.onnx")
    weight = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    weight.raw_data = bytes(4) + weight.raw_data[4:]
    onnx.save(model, tmp_path / "c.onnx")
    assert first != digest_with("c.onnx")
    shutil.copy(tmp_path / "c.onnx", tmp_path / "a.onnx")
    assert first != digest_with("a.onnx")
    assert digest_with("absent.onnx") != digest_with("gone.onnx")
    shutil.copy(RESOURCES / "resnet8.onnx", tmp_path / "a.onnx")
    assert first == digest_with("a.onnx")
    monkeypatch.setattr(digest, "__version__", "0.0.0")
    assert first != digest_with("a.onnx")


def test_npy_files_of_a_folder_count_by_content(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        for name in NAMES:
            (tmp_path / folder / f"{name}.npy").write_bytes(name.encode())
    config = Config(data=DataConfig(kind=DataKind.arrays, path=str(tmp_path / "a")))
    first = digest_of(config)
    config.data.path = str(tmp_path / "b")
    assert digest_of(config) == first
    (tmp_path / "b" / "y_test.npy").write_bytes(b"others")
    assert digest_of(config) != first
