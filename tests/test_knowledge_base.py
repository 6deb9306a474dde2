"A desk is given anything: folders full of everything, pages of nobody's making, long questions."
import os

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sftbook.cli import main
from sftbook.core import CheckpointError, ConfigError, DataError
from sftbook.preprocessing.documents import Section, _headed, _html, _markdown, _plain, read_folder
from sftbook.tasks.knowledge_base import (
    KeywordSearch, KnowledgeBase, Reply, ask, held_share, load_knowledge_base, reply_page,
    save_knowledge_base)

PARTS = ["# Top", "## Low", "```", "text", "", "<p>", "</p>", "<h1>", "<script>",
         "</script>", "中文。", "&amp;"]


@pytest.fixture
def folder(tmp_path):
    home = tmp_path / "docs"
    home.mkdir()
    (home / "a.md").write_text("# Print\nChoose Print.\n\n## Margins\nSet the margins.\n")
    (home / "b.html").write_text("<nav>x</nav><h1>Fonts</h1><p>Choose <b>Font</b>.</p>")
    (home / "c.csv").write_text("question,answer\nWho helps?,Ada helps.\n")
    return home


@given(st.lists(st.sampled_from(PARTS), max_size=30))
@settings(deadline=None)
def test_any_text_becomes_sections_that_lose_no_word(parts):
    for read in (_markdown, _plain):
        sections = _headed("a", read("a", parts))
        said = "\n".join(f"{s.heading}\n{s.text}" for s in sections)
        assert said.count("text") >= (parts.count("text") if read is _plain else 0)
        assert all(s.text.strip() and s.line >= 1 for s in sections)
    assert all(text.strip() for _, _, text in _html("a", [p + "\n" for p in parts]))


def test_a_folder_becomes_sections_with_their_places(folder):
    sections, notes = read_folder(folder)
    assert [(s.source, s.line, s.heading) for s in sections] == [
        ("a.md", 2, "Print"), ("a.md", 5, "Print > Margins"), ("b.html", 1, "Fonts"),
        ("c.csv", 2, "Who helps?")]
    assert notes == [] and sections[3].is_faq and "x" not in sections[2].text


def test_all_bad_files_are_named_at_once(folder):
    with open(folder / "dump.txt", "wb") as f:
        f.truncate(100 * 2**20)
    (folder / "bad.md").write_bytes(b"a\xff\xff")
    (folder / "odd.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataError) as e:
        read_folder(folder)
    for name in ("dump.txt", "bad.md", "odd.csv", "100 MB"):
        assert name in str(e.value)


def test_a_folder_without_documents_is_refused(tmp_path):
    with pytest.raises(DataError, match="no documents"):
        read_folder(tmp_path)
    with pytest.raises(DataError, match="no such folder"):
        read_folder(tmp_path / "never")


def test_a_file_that_may_not_be_read_is_named(folder):
    os.chmod(folder / "a.md", 0)
    if os.access(folder / "a.md", os.R_OK):
        pytest.skip("this user may read everything")
    with pytest.raises(DataError, match="a.md"):
        read_folder(folder)


@pytest.mark.parametrize("question, said", [("", "empty"), (" ?! ", "empty"), ("\x00", "empty"),
                                            ("why " * 10_000, "10,000 words"), (None, "empty")])
def test_what_is_no_question_is_refused(folder, question, said):
    with pytest.raises(DataError, match=said):
        ask(KnowledgeBase(read_folder(folder)[0]), question)


@given(st.text(min_size=1, max_size=80))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_an_answer_is_a_passage_of_its_section(folder, question):
    kb = KnowledgeBase(read_folder(folder)[0])
    try:
        reply = ask(kb, question, sure=0.)
    except DataError:
        return
    assert 0 <= reply.confidence <= 1
    if reply.answer:
        assert reply.section.text[reply.start:reply.end] == reply.answer


def test_a_question_of_a_table_is_found_by_its_words(folder):
    kb = KnowledgeBase(read_folder(folder)[0])
    assert ask(kb, "who HELPS").answer == "Ada helps."
    assert ask(kb, "What do zebras eat?").answer == ""


@given(st.lists(st.sampled_from("print margin font page set choose 打印 页面".split()), min_size=1,
                max_size=6))
@settings(deadline=None)
def test_a_section_never_holds_more_than_the_question(words):
    sections = [Section("a", 1, "Print", "Set the margins."), Section("b", 1, "页面", "打印页面。")]
    search = KeywordSearch(sections)
    hits = search(" ".join(words), 5)
    assert [score for _, score in hits] == sorted((s for _, s in hits), reverse=True)
    for section in sections:
        assert 0 <= held_share(search, " ".join(words), section) <= 1 + 1e-9


def test_pages_cannot_smuggle_code_into_a_reply():
    section = Section("<i>.md", 1, "<script>", "<script>alert(1)</script>")
    page = reply_page(Reply("q", "<script>", 1., section, 0, 8))
    assert "<script" not in page and "<i>" not in page


def test_what_is_saved_is_loaded_and_damage_is_noticed(folder, tmp_path):
    kb = KnowledgeBase(*read_folder(folder))
    place = save_knowledge_base(kb, tmp_path / "kb")
    assert load_knowledge_base(place).sections == kb.sections
    with pytest.raises(ConfigError, match="already exists"):
        save_knowledge_base(kb, place)
    save_knowledge_base(kb, place, overwrite=True)
    with open(place / "sections.jsonl", "a") as f:
        f.write("{}\n")
    with pytest.raises(CheckpointError, match="not as it was written"):
        load_knowledge_base(place)


def test_the_commands_build_and_ask(folder, tmp_path, capsys):
    def run(*words):
        with pytest.raises(SystemExit) as e:
            main([str(word) for word in words])
        return e.value.code, capsys.readouterr()
    kb = tmp_path / "kb"
    code, said = run("kb", "build", folder, "--output", kb)
    assert code == 0 and "4 sections of 3 files" in said.out
    code, said = run("ask", kb, "How do I set margins?")
    assert code == 0 and "Set the margins" in said.out and "a.md, line 5" in said.out
    for words, what in ((("ask", kb, " "), "empty"), (("ask", folder, "How?"), "no knowledge base"),
                        (("kb", "build", folder, "--output", kb), "already exists"),
                        (("kb", "build", folder, "--output", folder / "kb"), "inside the folder")):
        code, said = run(*words)
        assert code == 2 and what in said.err and "What to do" in said.err
