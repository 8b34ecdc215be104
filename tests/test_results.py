"""Rows that survive a round trip, files that are whole or absent, folders that belong to one run."""

from __future__ import annotations

import dataclasses
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from resnet8_quant import results
from resnet8_quant.errors import ExperimentError
from resnet8_quant.files import claimed, replacing
from resnet8_quant.results import COLUMNS, SCHEMA_VERSION, RunResult

ROW = RunResult(
    quant_type="int8",
    per_channel=False,
    accuracy=0.1 + 0.2,
    mcnemar_p=1e-300,
    eval_images=1000,
    calibration_sampling="mlperf_tiny",
    calibration_cached=True,
    overrides="a=[1,2] b='x,y'",
)


@pytest.mark.parametrize(
    "row",
    [
        RunResult(),
        ROW,
        dataclasses.replace(ROW, per_channel=True, accuracy=0.0, quant_ties=0),
        RunResult(status="failed", error='a, "quoted" line\nand | another'),
    ],
)
def test_round_trip_keeps_values_and_types(row: RunResult, tmp_path: Path) -> None:
    back = results.read(results.write(row, tmp_path))
    assert back == row
    for name in COLUMNS:
        assert type(getattr(back, name)) is type(getattr(row, name)), name


HEADER = ",".join(COLUMNS)


def _line(**values: str) -> str:
    return ",".join({"schema_version": str(SCHEMA_VERSION), "status": "ok", **values}.get(name, "") for name in COLUMNS)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe\x00\x80",
        b"a,b\n1,2\n",
        HEADER.encode(),
        f"{HEADER}\n{_line()}\n{_line()}\n".encode(),
        f"{HEADER}\n{SCHEMA_VERSION},ok\n".encode(),
        f"{HEADER}\n{_line()},surplus\n".encode(),
        f"{HEADER},more\n{_line()},1\n".encode(),
        f"{HEADER}\n{_line(accuracy='high')}\n".encode(),
        f"{HEADER}\n{_line(per_channel='yes')}\n".encode(),
        f"{HEADER}\n{_line(eval_images='1.5')}\n".encode(),
        f"{HEADER}\n{_line(schema_version='1')}\n".encode(),
        f"{HEADER}\n{_line(schema_version='')}\n".encode(),
        f"{HEADER}\n{_line(status='')}\n".encode(),
    ],
    ids=[
        "empty",
        "binary",
        "foreign",
        "header only",
        "two rows",
        "cut",
        "surplus value",
        "surplus column",
        "not a float",
        "not a bool",
        "not an int",
        "other version",
        "no version",
        "no status",
    ],
)
def test_damaged_file_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    path.write_bytes(content)
    with pytest.raises(ExperimentError, match=r"results\.csv"):
        results.read(path)


def test_absent_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExperimentError, match="cannot be read"):
        results.read(tmp_path / "results.csv")


def test_error_pickles() -> None:
    back = pickle.loads(pickle.dumps(ExperimentError("problem", "remedy")))  # noqa: S301
    assert (type(back), back.problem, back.remedy) == (ExperimentError, "problem", "remedy")


def test_failed_replacement_keeps_the_old_file_and_no_temporary(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def fail() -> None:
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_replacement_is_whole_and_leaves_no_temporary(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert not path.exists()
    assert path.read_text() == "new"
    assert list(path.parent.iterdir()) == [path]


def test_a_link_stays_and_its_target_is_replaced(tmp_path: Path) -> None:
    target, link = tmp_path / "there" / "file", tmp_path / "link"
    target.parent.mkdir()
    target.write_text("old")
    link.symlink_to(target)
    with replacing(link) as temporary:
        temporary.write_text("new")
    assert link.is_symlink()
    assert target.read_text() == "new"
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="no /proc here")
def test_what_the_process_has_open_is_not_replaced(tmp_path: Path) -> None:
    with (tmp_path / "open").open("w") as file:
        own = Path(f"/proc/self/fd/{file.fileno()}")
        (tmp_path / "stdout").symlink_to(own)  # as /dev/stdout is
        for path in (own, tmp_path / "stdout"):
            with pytest.raises(ExperimentError, match="not a regular file"), replacing(path):
                pass
        assert (tmp_path / "stdout").is_symlink()


def test_unwritable_place_is_an_experiment_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ExperimentError, match="cannot write"), replacing(tmp_path / "file" / "below"):
        pass


CLAIM = """
import sys
from pathlib import Path
from resnet8_quant.errors import ExperimentError
from resnet8_quant.files import claimed
try:
    with claimed(Path(sys.argv[1])):
        print("got it")
except ExperimentError as error:
    print(error.problem)
"""


def test_second_holder_of_a_folder_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "out"

    def other() -> str:
        command = [sys.executable, "-c", CLAIM, str(folder)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    with claimed(folder):
        assert "another run is writing" in other()
    assert other().strip() == "got it"
    assert list(folder.iterdir()) == []
