"""The page in a real browser: headless Chromium opens it, sorts, filters, hovers, and fetches nothing.

Needs Debian's chromium and chromium-driver and the Python package selenium; skipped where one of them is missing.
"""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest

from resnet8_quant.inputs.sample import load_sample
from resnet8_quant.sweep.collect import Job
from resnet8_quant.sweep.report import pair
from resnet8_quant.sweep.report.answer import answer
from resnet8_quant.sweep.report.evidence import gather
from resnet8_quant.sweep.report.page import write_report
from resnet8_quant.sweep.report.recommendation import UNITS, models_of, recommend

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
for package in ("vl_convert", "itables"):
    pytest.importorskip(package, reason=f"{package} is not installed")
BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
if BROWSER is None or DRIVER is None:
    pytest.skip("chromium or chromedriver is not installed", allow_module_level=True)

HOSTILE = "x=</script><script>document.title='owned'</script><img/src=x/onerror=document.title='owned'>"


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    profile = tmp_path_factory.mktemp("profile")
    words = ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1280,900")
    for word in (*words, f"--user-data-dir={profile}"):
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def browser(driver: Any) -> Iterator[Any]:
    """The browser of all tests; after each of them the console must be empty."""
    yield driver
    driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    assert driver.get_log("browser") == []


@pytest.fixture
def opened(browser: Any, grid: list[Job], tmp_path: Path) -> Any:
    """The page of a grid."""
    write_report(grid, tmp_path / "report.html")
    return _open(browser, tmp_path / "report.html")


def _open(browser: Any, path: Path, scheme: str = "light") -> Any:
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    for kind in ("browser", "performance"):
        browser.get_log(kind)
    browser.get(path.as_uri())
    drawn = "[...document.querySelectorAll('figure[data-plot] > .plot')].every(plot => plot.querySelector('svg'))"
    _until(browser, f"return {drawn} && !!document.querySelector('.dt-container')")
    return browser


def _until(browser: Any, script: str) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(browser, 20).until(lambda driver: driver.execute_script(script))


def _requests(browser: Any) -> list[str]:
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    return [url for url in sent if not url.startswith(("data:", "blob:"))]


def _column(browser: Any, key: str) -> list[str]:
    script = """
        const head = document.querySelector(`#run-table th[data-key="${arguments[0]}"]`);
        const at = [...head.parentElement.cells].indexOf(head);
        return [...document.querySelectorAll("#run-table tbody tr")].map(row => row.cells[at].textContent);
    """
    texts: list[str] = browser.execute_script(script, key)
    return texts


def _find(browser: Any, selector: str) -> Any:
    return browser.find_element("css selector", selector)


def _click(browser: Any, selector: str) -> None:
    browser.execute_script("arguments[0].click()", _find(browser, selector))


def test_page_opens_without_a_request_and_prints(opened: Any, tmp_path: Path) -> None:
    assert _requests(opened) == [(tmp_path / "report.html").as_uri()]
    assert len(opened.find_elements("css selector", "figure[data-plot] > .plot svg")) == 7
    opened.execute_cdp_cmd("Page.printToPDF", {"printBackground": True})


def test_table_sorts_by_number_and_back_and_shows_all_columns(opened: Any) -> None:
    _click(opened, "#run-table th[data-key=accuracy]")
    up = [float(text) for text in _column(opened, "accuracy")]
    assert len(up) == 13
    assert up == sorted(up)
    assert _find(opened, "#run-table th[data-key=accuracy]").get_attribute("aria-sort") == "ascending"
    _click(opened, "#run-table th[data-key=accuracy]")
    assert [float(text) for text in _column(opened, "accuracy")] == sorted(up, reverse=True)
    assert opened.find_elements("css selector", "#run-table th[data-key=folder]") == []
    _click(opened, "#runs .dt-buttons .dt-button:last-child")
    assert _find(opened, "#run-table th[data-key=folder]").is_displayed()


