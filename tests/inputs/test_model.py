"""Which ONNX models are taken, what is said about the others, and what folding leaves."""

import os
from itertools import pairwise

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

import resnet8_quant as rq
from resnet8_quant.config import Layout, ModelConfig, ModelKind
from resnet8_quant.errors import ExperimentError
from resnet8_quant.inputs.fold import fold
from resnet8_quant.inputs.input_spec import InputSpec
from resnet8_quant.inputs.model import load_model, load_model_for
from resnet8_quant.inputs.splits import Dataset, Split

SHAPE = (4, 4, 3)
CLASSES = 5


def save(path, nodes, inputs, outputs, weights=(), opsets=(("", 21),)):
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info(*value) for value in inputs],
        [helper.make_tensor_value_info(*value) for value in outputs],
        [numpy_helper.from_array(array, name) for name, array in dict(weights).items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid(*o) for o in opsets], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    return model


@pytest.fixture
def classifier(tmp_path):
    """Input shape and type -> path of a linear classifier."""

    def make(shape, dtype=TensorProto.FLOAT, outputs=CLASSES, inputs=1):
        path = tmp_path / "net.onnx"
        names = [f"image{i}" for i in range(inputs)]
        pixels = int(np.prod(shape[1:]))
        nodes = [helper.make_node("Sum", names, ["sum"])] if inputs > 1 else []
        nodes += [
            helper.make_node("Cast", ["sum" if inputs > 1 else "image0"], ["x"], to=TensorProto.FLOAT),
            helper.make_node("Flatten", ["x"], ["flat"]),
            helper.make_node("Gemm", ["flat", "w"], ["scores"]),
        ]
        weights = {"w": np.random.default_rng(0).normal(size=(pixels, outputs)).astype(np.float32)}
        scores = [("scores", TensorProto.FLOAT, [shape[0], outputs])]
        save(path, nodes, [(name, dtype, shape) for name in names], scores, weights)
        return path

    return make


def load(path, tmp_path, shape=SHAPE, **config):
    return load_model(ModelConfig(kind=ModelKind.onnx, path=str(path), **config), shape, CLASSES, tmp_path / "cache")


def test_files_that_are_no_model(tmp_path):
    path = tmp_path / "net.onnx"
    with pytest.raises(ExperimentError, match=r"net\.onnx cannot be read"):
        load(path, tmp_path)
    for content, message in ((b"", r"net\.onnx"), (b"\x00\xffnot a model" * 20, r"net\.onnx is not a valid ONNX")):
        path.write_bytes(content)
        with pytest.raises(ExperimentError, match=message):
            load(path, tmp_path)
    path.write_bytes(b"PK\x03\x04" + bytes(100))  # as torch.save writes it
    with pytest.raises(ExperimentError, match=r"net\.onnx is an archive, such as torch\.save writes") as caught:
        load(path, tmp_path)
    assert "torch.onnx.export" in caught.value.remedy
    with pytest.raises(ExperimentError, match="is a folder"):
        load(tmp_path, tmp_path)
    with pytest.raises(ExperimentError, match=r"`model\.path` is not set"):
        load_model(ModelConfig(kind=ModelKind.onnx), SHAPE, CLASSES, tmp_path)


