"The help pages that are shipped, and the tool that makes them; nothing is fetched."
import importlib.util
import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from sftbook import help_pages
from sftbook.core import CorpusError, sha256
from sftbook.help_pages import help_elements, help_manifest, load_help_pairs, read_help_page
from sftbook.help_sections import help_part, invert_term, load_help_sections
from sftbook.preprocessing.help_splits import later_twins, split_help_pages
from sftbook.protected import protected_spans

ROOT = Path(__file__).parent.parent
SHIPPED = ROOT / "sftbook" / "data" / "help_pages"
FILES = "help_pages.parquet", "NOTICE", "MANIFEST.json"


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("tool", ROOT / "tools" / "help_pages.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def target(tool, tmp_path, monkeypatch):
    "A folder that the tool takes for the shipped one, with files that must not change."
    folder = tmp_path / "data" / "help_pages"
    folder.mkdir(parents=True)
    for name in FILES:
        shutil.copy(SHIPPED / name, folder)
    monkeypatch.setattr(tool, "TARGET", folder)
    return folder


def assert_untouched(target):
    assert [p.name for p in target.parent.iterdir()] == ["help_pages"]
    assert all((target / name).read_bytes() == (SHIPPED / name).read_bytes() for name in FILES)


# ---- what is shipped

def test_the_files_belong_together_and_to_the_tool(tool):
    manifest = json.loads((SHIPPED / "MANIFEST.json").read_text())
    assert manifest["sha256"] == sha256(SHIPPED / "help_pages.parquet")
    assert manifest["version"] == tool.VERSION
    assert manifest["packages"] == {name: digest for name, _, digest in tool.PACKAGES.values()}
    notice = (SHIPPED / "NOTICE").read_text()
    assert notice == tool.notice() and "MPL-2.0" in notice and "Apache-2.0" in notice
    assert (SHIPPED / "LICENSE").read_text().startswith("Mozilla Public License Version 2.0")
    assert "recursive-include sftbook/data *" in (ROOT / "MANIFEST.in").read_text()


def test_the_same_rows_are_the_same_bytes(tool, tmp_path):
    rows, counts = help_elements()[:2000], help_manifest()["counts"]
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        tool.write(tmp_path / name / FILES[0], rows, counts)
    for name in FILES:
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()
    assert pq.read_table(tmp_path / "first" / "help_pages.parquet").to_pylist() == rows


def test_no_keys_are_glued_and_no_row_is_empty():
    for row in help_elements():
        assert row["en"] and row["zh"]
        assert not any("CommandCtrl" in row[side].replace(" ", "") for side in ("en", "zh"))


def test_the_counts_that_the_book_names():
    counts = help_manifest()["counts"]
    assert counts["pages"] == 2560
    assert counts["elements whose id begins with par_ or hd_"] == 68071
    assert len(load_help_pairs(strict=False)) == 24469
    assert len(load_help_pairs()) == 16342


def test_a_damaged_file_is_not_read(tmp_path, monkeypatch):
    shutil.copytree(SHIPPED, tmp_path / "data")
    file = tmp_path / "data" / "help_pages.parquet"
    file.write_bytes(file.read_bytes()[:-9])
    monkeypatch.setattr(help_pages, "_FOLDER", tmp_path / "data")
    with pytest.raises(CorpusError, match="damaged"):
        help_elements.__wrapped__()
    file.unlink()
    with pytest.raises(CorpusError, match="missing"):
        help_elements.__wrapped__()


# ---- the tool refuses what is not right, and touches nothing

def test_archives_that_are_not_there(tool, target, tmp_path):
    with pytest.raises(CorpusError, match="0 archives of libreoffice-help-en-us"):
        tool.make(tmp_path)
    assert_untouched(target)


def test_an_archive_that_is_damaged_or_of_another_version(tool, target, tmp_path):
    (tmp_path / "libreoffice-help-en-us_7.4.7_all.deb").write_bytes(b"!<arch>\n")
    with pytest.raises(CorpusError, match="checksum") as raised:
        tool.make(tmp_path)
    assert tool.VERSION in str(raised.value)
    assert_untouched(target)


def test_an_archive_that_dpkg_cannot_open(tool, target, tmp_path, monkeypatch):
    archive = tmp_path / "libreoffice-help-en-us_7.4.7_all.deb"
    archive.write_bytes(b"!<arch>\n")
    package = "libreoffice-help-en-us", "en-US", sha256(archive)
    monkeypatch.setattr(tool, "PACKAGES", {"en": package})
    with pytest.raises(CorpusError, match="dpkg"):
        tool.make(tmp_path)
    assert_untouched(target)


PAGE = '<div id="DisplayArea"><h1 id="hd_1">{}</h1><p id="par_2">{}</p></div>'


@pytest.fixture
def pages(tool, target, tmp_path, monkeypatch):
    "Two folders with one page each, in place of the packages."
    folders = {"en": tmp_path / "en", "zh": tmp_path / "zh"}
    for language, text in (("en", "Saving"), ("zh", "保存")):
        (folders[language] / "swriter").mkdir(parents=True)
        (folders[language] / "swriter" / "save.html").write_text(PAGE.format(text, text))
    monkeypatch.setattr(tool, "PAGES", 1)
    monkeypatch.setattr(tool, "extract", lambda folder, archives: folders)
    return folders


def test_small_pages_are_written_and_then_nothing_changes(tool, target, pages):
    assert tool.make(check=True) == ["help_pages.parquet", "MANIFEST.json"]
    assert_untouched(target)
    assert tool.make() == ["help_pages.parquet", "MANIFEST.json"]
    assert tool.make() == []
    assert json.loads((target / "MANIFEST.json").read_text())["rows"] == 2


def test_a_page_that_is_missing(tool, target, pages):
    (pages["zh"] / "swriter" / "save.html").unlink()
    with pytest.raises(CorpusError, match="swriter/save.html is there in one language only"):
        tool.make()
    (pages["en"] / "swriter" / "save.html").unlink()
    with pytest.raises(CorpusError, match="0 pages where 1 were expected"):
        tool.make()
    assert_untouched(target)


def test_a_page_that_is_cut_off(tool, target, pages):
    page = pages["zh"] / "swriter" / "save.html"
    page.write_text(page.read_text()[:-12])
    with pytest.raises(CorpusError, match="swriter/save.html, line 1"):
        tool.make()
    assert_untouched(target)


def test_an_id_that_one_language_lacks(tool, target, pages):
    page = pages["zh"] / "swriter" / "save.html"
    page.write_text(page.read_text().replace("par_2", "par_3"))
    with pytest.raises(CorpusError, match="one language only: par_2"):
        tool.make()
    assert_untouched(target)


def test_without_a_program_the_tool_says_which(tool):
    with pytest.raises(CorpusError, match="no-such-program"):
        tool.run("no-such-program")


# ---- pages, sections, splits, spans

def test_a_picture_passes_its_index_entries_on():
    html = ('<div id="DisplayArea"><meta itemprop="keywords" content="saving"><p id="par_1"> '
            '<img src="a.svg"></p><p id="par_2">Save it.</p></div>')
    assert [e.terms for e in read_help_page(html)] == [[], ["saving"]]


def test_what_stands_outside_of_the_display_area_is_not_read():
    html = '<p id="par_0">Menu</p>' + PAGE.format("Saving", "How.") + '<p id="par_9">Footer</p>'
    assert [e.id for e in read_help_page(html)] == ["hd_1", "par_2"]


def test_questions_point_to_passages_and_keep_to_their_pages():
    passages, questions = load_help_sections("en")
    page_of = dict(zip(passages["passage_id"], passages["page"]))
    assert len(page_of) == len(passages)
    for row in questions:
        assert row["passage_ids"][0] == row["passage_id"]
        assert page_of[row["passage_id"]] == row["page"]
        assert row["part"] == help_part(row["page"])
    folded = [question.casefold() for question in questions["question"]]
    assert len(set(folded)) == len(folded)


def test_terms_that_are_odd_do_not_raise():
    for term in ("", " ,", ",,a", "see also", "a,see b", "，", "in", "in,in", "插入", "a，b,c;d"):
        invert_term(term)
    assert invert_term("a,see b") == "a"


def test_twins_give_way_to_the_test_part():
    assert later_twins(["a b", "A, b!", "c"], ["train", "validation", "test"]) == ({0}, set())
    assert later_twins([], []) == (set(), set())


def test_no_page_and_no_text_is_in_two_parts():
    pairs = load_help_pairs()
    splits = split_help_pages(pairs.select(range(0, len(pairs), 6)))
    train, test = splits["train"], splits["test"]
    assert len(train) > len(test) > 100 and not set(train["page"]) & set(test["page"])
    for side in ("en", "zh"):
        seen = {row[side] for row in train["translation"]}
        assert not any(row[side] in seen for row in test["translation"])


@pytest.mark.parametrize("text", ["A "*4000, "选择"*4000, "a_"*4000, "{"*4000, "Ctrl+"*2000,
                                  "A - "*2000, "<a "*2000, "`"*2000, "a.b"*2000])
def test_no_text_makes_the_search_for_spans_slow(text):
    found = protected_spans(text)
    ends = [0, *(span.end for span in found)]
    assert all(span.start >= end for span, end in zip(found, ends))
    assert all(text[span.start:span.end] == span.text for span in found)
