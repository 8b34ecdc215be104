"""Sessions: the execution providers that are there and those that are not, and the files that they write."""

import pytest

from resnet8_quant.errors import ExperimentError
from resnet8_quant.graphs.runtime import CPU
from resnet8_quant.graphs.session import check_providers, open_session


@pytest.fixture
def available(monkeypatch):
    names = ["OneExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: names)
    return names


def test_providers_that_are_there_pass_in_any_order(available):
    for names in (CPU, available, available[::-1]):
        check_providers(names)


@pytest.mark.parametrize(
    "names",
    [["NoSuchExecutionProvider"], ["CPUExecutionProvider", "NoSuchExecutionProvider"], [], ["cpu"], [*CPU, *CPU]],
)
def test_what_is_not_there_is_refused_with_what_is(available, names):
    with pytest.raises(ExperimentError) as caught:
        check_providers(names)
    assert f"`evaluation.providers` is {names}" in caught.value.problem
    assert "has OneExecutionProvider, CPUExecutionProvider" in caught.value.problem
    assert "'evaluation.providers=[CPUExecutionProvider]'" in caught.value.remedy


def test_a_session_runs_on_its_providers_and_writes_only_what_it_is_asked_for(model, tmp_path, capfd):
    check_providers(CPU)  # of this build
    session = open_session(model.serialized, 1, optimized_model=tmp_path / "model.onnx", trace=tmp_path / "trace")
    assert session.get_providers() == list(CPU)
    assert (tmp_path / "model.onnx").stat().st_size > 0
    assert session.end_profiling().startswith(str(tmp_path / "trace"))
    assert len(list(tmp_path.iterdir())) == 2
    assert capfd.readouterr() == ("", "")


def test_what_is_no_model_is_refused():
    with pytest.raises(ExperimentError, match="cannot load the model"):
        open_session(b"not a model", 1)