def test_weights_in_a_file_of_their_own_are_read_and_missed_by_name(classifier, tmp_path, monkeypatch):
    """As PyTorch's exporter writes them."""
    model = onnx.load(classifier(["batch", *SHAPE]))
    path, data = tmp_path / "split.onnx", tmp_path / "split.onnx.data"
    onnx.save(model, path, save_as_external_data=True, location=data.name, size_threshold=0)
    assert load(path, tmp_path).input_spec.classes == CLASSES
    monkeypatch.setattr("resnet8_quant.inputs.model.LARGEST_FILE", path.stat().st_size)
    os.utime(path)
    with pytest.raises(ExperimentError, match=r"in files of .* bytes, more than"):
        load(path, tmp_path)
    data.unlink()
    os.utime(path)  # else what was read before is handed out
    with pytest.raises(ExperimentError, match=r"weights of .*split\.onnx are in .*split\.onnx\.data, which") as caught:
        load(path, tmp_path)
    assert "external_data=False" in caught.value.remedy


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        (["batch", 4, 4, 3], {"inputs": 2}, r"found 2 inputs \(image0 float32 \[N,4,4,3\], image1"),
        (["batch", 4, 4, 3], {"outputs": 4}, r"found output scores float32 \[N,4\]"),
        (["batch", 4, 4, 3], {"dtype": TensorProto.DOUBLE}, r"found input image0 float64 \[N,4,4,3\]"),
        (["batch", 4, 4, 3], {"dtype": TensorProto.UINT8}, r"found input image0 uint8 \[N,4,4,3\]"),
        (["batch", 4, 4, 3], {"dtype": TensorProto.FLOAT16}, r"found input image0 float16 \[N,4,4,3\]"),
        (["batch", 8, 8, 3], {}, r"found input image0 float32 .*expected one float32 input \[N,4,4,3\]"),
        (["batch", 4, 3, 4], {}, "found input image0 float32"),
        (["batch", 4, 4], {}, "found input image0 float32"),
    ],
)
def test_models_that_do_not_fit_the_data(classifier, tmp_path, shape, options, message):
    with pytest.raises(ExperimentError, match=message) as caught:
        load(classifier(shape, **options), tmp_path)
    other_kind = {"inputs", "dtype"} & set(options)
    assert ("export the model with one float32 input" in caught.value.remedy) == bool(other_kind)


@pytest.mark.parametrize(
    ("shape", "remedy"),
    [
        ([8, 6, 3], "data.size=[8,6]"),
        ([3, 8, 6], "data.size=[8,6]"),
        ([8, 6, 1], "(data=folder data.gray=true data.size=[8,6])"),
        ([1, 4, 4], "(data=folder data.gray=true)"),
        ([8, 6, 2], "data=arrays"),
        ([3, 8], "data=arrays"),
    ],
)
def test_images_of_another_size_can_be_resized(classifier, tmp_path, shape, remedy):
    with pytest.raises(ExperimentError) as caught:
        load(classifier(["batch", *shape]), tmp_path)
    assert remedy in caught.value.remedy


def test_gray_images_can_be_read_in_colour(classifier, tmp_path):
    with pytest.raises(ExperimentError) as caught:
        load(classifier(["batch", 3, 8, 6]), tmp_path, (4, 4, 1))
    assert "(data=folder data.gray=false data.size=[8,6])" in caught.value.remedy


@pytest.mark.parametrize(
    ("name", "remedy"), [("arrays", "data.first_label=1"), ("folder", "'data.classes=[1,2,3,4,5]'")]
)
def test_labels_from_1_to_the_number_of_outputs(classifier, tmp_path, name, remedy):
    config = ModelConfig(kind=ModelKind.onnx, path=str(classifier(["batch", 4, 4, 3])))
    names = tuple(map(str, range(CLASSES + 1))) if name == "folder" else ()
    labels = np.arange(1, CLASSES + 1)
    split = Split(np.zeros((CLASSES, *SHAPE), np.uint8), labels)
    with pytest.raises(ExperimentError, match=r"its labels are 1 to 5, the model has 5 outputs, 0 to 4") as caught:
        load_model_for(Dataset(name, split, split, "", names), config, tmp_path)
    assert caught.value.remedy == remedy
    shifted = Split(split.images, labels - 1)
    load_model_for(Dataset(name, shifted, shifted, "", names[1:]), config, tmp_path)
    for wrong in (labels + 1, 2 * labels - 1):
        other = Split(split.images, wrong)
        with pytest.raises(ExperimentError, match=r"found output scores float32 \[N,5\]"):
            load_model_for(Dataset("arrays", other, other, ""), config, tmp_path)


