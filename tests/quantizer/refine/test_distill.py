"""Distillation: gradients against formulas, the student against what is emitted, images without labels, same bytes."""

import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from nets import NETS, OFF, PICTURES, arrays_of, branching, pictures, run
from onnx import numpy_helper

pytest.importorskip("torch", reason="needs the extra [distill]")
import torch

import resnet8_quant as rq
from resnet8_quant.config import (
    AllocateConfig,
    CalibrationConfig,
    Config,
    DType,
    EvaluationConfig,
    QuantConfig,
    RefineConfig,
    Rounding,
)
from resnet8_quant.errors import COMMAND, ExperimentError
from resnet8_quant.graphs.saturation import saturating_layers
from resnet8_quant.inputs.dataset import Split
from resnet8_quant.inputs.sample import load_sample
from resnet8_quant.quantizer.calibration.calibrate import calibrate
from resnet8_quant.quantizer.calibration.images import CalibrationImages
from resnet8_quant.quantizer.emit import emit
from resnet8_quant.quantizer.insert_ranges import insert_ranges
from resnet8_quant.quantizer.plan import layer_bits, layer_nodes
from resnet8_quant.quantizer.quantize import quantize
from resnet8_quant.quantizer.refine import distill as module
from resnet8_quant.quantizer.refine.distill import Distiller, split
from resnet8_quant.quantizer.refine.reconstruct import reconstruct
from resnet8_quant.quantizer.refine.student import Student, fake_quantize
from resnet8_quant.quantizer.refine.teacher import Teacher
from resnet8_quant.quantizer.refine.torch_graph import TorchGraph

W4A4 = QuantConfig(
    activation_type=DType.uint8, weight_type=DType.int8, per_channel=True, weight_bits=4, activation_bits=4
)
DISTILL = RefineConfig("distill", distill=True, distill_steps=12, validation_images=8)
POOL = CalibrationImages.of(PICTURES)


@pytest.mark.parametrize("axis", [None, 1])
@pytest.mark.parametrize(("qmin", "qmax", "zero"), [(0, 15, 4), (-8, 7, 0), (-2, 1, 0)])
def test_gradients_are_those_of_lsq_and_of_finite_differences(qmin, qmax, zero, axis):
    """y = s clip(x / s + r, qmin - z, qmax - z) is differentiable while r = round(x / s) - x / s is held fixed.

    All codes lie strictly between the bounds or far outside of them.
    """
    rng, shape = np.random.default_rng(qmax), (5, 3, 40)
    scale = np.float32(0.21) if axis is None else np.float32([0.13, 0.2, 0.34])
    s = np.float64(scale) if axis is None else np.float64(scale)[:, None]
    low, high = qmin - zero, qmax - zero
    inside = rng.integers(2, size=shape).astype(bool)
    outside = np.where(rng.integers(2, size=shape), low - 3, high + 3)
    steps = np.where(inside, rng.integers(low + 1, high, shape), outside) + rng.uniform(-0.4, 0.4, shape)
    x, w = np.float32(steps * s), rng.normal(size=shape).astype(np.float32)
    rest = np.rint(x / s) - x / s

    tensors = [torch.tensor(a, requires_grad=True) for a in (x, scale, np.float32(zero) + np.zeros_like(scale))]
    y = fake_quantize(*tensors, qmin, qmax, axis)
    y.backward(torch.from_numpy(w))
    codes = np.clip(np.rint(x / s), low, high)
    np.testing.assert_allclose(y.detach(), codes * s, rtol=1e-6)

    def loss(dx=0.0, ds=0.0, dz=0.0):
        return w * (s + ds) * np.clip((x + dx) / (s + ds) + rest, low - dz, high - dz)

    axes, d = (None if axis is None else (0, 2)), 1e-4
    slopes = [(loss(**{name: d}) - loss(**{name: -d})) / (2 * d) for name in ("dx", "ds", "dz")]
    for tensor, slope in zip(tensors, (slopes[0], slopes[1].sum(axes), slopes[2].sum(axes)), strict=True):
        np.testing.assert_allclose(tensor.grad, slope, rtol=1e-3, atol=1e-3)
    # LSQ, equation 3: round(v) - v inside, the bound outside.
    lsq = np.where(inside, rest, codes)
    np.testing.assert_allclose(tensors[1].grad, (w * lsq).sum(axes), rtol=1e-3, atol=1e-3)


