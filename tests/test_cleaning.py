"""Cleaning: twice is once, nothing goes uncounted, places survive, and no text takes longer than
its length. Each property is tried on texts that are drawn to be difficult."""
import json
import re
import time
import unicodedata
from functools import lru_cache

import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from sftbook.core import ConfigError, DataError
from sftbook.files import _visible
from sftbook.preprocessing.characters import _EMOJI, apply_edits, find_step
from sftbook.preprocessing.cleaning import (Boilerplate, Cleaner, clean_rows, learn_boilerplate,
                                            load_cleaner, move_spans, save_cleaner)

FOUND = Boilerplate({"原标题：": 9}, {"查看更多": 9}, {"本文不代表本站观点。": 9, "Read it.": 9})
ALL = Cleaner(["encoding", "html", "escapes", "invisible", "unicode:NFKC", "width:all",
               "urls:token", "emoji:describe", "script:t2s", "space"], FOUND)
DROP = Cleaner(["space", "emoji:drop", "urls:drop", "width", "unicode", "invisible", "escapes",
                "html", "encoding"], FOUND)
CLEANERS = pytest.mark.parametrize("cleaner", [Cleaner(), ALL, DROP, Cleaner((), FOUND)],
                                   ids=["usual", "all", "drop", "boilerplate"])

# What steps look for, whole and in pieces, beside letters of many scripts.
BITS = [
    "<", ">", "&", ";", "amp;", "&lt;", "&gt;", "&#60;", "&nbsp;", "&#8203;", "b", "<b>",
    "</p>", "<br/>", "<!--", "-->", "<script>", "</script>", "<style", "'", '"', "=", "/",
    "\\", "\\n", "\\t", "n", "\n", "\r\n", " ", "\t", "\u3000", "\xa0", "\u2028", "\u200b",
    "\u200d", "\ufe0f", "\ufeff", "\u202e", "\U000e0041", "\ud83d", "\x00", "\x85", "e",
    "\u0301", "\u0323", "é", "ﬁ", "Ａ", "，", "：", "＜", "＞", "＆", "；", "ｶ", "ﾞ", "㎡",
    "ㅎ", "ㅏ", "\u11ab", "Ã©", "Ã", "â€™", "\u20ac", "\x80", "漢", "乾", "軟體", "。",
    "！", ".", "http://", "www.", "a.b/c", "[URL]", "\N{THUMBS UP SIGN}", "\U0001f3fd",
    "\N{MAN}", "\N{ROCKET}", "\U0001f1e8", "3", "\u20e3", "原标题：", "查看更多",
    "本文不代表本站观点。", "Read it.", "Ann", "北京", "क्", "می", "\u200c",
]
TEXTS = st.one_of(st.lists(st.sampled_from(BITS), max_size=30).map("".join), st.text(max_size=40))
MANY = settings(max_examples=400, deadline=None)


@CLEANERS
@given(text=TEXTS)
@MANY
def test_cleaning_twice_is_cleaning_once(cleaner, text):
    done = cleaner.align(text)
    assert done.settled
    assert cleaner.clean(done.text) == done.text == cleaner.clean(text)


def removed_and_kept(text, edits):
    "What edits take away, what they put there, and the characters between them."
    at, kept = 0, []
    for start, end, _ in edits:
        assert at <= start < end <= len(text), "edits are sorted, apart and take something"
        kept.append(text[at:start])
        at = end
    return [text[a:b] for a, b, _ in edits], [*kept, text[at:]]


def characters_of(done):
    "How many characters the edits of a text take away, and how many they put there."
    now, removed, added = done.original, 0, 0
    for _, edits in done.changes:
        gone, kept = removed_and_kept(now, edits)
        removed += len("".join(gone))
        added += sum(len(new) for *_, new in edits)
        put = [new for *_, new in edits] + [""]
        now = "".join(k + p for k, p in zip(kept, put))
    assert now == done.text
    return removed, added