@pytest.mark.parametrize(
    ("words", "rows"), [("u8s8", 6), ("U8S8 500", 2), ("recommended", 1), ("nothing-like-this", 0), ("<script>", 0)]
)
def test_table_is_searched_for_words(words: str, rows: int, opened: Any) -> None:
    _find(opened, "#runs input[type=search]").send_keys(words)
    _until(opened, "return document.querySelector('#runs .dt-info').textContent.includes('filtered from 13')")
    counted = [] if rows == 0 else _column(opened, "job")
    assert len(counted) == rows


def test_table_is_filtered_by_a_column(opened: Any) -> None:
    """As a user does: Conditions, add one, choose the column, the comparison and the number."""
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import Select

    _click(opened, "#runs .dt-buttons .dt-button")
    _until(opened, "return !!document.querySelector('.dtsb-add')")
    _click(opened, ".dtsb-add")
    Select(_find(opened, ".dtsb-data")).select_by_visible_text("Top-1, %")
    Select(_find(opened, ".dtsb-condition")).select_by_visible_text("Greater Than")
    _find(opened, "input.dtsb-value").send_keys("87.75" + Keys.TAB)
    _until(opened, "return document.querySelectorAll('#run-table tbody tr').length < 13")
    shown = [float(text) for text in _column(opened, "accuracy")]
    assert shown
    assert min(shown) > 87.75


def test_hover_names_the_run(opened: Any) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    points = opened.find_elements("css selector", "#pareto figure:first-child .mark-symbol.role-mark path")
    opened.execute_script("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", points[0])
    ActionChains(opened).move_to_element(points[0]).perform()
    _until(opened, "return !!document.querySelector('#vg-tooltip-element.visible')")
    text = opened.execute_script("return document.getElementById('vg-tooltip-element').textContent")
    assert "Top-1" in text
    assert "Job" in text


def test_runs_far_below_are_drawn_on_request(
    browser: Any, make_run: Callable[..., Path], jobs_of: Callable[[], list[Job]], tmp_path: Path
) -> None:
    for number, wrong in enumerate((1, 2, 500)):
        make_run(number, f"quant=int8 seed={number}", wrong, latency_us_median=None)
    write_report(jobs_of(), tmp_path / "report.html")
    _open(browser, tmp_path / "report.html")
    labels = "[...document.querySelectorAll('#pareto figure:first-child .role-axis-label text')]"
    lowest = f"return Math.min(...{labels}.map(text => parseFloat(text.textContent)))"
    assert browser.execute_script(lowest) > 70
    assert "1 run lies below" in _find(browser, "#pareto figure:first-child figcaption").text
    _click(browser, "#pareto figure:first-child .vega-bindings input")
    _until(browser, lowest + " < 45")


def test_heat_map_is_chosen(opened: Any, make_run: Callable[..., Path], jobs_of: Callable[[], list[Job]]) -> None:
    """Three settings make three maps; the choice shows another one."""
    make_run(20, "quant=int8 calibration.samples_per_class=2 refine=bias seed=1", 3)
    make_run(21, "quant=u8s8 calibration.samples_per_class=10 refine=none seed=1", 3)
    path = Path(opened.current_url.removeprefix("file://"))
    write_report(jobs_of(), path)
    _open(opened, path)
    options = opened.find_elements("css selector", "#grid select option")
    assert len(options) == 3
    opened.execute_script("arguments[0].scrollIntoView()", options[0])
    options[2].click()
    label = "return document.querySelector('#grid .plot').getAttribute('aria-label')"
    _until(opened, f"{label} === {json.dumps(options[2].text)}")


