"""Execution providers that are there and those that are not."""

import pytest

from resnet8_quant.errors import ExperimentError
from resnet8_quant.graphs.session import CPU, check_providers, open_session


def available():
    return ["OneExecutionProvider", "CPUExecutionProvider"]


@pytest.mark.parametrize(
    "names", [CPU, ["OneExecutionProvider", "CPUExecutionProvider"], ["CPUExecutionProvider", "OneExecutionProvider"]]
)
def test_what_is_there_passes(monkeypatch, names):
    monkeypatch.setattr("onnxruntime.get_available_providers", available)
    check_providers(names)


@pytest.mark.parametrize(
    "names", [["NoSuchExecutionProvider"], ["CPUExecutionProvider", "NoSuchExecutionProvider"], [], ["cpu"]]
)
def test_what_is_not_there_is_refused_with_what_is(monkeypatch, names):
    monkeypatch.setattr("onnxruntime.get_available_providers", available)
    with pytest.raises(ExperimentError) as caught:
        check_providers(names)
    assert f"`evaluation.providers` is {names}" in caught.value.problem
    assert "has OneExecutionProvider, CPUExecutionProvider" in caught.value.problem
    assert "'evaluation.providers=[CPUExecutionProvider]'" in caught.value.remedy


def test_the_build_itself_has_the_cpu():
    check_providers(CPU)


def test_a_session_runs_on_the_providers_that_it_is_given(classifier, weights):
    model, _ = classifier(weights)
    assert open_session(model, 1).get_providers() == ["CPUExecutionProvider"]


def test_a_session_can_write_what_it_runs(classifier, weights, tmp_path, capfd):
    model, _ = classifier(weights)
    open_session(model, 1, optimized_model=tmp_path / "model.onnx")
    assert (tmp_path / "model.onnx").stat().st_size > 0
    session = open_session(model, 1, trace=tmp_path / "trace")
    assert session.end_profiling().startswith(str(tmp_path / "trace"))
    assert capfd.readouterr() == ("", "")