def student_of(model, images, config):
    """What quantize_static makes, the student that starts from the refined plan, and the plan."""
    calibration = calibrate(model, images, config)
    quantized = onnx.load_from_string(insert_ranges(model, calibration, config.quant))
    bits = layer_bits(model.proto().graph, config.quant)
    plan = reconstruct(model, images, config, calibration)
    return quantized, Student(emit(quantized, plan), plan, bits, config, model.proto()), plan


QUANTS = {
    "w4a4": W4A4,
    "w2a8, first and last at 7": replace(W4A4, weight_bits=2, activation_bits=None, keep_first_last=7),
    "w3a3, residual 5": replace(W4A4, weight_bits=3, activation_bits=3, residual_bits=5),
    "int8 per tensor": QuantConfig(weight_bits=8),
    "int8 symmetric": QuantConfig(weight_bits=7, activation_symmetric=True),
    "a layer in float": replace(W4A4, layers={"scores": {"float": True}}),
    "uint8 weights": replace(W4A4, weight_type=DType.uint8, weight_bits=5),
}


@pytest.mark.parametrize("quant", QUANTS)
@pytest.mark.parametrize("name", [*NETS, "branching"])
def test_the_student_is_the_emitted_model(name, quant):
    """At the start, and after all its parameters have moved; a sum that ends on a tie may move a code by one step."""
    model = NETS[name]() if name in NETS else branching()
    config = Config(QUANTS[quant], refine=RefineConfig(bias=True, activation_ranges=True, rounding=Rounding.gptq))
    quantized, student, plan = student_of(model, pictures(), config)
    feed, rng = model.input_spec.prepare(PICTURES[:28]), np.random.default_rng(1)

    def assert_same(plan):
        emitted = emit(quantized, plan).SerializeToString()
        batch = model.input_spec.batch or len(feed)
        parts = [run(emitted, {"image": feed[i : i + batch]}, OFF)[0] for i in range(0, len(feed), batch)]
        with torch.no_grad():
            computed = student.forward(torch.from_numpy(feed)).numpy()
        off = np.abs(np.concatenate(parts) - computed) > 1e-4 * np.abs(computed).max()
        assert off.any(axis=1).mean() <= 0.15

    assert_same(plan)
    with torch.no_grad():
        for parameter in student.parameters.values():
            parameter += 0.2 * parameter.abs().mean() * torch.from_numpy(rng.normal(size=parameter.shape)).float()
    moved = student.to_plan()
    assert not plan.layers or any(
        (a.weight.codes != b.weight.codes).any() for a, b in zip(moved.layers, plan.layers, strict=True)
    )
    assert_same(moved)


@pytest.mark.any_cpu
@pytest.mark.parametrize(("weight_bits", "keep"), [(4, 7), (7, None)])
def test_the_bundled_model_keeps_its_grids_and_comes_closer(model, weight_bits, keep):
    """Portable before and after, and the loss falls."""
    images = CalibrationImages.of(load_sample().train.images, np.arange(0, 1000, 10))
    quant = replace(W4A4, weight_bits=weight_bits, keep_first_last=keep)
    refine = replace(DISTILL, distill_steps=25, validation_images=100, learning_rate=0.002)
    done = quantize(
        model,
        images,
        Config(quant, refine=refine, evaluation=EvaluationConfig(threads=1)),
        training=replace(images, chosen=np.arange(1000)),
    )
    plain = quantize(model, images, Config(quant))
    before, after = done.distillation.loss
    assert (done.distillation.images, done.distillation.steps) == (900, 25)
    assert after < before if weight_bits == 4 else after <= before
    assert saturating_layers(done.serialized) == ()

    def shapes(serialized):
        graph = onnx.load_from_string(serialized).graph
        return [node.op_type for node in graph.node], [(t.name, t.data_type, tuple(t.dims)) for t in graph.initializer]

    assert shapes(done.serialized) == shapes(plain.serialized)
    # pixels stay exact: deploy.input=uint8 takes them as they are
    name = model.proto().graph.input[0].name
    assert done.calibration.params[name] == plain.calibration.params[name]


