"""The page in a real browser: headless Chromium opens it, sorts, filters, hovers, and fetches nothing.

Needs Debian's chromium and chromium-driver and the Python package selenium; skipped where one of them is missing.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from resnet8_quant.sweep.collect import Job
from resnet8_quant.sweep.report.write import write_report

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
pytest.importorskip("plotly", reason="plotly is not installed")
BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
if BROWSER is None or DRIVER is None:
    pytest.skip("chromium or chromedriver is not installed", allow_module_level=True)

HOSTILE = "x=</script><script>document.title='owned'</script><img/src=x/onerror=document.title='owned'>"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
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
def opened(browser: Any, grid: list[Job], tmp_path: Path) -> Any:
    """The page of a grid; afterwards the console must be empty and nothing may have been asked for."""
    write_report(grid, tmp_path / "report.html")
    return _open(browser, tmp_path / "report.html")


def _open(browser: Any, path: Path, scheme: str = "light") -> Any:
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    for kind in ("browser", "performance"):
        browser.get_log(kind)
    browser.get(path.as_uri())
    _until(browser, "return document.querySelectorAll('.plot .main-svg').length > 0")
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
        const table = document.getElementById("run-table");
        const at = [...table.tHead.rows[0].cells].findIndex(cell => cell.dataset.key === arguments[0]);
        return [...table.tBodies[0].rows].filter(row => !row.hidden).map(row => row.cells[at].textContent);
    """
    found: list[str] = browser.execute_script(script, key)
    return found


def _find(browser: Any, selector: str) -> Any:
    return browser.find_element("css selector", selector)


def test_page_opens_without_an_error_or_a_request(opened: Any, tmp_path: Path) -> None:
    assert opened.get_log("browser") == []
    assert _requests(opened) == [(tmp_path / "report.html").as_uri()]
    drawn = opened.execute_script(
        "return [...document.querySelectorAll('figure:not([hidden]) > .plot')].map(p => !!p.querySelector('.main-svg'))"
    )
    assert len(drawn) == 7
    assert all(drawn)


def test_table_sorts_by_number_and_back(opened: Any) -> None:
    heading = _find(opened, "#run-table th[data-key=accuracy]")
    opened.execute_script("arguments[0].click()", heading)
    up = [float(text) for text in _column(opened, "accuracy")]
    assert len(up) == 13
    assert up == sorted(up)
    assert heading.get_attribute("aria-sort") == "ascending"
    opened.execute_script("arguments[0].click()", heading)
    assert [float(text) for text in _column(opened, "accuracy")] == sorted(up, reverse=True)
    # Empty cells last, whichever way: the float run has no calibration size.
    size = _find(opened, "#run-table th[data-key='calibration.samples_per_class']")
    for _ in range(2):
        opened.execute_script("arguments[0].click()", size)
        assert _column(opened, "calibration.samples_per_class")[-1] == ""
    assert opened.get_log("browser") == []


@pytest.mark.parametrize(
    ("words", "rows"),
    [
        ("u8s8", 6),
        ("quant=int8", 6),
        ("quant=int8 seed=2", 3),
        ("accuracy>0.8775 quant=u8s8", 2),
        ("calibration.samples_per_class<=10", 8),
        ("QUANT=INT8", 6),
        ("Quant!=int8", 7),
        ("quant!=int8 U8S8 calibration.samples_per_class!=10", 4),
        ("calibration.samples_per_class!=10", 8),  # empty is neither 10 nor another number
        ("calibration.samples_per_class=", 1),
        ("calibration.samples_per_class='' quant=float", 1),
        ("calibration.samples_per_class!=''", 12),
        ("top-1>87.75 quant=u8s8", 2),  # a heading has the number that is shown
        ("bytes<100000", 12),
        ("'95 % CI from'>80", 13),
        ("accuracy > 0.8775 and quant == 'u8s8'", 2),  # as in --where
        ("status=ok", 13),  # also the one that is called recommended
        ("status!=ok", 0),
        ("status=recommended", 1),
        ("nothing-like-this", 0),
        ("<script>", 0),
    ],
)
def test_table_filters(words: str, rows: int, opened: Any) -> None:
    field = _find(opened, "#filter")
    field.send_keys(words)
    assert len(_column(opened, "job")) == rows
    assert _find(opened, "#count").text == f"{rows} of 13 runs"
    assert _find(opened, "#hint").text == ""
    assert opened.get_log("browser") == []


@pytest.mark.parametrize(
    ("words", "said", "rows"),
    [
        ("acuracy>0.5 quant=int8", "no column called acuracy; e.g. job, status, quant,", 6),
        ("samples=10", "no column called samples; e.g. calibration.samples_per_class,", 13),
        ("<b>=1 x<y=1", "no column called x", 0),  # what begins with an operator is a word
        ("accuracy>high", "accuracy> needs a number", 13),
        ("quant=int8 or quant=u8s8", "or is only for --where", 0),
    ],
)
def test_filter_says_what_it_does_not_know(words: str, said: str, rows: int, opened: Any) -> None:
    _find(opened, "#filter").send_keys(words)
    hint = _find(opened, "#hint")
    assert said in hint.text
    assert hint.is_displayed()
    assert len(_column(opened, "job")) == rows
    assert opened.get_log("browser") == []