@CLEANERS
@given(texts=st.lists(TEXTS, min_size=4, max_size=4))
@settings(max_examples=100, deadline=None)  # 400 texts: to make a Dataset takes the longest
def test_characters_out_are_characters_in_and_what_was_counted(cleaner, texts):
    texts = list(map(savable, texts))
    rows, audit = clean_rows(cleaner, Dataset.from_dict({"text": texts}))
    every = list(map(cleaner.align, texts))
    assert rows["text"][:] == [done.text for done in every]
    removed, added = map(sum, zip(*map(characters_of, every)))
    counts = audit.steps.values()
    assert (removed, added) == (sum(n.removed for n in counts), sum(n.added for n in counts))
    assert audit.characters_in - removed + added == audit.characters_out
    assert audit.characters_out == sum(len(done.text) for done in every)
    assert audit.changed == sum(done.text != done.original for done in every)


def savable(text):
    "Arrow cannot hold half a surrogate pair."
    return re.sub("[\ud800-\udfff]", "", text)


@CLEANERS
@given(before=TEXTS, after=TEXTS)
@MANY
def test_a_span_covers_its_own_surface(cleaner, before, after):
    "A word that no step touches: it is there afterwards, exactly, or it is reported."
    word = "Qzwx"
    text = f"{before} {word} {after}"
    start = len(before) + 1
    done = cleaner.align(text)
    found, lost = move_spans(done, [(start, start + len(word), "PER")])
    assert len(found) + len(lost) == 1
    if found:
        first, last, kind = found[0]
        assert (done.text[first:last], kind) == (word, "PER")
    else:
        assert done.text.count(word) < text.count(word) and lost[0].step in dict(done.changes)


@CLEANERS
@given(text=TEXTS, data=st.data())
@MANY
def test_any_span_is_found_again_or_reported(cleaner, text, data):
    "What is left of a span's characters lies within the new span; nothing of it outside."
    first = data.draw(st.integers(0, len(text)))
    last = data.draw(st.integers(first, len(text)))
    done = cleaner.align(text)
    try:
        found, lost = move_spans(done, [(first, last, "X")])
    except DataError:
        return # nothing that can be seen in it
    surface = text[first:last].strip()
    assert len(found) + len(lost) == 1
    places = range(first + len(text[first:last]) - len(text[first:last].lstrip()), last)
    places = places[:len(surface)]
    for old, new in survivors(done):
        if found:
            assert (old in places) <= (found[0][0] <= new < found[0][1])
    assert not found or any(map(_visible, done.text[found[0][0]:found[0][1]]))
    assert not lost or lost[0].surface == surface


def survivors(done):
    "Pairs (place in the original, place in the clean text) of characters that no edit touched."
    pairs = {i: i for i in range(len(done.original))}
    for _, edits in done.changes:
        touched = {i for a, b, _ in edits for i in range(a, b)}
        shift = [(b, len(new) - (b - a)) for a, b, new in edits]
        pairs = {old: new + sum(by for end, by in shift if end <= new)
                 for old, new in pairs.items() if new not in touched}
    return pairs.items()


@given(text=TEXTS, form=st.sampled_from(["NFC", "NFKC"]))
@MANY
def test_normalising_in_pieces_is_normalising_all(text, form):
    done = apply_edits(text, find_step(f"unicode:{form}")(text))
    assert done == unicodedata.normalize(form, text)


@given(text=TEXTS)
@MANY
def test_joiners_inside_emoji_stay(text):
    def emoji(text):
        return [m[0] for m in re.finditer(_EMOJI, text)]

    done = apply_edits(text, find_step("invisible")(text))
    assert all(e in done for e in emoji(text))


@given(texts=st.lists(TEXTS, min_size=1, max_size=5))
@settings(max_examples=100, deadline=None)
def test_boilerplate_leaves_something_of_every_text(texts):
    for text in texts:
        left = Cleaner((), FOUND).clean(text)
        assert any(map(_visible, left)) == any(map(_visible, text))