@pytest.fixture
def varied(make_run: Callable[..., Path], jobs_of: Callable[[], list[Job]]) -> list[Job]:
    """Runs that differ in everything that a choice looks at; some lack a number or their predictions."""
    make_run(0, "quant=float", 0, weights_bytes=310_000, peak_activation_bytes=196_608)
    for number, wrong in enumerate((2, 9, 3, 14, 1, 30, 5, 22, 0, 4, 4, 60), 1):
        size = 100_000 - 1500 * wrong + 500 * (number % 3)
        more: dict[str, object] = {"model_bytes": size, "weights_bytes": size - 9000, "latency_runs": 100 + number % 2}
        more |= {"peak_activation_bytes": 49_152 + 64 * (number % 5), "latency_us_median": 90.0 + 7 * (number % 4)}
        more |= {"portable": number % 4 != 1, "machine_busy": number % 5 == 2}
        if number % 3 == 0:
            more |= {"tflite_bytes": size - 5000, "arena_bytes": 55_000 + number}
        if number == 7:
            more |= {"weights_bytes": None, "accuracy_delta": None}
        folder = make_run(number, f"quant=q{number} seed={number % 2}", wrong, number, **more)
        if number in (4, 9):
            (folder / "predictions.npy").unlink()
    make_run(13, "quant=q12 seed=5", 60, 12, model_bytes=9_000, weights_bytes=5_000, model_sha256=f"{12:064x}")
    return jobs_of()


