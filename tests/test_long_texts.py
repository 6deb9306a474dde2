"Texts longer than the model, pages of untrusted text, and files that come back as they went out."
import json
from html.parser import HTMLParser

import pytest
import torch
from datasets import Dataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sftbook.core import ConfigError, DataError
from sftbook.spans import tag_spans, word_spans
from sftbook.tagged import load_tagged
from sftbook.tasks.long_texts import (
    Entity, TaggedText, highlight, tag_texts, tag_tokens, window_cuts, word_windows, write_tagged)
from sftbook.tasks.protocol import FineTuned, predict
from sftbook.tasks.span_tagging import SpanTagging
from sftbook.tasks.structured_tagging import ConstrainedTagging, CRFTagging
from sftbook.tasks.token_classification import TokenClassification

LABELS = ["O", "B-PER", "I-PER", "B-ORG", "I-ORG"]
KINDS = {"softmax": (TokenClassification, {}), "rules": (ConstrainedTagging, {}),
         "crf": (CRFTagging, {}), "spans": (SpanTagging, {"longest": 3})}
FORMS = {"conll": "a.conll", "spans": "b.jsonl", "doccano": "c.jsonl", "label-studio": "d.json"}


# --- windows


@given(st.lists(st.integers(0, 5), min_size=1, max_size=60), st.integers(1, 12), st.data())
@settings(deadline=None)
def test_windows_cover_a_text_and_each_one_brings_something_new(pieces, room, data):
    windows = word_windows(pieces, room, data.draw(st.integers(0, room - 1)))
    assert windows[0][0] == 0 and windows[-1][1] == len(pieces)
    for (a, b), (c, d) in zip(windows, windows[1:]):
        assert a < c <= b < d
    for a, b in windows:
        assert sum(pieces[a:b]) <= room or b - a == 1


@given(st.integers(1, 60), st.integers(1, 12), st.data())
@settings(deadline=None)
def test_a_word_is_answered_where_it_stands_furthest_from_an_edge(words, room, data):
    windows = word_windows([1] * words, room, data.draw(st.integers(0, room - 1)))
    cuts = window_cuts(windows)

    def edge(word, window):
        a, b = window
        if not a <= word < b:
            return -1
        return min(word - a if a else words, b - 1 - word if b < words else words)

    assert cuts == sorted(cuts)
    for word in range(words):
        owner = next(w for w, low, high in zip(windows, cuts, cuts[1:]) if low <= word < high)
        assert edge(word, owner) == max(edge(word, window) for window in windows)


# --- answers


@pytest.fixture(scope="module")
def runs(tiny_checkpoint):
    "Taggers of random weights: what they say is noise, and has to be the same noise."
    found = {}
    for name, (kind, own) in KINDS.items():
        torch.manual_seed(1)
        task = kind(LABELS, checkpoint=str(tiny_checkpoint), max_length=12, **own)
        model = task.init_model()
        for weights in model.parameters():
            torch.nn.init.normal_(weights, std=0.3)
        found[name] = FineTuned(task, model.eval(), None)
    return found


WORDS = "the a striker goal match keeper coach bank market oil rose fell cup ! ?".split()


@pytest.mark.parametrize("name", KINDS)
@given(words=st.lists(st.sampled_from(WORDS), min_size=1, max_size=10))
@settings(max_examples=15, deadline=None)
def test_a_text_that_fits_is_answered_as_usual(name, runs, words):
    run = runs[name]
    usual = predict(run.task, run.model, Dataset.from_dict({"tokens": [words]}))
    assert [tags for tags, _ in tag_tokens(run, [words])] == usual


@pytest.mark.parametrize("name", KINDS)
def test_long_and_short_texts_together_are_answered_as_alone(name, runs):
    texts = [WORDS * 5, WORDS[:3], WORDS * 2, ["cup"]]
    together = tag_tokens(runs[name], texts)
    for text, (tags, entities) in zip(texts, together):
        [(alone, found)] = tag_tokens(runs[name], [text])
        assert alone == tags and len(tags) == len(text)
        assert [span[:3] for span in found] == [span[:3] for span in entities]


