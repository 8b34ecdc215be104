"""That Vega draws every plot, as files and with hostile text, and that its script is kept."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest
from PIL import Image

from resnet8_quant.sweep.collect import Job
from resnet8_quant.sweep.report.figures import Axes, Plot, heat_map, lines, scatter, vega_script, write_files
from resnet8_quant.sweep.report.page import sections

pytest.importorskip("vl_convert")

HOSTILE = "$\\frac{$ _x </text><script>alert(1)</script> datum['y'] {signal: 1} \u2028\n\"'"


def _hostile() -> list[Plot]:
    points = [{"x": x, "y": 10.0 * x, "series": HOSTILE, "hover": HOSTILE, "low": 1.0, "high": 99.0} for x in (1, 2)]
    points = [{**point, "front": True, "place": 1, "left": True} for point in points]
    axes, words = Axes(HOSTILE, HOSTILE, (HOSTILE, 15.0), (5.0, 20.0)), [{**point, "x": HOSTILE} for point in points]
    titles = (HOSTILE, HOSTILE, HOSTILE)
    cell = {"x": HOSTILE, "y": HOSTILE, "z": 1.0, "text": HOSTILE, "hover": HOSTILE}
    specs = [
        scatter(points, [HOSTILE], 1, axes),
        lines(points, [HOSTILE], axes),
        lines(words, [HOSTILE], Axes(HOSTILE, HOSTILE)),
        heat_map([cell], [HOSTILE], [HOSTILE], titles),
        heat_map([], [], [], titles, diverging=True),
    ]
    return [Plot(f"hostile{place}", HOSTILE, HOSTILE, spec) for place, spec in enumerate(specs)]


def test_plots_are_whole_files(grid: list[Job], tmp_path: Path) -> None:
    drawn = [plot for section in sections(grid)[0] for plot in section.plots]
    assert {plot.key for plot in drawn} >= {
        "pareto_bytes",
        "pareto_latency",
        "calibration_size",
        "confusion",
    }
    write_files([*drawn, *_hostile()], tmp_path / "plots")
    written = [*(tmp_path / "plots").iterdir()]
    assert len(written) == 2 * (len(drawn) + len(_hostile()))
    for path in written:  # none of them is a .part
        if path.suffix == ".png":
            with Image.open(path) as image:
                assert image.width > 600
        else:
            root = ElementTree.parse(path).getroot()
            assert root.tag.endswith("svg")
            assert [element.tag for element in root.iter() if element.tag.endswith("script")] == []
            assert "alert(1)" in path.read_text() or not path.name.startswith("hostile")


def test_script_is_bundled_once_and_does_without_a_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import vl_convert

    calls: list[int] = []
    monkeypatch.setattr(vl_convert, "javascript_bundle", lambda: calls.append(1) or "vega")
    monkeypatch.setenv("RESNET8_QUANT_CACHE", str(tmp_path / "cache"))
    assert (vega_script(), vega_script(), len(calls)) == ("vega", "vega", 1)
    (tmp_path / "file").touch()
    monkeypatch.setenv("RESNET8_QUANT_CACHE", str(tmp_path / "file"))
    assert (vega_script(), len(calls)) == ("vega", 2)
