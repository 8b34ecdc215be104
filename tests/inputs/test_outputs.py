"""Binary models with one output, and outputs [N,C,1,1]: the same predictions, whatever the last layer is made of."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import resnet8_quant as rq
from resnet8_quant.config import ModelConfig, ModelKind
from resnet8_quant.errors import ExperimentError
from resnet8_quant.inputs.model import load_model
from resnet8_quant.inputs.outputs import plain_output

RNG = np.random.default_rng(5)
SHAPE = (6, 6, 3)  # of the images; the models take NCHW
GAINS = RNG.uniform(0, 1, (200, 1, 1, 3))  # so that images differ in their means, and the scores in their signs
IMAGES = (GAINS * RNG.integers(0, 256, (200, *SHAPE))).astype(np.uint8)
V = np.array([1.0, -1.0, 0.5, -0.5])
RESNET8 = Path(rq.__file__).parent / "resources" / "resnet8.onnx"
Node = tuple[str, list[str], dict[str, object]]


def network(ends: list[Node], tensors: dict[str, np.ndarray], output: list[object]) -> onnx.ModelProto:
    """Conv, Relu and ``ends``, of which the first reads "x" and each other what the one before it made."""
    opponents = np.array([[1, -1, 0], [-1, 1, 0], [0, 1, -1], [0, -1, 1]])  # red against green, green against blue
    tensors = {"w": np.tile(opponents[..., None, None] / 900, (1, 1, 3, 3)), "b": np.zeros(4)} | tensors
    nodes = [helper.make_node("Conv", ["image", "w", "b"], ["c"]), helper.make_node("Relu", ["c"], ["x0"])]
    for i, (op_type, inputs, options) in enumerate(ends):
        nodes.append(helper.make_node(op_type, [f"x{i}", *inputs], [f"x{i + 1}"], **options))
    nodes[-1].output[0] = "score"
    ends_of_graph = [("image", ["batch", 3, 6, 6]), ("score", ["batch", *output])]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in ends_of_graph]
    arrays = {name: array if array.dtype == np.int64 else array.astype("f4") for name, array in tensors.items()}
    stored = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    graph = helper.make_graph(nodes, "net", values[:1], values[1:], stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    return model


def computed(model: bytes, images: np.ndarray = IMAGES) -> np.ndarray:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    pixels = images.transpose(0, 3, 1, 2).astype("f4")
    (result,) = session.run(None, {session.get_inputs()[0].name: pixels})
    return np.asarray(result)


def loaded(model: onnx.ModelProto, folder: Path, classes: int = 2) -> rq.FloatModel:
    onnx.save(model, folder / "model.onnx")
    return load_model(ModelConfig(ModelKind.onnx, path=str(folder / "model.onnx")), SHAPE, classes, folder)


GAP: Node = ("GlobalAveragePool", [], {})
FLAT: Node = ("Flatten", [], {})
# Last layers with one output: {name: (operators, tensors)}.
LAYERS: dict[str, tuple[list[Node], dict[str, np.ndarray]]] = {
    "Gemm": ([GAP, FLAT, ("Gemm", ["v", "a"], {})], {"v": V[:, None], "a": np.array([-0.02])}),
    "Gemm, transposed, scaled": (
        [GAP, FLAT, ("Gemm", ["v", "a"], {"transB": 1, "alpha": 0.5, "beta": 2.0})],
        {"v": V[None], "a": np.array([[0.01]])},
    ),
    "Gemm without bias": ([GAP, FLAT, ("Gemm", ["v"], {})], {"v": V[:, None]}),
    "MatMul": ([GAP, FLAT, ("MatMul", ["v"], {})], {"v": V[:, None]}),
    "MatMul, Add": (
        [GAP, FLAT, ("MatMul", ["v"], {}), ("Add", ["a"], {})],
        {"v": V[:, None], "a": np.array([-0.03])},
    ),
    "MatMul of rank 3": (
        [GAP, ("Reshape", ["s"], {}), ("MatMul", ["v"], {})],
        {"v": V[:, None], "s": np.array([-1, 1, 4])},
    ),
    "Conv behind a mean": (
        [GAP, ("Conv", ["v", "a"], {})],
        {"v": V[None, :, None, None], "a": np.array([-0.02])},
    ),
    "Conv before a mean": (
        [("Conv", ["v", "a"], {}), GAP],
        {"v": V[None, :, None, None], "a": np.array([-0.02])},
    ),
    "Conv, Add": (
        [GAP, ("Conv", ["v"], {}), ("Add", ["a"], {})],
        {"v": V[None, :, None, None], "a": np.array([[[-0.02]]])},
    ),
}


@pytest.mark.parametrize("sigmoid", [False, True])
@pytest.mark.parametrize("squeezed", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_one_output_becomes_two_classes(name, squeezed, sigmoid, tmp_path):
    nodes, tensors = LAYERS[name]
    nodes, tensors = list(nodes), dict(tensors)
    rank = 4 if "Conv" in name else 3 if "rank" in name else 2
    if squeezed:
        nodes.append(("Squeeze", ["axes"], {}))
        tensors["axes"] = np.arange(1, rank)
    nodes += [("Sigmoid", [], {})] if sigmoid else []
    model = network(nodes, tensors, [] if squeezed else [1] * (rank - 1))
    ours = loaded(model, tmp_path)
    before, after = computed(model.SerializeToString()).reshape(-1), computed(ours.serialized)
    assert (ours.input_spec.classes, after.shape) == (2, (len(IMAGES), 2))
    assert 0.1 < np.mean(before > 0.5 * sigmoid) < 0.9
    np.testing.assert_array_equal(after.argmax(1), before > 0.5 * sigmoid)
    np.testing.assert_allclose(after[:, 1], before, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(after[:, 0], 1 - before if sigmoid else 0 * before, rtol=1e-5, atol=1e-6)
    onnx.checker.check_model(ours.proto(), full_check=True)


@pytest.mark.parametrize(
    ("nodes", "tensors", "message"),
    [
        ([GAP, FLAT, ("Gemm", ["v"], {}), ("Tanh", [], {})], {"v": np.ones((4, 1))}, "comes from Tanh; two classes"),
        ([GAP, FLAT, ("ReduceMean", [], {"axes": [1]})], {}, "comes from ReduceMean"),
        (
            [GAP, FLAT, ("Gemm", ["v"], {}), ("Sigmoid", [], {}), ("Sigmoid", [], {})],
            {"v": np.ones((4, 1))},
            "comes from Gemm, Sigmoid, Sigmoid",
        ),
        (
            [("Conv", ["v"], {}), ("Sigmoid", [], {}), GAP],
            {"v": np.ones((1, 4, 1, 1))},
            "comes from Conv, Sigmoid, GlobalAveragePool",
        ),
    ],
)
def test_other_ends_with_one_output_are_refused(nodes, tensors, message, tmp_path):
    model = network(nodes, tensors, [1, 1, 1] if nodes[-1] is GAP else [1])
    with pytest.raises(ExperimentError, match=message):
        loaded(model, tmp_path)


def test_a_logit_that_something_else_reads_is_not_widened(tmp_path):
    """As SiLU, z * sigmoid(z)."""
    model = network([GAP, FLAT, ("Gemm", ["v"], {}), ("Sigmoid", [], {})], {"v": np.ones((4, 1))}, [1])
    model.graph.node[-1].output[0] = "s"
    model.graph.node.append(helper.make_node("Mul", ["s", "x3"], ["score"]))
    with pytest.raises(ExperimentError, match="comes from Mul"):
        loaded(model, tmp_path)
    model.graph.node[-1].CopyFrom(helper.make_node("Add", ["x3", "one"], ["t"]))
    model.graph.node.append(helper.make_node("Sigmoid", ["t"], ["score"]))
    model.graph.initializer.append(numpy_helper.from_array(np.ones(1, np.float32), "one"))
    with pytest.raises(ExperimentError, match="comes from Add, Sigmoid"):
        loaded(model, tmp_path)


def test_one_output_for_more_classes_is_refused_as_before(tmp_path):
    nodes, tensors = LAYERS["Gemm"]
    with pytest.raises(ExperimentError, match=r"found output score float32 \[N,1\]; .* one float32 output \[N,3\]"):
        loaded(network(nodes, tensors, [1]), tmp_path, classes=3)


@pytest.mark.parametrize(("shape", "nodes"), [([5, 1, 1], []), ([1, 1, 5], ["Transpose"]), ([5, 1], ["Squeeze"])])
def test_axes_of_one_are_flattened(shape, nodes, tmp_path):
    ends: list[Node] = [GAP, ("Conv", ["v"], {})]
    ends += {"Transpose": [("Transpose", [], {"perm": [0, 2, 3, 1]})], "Squeeze": [("Squeeze", ["axes"], {})]}.get(
        "".join(nodes), []
    )
    model = network(ends, {"v": RNG.normal(size=(5, 4, 1, 1)), "axes": np.array([3])}, shape)
    ours = loaded(model, tmp_path, classes=5)
    np.testing.assert_allclose(
        computed(ours.serialized), computed(model.SerializeToString()).reshape(-1, 5), rtol=1e-5, atol=1e-6
    )
    assert ours.input_spec.classes == 5


def test_plain_outputs_are_left_alone():
    model = onnx.load(RESNET8)
    assert plain_output(model, 2) is model


@pytest.fixture(scope="module")
def cats_and_dogs(tmp_path_factory):
    """The words of a run on CIFAR-10's cats and dogs, with a ResNet8 whose one output is the sigmoid of their logit."""
    folder = tmp_path_factory.mktemp("binary")
    data = rq.load_dataset(rq.compose("data=sample"))
    arrays = {}
    for name in ("train", "test"):
        split = getattr(data, name)
        chosen = np.isin(split.labels, (3, 5))
        arrays |= {f"x_{name}": split.images[chosen], f"y_{name}": split.labels[chosen] == 5}
    np.savez(folder / "data.npz", **arrays)
    model = onnx.load(RESNET8)
    softmax = model.graph.node[-1]
    gemm = next(node for node in model.graph.node if node.op_type == "Gemm")
    assert softmax.op_type == "Softmax"
    for tensor in model.graph.initializer:
        if tensor.name in gemm.input[1:]:
            values = numpy_helper.to_array(tensor)
            axis = values.shape.index(10)
            dog, cat = (values.take([label], axis) for label in (5, 3))
            tensor.CopyFrom(numpy_helper.from_array(dog - cat, tensor.name))
    softmax.CopyFrom(helper.make_node("Sigmoid", softmax.input, softmax.output, softmax.name))
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 1
    del model.graph.value_info[:]
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, folder / "model.onnx")
    words = ("data=arrays", f"data.path={folder / 'data.npz'}", "model=onnx", f"model.path={folder / 'model.onnx'}")
    small = ("calibration.samples_per_class=20", "latency.runs=0", "evaluation.threads=1", f"cache_dir={folder}")
    return (*words, *small), model