def test_numbers_in_a_list_of_files_from_1(tmp_path):
    """What the remedy for data=folder types is read as it is meant."""
    for i in range(6):
        Image.fromarray(np.full((4, 4, 3), i, np.uint8)).save(tmp_path / f"{i}.png")
    (tmp_path / "list.csv").write_text("path,label\n" + "".join(f"{i}.png,{1 + i // 2}\n" for i in range(6)))
    words = ("data=folder", f"data.path={tmp_path / 'list.csv'}", "data.test_fraction=0.5", f"cache_dir={tmp_path}")
    assert rq.load_dataset(rq.compose(*words)).classes == 4
    data = rq.load_dataset(rq.compose(*words, "data.classes=[1,2,3]"))
    assert (data.class_names, data.train.labels.tolist()) == (("1", "2", "3"), [0, 1, 2])


def test_stated_layout_that_does_not_fit(classifier, tmp_path):
    with pytest.raises(ExperimentError, match=r"while `model\.layout` is NCHW"):
        load(classifier(["batch", 4, 4, 3]), tmp_path, layout=Layout.NCHW)


@pytest.mark.parametrize(("dims", "layout"), [([4, 4, 3], Layout.NHWC), ([3, 4, 4], Layout.NCHW)])
def test_layout_is_inferred(classifier, tmp_path, dims, layout):
    input_spec = load(classifier(["batch", *dims]), tmp_path).input_spec
    assert (input_spec.name, input_spec.layout, input_spec.shape) == ("image0", layout, SHAPE)
    assert (input_spec.batch, input_spec.classes) == (None, CLASSES)
    images = np.random.default_rng(0).integers(0, 256, (2, *SHAPE), dtype=np.uint8)
    expected = images if layout is Layout.NHWC else np.moveaxis(images, 3, 1)
    np.testing.assert_array_equal(input_spec.prepare(images), expected)


def test_ambiguous_layout_must_be_stated(classifier, tmp_path):
    path = classifier(["batch", 3, 3, 3])
    with pytest.raises(ExperimentError, match="can be read as NHWC and as NCHW") as caught:
        load(path, tmp_path, (3, 3, 3))
    assert "model.layout=NHWC" in caught.value.remedy
    for layout in (Layout.NHWC, Layout.NCHW):
        assert load(path, tmp_path, (3, 3, 3), layout=layout).input_spec.layout is layout


@pytest.mark.parametrize("field", ["mean", "std"])
def test_mean_and_std_have_a_value_per_channel(classifier, tmp_path, field):
    path = classifier(["batch", 4, 4, 3])
    with pytest.raises(ExperimentError, match=rf"`model\.{field}` has 2 values, the images have 3 channels"):
        load(path, tmp_path, **{field: [1.0, 2.0]})
    input_spec = load(path, tmp_path, **{field: [1.0, 2.0, 4.0]}).input_spec
    assert getattr(input_spec, field) == (1.0, 2.0, 4.0)


def test_a_changed_file_is_read_again(classifier, tmp_path):
    assert load(classifier([8, 4, 4, 3]), tmp_path).input_spec.batch == 8
    assert load(classifier(["batch", 4, 4, 3]), tmp_path).input_spec.batch is None


def test_proto_is_fresh(tmp_path):
    model = load_model(ModelConfig(), (32, 32, 3), 10, tmp_path)
    assert repr(model) == f"FloatModel('resnet8', {len(model.serialized):,} bytes, images of 32x32x3, 10 classes)"
    model.proto().graph.ClearField("node")
    assert len(model.proto().graph.node) > 0


RNG = np.random.default_rng(1)


def array(*shape):
    return RNG.uniform(0.5, 2, shape).astype(np.float32)


NORM = [helper.make_node("BatchNormalization", ["c", "scale", "bias", "mean", "var"], ["scores"])]
MUL_ADD = [helper.make_node("Mul", ["c", "scale"], ["m"]), helper.make_node("Add", ["m", "bias"], ["scores"])]
SPEC = InputSpec("image", Layout.NCHW, (4, 4, 3), None, 4, std=(255.0,) * 3)