def test_student_and_file_agree_on_a_thousand_images(model):
    """Also after steps that moved everything: probabilities, and 1,000 classes but for ties."""
    pixels = load_sample().test.images[:1000]
    images = CalibrationImages.of(load_sample().train.images, np.arange(0, 1000, 10))
    quantized, student, plan = student_of(model, images, Config(W4A4, refine=RefineConfig(bias=True)))
    feed = model.input_spec.prepare(pixels)
    teacher = run(model.proto(), {model.input_spec.name: feed[:64]}, OFF)[0]
    optimizer = torch.optim.Adam(
        [{"params": [p], "lr": 0.02 * student.rates[n]} for n, p in student.parameters.items()]
    )
    for _ in range(10):
        optimizer.zero_grad()
        logits = student.forward(torch.from_numpy(feed[:64]))
        torch.nn.functional.cross_entropy(logits, torch.from_numpy(teacher)).backward()
        optimizer.step()
    moved = student.to_plan()
    assert any((a.weight.codes != b.weight.codes).any() for a, b in zip(plan.layers, moved.layers, strict=True))
    plan = moved
    with torch.no_grad():
        computed = torch.softmax(student.forward(torch.from_numpy(feed)), 1).numpy()
    graph = emit(quantized, plan)
    probabilities = run(graph, {graph.graph.input[0].name: feed}, OFF)[0]
    # Softmax is stored in steps of 1/256; an image whose sums end on a tie may be off by more.
    assert (np.abs(computed - probabilities).max(axis=1) > 1 / 256).mean() < 0.02
    assert (computed.argmax(1) != probabilities.argmax(1)).sum() <= 3


@pytest.mark.any_cpu
def test_labels_change_no_byte():
    """They decide which images calibrate; permuted or wrong on all the others they leave the same bytes."""
    config = rq.compose(
        *("data=sample", "quant=w4a8", "refine=none", "refine.distill=true", "refine.distill_steps=3"),
        *(
            "refine.validation_images=50",
            "calibration.sampling=first",
            "calibration.samples_per_class=3",
            "evaluation.threads=1",
        ),
    )
    train, model = rq.load_dataset(config).train, rq.load_model(config)
    calibrated = max(np.flatnonzero(train.labels == c)[2] for c in range(10)) + 1
    rest = train.labels[calibrated:]
    serialized = {
        rq.quantize(model, Split(train.images, np.append(train.labels[:calibrated], labels)), config).serialized
        for labels in (rest, rest[::-1], np.zeros_like(rest))
    }
    assert len(serialized) == 1


@pytest.mark.any_cpu
def test_the_same_bytes_again_and_others_with_another_seed():
    config = Config(W4A4, refine=DISTILL)
    serialized = [
        quantize(branching(), pictures(12), replace(config, seed=seed), training=POOL).serialized for seed in (1, 1, 2)
    ]
    assert serialized[0] == serialized[1] != serialized[2]


def test_nothing_gained_keeps_the_start(monkeypatch, caplog):
    """NaN stops it, and the best state so far is kept."""
    config = Config(W4A4, refine=replace(DISTILL, distill_steps=1000))
    losses = iter(range(3))
    loss = module._loss

    def breaks(logits, targets):
        return loss(logits, targets) * (
            1 if logits.requires_grad is False or next(losses, None) is not None else torch.nan
        )

    monkeypatch.setattr(module, "_loss", breaks)
    done = quantize(branching(), pictures(12), config, training=POOL)
    assert done.distillation.steps == 3
    assert "the loss is nan in step 4; it stops" in caplog.text
    assert done.serialized == quantize(branching(), pictures(12), replace(config, refine=RefineConfig())).serialized


