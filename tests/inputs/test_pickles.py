"""The unpickler: real exploits do not run, real batch files decode."""

from __future__ import annotations

import io
import os
import pickle
import warnings

import numpy as np
import pytest

from resnet8_quant.errors import ExperimentError
from resnet8_quant.inputs import cifar10
from resnet8_quant.inputs.pickles import load_batch


class Call:
    """Pickles as a call of any function."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_exploits_are_refused_and_do_not_run(tmp_path, protocol):
    witness = tmp_path / "witness"
    data = pickle.dumps({b"data": Call(os.system, f"touch {witness}")}, protocol)
    with pytest.raises(ExperimentError, match=r"batch is refused: it asks for \w+\.system"):
        load_batch(data, "batch")
    assert not witness.exists()
    pickle.loads(data)  # noqa: S301  # the exploit is real: Python's own unpickler runs it
    assert witness.exists()


NAMES = ["numpy load", "numpy.core.multiarray fromfile", "numpy ndarray.tofile", "os popen"]


@pytest.mark.parametrize("name", [*NAMES, "builtins eval", "__builtin__ eval", "builtins getattr"])
def test_only_the_names_of_an_array_are_admitted(name):
    strings = b"".join(b"\x8c" + bytes([len(part)]) + part.encode() for part in name.split())
    with pytest.raises(ExperimentError, match="is refused: it asks for"):
        load_batch(b"\x80\x04" + strings + b"\x93.", "batch")


def test_exploit_in_a_folder_names_the_file(tiny, tmp_path):
    witness = tmp_path / "witness"
    folder = tiny.write("cifar-10-batches-py", tmp_path)
    (folder / "data_batch_4").write_bytes(pickle.dumps(Call(os.system, f"touch {witness}"), 2))
    with pytest.raises(ExperimentError, match=r"data_batch_4 is refused: it asks for \w+\.system"):
        cifar10.load_cifar10(str(tmp_path), tmp_path / "cache")
    assert not witness.exists()


def test_python_2_batches_decode_as_pythons_own_unpickler_does(tiny):
    data = tiny.files("py")["data_batch_1"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # numpy.core has moved
        expected = pickle.Unpickler(io.BytesIO(data), encoding="bytes").load()  # noqa: S301
    batch = load_batch(data, "batch")
    assert batch.keys() == expected.keys() == {b"data", b"labels", b"batch_label", b"filenames"}
    assert batch[b"data"].dtype == np.uint8
    np.testing.assert_array_equal(batch[b"data"], expected[b"data"])
    assert batch[b"labels"] == expected[b"labels"]
    assert batch[b"filenames"] == expected[b"filenames"]


@pytest.mark.parametrize("protocol", [2, 3, 4])
@pytest.mark.parametrize("order", ["C", "F"])
def test_batches_written_again_by_python_3_decode(protocol, order):
    array = np.asarray(np.random.default_rng(3).integers(0, 256, (6, 7), np.uint8), order=order)
    batch = load_batch(pickle.dumps({b"data": array, b"labels": [1, 2]}, protocol), "batch")
    np.testing.assert_array_equal(batch[b"data"], array)
    assert batch[b"labels"] == [1, 2]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x80\x02",
        b"\x80\x02]q\x01.",
        pickle.dumps([1, 2]),
        pickle.dumps({b"data": np.zeros(3)}, 4),
        pickle.dumps({b"data": np.array([None])}, 4),
        pickle.dumps({b"data": np.zeros(300, np.uint8)}, 4).replace(b"\x4d\x2c\x01", b"\x4d\x2d\x01"),
        b"\x80\x02}U\x04datacnumpy\ndtype\n)Rs.",
        b"\x80\x02cnumpy\nndarray\n}b.",
        b"T\xff\xff\xff\x7f.",
    ],
)
def test_damaged_pickles_are_a_sentence(data):
    with pytest.raises(ExperimentError, match="batch is a damaged pickle"):
        load_batch(data, "batch")