def save_conv(folder, nodes, weights=(), **options):
    """A Conv, whose output is "c", and the ``nodes`` after it."""
    image, scores = ("image", TensorProto.FLOAT, ["batch", 3, 4, 4]), ("scores", TensorProto.FLOAT, ["batch", 4, 2, 2])
    nodes = [helper.make_node("Conv", ["image", "w", "b"], ["c"], "conv"), *nodes]
    weights = {"w": array(4, 3, 3, 3) - 1, "b": array(4), **dict(weights)}
    return save(folder / "conv.onnx", nodes, [image], [scores], weights, **options)


@pytest.mark.parametrize(
    ("nodes", "names", "shape"),
    [(NORM, ("scale", "bias", "mean", "var"), (4,)), (MUL_ADD, ("scale", "bias"), (4, 1, 1))],
)
def test_affine_operators_are_folded_into_conv(tmp_path, nodes, names, shape):
    weights = {name: array(*shape) for name in names}
    model = save_conv(tmp_path, nodes, weights, opsets=(("", 21), ("ai.onnx.ml", 3)))
    original = model.SerializeToString()
    folded = fold(model, SPEC)
    assert [node.op_type for node in folded.graph.node] == ["Conv"]
    assert [opset.domain for opset in folded.opset_import] == [""]
    image = RNG.normal(size=(5, 3, 4, 4)).astype(np.float32)
    expected, actual = (
        onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"]).run(None, {"image": image})[0]
        for data in (original, folded.SerializeToString())
    )
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


def assert_same_outputs(model, folded):
    pixels = RNG.normal(size=(5, 3, 4, 4)).astype(np.float32)
    expected, actual = (
        onnxruntime.InferenceSession(data.SerializeToString(), providers=["CPUExecutionProvider"]).run(
            None, {"image": pixels}
        )[0]
        for data in (model, folded)
    )
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


def test_a_norm_behind_something_else_than_a_conv_becomes_one_with_integer_kernels(tmp_path):
    """As in DenseNet; ONNX Runtime's own outputs of the file are the oracle."""
    norm = helper.make_node("BatchNormalization", ["p", "scale", "bias", "mean", "var"], ["n"], "norm", epsilon=0.01)
    nodes = [helper.make_node("MaxPool", ["image"], ["p"], kernel_shape=[1, 1]), norm]
    nodes += [helper.make_node("Relu", ["n"], ["r"]), helper.make_node("Conv", ["r", "w", "b"], ["scores"])]
    weights = {"w": array(4, 3, 3, 3) - 1, "b": array(4)} | {
        name: array(3) for name in ("scale", "bias", "mean", "var")
    }
    image, scores = ("image", TensorProto.FLOAT, ["batch", 3, 4, 4]), ("scores", TensorProto.FLOAT, ["batch", 4, 2, 2])
    model = save(tmp_path / "dense.onnx", nodes, [image], [scores], weights)
    folded = fold(model, SPEC)
    onnx.checker.check_model(folded, full_check=True)
    assert [node.op_type for node in folded.graph.node] == ["MaxPool", "Conv", "Relu", "Conv"]
    assert folded.graph.node[1].name == "norm"
    assert {tensor.name for tensor in folded.graph.initializer} == {"w", "b", "n.weight", "n.bias"}
    assert_same_outputs(model, folded)


@pytest.mark.parametrize("product", ["Gemm", "Gemm transB", "MatMul"])
@pytest.mark.parametrize("behind", [True, False], ids=["norm behind", "norm in front"])
def test_a_norm_beside_a_gemm_goes_into_it(tmp_path, product, behind):
    """BatchNorm1d and Linear in either order; ONNX Runtime's own outputs of the file are the oracle."""
    op_type, *transposed = product.split()
    options = {"transB": 1} if transposed else {}
    weights = {name: array(4 if behind else 48) for name in ("scale", "bias", "mean", "var")}
    weights |= {"w": array(*((4, 48) if transposed else (48, 4))), "b": array(*((4,) if product == "Gemm" else (1, 4)))}
    operands = ["w"] if op_type == "MatMul" else ["w", "b"]
    weights = {name: values for name, values in weights.items() if name != "b" or len(operands) > 1}
    norm = ["scale", "bias", "mean", "var"]
    first, second = ("f", "x"), ("x", "y")
    nodes = [helper.make_node("Flatten", ["image"], ["f"])]
    at = first if behind else second
    nodes.append(helper.make_node(op_type, [at[0], *operands], [at[1]], "product", **options))
    at = second if behind else first
    nodes.insert(2 if behind else 1, helper.make_node("BatchNormalization", [at[0], *norm], [at[1]], "norm"))
    nodes.append(helper.make_node("Relu", ["y"], ["scores"]))
    image = "image", TensorProto.FLOAT, ["batch", 3, 4, 4]
    model = save(tmp_path / "net.onnx", nodes, [image], [("scores", TensorProto.FLOAT, ["batch", 4])], weights)
    folded = fold(model, SPEC)
    assert [node.op_type for node in folded.graph.node] == ["Flatten", "Gemm", "Relu"]
    assert len(folded.graph.initializer) == 2
    assert_same_outputs(model, folded)


