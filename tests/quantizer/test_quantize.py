"""The quantized model: what was asked for, and reproducible."""

import logging
import os
import subprocess
import sys

import numpy as np
import onnx
import pytest
from nets import ALL, net, run
from onnx import helper

from resnet8_quant.config import Config, DType, EvaluationConfig, Format, QuantConfig
from resnet8_quant.errors import ExperimentError
from resnet8_quant.quantizer import insert_ranges as module
from resnet8_quant.quantizer.insert_ranges import QDQRegistry
from resnet8_quant.quantizer.quantize import quantize
from resnet8_quant.validation import LEGAL

COMBINATIONS = [
    pytest.param(form, activation, weight, id=f"{form.name}-{activation.name}-{weight.name}")
    for form, table in LEGAL.items()
    for activation, weights in table.items()
    for weight in sorted(weights, key=lambda dtype: dtype.name)
    if activation is not DType.float32
]


@pytest.mark.parametrize(("form", "activation", "weight"), COMBINATIONS)
def test_every_legal_combination(model, images, form, activation, weight):
    config = Config(QuantConfig(activation_type=activation, weight_type=weight, format=form))
    result = quantize(model, images, config)
    assert (result.summary.activation_type, result.summary.weight_type) == (activation.name, weight.name)
    assert not result.summary.per_channel
    assert result.summary.operators["Conv" if form is Format.QDQ else "QLinearConv"] == [9, 0]
    feed = {model.input_spec.name: model.input_spec.prepare(images.batch(0, len(images)))}
    scores, expected = (run(serialized, feed, ALL)[0] for serialized in (result.serialized, model.serialized))
    apart = np.abs(scores - expected).mean() / expected.std()
    assert apart < (0.03 if activation.bits == weight.bits == 16 else 0.9 if weight.bits < 8 else 0.3)
    assert quantize(model, images, config).serialized == result.serialized


def test_nothing_to_quantize_is_refused(small_images):
    model = net(
        [helper.make_node("Exp", ["image"], ["scores"])], None, {"scores": (2, 6, 6)}, input_spec={"std": (255.0,) * 2}
    )
    with pytest.raises(ExperimentError, match="none of its 1 operators"):
        quantize(model, small_images, Config())


@pytest.mark.parametrize("form", Format)
def test_cache_and_threads_have_no_effect_on_the_model(model, images, tmp_path, form):
    quant = QuantConfig(per_channel=True, format=form)
    plain, *others = (
        quantize(model, images, Config(quant, evaluation=EvaluationConfig(threads=threads)), cache=cache)
        for threads, cache in ((0, None), (3, tmp_path), (2, tmp_path))
    )
    assert [quantized.calibration.cached for quantized in (plain, *others)] == [False, False, True]
    assert {quantized.serialized for quantized in others} == {plain.serialized}
    assert plain.summary.per_channel


@pytest.mark.any_cpu
@pytest.mark.parametrize("overrides", [["quant=w4a8", "refine=best"], ["allocate=bytes"]])
def test_threads_of_blas_have_no_effect_on_the_model(tmp_path, overrides):
    code = (
        "import sys; import resnet8_quant as rq; c = rq.compose(*sys.argv[2:])\n"
        "rq.quantize(rq.load_model(c), rq.load_dataset(c).train, c).save(sys.argv[1])"
    )
    small = ["data=sample", "calibration.samples_per_class=10"]
    for threads in "12":
        environment = os.environ | {"OPENBLAS_NUM_THREADS": threads}
        command = [sys.executable, "-c", code, str(tmp_path / f"{threads}.onnx"), *small, *overrides]
        subprocess.run(command, env=environment, check=True)
    assert (tmp_path / "1.onnx").read_bytes() == (tmp_path / "2.onnx").read_bytes()


def test_onnxruntimes_table_of_operators_is_left_as_it_was(conv, small_images):
    before = dict(QDQRegistry)
    quantize(conv(), small_images, Config())
    assert before == QDQRegistry
    with pytest.raises(KeyError):  # float32 is no quantized type
        quantize(conv(), small_images, Config(QuantConfig(weight_type=DType.float32)))
    assert before == QDQRegistry
    assert "AveragePool" in before


def test_a_full_disk_stops_onnxruntimes_shape_inference(model, images, monkeypatch):
    """The file of inferred shapes breaks off; what onnx writes in C++ would be a model without shapes."""
    save = onnx.save

    def full(proto, path, *arguments, **options):
        if str(path).endswith("-inferred.onnx"):
            path = "/dev/full"
        return save(proto, path, *arguments, **options)

    config = Config(QuantConfig(activation_type=DType.uint8, per_channel=True))
    before = onnx.shape_inference.infer_shapes_path
    with monkeypatch.context() as patched:
        patched.setattr(onnx, "save", full)
        with pytest.raises(ExperimentError, match=r"temporary files, .*: No space left"):
            quantize(model, images, config)
    assert onnx.shape_inference.infer_shapes_path is before
    assert quantize(model, images, config).summary.quantized_ops == 16


def test_repeated_lines_of_onnxruntime_are_one_sentence(caplog):
    with module._counted_lines(), caplog.at_level(logging.WARNING):
        for path in ("/lib/onnxruntime/quantization/q.py", "/home/me/mine.py"):
            for number in range(3):
                for text in (
                    f"Increased scale[{number}] for weight `w` by ratio {number}.5",
                    f"Axis 1 is of weight '{number}'",
                ):
                    logging.getLogger().handle(logging.LogRecord("root", logging.WARNING, path, 1, text, (), None))
    ours = [record.getMessage() for record in caplog.records if record.name == module.__name__]
    assert ours == [
        "onnxruntime: Increased scale[0] for weight `w` by ratio 0.5 (and 2 more of the kind)",
        "onnxruntime: Axis 1 is of weight '0' (and 2 more of the kind)",
    ]
    assert len(caplog.records) == 2 + 6
    assert not logging.getLogger().filters
