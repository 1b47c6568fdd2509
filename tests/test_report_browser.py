"""The report in a real browser: Chromium without a window opens it from a file and from a loopback server.

Needs the machine's own Chromium (Debian: apt-get install chromium) beside the Python package playwright. Without one
these tests are skipped, and with the environment variable CI=true they fail.
"""

from __future__ import annotations

import functools
import http.server
import io
import json
import os
import shutil
import threading

import pytest
from PIL import Image
from report_rows import SYSTEMS, a_case, a_comparison, a_judge, full_rows, write_rows

from girl_recbole.report import report

_NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
_FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
          "--disable-component-update", "--disable-sync"]  # fmt: skip
_HELP = "no Chromium on this machine: apt-get install -y --no-install-recommends chromium, then run the tests again"
_NASTY = '<img src=x onerror="window.broken = 1"> <script>window.broken = 1</script>'
_TABLE = "table:has(caption:text-is('Test metrics on toy, warm'))"


@pytest.fixture(scope="module")
def browser():
    program = next(filter(None, map(shutil.which, _NAMES)), None)
    if program is None:
        (pytest.fail if os.environ.get("CI", "").lower() in ("1", "true") else pytest.skip)(_HELP)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=program, args=_FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def page_file(tmp_path_factory):
    """A report with every section, one of whose labels is an attack."""
    folder = tmp_path_factory.mktemp("browser")
    rows = full_rows(folder, seeds=(1, 2), pairs=180)
    rows += [{**row, "row": _NASTY, "kind": "control"} for row in rows if row["row"] == "BM25"]
    for name, value in (("case", a_case()), ("judge", a_judge()), ("comparisons", [a_comparison()])):
        (folder / f"{name}.json").write_text(json.dumps(value), encoding="utf-8")
    beside = {name: folder / f"{name}.json" for name in ("case", "judge", "comparisons")}
    report(write_rows(folder / "results.jsonl", rows), folder / "report.html", **beside)
    return folder / "report.html"


@pytest.fixture
def opened(browser, page_file):
    """``opened(width, scheme)``: the page from its file, watched: no request but its own, nothing in the console."""
    contexts, odd = [], []

    def open_it(width=1280, scheme="light", address=None, **more):
        address = address or page_file.as_uri()
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, **more)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: odd.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: odd.append(f"error: {error}"))
        page.on("request", lambda request: odd.append(request.url) if not _own(request.url, address) else None)
        page.goto(address)
        return page

    yield open_it
    for context in contexts:
        context.close()
    assert not odd


def _own(url: str, address: str) -> bool:
    return url.partition("#")[0] == address.partition("#")[0] or url.startswith("data:")


def _column(page, number: int) -> list[str]:
    """Texts of a column of the first table's body; 0 is the row's name."""
    script = "(rows, n) => rows.map(row => row.cells[n].textContent)"
    return page.eval_on_selector_all(f"{_TABLE} tbody tr", script, number)


# ----------------------------------------------------------------------------------------------------------- it works


def test_it_opens_from_a_file_and_runs_nothing_of_the_rows(opened):
    page = opened()
    assert page.title() == "Results on toy"
    assert page.evaluate("window.broken") is None
    assert page.locator(f"{_TABLE} tbody th").all_text_contents() == [*SYSTEMS, _NASTY]
    assert page.locator("main img, main script").count() == 0


def test_it_opens_from_a_server_with_one_request(opened, page_file):
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, form, *arguments):
            asked.append(arguments[0])

    handler = functools.partial(Handler, directory=page_file.parent)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        page = opened(address=f"http://127.0.0.1:{server.server_port}/report.html")
        page.click("#theme")
        page.reload()
        assert page.locator("html").get_attribute("data-theme") == "dark"
        server.shutdown()
    assert {request.split()[1] for request in asked} == {"/report.html"}


def test_the_policy_stops_what_is_put_in_later(browser, page_file, tmp_path):
    """A script and a style in the body, a request: none is run, even with the template's escaping gone."""
    broken = page_file.read_text(encoding="utf-8").replace(
        '<main id="main">',
        '<main id="main"><script>window.broken = 1</script><style>main { color: rgb(1, 2, 3); }</style>'
        '<img src="http://127.0.0.1:9/x.png" onerror="window.broken = 1">',
    )
    (tmp_path / "broken.html").write_text(broken, encoding="utf-8")
    page = browser.new_page()
    refused = []
    page.on("console", lambda message: refused.append(message.text))
    page.goto((tmp_path / "broken.html").as_uri())
    assert page.evaluate("window.broken") is None
    assert page.evaluate("getComputedStyle(document.querySelector('main')).color") != "rgb(1, 2, 3)"
    assert len([text for text in refused if "Content Security Policy" in text]) == 4
    page.close()