def test_a_norm_of_a_gemm_that_others_read_stays(tmp_path):
    """The Gemm's own output is needed as it is."""
    nodes = [helper.make_node("Flatten", ["image"], ["f"]), helper.make_node("Gemm", ["f", "w"], ["x"])]
    nodes += [helper.make_node("BatchNormalization", ["x", "scale", "bias", "mean", "var"], ["n"], "norm")]
    nodes += [helper.make_node("Mul", ["x", "n"], ["scores"])]
    weights = {name: array(4) for name in ("scale", "bias", "mean", "var")} | {"w": array(48, 4)}
    image = "image", TensorProto.FLOAT, ["batch", 3, 4, 4]
    model = save(tmp_path / "net.onnx", nodes, [image], [("scores", TensorProto.FLOAT, ["batch", 4])], weights)
    folded = fold(model, SPEC)
    assert "BatchNormalization" in {node.op_type for node in folded.graph.node}
    assert_same_outputs(model, folded)


def test_what_is_computed_from_constants_is_folded(tmp_path):
    """A bias that is a sum of constants, and a weight that is cast, as exporters leave them."""
    nodes = [helper.make_node("Add", ["b", "b"], ["bias"]), helper.make_node("Cast", ["w"], ["weight"], to=1)]
    nodes += [helper.make_node("Conv", ["image", "weight", "bias"], ["scores"])]
    weights = {"w": array(4, 3, 3, 3).astype(np.float64), "b": array(4)}
    image, scores = ("image", TensorProto.FLOAT, ["batch", 3, 4, 4]), ("scores", TensorProto.FLOAT, ["batch", 4, 2, 2])
    model = save(tmp_path / "net.onnx", nodes, [image], [scores], weights)
    folded = fold(model, SPEC)
    assert [node.op_type for node in folded.graph.node] == ["Conv"]
    assert {tensor.data_type for tensor in folded.graph.initializer} == {TensorProto.FLOAT}
    assert_same_outputs(model, folded)


def test_weights_of_constant_nodes_count_among_those_in_files_of_their_own(classifier, tmp_path, monkeypatch):
    """And a file counts as often as it is read."""
    model = onnx.load(classifier(["batch", *SHAPE]))
    (weight,) = model.graph.initializer
    onnx.external_data_helper.set_external_data(weight, "w.data", length=len(weight.raw_data))
    (tmp_path / "w.data").write_bytes(weight.raw_data)
    weight.ClearField("raw_data")
    for name in ("a", "b"):
        node = helper.make_node("Constant", [], [name])
        node.attribute.append(helper.make_attribute("value", weight))
        model.graph.node.append(node)
    onnx.save(model, tmp_path / "net.onnx")
    monkeypatch.setattr("resnet8_quant.inputs.model.LARGEST_FILE", 2 * 48 * CLASSES * 4)
    with pytest.raises(ExperimentError, match=f"in files of {3 * 48 * CLASSES * 4:,} bytes"):
        load(tmp_path / "net.onnx", tmp_path)


