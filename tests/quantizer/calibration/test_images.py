"""The calibration images: decided by the seed alone, the first ones, or a list of test images that is checked."""

import numpy as np
import pytest

from resnet8_quant.config import CalibrationConfig, Sampling
from resnet8_quant.errors import ExperimentError
from resnet8_quant.quantizer.calibration import images as module
from resnet8_quant.quantizer.calibration.images import choose_images, overlapping

LABELS = np.random.default_rng(3).permutation(np.repeat(np.arange(5), [40, 30, 20, 60, 50]))


def draw(count, seed=42, kind=Sampling.stratified, labels=LABELS):
    return choose_images(CalibrationConfig(samples_per_class=count, sampling=kind), labels, 100, seed)


def listed(indices=None, index_file=None, count=100):
    path = None if index_file is None else str(index_file)
    config = CalibrationConfig(sampling=Sampling.mlperf_tiny, indices=indices, index_file=path, allow_test_images=True)
    return choose_images(config, LABELS, count, 42)


def test_same_seed_same_draw_whatever_the_global_state():
    np.random.seed(1)  # noqa: NPY002 - the point: global state does not matter
    first = draw(7)
    np.random.seed(2)  # noqa: NPY002
    np.testing.assert_array_equal(first, draw(7))


def test_another_seed_another_draw():
    assert not np.array_equal(draw(7, 42), draw(7, 43))


@pytest.mark.parametrize("kind", [Sampling.stratified, Sampling.first])
@pytest.mark.parametrize("samples", [1, 7, 20])
def test_stratified_sorted_and_without_replacement(samples, kind):
    chosen = draw(samples, 0, kind)
    assert np.all(np.diff(chosen) > 0)
    np.testing.assert_array_equal(np.bincount(LABELS[chosen]), [samples] * 5)


def test_all_images_of_a_class_may_be_drawn():
    labels = np.repeat([0, 1], 6)
    np.testing.assert_array_equal(draw(6, 9, labels=labels), np.arange(12))


@pytest.mark.parametrize("kind", [Sampling.stratified, Sampling.first])
def test_too_many_says_how_many_there_are(kind):
    with pytest.raises(ExperimentError, match=r"samples_per_class` is 21, but class 2 has only 20 ") as caught:
        draw(21, 0, kind)
    assert "samples_per_class=20" in caught.value.remedy


def test_first_takes_the_first_of_each_class_whatever_the_seed():
    chosen = draw(3, 1, Sampling.first)
    expected = [index for index, label in enumerate(LABELS) if (LABELS[:index] == label).sum() < 3]
    assert chosen.tolist() == expected
    np.testing.assert_array_equal(chosen, draw(3, 2, Sampling.first))


@pytest.mark.parametrize("wanted", [[5], [99, 0, 41]])
def test_a_list_in_every_form(tmp_path, wanted):
    np.save(tmp_path / "small.npy", np.array(wanted, np.uint8))
    np.save(tmp_path / "large.npy", np.array(wanted, np.int64))
    (tmp_path / "lines.txt").write_text("\n".join(map(str, wanted)) + "\n")
    (tmp_path / "words.csv").write_text(" ".join(map(str, wanted)))
    assert listed(wanted).tolist() == sorted(wanted)
    for path in tmp_path.iterdir():
        found = listed(index_file=path)
        assert found.tolist() == sorted(wanted), path.name
        assert found.dtype == np.int64


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


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("missing.npy", None),
        ("missing.txt", None),
        ("empty.npy", b""),
        ("garbage.npy", b"not an array"),
        ("pickled.npy", "pickle"),
        ("words.txt", b"1\ntwo\n"),
        ("floats.txt", b"1.0\n2.0\n"),
        ("binary.txt", b"\xff\xfe\x00"),
        ("folder.npy", "folder"),
        ("large.txt", "large"),
    ],
)
def test_an_unreadable_list_is_refused(tmp_path, monkeypatch, name, content):
    path = tmp_path / name
    if content == "pickle":
        np.save(path, np.array([{}], object), allow_pickle=True)
    elif content == "folder":
        path.mkdir()
    elif content == "large":
        monkeypatch.setattr(module, "LARGEST_LIST", 10)
        path.write_text("1\n" * 6)
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(ExperimentError, match=r"`calibration\.index_file`: .*cannot be read as a list") as caught:
        listed(index_file=path)
    assert name in caught.value.problem
    assert ".npy" in caught.value.remedy


def test_an_empty_text_list_is_refused(tmp_path):
    (tmp_path / "list.txt").write_text("\n")
    with pytest.raises(ExperimentError, match=r"`calibration\.index_file`"):
        listed(index_file=tmp_path / "list.txt")


def pictures(seed, count):
    return np.random.default_rng(seed).integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)


def test_overlapping_finds_planted_duplicates():
    calibration, test = pictures(0, 30), pictures(1, 20)
    test[[2, 11]] = calibration[[29, 0]]
    test[17] = test[2]  # a duplicate within the test images
    test[5] = calibration[4]
    test[5, 0, 0, 0] ^= 1  # all but one bit
    np.testing.assert_array_equal(np.flatnonzero(overlapping(calibration, np.arange(30), test)), [2, 11, 17])


def test_only_chosen_images_overlap():
    calibration, test = pictures(0, 30), pictures(1, 20)
    test[[2, 11]] = calibration[[29, 0]]
    assert np.flatnonzero(overlapping(calibration, np.arange(1, 30), test)).tolist() == [2]
    assert np.flatnonzero(overlapping(calibration, np.array([0]), test)).tolist() == [11]
    assert not overlapping(calibration, np.arange(1, 29), test).any()


def test_a_hash_is_not_taken_for_the_image(monkeypatch):
    monkeypatch.setattr(module, "hash", lambda _: 0, raising=False)
    calibration, test = pictures(0, 10), pictures(1, 10)
    test[3] = calibration[7]
    assert np.flatnonzero(overlapping(calibration, np.arange(10), test)).tolist() == [3]


def test_overlapping_with_nothing():
    images = np.zeros((2, 4, 4, 3), np.uint8)
    np.testing.assert_array_equal(overlapping(images, np.arange(0), images), [False, False])
    assert overlapping(images, np.arange(2), images[:0]).shape == (0,)
