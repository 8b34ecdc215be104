"""The calibration images: decided by the seed alone, the first ones, or a list of test images that is checked."""

import irregular
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


def draw(count, seed, sampling):
    return choose_images(CalibrationConfig(samples_per_class=count, sampling=sampling), LABELS, 100, seed)


def listed(indices=None, index_file=None):
    path = None if index_file is None else str(index_file)
    config = CalibrationConfig(sampling=Sampling.mlperf_tiny, indices=indices, index_file=path, allow_test_images=True)
    return choose_images(config, LABELS, 100, 42)


@PROPERTY
@given(st.integers(1, 19), SEEDS, st.sampled_from([Sampling.stratified, Sampling.first]))
def test_a_draw_is_balanced_sorted_and_decided_by_the_seed(count, seed, sampling):
    np.random.seed(1)  # noqa: NPY002 - the point: global state does not matter
    chosen = draw(count, seed, sampling)
    np.random.seed(2)  # noqa: NPY002
    np.testing.assert_array_equal(chosen, draw(count, seed, sampling))
    assert np.all(np.diff(chosen) > 0)
    np.testing.assert_array_equal(np.bincount(LABELS[chosen]), [count] * 5)
    assert np.array_equal(chosen, draw(count, seed + 1, sampling)) == (sampling is Sampling.first)
    if sampling is Sampling.first:
        expected = [index for index, label in enumerate(LABELS) if (LABELS[:index] == label).sum() < count]
        assert chosen.tolist() == expected


def test_a_smaller_class_gives_what_it_has():
    chosen = draw(35, 0, Sampling.stratified)
    np.testing.assert_array_equal(np.bincount(LABELS[chosen]), [35, 30, 20, 35, 35])
    assert len(draw(100, 0, Sampling.stratified)) == len(LABELS)  # the default, which is for any data


def test_more_than_any_class_has_is_refused():
    with pytest.raises(ExperimentError, match=r"samples_per_class` is 61, but class 3, the largest, has only 60 ") as e:
        draw(61, 0, Sampling.first)
    assert "samples_per_class=60" in e.value.remedy
    draw(60, 0, Sampling.first)


def test_a_random_draw_follows_the_shares_of_the_classes():
    labels = np.repeat([0, 1], [9900, 100])
    config = CalibrationConfig(samples_per_class=500, sampling=Sampling.random)
    chosen, other = (choose_images(config, labels, 100, seed) for seed in (0, 1))
    assert len(set(chosen.tolist())) == 1000
    assert 2 <= (labels[chosen] == 1).sum() <= 25  # 10 expected
    assert not np.array_equal(chosen, other)
    np.testing.assert_array_equal(chosen, choose_images(config, labels, 100, 0))


def test_a_list_in_every_form(tmp_path):
    indices = [99, 0, 41]
    np.save(tmp_path / "small.npy", np.array(indices, np.uint8))
    np.save(tmp_path / "large.npy", np.array(indices, np.int64))
    (tmp_path / "lines.txt").write_text("99\n0\n41\n")
    (tmp_path / "spaces.csv").write_text("99 0 41")
    for chosen in (listed(indices), *(listed(index_file=path) for path in tmp_path.iterdir())):
        assert chosen.tolist() == sorted(indices)
        assert chosen.dtype == np.int64


WRONG = {
    "shape [0]": [],
    "lists image 100, but there are 100 test images": [0, 100],
    "lists image -1, but there are 100 test images": [3, -1],
    "lists image 7 more than once": [7, 3, 7],
    "float64": [1.0, 2.0],
    "shape [2, 2]": [[1, 2], [3, 4]],
    "bool": [True, False],
}


@pytest.mark.parametrize("problem", WRONG)
def test_a_wrong_list_is_refused(tmp_path, problem):
    path = tmp_path / "list.npy"
    np.save(path, np.array(WRONG[problem]))
    for options in ({"index_file": path}, {"indices": WRONG[problem]}):
        with pytest.raises(ExperimentError) as caught:
            listed(**options)
        assert caught.value.problem.startswith(f"`calibration.{next(iter(options))}`")
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
        assert np.flatnonzero(overlapping(calibration, np.array(chosen, np.int64), test)).tolist() == expected
    assert overlapping(calibration, np.arange(2), test[:0]).shape == (0,)


def test_the_digest_names_pixels_and_their_order():
    pixels = np.random.default_rng(0).integers(0, 256, (6, 2, 2, 3), dtype=np.uint8)
    others = (pixels, np.arange(5)), (pixels, np.arange(6)[::-1]), (pixels ^ 1,), (pixels, None, "known")
    digests = [CalibrationImages.of(*arguments).digest for arguments in ((pixels,), *others)]
    assert len(set(digests)) == len(digests)
    assert CalibrationImages.of(pixels, np.arange(6, dtype=np.int32)).digest == digests[0]
    assert CalibrationImages.of(np.repeat(pixels, 2, axis=0)[::2]).digest == digests[0]  # strided


def test_the_last_batch_is_padded_with_its_last_image():
    images = CalibrationImages.of(np.arange(5, dtype=np.uint8).reshape(5, 1, 1, 1), np.array([4, 0, 2]))
    assert images.batch(0, 2).ravel().tolist() == [4, 0]
    assert images.batch(2, 3).ravel().tolist() == [2, 2, 2]
    assert len(images) == 3


@pytest.mark.parametrize("kind", ["pipe", "device", "huge header", "zip"])
def test_a_list_that_lies_about_itself_is_refused(tmp_path, kind):
    path = tmp_path / "list.npy"
    if kind in ("pipe", "device"):
        irregular.put(path, kind)
    elif kind == "huge header":
        with path.open("wb") as file:
            header = {"descr": "<i8", "fortran_order": False, "shape": (10**12,)}
            np.lib.format.write_array_header_1_0(file, header)
    else:
        with path.open("wb") as file:
            np.savez(file, np.arange(3))
    reasons = {"huge header": r"it declares 8,000,000,000,000 bytes, its file has \d+", "zip": "the magic string"}
    with pytest.raises(ExperimentError, match=reasons.get(kind, "it is a pipe or a device")):
        listed(index_file=path)