@pytest.mark.parametrize(
    "settings",
    [
        "quant=u8s7",
        "quant=u8s7 deploy=x86",
        "quant=u8s7 deploy=x86 deploy.output=label",
        "quant=tflite_int8 deploy=tflite deploy.verify=10",
        "quant=w4a8 refine=gptq",
    ],
)
def test_a_binary_model_goes_all_the_way(cats_and_dogs, settings, tmp_path):
    words, model = cats_and_dogs
    config = rq.compose(*words, *settings.split())
    result = rq.run(config, tmp_path / "run")
    test = rq.load_dataset(config).test
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (probability,) = session.run(None, {"image": test.images.astype("f4")})
    expected = probability[:, 0] > 0.5
    np.testing.assert_array_equal(np.load(tmp_path / "run" / "float_predictions.npy"), expected)
    assert result.classes == 2
    assert result.float_accuracy == np.mean(expected == test.labels) > 0.7
    assert result.accuracy > result.float_accuracy - 0.05
    if "x86" in settings:
        assert result.kernels == "integer"


def test_a_binary_model_is_distilled(cats_and_dogs, tmp_path):
    pytest.importorskip("torch")
    words, _ = cats_and_dogs
    few = ("refine=distill", "refine.distill_steps=2", "refine.validation_images=20")
    result = rq.run(rq.compose(*words, "quant=w4a8", *few), tmp_path / "run")
    assert result.distill_steps == 2
