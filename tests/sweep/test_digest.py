"""A digest follows what a job computes: not its paths, not what nothing reads, and nothing else is left out."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest

from resnet8_quant.config import Config, DataConfig, DataKind, ModelConfig, ModelKind
from resnet8_quant.inputs.model import RESOURCES
from resnet8_quant.sweep import digest
from resnet8_quant.sweep.compose import register, to_config
from resnet8_quant.sweep.digest import NEVER, UNREAD, digest_of, effective
from resnet8_quant.validation import validate

CONF = Path(__file__).resolve().parents[2] / "conf"


def _config(*words: str) -> Config:
    from hydra import compose, initialize_config_dir

    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = to_config(compose("config", ["data=sample", *words]), words)
    validate(config)
    return config


def _equal(first: str, second: str) -> bool:
    return effective(_config(*first.split())) == effective(_config(*second.split()))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("quant=float", "quant=float calibration=entropy calibration.samples_per_class=7 seed=3"),
        ("quant=float", "quant=float quant.per_channel=true"),
        ("quant=int8", "quant=int8 refine.damping=0.5 refine.images=7 allocate.validation_images=3"),
        ("latency.runs=0", "latency.runs=0 latency.warmup=3 latency.threads=2"),
        ("quant=int8 calibration.sampling=first", "quant=int8 calibration.sampling=first seed=7"),
        ("quant=int8", "quant=int8 resume=true cache_dir=elsewhere"),
    ],
)
def test_what_nothing_reads_is_left_out(first: str, second: str) -> None:
    assert _equal(first, second)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("quant=int8", "quant=uint8"),
        ("quant=int8", "quant=int8 seed=43"),
        ("quant=int8", "quant=int8 calibration.samples_per_class=99"),
        ("quant=int8", "quant=int8 calibration=entropy"),
        ("quant=w4a8", "quant=w4a8 refine.damping=0.5"),
        ("quant=int8 refine=gptq", "quant=int8 refine=gptq refine.images=7"),
        ("latency.runs=10", "latency.runs=10 latency.threads=2"),
        ("quant=int8", "quant=int8 evaluation.batch_size=1"),
        ("quant=float", "quant=float latency.runs=0"),
    ],
)
def test_what_something_reads_counts(first: str, second: str) -> None:
    assert not _equal(first, second)


def test_the_tables_name_fields() -> None:
    settings = dataclasses.asdict(Config())
    for path in [*NEVER, *(path for paths, _ in UNREAD for path in paths)]:
        value: Any = settings
        for part in path.split("."):
            assert part in value, path
            value = value[part]


def test_content_counts_and_not_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def digest_with(name: str, kind: ModelKind = ModelKind.onnx) -> str:
        path = str(tmp_path / name) if kind is ModelKind.onnx else None
        model = ModelConfig(kind=kind, path=path)
        data = DataConfig(kind=DataKind.sample)
        return digest_of(Config(model=model, data=data, cache_dir=str(tmp_path)))

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