@pytest.mark.parametrize("op_type", ["BatchNormalization", "Dropout", "BatchNormalization of opset 9"])
def test_a_model_in_training_mode_is_refused(tmp_path, op_type):
    """As torch.onnx.export writes it of a network without model.eval()."""
    op_type, *old = op_type.split(" of opset ")
    opset = int(old[0]) if old else 21
    nodes = [helper.make_node("Flatten", ["image"], ["f"]), helper.make_node("Gemm", ["f", "w"], ["x"])]
    if op_type == "Dropout":
        nodes.append(helper.make_node("Dropout", ["x", "ratio", "training"], ["scores"], "drop"))
        weights = {"ratio": np.float32(0.5), "training": np.bool_(True)}
    else:
        names = ["scale", "bias", "mean", "var"]
        outputs = ["scores", "m", "v", *(["sm", "sv"] if old else [])]
        mode = {} if old else {"training_mode": 1}
        nodes.append(helper.make_node(op_type, ["x", *names], outputs, "norm", **mode))
        weights = {name: array(5) for name in names}
    image, scores = ("image", TensorProto.FLOAT, ["batch", *SHAPE]), ("scores", TensorProto.FLOAT, ["batch", 5])
    weights |= {"w": array(48, 5)} | ({"c": array(5)} if old else {})
    if old:  # whose Gemm has a bias
        nodes[1].input.append("c")
    save(tmp_path / "net.onnx", nodes, [image], [scores], weights, (("", opset),))
    with pytest.raises(ExperimentError, match=f"exported in training mode: {op_type}") as caught:
        load(tmp_path / "net.onnx", tmp_path)
    assert "model.eval()" in caught.value.remedy


def test_a_norm_of_features_stays(tmp_path, caplog):
    nodes = [helper.make_node("Flatten", ["image"], ["f"]), helper.make_node("Relu", ["f"], ["r"])]
    nodes += [helper.make_node("BatchNormalization", ["r", "scale", "bias", "mean", "var"], ["scores"], "norm")]
    weights = {name: array(48) for name in ("scale", "bias", "mean", "var")}
    image, scores = ("image", TensorProto.FLOAT, ["batch", 3, 4, 4]), ("scores", TensorProto.FLOAT, ["batch", 48])
    folded = fold(save(tmp_path / "features.onnx", nodes, [image], [scores], weights), SPEC)
    assert folded.graph.node[-1].op_type == "BatchNormalization"
    assert "'norm' could not be folded into a Conv or a Gemm: it stays float" in caplog.text


def test_nothing_to_fold_is_left_alone(tmp_path):
    model = save_conv(tmp_path, [helper.make_node("Relu", ["c"], ["scores"])])
    assert fold(model, SPEC) is model


@pytest.mark.parametrize("described", [True, False])
def test_a_model_is_as_large_as_its_file(classifier, tmp_path, described):
    """Shapes of inner tensors are neither added nor taken away."""
    path = classifier((1, *SHAPE))
    if described:
        onnx.save(onnx.shape_inference.infer_shapes(onnx.load(path)), path)
    before = onnx.load(path)
    assert bool(before.graph.value_info) == described
    proto = load(path, tmp_path).proto()
    assert list(proto.graph.value_info) == list(before.graph.value_info)
    assert len(proto.SerializeToString()) == path.stat().st_size


def test_a_pipe_or_a_device_is_no_model(tmp_path):
    os.mkfifo(tmp_path / "net.onnx")
    (tmp_path / "zero.onnx").symlink_to("/dev/zero")
    for name in ("net.onnx", "zero.onnx"):
        with pytest.raises(ExperimentError, match=rf"{name} cannot be read as an ONNX file: it is a pipe or a device"):
            load(tmp_path / name, tmp_path)


def test_a_huge_fixed_batch_is_refused(classifier, tmp_path):
    with pytest.raises(ExperimentError, match="its batch is fixed at 9,999,000 images; expected at most 10,000"):
        load(classifier([9_999_000, 4, 4, 3]), tmp_path)