def test_a_name_across_every_border_is_found_whole(runs):
    "The scores are given: a word says what it is, wherever it stands."
    run = runs["rules"]

    def told(model, batch):
        own = {i: tag for tag, word in ((1, "striker"), (2, "goal"), (3, "bank"), (4, "oil"))
               for i in run.task.tokenizer(word, add_special_tokens=False)["input_ids"]}
        starts = batch["word_starts"]
        ids = batch["input_ids"].gather(1, starts.clamp(min=0)).tolist()
        tags = torch.tensor([[own.get(i, 0) for i in row] for row in ids])
        return 9.0 * torch.nn.functional.one_hot(tags, 5).float(), starts

    task = ConstrainedTagging(LABELS, checkpoint=run.task.checkpoint, max_length=12)
    task.infer = told
    for shift in range(12):
        words = ["the"] * shift + ["striker", "goal", "goal", "the", "bank", "oil"] * 6
        [(tags, entities)] = tag_tokens(FineTuned(task, run.model, None), [words], overlap=4)
        assert [span[2] for span in entities] == ["PER", "ORG"] * 6
        assert all(b - a == {"PER": 3, "ORG": 2}[kind] for a, b, kind, _ in entities)


def test_an_overlap_that_leaves_no_room_is_refused(runs):
    for overlap in (-1, 10):
        with pytest.raises(ConfigError, match="give 0 to 9"):
            tag_tokens(runs["crf"], [["cup"]], overlap=overlap)


def test_texts_that_cannot_be_read_are_named_all_together(runs):
    with pytest.raises(DataError) as e:
        tag_texts(runs["crf"], ["a cup", "", None, 7, "half \ud83d"])
    assert all(f"text {i}" in str(e.value) for i in (1, 2, 3, 4))


@pytest.mark.parametrize("name", KINDS)
def test_places_are_those_of_the_text_as_it_was_given(name, runs):
    text = "  The bank\n\trose!  a " + "keeper fell ? " * 8 + "\u3000 cup"
    [answer] = tag_texts(runs[name], [text])
    assert answer.text == text and len(answer.words) == len(answer.tags)
    for e in answer.entities:
        assert text[e.start:e.end] == e.text and e.text == e.text.strip() and 0 <= e.score <= 1


# --- the page


class Page(HTMLParser):
    "Elements with their attributes, and the text outside of labels."

    def __init__(self, page):
        super().__init__()
        self.elements, self.text, self.inside = set(), "", []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.elements.add((tag, *sorted(name for name, _ in attributes)))
        self.inside.append(tag)

    def handle_endtag(self, tag):
        assert self.inside.pop() == tag

    def handle_data(self, data):
        if self.inside[-1] == "bdi" and "small" not in self.inside:
            self.text += data


ALLOWED = {("div", "style"), ("mark", "style", "title"), ("bdi",), ("small",), ("b",)}
NASTY = st.text(st.sampled_from("ab<>&\"'/= \n\u202e\u2066\x00é中"), min_size=1, max_size=40)
TRICKS = st.sampled_from(["<script>", "</bdi></mark></div>", "&lt;", "<!--", "]]>", "<img src=x>",
                          "javascript:", "\" onmouseover=\"x", "<style>*{}", "&#60;script&#62;"])


@given(st.lists(NASTY | TRICKS, min_size=1, max_size=6), st.data())
@settings(deadline=None)
def test_no_text_and_no_type_becomes_markup(parts, data):
    text, entities, done = "".join(parts), [], 0
    while done < len(text) and data.draw(st.booleans()):
        start = data.draw(st.integers(done, len(text) - 1))
        end = data.draw(st.integers(start + 1, len(text)))
        label = data.draw(NASTY | TRICKS)
        entities.append(Entity(start, end, label, text[start:end], data.draw(st.floats(0, 1))))
        done = end
    page = Page(highlight(text, entities[::-1]))
    assert page.elements <= ALLOWED and not page.inside
    assert page.text.replace("\ufffd", "\x00") == text