@pytest.mark.any_cpu
@pytest.mark.parametrize("compact", [True, False])
def test_a_budget_is_that_of_the_distilled_file_and_layers_may_stay_in_float(compact):
    """The result starts from what refinement alone leaves: the same layers in float, the same file without training."""
    allocated = AllocateConfig("bytes", 10_000, choices=[2, 4, "float"])
    quant, refine = replace(W4A4, compact=compact), replace(DISTILL, bias=True, learning_rate=0.05)

    def distilled(budget, refine=refine):
        config = Config(quant, refine=refine, allocate=replace(allocated, budget_bytes=budget))
        return quantize(branching(), pictures(12), config, training=POOL)

    with pytest.raises(ExperimentError, match="the smallest possible file has") as caught:
        distilled(1)
    smallest = int(caught.value.problem.split()[-2])
    for budget in (smallest + 50, smallest + 300):
        done = distilled(budget)
        assert len(done.serialized) <= budget
        assert done.distillation.steps == 12
    assert done.float_layers
    assert done.float_layers == distilled(budget, replace(refine, distill=False)).float_layers
    stored = [numpy_helper.to_array(tensor) for tensor in onnx.load_from_string(done.serialized).graph.initializer]
    floats = {node.output[0]: node.input[1] for node in layer_nodes(branching().proto().graph)}
    weights = arrays_of(branching().proto())
    assert all(any(np.array_equal(weights[floats[name]], array) for array in stored) for name in done.float_layers)


def test_a_distilled_model_that_loses_more_than_allowed_is_not_kept(caplog):
    allocate = AllocateConfig("accuracy", max_accuracy_drop=0.1, choices=[2, 4], validation_images=4)
    tried = set()

    def quantized(drop, **refine):
        quant = replace(W4A4, keep_first_last=None)
        config = Config(quant, refine=replace(DISTILL, **refine), allocate=allocate)
        return quantize(branching(), pictures(12), config, training=POOL, accuracy_drop=drop)

    before = quantized(lambda serialized: tried.add(serialized) or 0.0, distill=False)
    assert quantized(lambda serialized: 0.0).distillation is not None
    kept = quantized(lambda serialized: 0.0 if serialized in tried else 0.2)
    assert (kept.serialized, kept.distillation) == (before.serialized, None)
    assert "the distilled model loses 20.00 points" in caplog.text


def test_a_time_limit_ends_it():
    refine = replace(DISTILL, distill_steps=10_000_000, minutes=0.05)
    done = quantize(branching(), pictures(12), Config(W4A4, refine=refine), training=POOL)
    assert 0 < done.distillation.steps < 100_000


def test_a_time_limit_that_the_teacher_takes_keeps_the_start(caplog):
    refine = replace(DISTILL, minutes=1e-6)
    done = quantize(branching(), pictures(12), Config(W4A4, refine=refine), training=POOL)
    assert done.distillation.steps == 0
    assert "the teacher took 100 % of refine.minutes" in caplog.text


def test_images_that_calibrate_are_learned_from_and_never_in_the_validation_split():
    images = np.zeros((100, 2, 2, 3), np.uint8)
    calibrating, training = (
        CalibrationImages.of(images, np.arange(0, 100, 5), "x"),
        CalibrationImages.of(images, digest="x"),
    )

    def rows(**options):
        return split(training, calibrating, Config(refine=replace(DISTILL, validation_images=30, **options)))

    learned, validation = rows()
    assert (len(learned), len(validation)) == (70, 30)
    assert not set(validation) & {*learned, *calibrating.chosen}
    assert set(calibrating.chosen) <= set(learned)
    np.testing.assert_array_equal(rows(distill_images=20)[0], calibrating.chosen)
    others = split(replace(training, images=images.copy()), calibrating, Config(refine=DISTILL))
    assert len(others[0]) == 92  # calibrated on other images: none of these did