def reshaped(path, rows):
    """A classifier of a free batch that writes ``rows`` images into its graph, as careless exports do."""
    nodes = [
        helper.make_node("Reshape", ["image", "shape"], ["flat"]),
        helper.make_node("Gemm", ["flat", "w"], ["scores"]),
    ]
    weights = {"shape": np.array([rows, 48]), "w": np.ones((48, CLASSES), np.float32)}
    ends = (("image", TensorProto.FLOAT, ["N", 4, 4, 3]), ("scores", TensorProto.FLOAT, ["N", CLASSES]))
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info(*ends[0])],
        [helper.make_tensor_value_info(*ends[1])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    return path


def test_a_model_for_single_images_is_run_on_single_images(tmp_path, caplog):
    assert load(reshaped(tmp_path / "one.onnx", 1), tmp_path).input_spec.batch == 1
    assert "runs on single images only" in caplog.text
    with pytest.raises(ExperimentError, match=r"cannot run the model on a batch of shape \[1, 4, 4, 3\]") as caught:
        load(reshaped(tmp_path / "two.onnx", 2), tmp_path)
    assert "batch_size=1" not in caught.value.remedy


def test_too_many_operators_are_refused(tmp_path):
    names = ["image", *(f"t{number}" for number in range(2000)), "last"]
    nodes = [helper.make_node("Relu", [read], [written]) for read, written in pairwise(names)]
    nodes += [helper.make_node("Flatten", ["last"], ["flat"]), helper.make_node("Gemm", ["flat", "w"], ["scores"])]
    ends = [("image", TensorProto.FLOAT, ["N", 4, 4, 3])], [("scores", TensorProto.FLOAT, ["N", CLASSES])]
    save(tmp_path / "net.onnx", nodes, *ends, {"w": np.ones((48, CLASSES), np.float32)})
    with pytest.raises(ExperimentError, match=r"net\.onnx has 2,003 operators, more than 2,000"):
        load(tmp_path / "net.onnx", tmp_path)


def test_an_activation_of_gigabytes_is_refused(tmp_path):
    """As the padding of a Conv may ask for, in a file of a kilobyte."""
    nodes = [
        helper.make_node("Transpose", ["image"], ["nchw"], perm=[0, 3, 1, 2]),
        helper.make_node("MaxPool", ["nchw"], ["large"], kernel_shape=[30_001, 30_001], pads=[30_000] * 4),
        helper.make_node("GlobalAveragePool", ["large"], ["small"]),
        helper.make_node("Flatten", ["small"], ["flat"]),
        helper.make_node("Gemm", ["flat", "w"], ["scores"]),
    ]
    ends = [("image", TensorProto.FLOAT, ["N", 4, 4, 3])], [("scores", TensorProto.FLOAT, ["N", CLASSES])]
    save(tmp_path / "net.onnx", nodes, *ends, {"w": np.ones((3, CLASSES), np.float32)})
    with pytest.raises(
        ExperimentError, match=r"computes large float32 .*: 10,\d+,\d+,\d+ bytes for one image, more than"
    ):
        load(tmp_path / "net.onnx", tmp_path)


def test_a_computed_constant_of_gigabytes_is_refused(tmp_path):
    """It would be made before anything else when the constants are folded."""
    nodes = [
        helper.make_node("Mul", ["sizes", "sizes"], ["shape"]),
        helper.make_node("ConstantOfShape", ["shape"], ["zeros"]),
        helper.make_node("ReduceMax", ["zeros"], ["zero"], keepdims=0),
        helper.make_node("Flatten", ["image"], ["flat"]),
        helper.make_node("Gemm", ["flat", "w"], ["products"]),
        helper.make_node("Add", ["products", "zero"], ["scores"]),
    ]
    ends = [("image", TensorProto.FLOAT, ["N", 4, 4, 3])], [("scores", TensorProto.FLOAT, ["N", CLASSES])]
    save(tmp_path / "net.onnx", nodes, *ends, {"w": np.ones((48, CLASSES), np.float32), "sizes": np.array([300, 300])})
    with pytest.raises(ExperimentError, match=r"computes zeros float32 .*: 32,400,000,000 bytes"):
        load(tmp_path / "net.onnx", tmp_path)