def test_types_differ_without_colour_and_nothing_hides_in_the_dark():
    page = highlight("ab", [Entity(0, 1, "A", "a", 1.0), Entity(1, 2, "B", "b", 0.5)])
    assert "2px solid" in page and "2px dashed" in page and page.count("color:inherit") == 2
    assert "<b><bdi>A</bdi></b>" in page and 'title="50 %"' in page


# --- files

CHARACTERS = st.characters(codec="utf-8") | st.sampled_from(
    "ab \n\t中北京é👍\u200b\u3000\x1c\x85\u2028#-")
KIND = st.sampled_from(["PER", "LOC", "some type", "機關"])


@st.composite
def answers(draw):
    "A text with entities at the borders of its words, as a tagger gives them."
    text = draw(st.text(CHARACTERS, min_size=1, max_size=30)) + " Oslo"
    words, entities, at = word_spans(text), [], 0
    while at < len(words):
        if draw(st.booleans()):
            last = draw(st.integers(at, min(len(words), at + 3) - 1))
            start, end = words[at][0], words[last][1]
            if any(c.isprintable() and not c.isspace() for c in text[start:end]):
                entities.append(Entity(start, end, draw(KIND), text[start:end], 0.5))
            at = last
        at += 1
    if not entities:
        start, end = words[-1]
        entities.append(Entity(start, end, "LOC", text[start:end], 0.5))
    return TaggedText(text, words, [], entities)


def read_back(path):
    rows = load_tagged(path)
    names = rows.features["ner_tags"].feature.names
    return [(row["tokens"], [names[tag] for tag in row["ner_tags"]]) for row in rows]


@pytest.mark.parametrize("form", FORMS)
@given(st.lists(answers(), min_size=1, max_size=3))
@settings(max_examples=60, deadline=None,
          suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_what_is_written_is_read_back(form, tmp_path, found):
    if form == "conll" and any("\0" in answer.text for answer in found):
        with pytest.raises(DataError, match="NUL"):
            write_tagged(tmp_path / FORMS[form], found, form, overwrite=True)
        return
    path = write_tagged(tmp_path / FORMS[form], found, form, overwrite=True)
    expected = [tag_spans(answer.text, answer.spans()) for answer in found]
    if form == "conll":  # control characters at the ends of tokens are white space to a reader
        expected = [([token.strip() for token in tokens], tags) for tokens, tags in expected]
    assert read_back(path) == expected


def test_predictions_are_no_annotations_until_somebody_has_looked(tmp_path):
    one = TaggedText("to Oslo", [], [], [Entity(3, 7, "LOC", "Oslo", 0.9)])
    path = write_tagged(tmp_path / "a.json", [one], "label-studio-predictions")
    [task] = json.loads(path.read_text())
    assert task["annotations"] == [] and task["predictions"][0]["result"][0]["score"] == 0.9
    with pytest.raises(DataError, match="no sentences"):
        load_tagged(path)


def test_what_could_not_be_read_back_is_not_written(tmp_path):
    for entity in (Entity(0, 99, "LOC", "", 1.0), Entity(0, 2, "a\tb", "to", 1.0),
                   Entity(0, 2, "", "to", 1.0), Entity(2, 3, "LOC", " ", 1.0)):
        with pytest.raises(DataError, match="text 0"):
            write_tagged(tmp_path / "a.conll", [TaggedText("to Oslo", [], [], [entity])], "conll")
    assert not list(tmp_path.iterdir())
    with pytest.raises(ConfigError, match="end the name in .jsonl"):
        write_tagged(tmp_path / "a.txt", [])
    (tmp_path / "a.jsonl").write_text("mine")
    with pytest.raises(ConfigError, match="already exists"):
        write_tagged(tmp_path / "a.jsonl", [])
    assert (tmp_path / "a.jsonl").read_text() == "mine"