@pytest.mark.parametrize(("count", "calibrating"), [(100, 90), (100, 100), (40, 40), (3, 3)])
def test_too_few_images_and_the_remedy(count, calibrating):
    images = np.zeros((count, 2, 2, 3), np.uint8)
    training = CalibrationImages.of(images, digest="x")
    config = Config(
        calibration=CalibrationConfig(samples_per_class=calibrating // 2), refine=RefineConfig(distill=True)
    )
    with pytest.raises(ExperimentError, match=rf"is 2000, but of {count} training images {calibrating} cal") as caught:
        split(training, replace(training, chosen=np.arange(calibrating)), config)
    remedy = caught.value.remedy
    if count == 3:
        assert remedy == "refine=best"
        return
    config = rq.compose("refine=distill", *remedy.removeprefix(COMMAND).split())
    fewer = calibrating if "samples" not in remedy else 2 * config.calibration.samples_per_class
    rows, validation = split(training, replace(training, chosen=np.arange(fewer)), config)
    assert len(rows)
    assert len(validation) == config.refine.validation_images


def test_the_teacher_is_the_mean_over_views(model):
    """By ONNX Runtime; an image and its mirror image have the same teacher."""
    images = CalibrationImages.of(load_sample().train.images[:200])
    config = Config(W4A4, refine=replace(DISTILL, mirror=True, shift=1))
    distiller = Distiller(model, images, replace(images, chosen=np.arange(20)), config)
    pixels, name = images.images[:50], model.proto().graph.input[0].name
    padded = np.pad(pixels, ((0, 0), (1, 1), (1, 1), (0, 0)), "edge")
    crops = [padded[:, y : y + 32, x : x + 32] for y, x in ((1, 1), (0, 1), (2, 1), (1, 0), (1, 2))]
    feeds = [model.input_spec.prepare(each) for crop in crops for each in (crop, crop[:, :, ::-1])]
    mean = sum(run(model.serialized, {name: feed}, OFF)[0] for feed in feeds) / 10
    np.testing.assert_allclose(np.exp(distiller.teacher.log_probabilities(np.arange(50)).numpy()), mean, atol=1e-5)
    swapped = replace(images, images=np.ascontiguousarray(images.images[:, :, ::-1]))
    other = Distiller(model, swapped, replace(swapped, chosen=np.arange(20)), distiller.config)
    np.testing.assert_allclose(
        other.teacher.log_probabilities(np.arange(50)), distiller.teacher.log_probabilities(np.arange(50)), atol=1e-4
    )


def test_a_teacher_is_cached(model, tmp_path, monkeypatch):
    """Other seeds read what the first stored; other views do not."""
    images = CalibrationImages.of(load_sample().train.images[:60])
    config = Config(W4A4, refine=replace(DISTILL, mirror=True))

    def targets(config, cache=tmp_path):
        distiller = Distiller(model, images, replace(images, chosen=np.arange(20)), config, cache)
        return dict(zip([*distiller.rows, *distiller.validation], torch.cat(distiller.targets()), strict=True))

    first, without = targets(config), targets(config, None)
    for row, target in first.items():
        np.testing.assert_array_equal(target, without[row])
    with monkeypatch.context() as patch:
        patch.setattr(Teacher, "log_probabilities", None)  # another call would fail
        second = targets(replace(config, seed=7))
        with pytest.raises(TypeError):
            targets(replace(config, refine=replace(config.refine, shift=1)))
    assert list(second) != list(first)
    for row in second.keys() & first.keys():
        np.testing.assert_array_equal(second[row], first[row])


@pytest.mark.parametrize(("name", "done", "off"), [("mirror", "mirrored", "false"), ("shift", "shifted", "0")])
def test_a_view_that_changes_what_is_seen_is_refused(name, done, off):
    """The scores of `branching` depend on where a value lies."""
    config = Config(W4A4, refine=replace(DISTILL, **{name: 1}))
    with pytest.raises(ExperimentError, match=rf"{done} the float model gives only \d+ % of 8 training") as caught:
        Distiller(branching(), POOL, pictures(12), config)
    assert caught.value.remedy == f"refine=distill refine.{name}={off}"
    assert not getattr(rq.compose(*caught.value.remedy.split()).refine, name)
    Distiller(branching(), POOL, pictures(12), replace(config, refine=DISTILL))


def test_a_translation_that_differs_is_refused(monkeypatch):
    monkeypatch.setitem(TorchGraph.run.__globals__["OPERATORS"], "Relu", lambda x, _: x[0])
    with pytest.raises(ExperimentError, match="PyTorch computes another output of the float model"):
        Distiller(branching(), POOL, pictures(12), Config(W4A4, refine=DISTILL))


def test_the_row_says_how_many_images(tmp_path, monkeypatch):
    config = rq.compose(
        *("data=sample", "quant=w4a8", "refine=none", "refine.distill=true", "refine.distill_steps=2"),
        *("refine.validation_images=50", "calibration.samples_per_class=3", "latency.runs=0", "evaluation.threads=1"),
    )
    result = rq.run(config, tmp_path / "run")
    assert (result.distill_images, result.distill_steps, result.refine) == (
        950,
        2,
        "none+distill=true+distill_steps=2+1 more",
    )
    with monkeypatch.context() as without:
        without.setattr("resnet8_quant.experiment.find_spec", lambda _: None)
        with pytest.raises(ExperimentError, match="the package `torch` is not installed") as caught:
            rq.run(config, tmp_path / "without")
    assert "[distill]" in caught.value.remedy
    data = rq.load_dataset(config)
    (x, y), path = (data.train.images, data.train.labels), tmp_path / "twice.npz"
    np.savez(path, x_train=x, y_train=y, x_test=x[-30:], y_test=y[-30:])
    config.data = rq.compose("data=arrays", f"data.path={path}").data
    with pytest.raises(ExperimentError, match="30 of 30 test images are also training images"):
        rq.run(config, tmp_path / "overlap")


@pytest.mark.any_cpu
def test_an_interrupted_distillation_goes_on(monkeypatch, tmp_path, caplog):
    """The checkpoint leads to the same bytes; one that is damaged, or of other work, is of no use."""
    caplog.set_level("INFO")
    config = Config(W4A4, refine=replace(DISTILL, distill_steps=24))

    def distilled(config=config, cache=tmp_path):
        return quantize(branching(), pictures(12), config, training=POOL, cache=cache).serialized

    expected, loss = distilled(cache=None), module._loss

    def interrupt(steps):
        left = iter(range(steps))

        def breaks(logits, targets):
            if logits.requires_grad and next(left, None) is None:
                raise KeyboardInterrupt
            return loss(logits, targets)

        monkeypatch.setattr(module, "_loss", breaks)
        with pytest.raises(KeyboardInterrupt):
            distilled()
        monkeypatch.setattr(module, "_loss", loss)
        return next((tmp_path / "distillation").iterdir())

    interrupt(15)
    assert distilled(replace(config, seed=7)) != expected
    assert "goes on" not in caplog.text
    assert distilled() == expected
    assert "goes on after step 14" in caplog.text
    assert not list((tmp_path / "distillation").iterdir())
    interrupt(15).write_bytes(b"damaged")
    assert distilled() == expected
    assert "the distillation starts anew" in caplog.text


@pytest.mark.any_cpu
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_killed_run_ends_as_one_that_was_not(tmp_path):
    """SIGKILL after the first checkpoint; the same command again makes the bytes of an uninterrupted run."""
    command = (
        *(sys.executable, Path(__file__).parents[3] / "run.py", "data=sample", "quant=w4a4", "refine=none"),
        *("refine.distill=true", "refine.distill_steps=24", "refine.validation_images=50", "latency.runs=0"),
        *("calibration.samples_per_class=3", "evaluation.threads=1"),
    )

    def start(name, cache):
        words = [*command, f"cache_dir={tmp_path / cache}", f"hydra.run.dir={tmp_path / name}"]
        return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def finished(name, cache):
        process = start(name, cache)
        output, _ = process.communicate(timeout=200)
        assert process.returncode == 0, output
        return (tmp_path / name / "model.onnx").read_bytes(), output + (tmp_path / name / "run.log").read_text()

    killed, deadline = start("killed", "cache"), time.monotonic() + 120
    while not list((tmp_path / "cache" / "distillation").glob("*.pt")):
        assert killed.poll() is None, killed.communicate()[0]
        assert time.monotonic() < deadline, "no checkpoint"
        time.sleep(0.01)
    killed.kill()
    killed.communicate(timeout=30)
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "killed" / "model.onnx").exists()
    assert len(list((tmp_path / "cache" / "distillation").glob("*.pt"))) == 1

    again, said = finished("killed", "cache")
    whole, said_whole = finished("whole", "other")
    assert again == whole
    assert "distillation goes on after step" in said
    assert "distillation goes on" not in said_whole
    assert not list((tmp_path / "cache" / "distillation").iterdir())
