"""The calibration images: decided by the seed alone, the first ones, or a list of test images that is checked."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import PROPERTY, SEEDS

from resnet8_quant.config import CalibrationConfig, Sampling
from resnet8_quant.errors import ExperimentError
from resnet8_quant.quantizer.calibration import images as module
from resnet8_quant.quantizer.calibration.images import CalibrationImages, choose_images, overlapping

LABELS = np.random.default_rng(3).permutation(np.repeat(np.arange(5), [40, 30, 20, 60, 50]))


def draw(count, seed=42, kind=Sampling.stratified, labels=LABELS):
    return choose_images(CalibrationConfig(samples_per_class=count, sampling=kind), labels, 100, seed)


def listed(indices=None, index_file=None, count=100):
    path = None if index_file is None else str(index_file)
    config = CalibrationConfig(sampling=Sampling.mlperf_tiny, indices=indices, index_file=path, allow_test_images=True)
    return choose_images(config, LABELS, count, 42)


@PROPERTY
@given(st.integers(1, 19), SEEDS, st.sampled_from([Sampling.stratified, Sampling.first]))
def test_a_draw_is_balanced_sorted_and_decided_by_the_seed(count, seed, kind):
    np.random.seed(1)  # noqa: NPY002 - the point: global state does not matter
    chosen = draw(count, seed, kind)
    np.random.seed(2)  # noqa: NPY002
    np.testing.assert_array_equal(chosen, draw(count, seed, kind))
    assert np.all(np.diff(chosen) > 0)
    np.testing.assert_array_equal(np.bincount(LABELS[chosen]), [count] * 5)
    assert np.array_equal(chosen, draw(count, seed + 1, kind)) == (kind is Sampling.first)
    if kind is Sampling.first:
        expected = [index for index, label in enumerate(LABELS) if (LABELS[:index] == label).sum() < count]
        assert chosen.tolist() == expected


@pytest.mark.parametrize("kind", [Sampling.stratified, Sampling.first])
def test_too_many_says_how_many_there_are(kind):
    with pytest.raises(ExperimentError, match=r"samples_per_class` is 21, but class 2 has only 20 ") as caught:
        draw(21, 0, kind)
    assert "samples_per_class=20" in caught.value.remedy


@pytest.mark.parametrize("indices", [[5], [99, 0, 41]])
def test_a_list_in_every_form(tmp_path, indices):
    np.save(tmp_path / "small.npy", np.array(indices, np.uint8))
    np.save(tmp_path / "large.npy", np.array(indices, np.int64))
    (tmp_path / "lines.txt").write_text("\n".join(map(str, indices)) + "\n")
    (tmp_path / "words.csv").write_text(" ".join(map(str, indices)))
    assert listed(indices).tolist() == sorted(indices)
    for path in tmp_path.iterdir():
        chosen = listed(index_file=path)
        assert chosen.tolist() == sorted(indices), path.name
        assert chosen.dtype == np.int64


@pytest.mark.parametrize(
    ("indices", "problem"),
    [
        ([], "shape [0]"),
        ([0, 100], "lists image 100, but there are 100 test images"),
        ([3, -1], "lists image -1, but there are 100 test images"),
        ([7, 3, 7], "lists image 7 more than once"),
        ([1.0, 2.0], "float64"),
        ([[1, 2], [3, 4]], "shape [2, 2]"),
        ([True, False], "bool"),
    ],
)
@pytest.mark.parametrize("as_file", [False, True])
def test_a_wrong_list_is_refused(tmp_path, indices, problem, as_file):
    path = tmp_path / "list.npy"
    np.save(path, np.array(indices))
    field = "calibration.index_file" if as_file else "calibration.indices"
    with pytest.raises(ExperimentError) as caught:
        listed(None if as_file else indices, path if as_file else None)
    assert caught.value.problem.startswith(f"`{field}`")
    assert problem in caught.value.problem
    assert "0 to 99" in caught.value.remedy


UNREADABLE = {
    "missing.npy": None,
    "missing.txt": None,
    "empty.npy": b"",
    "garbage.npy": b"not an array",
    "words.txt": b"1\ntwo\n",
    "floats.txt": b"1.0\n2.0\n",
    "binary.txt": b"\xff\xfe\x00",
    "large.txt": b"1\n" * 100,
}


@pytest.mark.parametrize("name", [*UNREADABLE, "pickled.npy", "folder.npy"])
def test_an_unreadable_list_is_refused(tmp_path, monkeypatch, name):
    monkeypatch.setattr(module, "LARGEST_LIST", 199)
    np.save(tmp_path / "pickled.npy", np.array([{}], object), allow_pickle=True)
    (tmp_path / "folder.npy").mkdir()
    if (content := UNREADABLE.get(name)) is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ExperimentError, match=r"`calibration\.index_file`: .*cannot be read as a list") as caught:
        listed(index_file=tmp_path / name)
    assert name in caught.value.problem
    assert ".npy" in caught.value.remedy


def test_an_empty_text_list_is_refused(tmp_path):
    (tmp_path / "list.txt").write_text("\n")
    with pytest.raises(ExperimentError, match=r"`calibration\.index_file`"):
        listed(index_file=tmp_path / "list.txt")


def pictures(seed, count):
    return np.random.default_rng(seed).integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)


@pytest.mark.parametrize("hashes", [hash, lambda _: 0], ids=["hash", "all the same"])
def test_overlapping_finds_planted_duplicates_of_chosen_images(monkeypatch, hashes):
    """Equal hashes are not taken for equal images."""
    monkeypatch.setattr(module, "hash", hashes, raising=False)
    calibration, test = pictures(0, 30), pictures(1, 20)
    test[[2, 11]] = calibration[[29, 0]]
    test[17] = test[2]  # a duplicate within the test images
    test[5] = calibration[4]
    test[5, 0, 0, 0] ^= 1  # all but one bit
    for chosen, expected in (
        (range(30), [2, 11, 17]),
        (range(1, 30), [2, 17]),
        ([0], [11]),
        (range(1, 29), []),
        ([], []),
    ):
        found = overlapping(calibration, np.array(chosen, np.int64), test)
        assert np.flatnonzero(found).tolist() == expected
    assert overlapping(calibration, np.arange(2), test[:0]).shape == (0,)


def test_the_digest_names_pixels_and_their_order():
    pixels = np.random.default_rng(0).integers(0, 256, (6, 2, 2, 3), dtype=np.uint8)
    digests = [
        CalibrationImages.of(pixels).digest,
        CalibrationImages.of(pixels, np.arange(5)).digest,
        CalibrationImages.of(pixels, np.arange(6)[::-1]).digest,
        CalibrationImages.of(pixels ^ 1).digest,
        CalibrationImages.of(pixels, digest="known").digest,
    ]
    assert len(set(digests)) == len(digests)
    assert CalibrationImages.of(pixels, np.arange(6, dtype=np.int32)).digest == digests[0]
    assert CalibrationImages.of(np.repeat(pixels, 2, axis=0)[::2]).digest == digests[0]  # strided


def test_the_last_batch_is_padded_with_its_last_image():
    images = CalibrationImages.of(np.arange(5, dtype=np.uint8).reshape(5, 1, 1, 1), np.array([4, 0, 2]))
    assert images.batch(0, 2).ravel().tolist() == [4, 0]
    assert images.batch(2, 3).ravel().tolist() == [2, 2, 2]
    assert len(images) == 3