def test_all_columns_on_request(opened: Any) -> None:
    cell = _find(opened, "#run-table th[data-key=folder]")
    assert not cell.is_displayed()
    opened.execute_script("document.getElementById('more').click()")
    assert cell.is_displayed()


def test_hover_names_the_run(opened: Any) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    points = opened.find_elements("css selector", "#f-pareto_bytes .scatterlayer .points path")
    opened.execute_script("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", points[-2])
    ActionChains(opened).move_to_element(points[-2]).perform()
    _until(opened, "return document.querySelectorAll('#f-pareto_bytes .hoverlayer .hovertext').length > 0")
    text = opened.execute_script("return document.querySelector('#f-pareto_bytes .hoverlayer').textContent")
    assert "Top-1" in text
    assert "Job" in text
    assert opened.get_log("browser") == []


def test_heat_map_is_chosen(opened: Any, make_run: Callable[..., Path], jobs_of: Callable[[], list[Job]]) -> None:
    """Three settings make three maps; the choice shows another one."""
    make_run(20, "quant=int8 calibration.samples_per_class=2 refine=bias seed=1", 3)
    make_run(21, "quant=u8s8 calibration.samples_per_class=10 refine=none seed=1", 3)
    path = Path(opened.current_url.removeprefix("file://"))
    write_report(jobs_of(), path)
    _open(opened, path)
    options = opened.find_elements("css selector", "select[data-picks=grid] option")
    assert len(options) == 3
    opened.execute_script("arguments[0].scrollIntoView()", options[0])
    options[2].click()
    shown = opened.execute_script("return [...document.querySelectorAll('#grid figure')].map(figure => !figure.hidden)")
    assert shown == [False, False, True]
    _until(opened, "return !!document.querySelector('#grid figure:not([hidden]) .main-svg')")
    assert opened.get_log("browser") == []


def test_dark_and_light(opened: Any) -> None:
    def paper() -> Any:
        return opened.execute_script("return getComputedStyle(document.body).backgroundColor")

    light = paper()
    opened.execute_script("document.getElementById('theme').click()")
    dark = paper()
    assert light != dark
    assert _find(opened, "#theme").text == "Light"
    ground = opened.execute_script("return document.querySelector('#f-pareto_bytes .plot')._fullLayout.paper_bgcolor")
    assert ground == "#14171b"
    _open(opened, Path(opened.current_url.removeprefix("file://")), "dark")
    assert paper() == dark
    assert opened.get_log("browser") == []


def test_phone_scrolls_in_one_direction(opened: Any) -> None:
    metrics = {"width": 390, "height": 800, "deviceScaleFactor": 2, "mobile": True}
    opened.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        _open(opened, Path(opened.current_url.removeprefix("file://")))
        assert opened.execute_script("return document.documentElement.scrollWidth") <= 390
        assert opened.get_log("browser") == []
    finally:
        opened.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_numbers_too_small_to_read_are_left_out(
    opened: Any, make_run: Callable[..., Path], jobs_of: Callable[[], list[Job]]
) -> None:
    """On a phone a long name leaves the cells little room: they keep their colours."""
    make_run(20, "quant=int8 calibration.samples_per_class=10 seed=1 refine=a-name-that-takes-room", 0)
    path = Path(opened.current_url.removeprefix("file://"))
    write_report(jobs_of(), path)
    sizes = (
        "return [...document.querySelectorAll('#f-per_class .heatmap-label text')].map(t => parseInt(t.style.fontSize))"
    )
    metrics = {"width": 390, "height": 800, "deviceScaleFactor": 2, "mobile": True}
    _open(opened, path)
    assert min(opened.execute_script(sizes)) >= 8
    opened.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        _open(opened, path)
        _until(opened, "return !!document.querySelector('#f-per_class .hm')")
        _until(opened, "return !document.querySelector('#f-per_class .heatmap-label')")
        assert opened.get_log("browser") == []
    finally:
        opened.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_page_prints(opened: Any) -> None:
    opened.execute_cdp_cmd("Page.printToPDF", {"printBackground": True})
    assert opened.get_log("browser") == []


def test_hostile_runs_do_nothing(
    browser: Any, make_run: Callable[..., Path], jobs_of: Callable[[], list[Job]], tmp_path: Path
) -> None:
    for number in range(3):
        words = f"quant=int8 {json.dumps(HOSTILE)} y={number} '<b>key</b>={number % 2}'"
        make_run(number, words, number, quant_type=HOSTILE, model=HOSTILE, cpu=HOSTILE, calibration_images=number + 1)
    write_report(jobs_of(), tmp_path / "report.html")
    _open(browser, tmp_path / "report.html")
    assert browser.title.startswith("Quantization report")
    assert browser.get_log("browser") == []
    assert browser.execute_script("return document.querySelectorAll('img[onerror], b b, .plot a').length") == 0
    assert "<b>key</b>" in browser.execute_script("return document.getElementById('runs').textContent")