def test_a_click_sorts_and_says_so(opened):
    page = opened()
    names = _column(page, 0)
    head = page.locator(f"{_TABLE} thead th").nth(1)
    assert head.get_attribute("aria-sort") == "none"
    head.locator("button").click()
    best_first = [float(text.split(" ")[0]) for text in _column(page, 1)]
    assert best_first == sorted(best_first, reverse=True)
    assert head.get_attribute("aria-sort") == "descending"
    assert page.locator("#said").text_content() == "Test metrics on toy, warm: sorted by AUC ↑, descending"
    head.locator("button").click()
    assert [float(text.split(" ")[0]) for text in _column(page, 1)] == sorted(best_first)
    assert sorted(_column(page, 0)) == sorted(names)
    assert page.locator(f"{_TABLE} tfoot th").all_text_contents() == ["prior", "oracle"]


def test_numbers_sort_as_numbers_from_the_keyboard(opened):
    """Parameters 0, 190,000, 1,204,224: as text 1,204,224 would come before 190,000. LogLoss: the smallest first."""
    page = opened()
    heads = page.locator(f"{_TABLE} thead button")
    names = heads.all_text_contents()
    for name, key in (("Parameters ↓", "Enter"), ("LogLoss ↓", " ")):
        at = names.index(name)
        heads.nth(at - 1).focus()
        page.keyboard.press("Tab")
        page.keyboard.press(key)
        shown = [float(text.split(" ")[0].replace(",", "")) for text in _column(page, at)]
        assert shown == sorted(shown), name
    orders = []
    for _ in range(2):
        page.locator(f"{_TABLE} thead button").first.click()
        orders.append(_column(page, 0))
    assert orders[0] == orders[1][::-1]
    assert [name for name in orders[0] if name[0].isalpha()][:3] == [
        "BERT, MLP",
        "BM25",
        "control: another seeker's JD, MLP",
    ]


def test_empty_cells_stay_last(opened, page_file):
    page = opened()
    head = page.locator("table:has(caption:text-is('Agreement between judges')) thead th")
    assert head.last.text_content() == "Rank correlation"
    assert head.last.get_attribute("aria-sort") is None  # one row: nothing to sort
    page.evaluate(
        "document.querySelectorAll('table[data-sort] tbody')[0].rows[2].cells[1].removeAttribute('data-value')"
    )
    page.evaluate("document.querySelectorAll('table[data-sort] tbody')[0].rows[2].cells[1].textContent = ''")
    for _ in range(2):
        page.locator(f"{_TABLE} thead button").nth(1).click()
        assert _column(page, 1)[-1] == ""


def test_the_theme_follows_the_system_until_it_is_chosen_and_is_kept(opened):
    page = opened(scheme="dark")
    back = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(back)
    assert page.locator("#theme").text_content() == "Light theme"
    page.emulate_media(color_scheme="light")
    light = page.evaluate(back)
    assert (dark, light) == ("rgb(20, 24, 29)", "rgb(255, 255, 255)")
    page.click("#theme")
    assert page.evaluate(back) == dark
    page.reload()
    assert page.evaluate(back) == dark
    page.click("#theme")
    assert page.evaluate(back) == light


def test_it_can_be_read_without_javascript(opened):
    page = opened(java_script_enabled=False)
    assert page.locator("#theme").is_hidden()
    assert page.locator(f"{_TABLE} tbody tr").count() == len(SYSTEMS) + 1
    assert page.locator("svg.panel").count() > 10


def test_on_paper_it_is_light_and_nothing_is_folded(opened):
    page = opened(scheme="dark")
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.documentElement).colorScheme") == "light"
    assert page.locator("nav").is_hidden()
    assert page.locator("#runs table").is_hidden()
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator("#runs table").is_visible()
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.locator("#runs table").is_hidden()
    assert page.pdf(format="A4")[:5] == b"%PDF-"