N = 300_000
HOSTILE = [
    "<", "<!--", "<b ", "<b", "</", "<!", "<script>", "<style>x", "<a x='", '<a "', "<b/",
    "&", "&amp;", "&amp", "&#", "\\", "\\n", "a:\\", "\u0301", "\u0301\u0323", "a\u0301",
    "\u200b", "\u200d", "\N{MAN}\u200d", "\ufe0f", " ", "\n ", "\r", "www.", "http:/" "/.",
    "www.a..", "Ã", "Ã©", "é", "â€", "\x80", "€", "漢", "乾", "Ａ", "，", "ｶﾞ", ".", "。",
    "。”", "原标题：", "查看更多", "查看更多 ", "本文不代表本站观点。", "a", "1\ufe0f",
    "\U0001f1e8", "\U000e0041", "\x00",
]


ORDINARY = ("The fox — quick and brown — jumps over “the lazy dog”. 他说：今天天气很好，去公园吧。"
            " <b>So</b> they say &amp; write on www.example.org!\n")


def cleaning_seconds(text):
    cleaner = Cleaner(boilerplate=FOUND)
    cleaner.clean("é漢")  # tables are made
    start = time.process_time()
    assert cleaner.align(text).settled
    return time.process_time() - start


@lru_cache
def ordinary_seconds(attempt):
    return cleaning_seconds((ORDINARY*N)[:N])


@pytest.mark.parametrize("unit", HOSTILE, ids=ascii)
@pytest.mark.parametrize("last", ["", "x"], ids=["plain", "x"])
def test_300_kilobytes_of_anything_are_as_soon_clean_as_what_people_write(unit, last):
    text, ratios = (unit*N)[:N] + last, []
    while min(ratios, default=5) >= 5 and len(ratios) < 3:  # others may disturb a measurement
        ratios.append(cleaning_seconds(text) / ordinary_seconds(len(ratios)))
    assert min(ratios) < 5, ratios  # what is not linear takes hours


# ---- what broke

def test_an_address_of_mail_is_no_tag():
    assert Cleaner().clean("Ann <ann@example.com> <3 a<b") == "Ann <ann@example.com> <3 a<b"


def test_a_script_that_nobody_closes_takes_no_text_along():
    assert Cleaner().clean("I like <script> tags & more") == "I like tags & more"


def test_a_family_stays_a_family():
    family = "\N{MAN}\u200d\N{WOMAN}\u200d\N{GIRL}"
    assert Cleaner().clean(f"{family}\u200d!") == f"{family}!"


def test_a_name_in_an_address_is_lost_and_said():
    done = ALL.align("see http://example.com/ann now")
    found, lost = move_spans(done, [(23, 26, "PER"), (27, 30, "X")])
    assert found == [(10, 13, "X")] and (lost[0].surface, lost[0].step) == ("ann", "urls")


def test_boilerplate_is_learnt_from_texts_not_from_copies():
    text = "Today there was one story that we all read. It had two sentences of some words."
    assert learn_boilerplate([text]*30).lines() == []


def test_a_row_without_text_is_an_error():
    with pytest.raises(DataError, match="row 1"):
        clean_rows(Cleaner(), Dataset.from_dict({"text": ["a", None]}))


def test_rows_keep_their_columns_and_their_order():
    rows = Dataset.from_dict({"text": ["a  b"], "label": [1]})
    done, _ = clean_rows(Cleaner(), rows)
    assert done.features == rows.features and done[0] == {"text": "a b", "label": 1}


def test_training_and_serving_clean_alike(tmp_path):
    cleaner = Cleaner(["html", "emoji:drop", "space"], FOUND)
    save_cleaner(cleaner, tmp_path/"cleaner.json")
    served = load_cleaner(tmp_path/"cleaner.json")
    text = "原标题：Good \N{THUMBS UP SIGN}<br>  day. Read it."
    assert served == cleaner and served.clean(text) == cleaner.clean(text) == "Good\nday."


@pytest.mark.parametrize("change", [
    {"steps": "html"}, {"steps": ["shout"]}, {"steps": ["unicode:NFX"]}, {"boilerplate": []},
    {"boilerplate": {"prefixes": ["a"]}}, {"boilerplate": {"prefixes": {"": 1}}}, {"made_with": 1}])
def test_a_damaged_file_is_no_cleaner(tmp_path, change):
    path = tmp_path/"cleaner.json"
    save_cleaner(Cleaner(boilerplate=FOUND), path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ConfigError):
        load_cleaner(path)