@pytest.mark.parametrize("labels", [True, False])
def test_page_chooses_as_python_does(labels: bool, browser: Any, varied: list[Job], tmp_path: Path) -> None:
    """All combinations of limits that separate the runs, each at, below and above a run's own need."""
    evidence = gather(varied)
    evidence.labels = evidence.labels if labels else None
    models = models_of(evidence)
    steps: dict[str, list[float | None]] = {}
    for name in UNITS:
        needs = sorted({need for model in models if (need := model.needs[name]) is not None})
        steps[name] = [None, needs[0] - 1, needs[0], needs[2], needs[len(needs) // 2] - 0.5, needs[-2]]
    combinations = [
        {name: most for name, most in zip(steps, mosts, strict=True) if most is not None}
        for mosts in itertools.product(*steps.values())
    ]
    write_report(varied, tmp_path / "report.html")
    _open(browser, tmp_path / "report.html")
    data = answer(evidence, models, {})[1]
    script = "Object.assign(choice, JSON.parse(arguments[0])); return arguments[1].map(limits => [say(limits), chosen])"
    on_page = browser.execute_script(script, json.dumps(data), combinations)  # the driver would sort its keys
    seen = set()
    for limits, (texts, place) in zip(combinations, on_page, strict=True):
        expected = answer(evidence, models, limits)[0]
        assert {key: text for key, text in texts.items() if text} == {k: text for k, text in expected.items() if text}
        chosen = recommend(models, limits)
        assert place == (-1 if chosen is None else models.index(chosen.model))
        seen.add(place)
    assert len(seen) >= (5 if labels else 3)


def test_limits_choose_again_by_keyboard(browser: Any, varied: list[Job], tmp_path: Path) -> None:
    """What is typed gives the page that the command line would have written; text, tag in the table, ring."""
    from selenium.webdriver.common.keys import Keys

    def shown() -> str:
        parts = browser.find_elements("css selector", "#answer > div")
        return "\n".join(part.text for part in parts if part.is_displayed())

    write_report(varied, tmp_path / "report.html")
    written: dict[int, str] = {}
    for most in (60_000, 90_000, 10):
        write_report(varied, tmp_path / "limited.html", limits={"flash": most, "lost": 5.0})
        _open(browser, tmp_path / "limited.html")
        written[most] = shown()
        assert _find(browser, "#limit-flash").get_attribute("value") == str(most)
    _open(browser, tmp_path / "report.html")
    first = shown()
    field = _find(browser, "#limit-flash")
    for most, text in written.items():
        select_all = Keys.CONTROL + "a" + Keys.NULL
        field.send_keys(select_all, str(most), Keys.TAB, Keys.TAB, select_all, "5")
        assert (shown(), text != first) == (text, True)
        job = text.splitlines()[0].partition(" Job ")[2]
        assert [tag.text for tag in browser.find_elements("css selector", "#run-table .recommended")] == [
            "recommended" for _ in job[:1]
        ]
        named = "[...document.querySelectorAll('#pareto svg text')].some(text => text.textContent === 'recommended')"
        _until(browser, f"return {named} === {str(bool(job)).lower()}")
    assert "Nothing fits" in shown()
    # The one that needs 5,000 loses 6 points.
    assert "One of them has to be larger:\nat least 50,000 bytes of flash, 49,990 more than the limit" in shown()
    _find(browser, "#limits button").send_keys(Keys.ENTER)
    assert shown() == first
    assert _find(browser, "#first-choice").is_displayed() is False


def test_other_axes_are_chosen(browser: Any, varied: list[Job], tmp_path: Path) -> None:
    from selenium.webdriver.support.ui import Select

    write_report(varied, tmp_path / "report.html")
    _open(browser, tmp_path / "report.html")
    selects = [Select(select) for select in browser.find_elements("css selector", "#pareto select")]
    size, latency = "Accuracy against size", "Accuracy against latency"
    assert [select.first_selected_option.text for select in selects] == [size, latency]
    assert [option.text for option in selects[0].options] == [
        size,
        latency,
        "Accuracy against flash",
        "Accuracy against RAM",
    ]
    selects[1].select_by_visible_text("Accuracy against flash")
    _until(browser, "return document.querySelector('#pareto figure:last-child svg').textContent.includes('Flash, kB')")
    assert "Of 4 runs flash is the size of model.tflite" in _find(browser, "#pareto figure:last-child figcaption").text


def test_dark_and_light(opened: Any) -> None:
    paper = "return getComputedStyle(document.body).backgroundColor"
    light = opened.execute_script(paper)
    _click(opened, "#theme")
    dark = opened.execute_script(paper)
    assert light != dark
    assert _find(opened, "#theme").text == "Light"
    _until(
        opened,
        "return document.querySelector('#pareto figure:first-child svg').style.backgroundColor === 'rgb(20, 23, 27)'",
    )
    _open(opened, Path(opened.current_url.removeprefix("file://")), "dark")
    assert opened.execute_script(paper) == dark


def test_phone_scrolls_in_one_direction_and_leaves_out_numbers_too_small_to_read(opened: Any) -> None:
    script = """
        const texts = [...document.querySelectorAll("#classes .mark-text.role-mark text")];
        return texts.filter(text => text.getAttribute("opacity") !== "0").length;
    """
    assert opened.execute_script(script) == 60
    metrics = {"width": 390, "height": 800, "deviceScaleFactor": 2, "mobile": True}
    opened.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    _open(opened, Path(opened.current_url.removeprefix("file://")))
    assert opened.execute_script("return document.documentElement.scrollWidth") <= 390
    assert opened.execute_script(script) == 0  # the cells keep their colours


def test_hostile_runs_do_nothing(
    browser: Any, make_run: Callable[..., Path], jobs_of: Callable[[], list[Job]], tmp_path: Path
) -> None:
    for number in range(3):
        words = f"quant=int8 {json.dumps(HOSTILE)} y={number} '<b>key</b>={number % 2}'"
        make_run(number, words, number, quant_type=HOSTILE, model=HOSTILE, cpu=HOSTILE, calibration_images=number + 1)
    write_report(jobs_of(), tmp_path / "report.html")
    _open(browser, tmp_path / "report.html")
    assert browser.title.startswith("Quantization report")
    assert browser.execute_script("return document.querySelectorAll('img[onerror], b b, .plot a, .plot b').length") == 0
    assert "<b>key</b>" in browser.execute_script("return document.getElementById('runs').textContent")


# ---- two runs side by side


@pytest.fixture
def pairs(varied: list[Job], make_run: Callable[..., Path], jobs_of: Callable[[], list[Job]]) -> list[Job]:
    """Also runs with bits by layer, on another processor, on other images, and one that failed."""
    for number, job in enumerate(varied[:6]):
        layers = [{"name": f"conv{i}", "weight_bits": 4 + number % 2, "activation_bits": 8} for i in range(number)]
        if number == 5:  # of an earlier version
            layers = [{"output": f"relu{i}"} | {"weight_bits": 8, "activation_bits": 8} for i in range(number)]
        record = {"config": {"data": {"kind": "sample"}}, "layers": layers[: 1 + number // 2]}
        (job.path / "run.json").write_text(json.dumps(record))
    interval = {"latency_us_ci_low": 1190.0, "latency_us_ci_high": 1300.4, "latency_us_median": 1234.5}
    make_run(20, "quant=slow", 8, 20, cpu="Another processor", **interval)
    make_run(21, "quant=other", 8, 21, data_sha256="a" * 64, eval_images=1000)
    make_run(22, "quant=broken", 8, 22, status="failed", error="it broke", accuracy=None)
    return jobs_of()


def _compared(browser: Any, places: list[tuple[int, int]]) -> list[dict[str, Any]]:
    script = """
        const done = arguments[1];
        Promise.all(arguments[0].map(([a, b]) => compared(a, b))).then(done);
    """
    answers: list[dict[str, Any]] = browser.execute_async_script(script, places)
    return answers


def test_page_compares_any_two_as_the_command_does(browser: Any, pairs: list[Job], tmp_path: Path) -> None:
    write_report(pairs, tmp_path / "report.html")
    _open(browser, tmp_path / "report.html")
    finished = [place for place, job in enumerate(pairs) if job.ok]
    places = list(itertools.permutations(finished, 2))
    seen = set()
    for (first, second), on_page in zip(places, _compared(browser, places), strict=True):
        two = [pairs[first], pairs[second]]
        if two[0].row.data_sha256 != two[1].row.data_sha256:
            assert on_page["tables"] == {}
            assert "were evaluated on different images: `data_sha256` is " in on_page["sentences"][0]
            continue
        sentence, moved = pair.flips(gather(two))
        unnamed, bits = pair.layers([pair.layers_of(job) for job in two])
        tables = {"setting": pair.settings(two), "figure": pair.figures(two), "class": moved, "layer": bits}
        expected = {name: [list(row) for row in table.rows] if table else [] for name, table in tables.items()}
        assert on_page["tables"] == expected
        if moved:
            assert on_page["sentences"][0] == sentence
        else:
            assert on_page["sentences"][0].startswith(sentence.partition(":")[0])
        assert on_page["sentences"][1:] == unnamed
        seen.add((bool(moved), bool(bits), bool(unnamed)))
    assert {(True, True, False), (True, True, True), (True, False, True), (False, False, True)} <= seen


def test_p_on_the_page_is_that_of_scipy(opened: Any) -> None:
    flips = [(a, b) for a in (0, 1, 2, 7, 40, 333, 2000, 5000) for b in (0, 1, 3, 9, 41, 50, 400, 2100)]
    script = "return arguments[0].map(([a, b]) => { const p = mcnemar(a, b); return [p, threeDigits(p)]; })"
    for (a, b), (p, text) in zip(flips, opened.execute_script(script, flips), strict=True):
        exact = binomtest(a, a + b).pvalue if a + b else 1.0
        assert p == pytest.approx(exact, rel=1e-9, abs=1e-300)
        assert text == f"{p:.3g}"


def test_two_rows_are_ticked_by_keyboard(browser: Any, pairs: list[Job], tmp_path: Path) -> None:
    """They stay ticked when a filter or a limit takes hold; p and flips are those of the files."""
    from selenium.webdriver.common.keys import Keys

    write_report(pairs, tmp_path / "report.html")
    _open(browser, tmp_path / "report.html")

    def shown() -> str:
        text: str = _find(browser, "#pair-view").text
        return text

    def box(job: Job) -> Any:
        return _find(browser, f'#run-table input[aria-label^="Compare {job.label} ("]')

    def expect(a: Job, b: Job) -> None:
        labels = load_sample().test.labels
        right = [np.load(job.path / "predictions.npy") == labels for job in (a, b)]
        lost, gained = int((right[0] & ~right[1]).sum()), int((right[1] & ~right[0]).sum())
        p = binomtest(lost, lost + gained).pvalue
        _until(browser, "return !!document.querySelector('#pair-tables table')")
        assert shown().startswith(f"A: {a.label} ({a.choices})\nB: {b.label} ({b.choices})\n")
        assert f"{lost} that A gets right, {gained} that A gets wrong. McNemar p = {p:.3g}, " in shown()
        assert _find(browser, "#picked").text == f"A: {a.label} ({a.choices}), B: {b.label} ({b.choices}). Side by side"

    by_type = {job.row.quant_type: job for job in pairs}
    first, second, third = by_type["q2"], by_type["q10"], by_type["q8"]
    assert "Tick two runs" in _find(browser, "#picked").text
    assert shown() == "No run is ticked."
    assert len(browser.find_elements("css selector", "#run-table .pick input")) == len(pairs) - 1
    # Space ticks; Tab goes from box to box.
    box(first).send_keys(Keys.SPACE)
    assert _find(browser, "#picked").text == f"A: {first.label} ({first.choices}). Tick another run."
    order = [element.get_attribute("aria-label") for element in browser.find_elements("css selector", ".pick input")]
    browser.switch_to.active_element.send_keys(Keys.TAB)
    following = browser.switch_to.active_element.get_attribute("aria-label")
    assert following == order[order.index(box(first).get_attribute("aria-label")) + 1]
    box(second).send_keys(Keys.SPACE)
    expect(first, second)
    marks = [row.text.split()[0] for row in browser.find_elements("css selector", "#run-table tr.picked")]
    assert sorted(marks) == ["A", "B"]

    _find(browser, "#runs input[type=search]").send_keys("nothing-like-this")
    _until(browser, "return document.querySelector('#runs .dt-info').textContent.includes('filtered from')")
    expect(first, second)
    _find(browser, "#runs input[type=search]").send_keys(Keys.CONTROL + "a" + Keys.NULL + Keys.DELETE)
    _find(browser, "#limit-flash").send_keys("60000", Keys.TAB)
    _click(browser, "#run-table th[data-key=accuracy]")
    assert (box(first).is_selected(), box(second).is_selected()) == (True, True)
    assert "the choice that the page was written with" in _find(browser, "#first-choice").text
    expect(first, second)

    box(third).send_keys(Keys.SPACE)  # in B's place
    assert box(second).is_selected() is False
    expect(first, third)
    _find(browser, "#swap").send_keys(Keys.ENTER)
    expect(third, first)
    box(third).send_keys(Keys.SPACE)
    assert _find(browser, "#picked").text == f"A: {first.label} ({first.choices}). Tick another run."
    box(by_type["q4"]).send_keys(Keys.SPACE)  # it has no predictions
    _until(browser, "return !!document.querySelector('#pair-tables table')")
    assert "No paired test: B has no predictions.npy that agrees with its results." in shown()
    _find(browser, "#unpick").send_keys(Keys.ENTER)
    assert shown() == "No run is ticked."
    assert browser.find_elements("css selector", "#run-table .pick input:checked") == []


def test_pair_beyond_the_size_of_the_page_has_no_test(
    browser: Any, grid: list[Job], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(pair, "MAX_PREDICTION_BYTES", 1)
    write_report(grid, tmp_path / "report.html")
    _open(browser, tmp_path / "report.html")
    (on_page,) = _compared(browser, [(0, 1)])
    assert on_page["sentences"][0].startswith("No paired test: B comes so late in the table")
    assert on_page["tables"]["figure"]
