"The site: built from the notebooks, read in a browser from a folder, with every other host out of reach."
import inspect
import json
import re
import shutil
import subprocess
import sys
import time
import unicodedata
from contextlib import contextmanager
from html import unescape
from pathlib import Path
from typing import Annotated, Optional
from urllib.parse import unquote

import pytest
import yaml

ROOT = Path(__file__).parent.parent
SITE = ROOT / "_docs"
sys.path.insert(0, str(ROOT / "tools" / "site"))

import apidoc  # noqa: E402
import chapters  # noqa: E402
import forwards  # noqa: E402
import glossary  # noqa: E402

CONTENTS = yaml.safe_load((ROOT / "nbs" / "sidebar.yml").read_text(encoding="utf-8"))["website"]["sidebar"]["contents"]
PAGES = [name.removesuffix(".ipynb") for entry in CONTENTS for name in (entry["contents"] if isinstance(entry, dict) else [entry])]
WIDGET = 'script[type="application/vnd.jupyter.widget-view+json"]'
NO_NPM = "npm is missing: diagrams and widgets are left out of the site"


# ---- the converter

def test_callouts_become_admonitions():
    assert chapters.convert_markdown("::: {.callout-note}\nText.\n:::", {}, "") == ":::::::::{note}\nText.\n:::::::::"
    assert "{admonition} Read this\n:class: tip" in chapters.convert_markdown('::: {.callout-tip title="Read this"}\nText.\n:::', {}, "")


def test_nested_divs_get_longer_fences_outside():
    text = chapters.convert_markdown("::: {.cards}\n::: {.callout-note}\nText.\n:::\n:::", {}, "").split("\n")
    assert len(text[0]) - len(text[0].lstrip(":")) > len(text[1]) - len(text[1].lstrip(":"))


@pytest.mark.parametrize("text", ["::: {.callout-note}\nText.", "Text.\n:::"])
def test_unbalanced_div_names_the_chapter(text):
    with pytest.raises(chapters.SiteError, match="04_trainer"):
        chapters.convert_markdown(text, {}, "04_trainer.ipynb")


def test_symbols_citations_and_equations_are_linked_but_not_in_code():
    symbols = {"Trainer": "sftbook.trainer.Trainer"}
    text = chapters.convert_markdown("`Trainer` [@efron1979bootstrap] @eq-loss\n\n```python\n`Trainer` @eq-loss\n```", symbols, "")
    assert text.startswith("[`Trainer`](#sftbook.trainer.Trainer) {footcite:p}`efron1979bootstrap` {eq}`eq-loss`")
    assert text.endswith("```python\n`Trainer` @eq-loss\n```\n")


def test_quarto_options_become_tags():
    cell = {"source": "#| echo: false\n#| fig-cap: A curve\nplot()", "metadata": {}, "outputs": []}
    made = chapters.code_cell(cell, {})
    assert (made["source"], made["metadata"]["tags"], made["metadata"]["mystnb"]["figure"]["caption"]) == ("plot()", ["remove-input"], "A curve")


def test_products_in_a_table_of_parameters_keep_their_stars():
    assert apidoc.cell("(2*n, 2*n) of `a*b`") == r"(2\*n, 2\*n) of `a*b`"


def test_an_option_of_a_command_has_its_type_and_its_help():
    import typer
    option = Annotated[Optional[int], typer.Option(help="rows at most")]
    assert apidoc.plain(option) == (Optional[int], "rows at most")
    assert apidoc.plain(int) == (int, inspect._empty)


def test_a_method_is_not_described_in_the_words_of_a_foreign_parent():
    class Foreign:
        def forward(self):
            "Define the computation performed at every call."

    class Ours(Foreign):
        def fit(self):
            "Train."

        def forward(self):
            pass

    class Child(Ours):
        def fit(self):
            pass

        def forward(self):
            pass

    Foreign.__module__ = "torch.nn"
    assert apidoc.method_doc(Child, "fit", Child.fit) == "Train."
    assert apidoc.method_doc(Child, "forward", Child.forward) is None


def test_missing_and_unnamed_chapters_are_refused(tmp_path):
    (tmp_path / "sidebar.yml").write_text("website: {sidebar: {contents: [index.ipynb, {section: One, contents: [10_lost.ipynb]}]}}")
    (tmp_path / "index.ipynb").write_text("{}")
    with pytest.raises(chapters.SiteError, match="do not exist: 10_lost.ipynb"):
        chapters.read_sidebar(tmp_path)
    (tmp_path / "10_lost.ipynb").write_text("{}")
    (tmp_path / "11_new.ipynb").write_text("{}")
    with pytest.raises(chapters.SiteError, match="does not name: 11_new.ipynb"):
        chapters.read_sidebar(tmp_path)