# ------------------------------------------------------------------------------------------------------ how it looks


@pytest.mark.parametrize("width", [320, 375, 768, 1280, 1920])
def test_nothing_is_wider_than_the_screen(opened, width):
    """Wide tables scroll in a box of their own that the keyboard reaches; the page itself never does."""
    page = opened(width)
    page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    loose = """() => [...document.querySelectorAll('main *')].filter(one => !one.closest('.scroll, svg')
        && one.getBoundingClientRect().right > innerWidth + 1).map(one => one.outerHTML.slice(0, 80))"""
    assert page.evaluate(loose) == []
    assert page.locator(".scroll:not([tabindex='0'])").count() == 0
    if width == 375:
        assert page.evaluate("document.querySelector('.scroll').scrollWidth") > width


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (1280, "dark"), (375, "light")])
def test_screenshots_show_the_charts(opened, width, scheme):
    """Each drawing has ink on paper: its series' colour, in the theme's; dark pages are dark."""
    page = opened(width, scheme)
    whole = Image.open(io.BytesIO(page.screenshot(full_page=True))).convert("RGB")
    assert whole.width == width
    colours = {colour: count for count, colour in whole.getcolors(1 << 24)}
    paper = (20, 24, 29) if scheme == "dark" else (255, 255, 255)
    assert max(colours, key=colours.get) == paper
    assert colours[paper] < 0.97 * whole.width * whole.height
    ink = (99, 179, 255) if scheme == "dark" else (11, 102, 184)
    for name in ("results", "differences", "cold-start", "calibration", "curves", "judge", "study-generation-number"):
        drawing = page.locator(f"#{name} :is(.tracks, .panel)").first
        shot = Image.open(io.BytesIO(drawing.screenshot())).convert("RGB")
        near = sum(count for count, colour in shot.getcolors(1 << 24)
                   if all(abs(a - b) < 60 for a, b in zip(colour, ink, strict=True)))  # fmt: skip
        assert near > 20, name


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_letters_and_marks_stand_out_from_the_paper(opened, scheme):
    """WCAG 2.2 AA: 4.5 to 1 for text, 3 to 1 for the marks of charts."""
    page = opened(scheme=scheme)
    page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    found = page.evaluate("""() => {
        const numbers = (text) => text.match(/[\\d.]+/g).map(Number);
        const linear = (v) => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
        const light = ([r, g, b]) => .2126 * linear(r / 255) + .7152 * linear(g / 255) + .0722 * linear(b / 255);
        const behind = (one) => {
            for (; one; one = one.parentElement) {
                const back = numbers(getComputedStyle(one).backgroundColor);
                if (back.length === 3 || back[3] === 1) return back;
            }
            return numbers(getComputedStyle(document.body).backgroundColor);
        };
        const ratio = (ink, back) => {
            const [a, b] = [light(ink), light(back)].sort((x, y) => y - x);
            return (a + .05) / (b + .05);
        };
        const worst = {text: [99, ""], mark: [99, ""]};
        const see = (kind, value, one) => {
            if (value < worst[kind][0]) worst[kind] = [value, one.outerHTML.slice(0, 120)];
        };
        for (const one of document.querySelectorAll("body *")) {
            const style = getComputedStyle(one);
            const own = [...one.childNodes].some(node => node.nodeType === 3 && node.data.trim());
            if (one.closest("svg")) {
                if (one.matches("text:not(.in)")) see("text", ratio(numbers(style.fill), behind(one)), one);
                if (one.matches("text.in")) {
                    const part = one.previousElementSibling;
                    see("text", ratio(numbers(style.fill), numbers(getComputedStyle(part).fill)), one);
                }
                if (one.matches("circle, path")) see("mark", ratio(numbers(style.fill), behind(one)), one);
            } else if (own && !one.matches("script, style")) see("text", ratio(numbers(style.color), behind(one)), one);
        }
        return worst;
    }""")
    assert found["text"][0] >= 4.5, found
    assert found["mark"][0] >= 3, found


def test_letters_of_charts_can_be_read_on_a_phone(opened):
    page = opened(360)
    scaled = """() => [...document.querySelectorAll('svg.panel')].map(one =>
        13 * one.getBoundingClientRect().width / one.viewBox.baseVal.width)"""
    assert min(page.evaluate(scaled)) >= 10