def test_moved_pages_lead_to_pages_that_exist():
    moved = {"02_old": "parts/02_new", "03_stays": "parts/03_new"}
    pages = {"index", "03_stays", "parts/02_new"}
    assert forwards.forwarding(moved, pages) == {"02_old": "parts/02_new"}
    with pytest.raises(chapters.SiteError, match="03_stays -> parts/03_new"):
        forwards.forwarding(moved, pages - {"03_stays"})


def test_the_table_of_moved_pages_is_in_order():
    moved = forwards.read_moved(ROOT / "nbs")
    assert not set(moved.values()) & set(moved), "a page that moved twice leads to where it is now"
    forwards.forwarding(moved, set(PAGES))


def test_pages_of_chapters_that_are_gone_are_removed(tmp_path):
    for name in ("index", "gone", "a/gone", "a/kept", "search", "_static/embed"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.html").write_text("")
    forwards.remove_old_pages(tmp_path, {"index", "a/kept"})
    left = {p.relative_to(tmp_path).with_suffix("").as_posix() for p in tmp_path.rglob("*.html")}
    assert left == {"index", "a/kept", "search", "_static/embed"}


# ---- the built site

@pytest.fixture(scope="module")
def site():
    "The site, built once (a second build takes what has not changed from the first)."
    done = subprocess.run([sys.executable, "tools/site.py", "--output", str(SITE)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return SITE


@pytest.fixture(scope="module")
def browser(site, tmp_path_factory):
    "Chromium that can reach no host."
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and driver):
        pytest.skip("chromium or chromedriver is missing")
    from selenium import webdriver
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    profile = tmp_path_factory.mktemp("chromium")
    for flag in ("headless=new", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking", "disable-component-update",
                 "disable-sync", f"user-data-dir={profile}", "host-resolver-rules=MAP * ~NOTFOUND", "window-size=1300,900"):
        options.add_argument("--" + flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    found = webdriver.Chrome(options, webdriver.ChromeService(driver))
    found.get("about:blank")
    logs(found)
    yield found
    found.quit()


def logs(browser):
    "(what the console said, the addresses asked for) since the last call."
    said = [entry["message"] for entry in browser.get_log("browser") if entry["level"] in ("WARNING", "SEVERE")]
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    return said, [url for url in asked if not url.startswith(("file:", "data:", "blob:", "about:", "chrome:"))]


def visit(browser, page):
    browser.get(f"{SITE.as_uri()}/{page}")


def until(browser, script, seconds=20):
    "The script's value, once it is true."
    end = time.monotonic() + seconds
    while not (value := browser.execute_script("return " + script)) and time.monotonic() < end:
        time.sleep(0.05)
    assert value, f"never true: {script}"
    return value


@pytest.fixture(scope="module", params=[*PAGES, "search", "genindex"])
def page(browser, request):
    "A page that is open in a usual window."
    visit(browser, request.param + ".html")
    until(browser, "document.readyState === 'complete'")
    return request.param


def test_page_is_quiet_and_asks_no_host(browser, page):
    if browser.execute_script("return document.querySelectorAll('.math').length"):
        until(browser, "document.querySelectorAll('mjx-container').length >= document.querySelectorAll('.math').length")
    assert not browser.execute_script("return document.querySelectorAll('mjx-merror').length")
    if shutil.which("npm") and browser.execute_script("return document.querySelectorAll('pre.mermaid').length"):
        until(browser, "[...document.querySelectorAll('pre.mermaid')].every(e => e.querySelector('svg'))")
    if shutil.which("npm") and browser.execute_script(f"return document.querySelectorAll('{WIDGET}').length"):
        until(browser, "document.querySelector('.widget-subarea .lm-Widget')")
    assert logs(browser) == ([], [])


@contextmanager
def window(browser, width, height):
    "A window of this size; below 500 pixels a phone's."
    size = dict(width=width, height=height, deviceScaleFactor=1, mobile=width < 500)
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        yield
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


# Every block of code or printed text of a page: how much room a line has, how wide 100 characters
# are in its font, and, where something is cut, the text.
BLOCKS = """
document.querySelectorAll('details').forEach(details => details.open = true);
const ruler = document.createElement('span'), widths = {};
ruler.style.cssText = 'position: absolute; visibility: hidden; white-space: pre';
ruler.textContent = 'x'.repeat(100);
function hundred(pre, font) {  // measured once for each font: every change lays out the page anew
    if (!(font in widths)) {
        pre.append(ruler);
        widths[font] = ruler.getBoundingClientRect().width;
        ruler.remove();
    }
    return widths[font];
}
const blocks = [...document.querySelectorAll('.bd-article pre')];
return blocks.filter(pre => !pre.closest('.mermaid, .lm-Widget') && pre.clientWidth).map(pre => {
    const style = getComputedStyle(pre), box = pre.closest('.cell_output') || pre;
    const cut = pre.scrollWidth > pre.clientWidth || box.scrollWidth > box.clientWidth;
    return {room: pre.clientWidth - parseFloat(style.paddingLeft) - parseFloat(style.paddingRight),
            hundred: hundred(pre, style.font), size: parseFloat(style.fontSize),
            text: cut ? pre.textContent : ''};
});
"""


def columns(line):
    "How wide a line is in characters; a Chinese one has two columns."
    return sum(1 + (unicodedata.east_asian_width(character) in "WF") for character in line)


def test_a_hundred_characters_are_seen_whole(browser, page):
    with window(browser, 1280, 900):
        assert browser.execute_script("""return getComputedStyle(document.querySelector(
            '.bd-sidebar-primary')).visibility""") == "visible"
        for block in browser.execute_script(BLOCKS):
            assert block["hundred"] <= block["room"] and block["size"] >= 13, block
            longest = max(map(columns, block["text"].splitlines()), default=0)
            assert not block["text"] or longest > 100, f"cut at {longest} columns: {block['text']}"


def test_the_contents_of_a_page_stand_beside_it_or_open_as_a_drawer(browser):
    contents = "document.querySelector('.bd-sidebar-secondary')"
    place = f"{contents}.getBoundingClientRect()"
    with window(browser, 1500, 900):
        visit(browser, "04_trainer.html")
        assert browser.execute_script(f"return {place}.right") <= 1500
        blocks = browser.execute_script(BLOCKS)
        assert all(block["hundred"] <= block["room"] for block in blocks)
    with window(browser, 1280, 900):
        visit(browser, "04_trainer.html")
        assert browser.execute_script(f"return getComputedStyle({contents}).visibility") == "hidden"
        browser.find_element("css selector", "button.secondary-toggle").click()
        until(browser, f"getComputedStyle({contents}).visibility === 'visible'")
        until(browser, f"0 < {place}.left && {place}.right <= innerWidth")


def test_page_fits_a_phone(browser, page):
    with window(browser, 390, 844):
        visit(browser, page + ".html") # once more: a page is laid out while it loads
        width, room = browser.execute_script(
            "return [document.documentElement.scrollWidth, innerWidth]")
        assert width <= room == 390
        blocks = browser.execute_script(BLOCKS)
        assert all(block["size"] >= 13 and block["room"] <= 390 for block in blocks)


@pytest.fixture
def moved(site):
    "{old address: page}: what has moved, and two that are made up, one of them in a folder."
    made_up = {"gone/99_gone": "04_trainer", "99_gone": "foundations/13_transformer"}
    forwards.write_forwards(site, made_up)
    yield {**forwards.forwarding(forwards.read_moved(ROOT / "nbs"), set(PAGES)), **made_up}
    shutil.rmtree(site / "gone")
    (site / "99_gone.html").unlink()


def test_old_addresses_forward(browser, moved):
    for old, new in moved.items():
        visit(browser, f"{old}.html#exercises")
        until(browser, f"location.pathname.endsWith({json.dumps(f'/{new}.html')})")
        assert browser.execute_script("return location.hash") == "#exercises"
        until(browser, "document.querySelector('.bd-article h1')")


LINK = re.compile(r'<a\b[^>]*?\bhref="([^"#?]*)(?:\?[^"#]*)?(?:#([^"]*))?"')


def broken_links(folder):
    "Links between pages of a folder whose page or place on a page does not exist."
    texts = {path.resolve(): path.read_text(encoding="utf-8") for path in folder.rglob("*.html")
             if not path.relative_to(folder).parts[0].startswith("_")}
    places = {path: {unescape(name) for name in re.findall(r'\b(?:id|name)="([^"]+)"', text)}
              for path, text in texts.items()}
    for path, text in texts.items():
        for target, place in LINK.findall(text):
            if re.match(r"[a-z]+:", target):
                continue
            page = (path.parent / unquote(target)).resolve() if target else path
            wanted = unescape(unquote(place))
            if not page.exists() or wanted and page in places and wanted not in places[page]:
                yield f"{path.relative_to(folder.resolve())}: {target}#{place}"


def test_broken_links_are_found(tmp_path):
    (tmp_path / "a.html").write_text('<a href="b.html#there">1</a> <a class="x" href="c.html">2</a>'
                                     '<a href="b.html#gone">3</a> <a href="https:x">4</a>')
    (tmp_path / "b.html").write_text('<p id="there"><a href="#">5</a><a href="#gone">6</a>')
    found = {"a.html: c.html#", "a.html: b.html#gone", "b.html: #gone"}
    assert set(broken_links(tmp_path)) == found


def test_every_link_leads_somewhere(site):
    assert sorted(broken_links(site)) == []


def test_search_finds_trainer(browser):
    visit(browser, "search.html?q=Trainer")
    links = until(browser, "[...document.querySelectorAll('ul.search a')].map(a => a.getAttribute('href'))")
    assert any("04_trainer.html#sftbook.trainer.Trainer" in link for link in links), links


def test_dark_mode_switches(browser):
    visit(browser, "index.html")
    brightness = {}
    for mode in ("light", "dark"):
        browser.execute_script(f"document.querySelector('.theme-change-button[data-mode={mode}]').click()")
        until(browser, f"document.documentElement.dataset.theme === '{mode}'")
        brightness[mode] = sum(map(int, re.findall(r"\d+", browser.execute_script("return getComputedStyle(document.body).backgroundColor"))[:3]))
    assert brightness["dark"] < 150 < 600 < brightness["light"], brightness


def test_widget_answers_without_python(browser):
    if not shutil.which("npm"):
        pytest.skip(NO_NPM)
    visit(browser, "cases/20_text_classification.html")
    until(browser, "document.querySelector('.widget-subarea textarea')")
    shown = "document.querySelector('.widget-subarea textarea').closest('.widget-subarea').innerText"
    before = browser.execute_script("return " + shown)
    browser.execute_script("""const area = document.querySelector('.widget-subarea textarea');
        area.value = 'The striker scored twice in the cup final'; area.dispatchEvent(new Event('input', {bubbles: true}));""")
    until(browser, f"{shown} !== {json.dumps(before)}")


def test_pages_name_no_other_host_for_what_they_load(site):
    loads = re.compile(r"<(?:script|img|iframe|source)[^>]+src=[\"'](?:https?:)?//|<link[^>]+href=[\"'](?:https?:)?//[^>]+(?:stylesheet|icon|preload)|url\([\"']?https?://")
    for path in [*site.rglob("*.html"), *site.rglob("*.css")]:
        assert not loads.search(path.read_text(encoding="utf-8")), path


def test_no_page_shows_where_something_lies_in_memory(site):
    where = re.compile(r" at 0x[0-9a-f]{6,}")
    assert [p.name for p in site.rglob("*.html") if where.search(p.read_text(encoding="utf-8"))] == []


def test_every_documented_parameter_table_is_there(site):
    page = (site / "04_trainer.html").read_text(encoding="utf-8")
    assert 'id="sftbook.trainer.Trainer"' in page and "api-parameters" in page


def test_download_is_the_notebook_and_not_the_page_made_from_it(site):
    assert "#| default_exp trainer" in (site / "_sources" / "04_trainer.ipynb").read_text(encoding="utf-8")


# ---- words of the glossary

def terms_of(page):
    "The linked words of a page: (address, title, word)."
    return re.findall(r'<a class="term" href="([^"]*)" title="([^"]*)">([^<]*)</a>', (SITE / f"{page}.html").read_text(encoding="utf-8"))


def test_words_of_the_glossary_are_linked_once_a_page_to_places_that_exist(site):
    glossary = (SITE / "foundations/09c_glossary.html").read_text(encoding="utf-8")
    places, linked = set(re.findall(r'<section id="([^"]+)"', glossary)), 0
    for page in PAGES:
        addresses = [address for address, _, _ in terms_of(page)]
        assert len(addresses) == len(set(addresses)), page
        for address in addresses:
            path, place = address.split("#")
            assert ((SITE / page).parent / path).resolve() == SITE / "foundations/09c_glossary.html" and place in places, address
        linked += len(addresses)
    assert linked > 300 and terms_of("foundations/09c_glossary") == []


def test_code_headings_links_and_formulas_keep_their_words():
    links = glossary.Links({"loss": "What is made small."}, "tasks/a")
    kept = ["# The loss", "`loss`", "$loss$", "[a loss](b.ipynb)", "```python\nloss = 1\n```", '<b title="loss">', "lossless", "| loss |"]
    assert [links.add(text) for text in kept] == kept
    assert links.add("A loss is a loss.") == ('A <a class="term" href="../foundations/09c_glossary.html#loss" title="What is made small.">loss</a>'
                                             " is a loss.")
