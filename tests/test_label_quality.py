"Wrong labels and the decisions about them: each test is named after what must not happen."
import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Value
from sklearn.linear_model import LogisticRegression

from sftbook.core import ConfigError, DataError
from sftbook.preprocessing import label_review
from sftbook.preprocessing.copies import text_key
from sftbook.preprocessing.label_review import (Decision, LabelReview, add_decision,
                                                apply_decisions, read_decisions)
from sftbook.preprocessing.labels import (Suspects, cleanlab_suspects, cluster_folds,
                                          confident_joint, estimate_noise, flip_labels, joined,
                                          label_suspects, out_of_fold)

NAMES = ["negative", "positive"]
TEXTS = ["Very good!", "very  GOOD", "So so", "so so", "“第一页”", "A mess\nwith two lines"]


def make_rows(texts=TEXTS, labels=(0, 0, 0, 1, 1, 0), names=NAMES):
    features = Features(text=Value("string"), label=ClassLabel(names=list(names)))
    return Dataset.from_dict({"text": list(texts), "label": list(labels)}, features=features)


def suspects_of(rows, *which):
    given = np.array(rows["label"][:])[list(which)]
    sure = np.full(len(which), 0.9)
    return Suspects(np.array(which), given, 1 - given, 1 - sure, sure)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "decisions.jsonl"


# ---- suspects

def separable(rows=400, classes=3, seed=0):
    "Vectors in clear groups, their labels, and clusters of two rows each."
    rng = np.random.default_rng(seed)
    labels = np.repeat(rng.integers(classes, size=rows // 2), 2)
    vectors = 6*np.eye(classes)[labels] + rng.normal(size=(rows, classes))
    return vectors, labels, np.arange(rows) // 2


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_planted_mistakes_of_clear_groups_are_not_missed(classes):
    vectors, labels, clusters = separable(classes=classes)
    noisy, flipped = flip_labels(labels, 0.1, classes=classes)
    p = out_of_fold(LogisticRegression(), vectors, noisy, clusters)
    found = label_suspects(noisy, p)
    ranked = label_suspects(noisy, p, most=int(flipped.sum())).rows
    assert flipped[ranked].mean() > 0.95 and flipped[found.rows].mean() > 0.95
    assert len(found) > 0.8*flipped.sum()  # not all reach the mean confidence of a class
    assert (found.suggested == labels[found.rows]).mean() > 0.9
    assert abs(estimate_noise(noisy, p).rate - 0.1) < 0.02
    assert set(cleanlab_suspects(noisy, p)) == set(found.rows)


def test_noise_of_one_class_is_seen_in_its_column():
    vectors, labels, clusters = separable(2000, classes=2)
    noisy, positives = labels.copy(), np.flatnonzero(labels == 1)
    noisy[positives[: len(positives) // 4]] = 0  # a quarter of the positive ones
    p = out_of_fold(LogisticRegression(), vectors, noisy, clusters)
    matrix = estimate_noise(noisy, p).matrix
    assert 0.12 < matrix[0, 1] < 0.3  # too little: half of them do not reach the mean confidence
    assert matrix[1, 0] < 0.02
    assert matrix.sum(0) == pytest.approx([1, 1])


class Spy(LogisticRegression):
    "Keeps what it was trained on and asked about; the first column is the cluster."
    seen = []

    def fit(self, x, y):
        Spy.trained = set(x[:, 0])
        return super().fit(x, y)

    def predict_proba(self, x):
        Spy.seen.append((Spy.trained, set(x[:, 0])))
        return super().predict_proba(x)


def test_near_copies_are_never_on_both_sides():
    rng = np.random.default_rng(0)
    clusters = rng.integers(60, size=300)
    x = np.stack([clusters, rng.normal(size=300)], 1)
    Spy.seen = []
    out_of_fold(Spy(), x, rng.integers(2, size=300), clusters, repeats=2)
    assert len(Spy.seen) == 10
    for trained, asked in Spy.seen:
        assert asked and not trained & asked


def test_rows_that_are_not_trusted_are_answered_and_not_learnt_from():
    rng = np.random.default_rng(0)
    x, y = np.stack([np.arange(100), rng.normal(size=100)], 1), np.arange(100) % 2
    trusted = np.arange(100) >= 30
    Spy.seen = []
    p = out_of_fold(Spy(), x, y, np.arange(100), trusted=trusted)
    assert all(min(trained) >= 30 for trained, _ in Spy.seen)
    assert set().union(*(asked for _, asked in Spy.seen)) == set(range(100))
    assert p.sum(1) == pytest.approx(1)


def test_a_sparse_matrix_is_taken_as_rows():
    from scipy.sparse import csr_matrix
    vectors, labels, clusters = separable()
    dense = out_of_fold(LogisticRegression(), vectors, labels, clusters)
    sparse = out_of_fold(LogisticRegression(), csr_matrix(vectors), labels, clusters)
    assert sparse == pytest.approx(dense, abs=1e-3)


def test_answers_are_the_same_twice_and_in_the_order_of_the_rows():
    vectors, labels, clusters = separable()
    first = out_of_fold(LogisticRegression(), vectors, labels, clusters)
    assert (first == out_of_fold(LogisticRegression(), vectors, labels, clusters)).all()
    assert (first.argmax(1) == labels).mean() > 0.95


def test_a_class_that_is_a_single_cluster_is_refused_before_anything_is_trained():
    with pytest.raises(DataError, match="class 1 are in one fold"):
        out_of_fold(None, np.zeros((8, 2)), [0]*6 + [1, 1], [0, 1, 2, 3, 4, 5, 6, 6])
    with pytest.raises(DataError, match="one label"):
        out_of_fold(None, np.zeros((8, 2)), [0]*8, range(8))


def test_one_huge_cluster_leaves_other_folds_nonempty():
    folds = cluster_folds([0]*90 + list(range(1, 11)), folds=3)
    assert sorted(np.bincount(folds)) == [5, 5, 90]


def test_certainties_of_zero_and_one_can_be_joined():
    assert joined(np.array([[1., 0.]]), np.array([[0., 1.]]))[0] == pytest.approx([0.5, 0.5])
    assert np.isfinite(joined(np.array([[0., 1.]]*3))).all()


@pytest.mark.parametrize("labels, probabilities, said", [
    ([0, 1], [[0.5, 0.5]], "for each row"), ([0, 2], [[0.5, 0.5]]*2, "2 classes"),
    ([0, -1], [[0.5, 0.5]]*2, "number the classes"), ([0], [[0.9, 0.9]], "no distribution"),
    ([0], [[3., -2.]], "no distribution"), (["a"], [[0.5, 0.5]], "no class ids")])
def test_what_is_no_probability_is_refused(labels, probabilities, said):
    for judge in (label_suspects, confident_joint, estimate_noise):
        with pytest.raises(DataError, match=said):
            judge(labels, probabilities)


def test_a_class_without_rows_is_suggested_to_nobody():
    p = np.array([[0.5, 0.1, 0.4], [0.2, 0.3, 0.5], [0.1, 0.8, 0.1]])
    assert 2 not in label_suspects([0, 0, 1], p).suggested
    assert np.isfinite(estimate_noise([0, 0, 1], p).matrix).all()


def test_without_cleanlab_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "cleanlab", None)
    monkeypatch.setitem(sys.modules, "cleanlab.filter", None)
    with pytest.raises(ConfigError, match=r'pip install "sftbook\[labels\]"'):
        cleanlab_suspects([0, 1], [[0.5, 0.5]]*2)


def test_the_modules_import_neither_cleanlab_nor_scikit_learn():
    code = ("import sys, sftbook.preprocessing.label_review\n"
            "print(sorted({'cleanlab', 'sklearn', 'torch'} & set(sys.modules)))")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# ---- the file of decisions

def test_a_decision_comes_back_as_it_was(path):
    made = [Decision(text_key(text), "negative", "fix", "positive") for text in
            ("服务很好！", 'say "no"', "back\\slash", "a\u2028b", "👍 ok", "x" * 50_000)]
    for decision in made:
        add_decision(path, decision)
    assert list(read_decisions(path).values()) == made
    assert "服务很好" in path.read_text(encoding="utf-8")


def test_of_two_decisions_about_the_same_the_last_counts_and_both_stay(path):
    for decision in ("keep", "drop", "keep", "drop"):
        add_decision(path, Decision("so so", "positive", decision))
    assert [d.decision for d in read_decisions(path).values()] == ["drop"]
    assert path.read_text().count("\n") == 4


@pytest.mark.parametrize("error", [OSError("no space left"), KeyboardInterrupt()])
def test_an_interrupted_write_leaves_the_file_as_it_was(path, monkeypatch, error):
    add_decision(path, Decision("first", "negative", "keep"))
    before = path.read_bytes()

    def fails(*_):
        raise error
    monkeypatch.setattr(os, "replace", fails)
    with pytest.raises(type(error)):
        add_decision(path, Decision("second", "negative", "keep"))
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert {p.name for p in path.parent.iterdir()} <= {path.name, f".{path.name}.lock"}
    add_decision(path, Decision("second", "negative", "keep"))
    assert len(read_decisions(path)) == 2


def test_two_who_write_at_once_lose_nothing(path):
    def write(who):
        for i in range(15):
            add_decision(path, Decision(f"{who} {i}", "negative", "keep"))
    with ThreadPoolExecutor(4) as several:
        list(several.map(write, "abcd"))
    assert len(read_decisions(path)) == 60


def test_a_last_line_without_its_end_is_not_glued_to_the_next(path):
    path.write_text('{"key": "a", "given": "negative", "decision": "keep"}')
    add_decision(path, Decision("b", "negative", "keep"))
    assert [d.key for d in read_decisions(path).values()] == ["a", "b"]


BAD = {
    "cut in the middle": ('{"key": "a", "giv', "not readable as JSON"),
    "a list": ('["a", "b"]\n{"key": "a"}', "object"),
    "no decision": ('{"key": "a", "given": "negative"}', "keep, fix or drop"),
    "an unknown one": ('{"key": "a", "given": "negative", "decision": "delete"}', "'delete'"),
    "a fix without label": ('{"key": "a", "given": "negative", "decision": "fix"}', "right label"),
    "a keep with label": (
        '{"key": "a", "given": "b", "decision": "keep", "label": "c"}', "belongs"),
    "a fix to the same": ('{"key": "a", "given": "b", "decision": "fix", "label": "b"}', "a keep"),
    "no key": ('{"given": "negative", "decision": "keep"}', "'key' is no text"),
    "a strange field": ('{"key": "a", "given": "b", "decision": "keep", "who": "me"}', "'who'"),
    "a number as label": ('{"key": "a", "given": 1, "decision": "keep"}', "'given' is no text"),
}
GOOD = '{"key": "ok", "given": "negative", "decision": "keep"}\n'


@pytest.mark.parametrize("text, said", BAD.values(), ids=BAD.keys())
def test_a_bad_line_is_named_and_says_what_to_do(path, text, said):
    path.write_text(GOOD + text, encoding="utf-8")
    before = path.read_bytes()
    with pytest.raises(DataError) as e:
        read_decisions(path)
    assert said in str(e.value) and "line 2" in str(e.value)
    assert 'What to do: correct or delete the line; it reads {"key"' in str(e.value)
    with pytest.raises(DataError):
        add_decision(path, Decision("b", "negative", "keep"))
    assert path.read_bytes() == before, "a file that cannot be read must not be written to"


def test_all_bad_lines_stand_in_one_error(path):
    path.write_text("".join(GOOD.replace("keep", word) for word in ("keep", "del", "keep", "yes")))
    with pytest.raises(DataError) as e:
        read_decisions(path)
    assert "2 problems" in str(e.value) and "line 2" in str(e.value) and "line 4" in str(e.value)


def test_a_file_that_is_not_utf8_is_refused_with_its_line(path):
    path.write_bytes(GOOD.encode() + "é".encode("latin-1"))
    with pytest.raises(DataError, match="line 2.*not UTF-8"):
        read_decisions(path)


def test_a_missing_folder_and_another_ending_are_said(tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        add_decision(tmp_path / "no" / "d.jsonl", Decision("a", "negative", "keep"))
    with pytest.raises(DataError, match="ends in .jsonl"):
        add_decision(tmp_path / "d.csv", Decision("a", "negative", "keep"))


# ---- applied

def by_key(*decisions):
    return {(d.key, d.given): d for d in decisions}


def test_a_text_that_stands_twice_is_fixed_twice():
    decision = Decision("very good", "negative", "fix", "positive")
    fixed, done = apply_decisions(make_rows(), by_key(decision))
    assert fixed["label"][:] == [1, 1, 0, 1, 1, 0] and done.fixed == 2


def test_a_text_with_two_labels_is_dropped_only_with_the_one_that_was_judged():
    rest, done = apply_decisions(make_rows(), by_key(Decision("so so", "positive", "drop")))
    assert rest["text"][:] == [t for i, t in enumerate(TEXTS) if i != 3] and done.dropped == 1


def test_a_label_that_has_changed_since_is_not_touched_and_said():
    decision = Decision(text_key(TEXTS[4]), "negative", "drop")
    rest, done = apply_decisions(make_rows(), by_key(decision))
    assert len(rest) == 6 and done.changed == (decision,)
    assert "the label has changed since" in str(done)


def test_a_text_that_is_gone_is_counted():
    done = apply_decisions(make_rows(), by_key(Decision("never seen", "negative", "keep")))[1]
    assert [d.key for d in done.missing] == ["never seen"] and "not there" in str(done)


def test_decisions_can_be_applied_again_and_again():
    said = by_key(Decision("very good", "negative", "fix", "positive"),
                  Decision("so so", "negative", "keep"))
    once, first = apply_decisions(make_rows(), said)
    twice, second = apply_decisions(once, said)
    assert once["label"][:] == twice["label"][:]
    assert (first.fixed, second.fixed, second.already) == (2, 0, 1)


def test_an_unknown_label_is_refused_before_anything_is_changed(path):
    add_decision(path, Decision("very good", "negative", "fix", "neutral"))
    with pytest.raises(DataError, match="no class 'neutral'") as e:
        apply_decisions(make_rows(), path)
    assert path.name in str(e.value) and "negative, positive" in str(e.value)


def test_other_columns_and_the_names_of_classes_stay():
    rows = make_rows().add_column("source", list("abcdef"))
    fixed, _ = apply_decisions(rows, by_key(Decision("so so", "positive", "drop")))
    assert fixed["source"][:] == list("abcef") and fixed.features["label"].names == NAMES
    assert apply_decisions(rows, {})[0]["label"][:] == rows["label"][:]


def test_everything_can_be_dropped():
    rows = make_rows(["a", "b"], [0, 1])
    both = by_key(Decision("a", "negative", "drop"), Decision("b", "positive", "drop"))
    rest, done = apply_decisions(rows, both)
    assert (len(rest), done.dropped) == (0, 2)


# ---- the widget, without a page

def press(review, decision, label=None, place=None):
    "What the page sends when a button is pressed."
    number = review.request["number"] + 1
    place = review.place if place is None else place
    review.request = dict(number=number, place=place, decision=decision, label=label)
    assert review.answered == number


def test_buttons_write_the_file_that_is_applied(path):
    rows = make_rows()
    review = LabelReview(rows, suspects_of(rows, 4, 0, 1, 2), path)
    assert [item["text"] for item in review.items] == [TEXTS[4], TEXTS[0], TEXTS[2]]
    for decision, label in (("drop", None), ("fix", "positive"), ("keep", None)):
        press(review, decision, label)
    assert not review.message and None not in review.decided
    fixed, done = apply_decisions(rows, path)
    assert (done.kept, done.fixed, done.dropped) == (1, 2, 1)
    assert fixed["label"][:] == [1, 1, 0, 1, 0]


def test_a_review_goes_on_where_it_was(path):
    rows = make_rows()
    first = LabelReview(rows, suspects_of(rows, 0, 2, 4), path)
    press(first, "keep")
    second = LabelReview(rows, suspects_of(rows, 0, 2, 4), path)
    assert second.decided == [dict(decision="keep", label=None), None, None] and second.place == 1


def test_a_failed_write_is_said_and_shown_as_not_decided(path, monkeypatch):
    rows = make_rows()
    review = LabelReview(rows, suspects_of(rows, 0, 2), path)

    def fails(*_):
        raise OSError("no space left")
    monkeypatch.setattr(label_review, "write_text", fails)
    press(review, "keep")
    assert review.message == "Not written: no space left"
    assert review.decided == [None, None] and review.place == 0 and not path.exists()
    monkeypatch.undo()
    press(review, "keep")
    assert review.message == "" and len(read_decisions(path)) == 1


@pytest.mark.parametrize("decision, label, place, said", [
    ("fix", "neutral", 0, "no class 'neutral'"), ("fix", None, 0, "right label"),
    ("fix", "negative", 0, "this is a keep"), ("delete", None, 0, "keep, fix or drop"),
    ("keep", None, 7, "no item 7"), ("keep", None, -1, "no item -1")])
def test_a_request_that_makes_no_sense_writes_nothing(path, decision, label, place, said):
    rows = make_rows()
    review = LabelReview(rows, suspects_of(rows, 0, 2), path)
    press(review, decision, label, place)
    assert said in review.message and review.decided == [None, None] and not path.exists()


def test_two_reviews_of_one_file_do_not_lose_each_others_decisions(path):
    rows = make_rows()
    one, other = (LabelReview(rows, suspects_of(rows, 0, 2, 4), path) for _ in range(2))
    press(one, "keep", place=0)
    press(other, "drop", place=1)
    press(one, "drop", place=2)
    assert [d.decision for d in read_decisions(path).values()] == ["keep", "drop", "drop"]


def test_suspects_of_other_rows_are_refused(path):
    rows = make_rows()
    with pytest.raises(DataError, match="another label"):
        LabelReview(make_rows(labels=(1, 1, 1, 0, 0, 1)), suspects_of(rows, 0), path)


def test_a_file_of_other_classes_is_refused_before_the_review_begins(path):
    path.write_text(json.dumps(dict(key="a", given="sports", decision="keep")) + "\n")
    rows = make_rows()
    with pytest.raises(DataError, match="no class 'sports'"):
        LabelReview(rows, suspects_of(rows, 0), path)


def test_nothing_to_review_is_no_error(path):
    rows = make_rows()
    review = LabelReview(rows, suspects_of(rows), path)
    assert (review.items, review.decided, review.place) == ([], [], 0)


# ---- the page, in Node.js with as much of a browser as it asks for

BROWSER = """
const make_element = kind => ({
  kind, children: [], listeners: {}, attributes: {}, textContent: "",
  append(...inside) { this.children.push(...inside); },
  replaceChildren(...inside) { this.children = inside; },
  addEventListener(name, f) { this.listeners[name] = f; },
  setAttribute(name, value) { this.attributes[name] = value; } });
globalThis.document = { createElement: make_element };
const all = e => [e, ...(e.children ?? []).flatMap(all)];
const text = e => typeof e == "string" ? e : e.textContent + (e.children ?? []).map(text).join(" ");
const button_of = name => all(el).find(e => e.kind == "button" && e.textContent == name);
const press = name => { button_of(name).listeners.click(); return 0; };
const listeners = {}, el = make_element("div");
const model = {
  get: name => state[name], save_changes() {},
  on(name, f) { (listeners[name] ??= []).push(f); },
  set(name, value) {
    state[name] = value;
    (listeners["change:" + name] ?? []).forEach(f => f()); } };
"""


def on_page(review, steps):
    "What a list of JavaScript expressions gives after the widget was drawn from its saved state."
    if not shutil.which("node"):
        pytest.skip("Node.js is not installed")
    names = ("items", "names", "decided", "place", "request", "answered", "message")
    state = json.dumps({name: getattr(review, name) for name in names})
    code = review._esm.replace("export default { render };", "render({ model, el });")
    told = f"console.log(JSON.stringify([{', '.join(steps)}]))"
    done = subprocess.run(["node", "-e", f"const state = {state};{BROWSER}{code}{told}"],
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_page_shows_a_suspect_and_sends_what_is_pressed(path):
    rows = make_rows()
    review = LabelReview(rows, suspects_of(rows, 4, 0), path)
    shown, _, sent, waiting = on_page(review, [
        "text(el)", "press('fix:')", "model.get('request')", "text(el)"])
    for said in (TEXTS[4], "label: positive", "the model: negative, 90 %", "1 of 2, 0 decided"):
        assert said in shown
    assert sent == dict(number=1, place=0, decision="fix", label="negative")
    assert "waiting for Python" in waiting and "waiting" not in shown
    review.request = sent
    assert read_decisions(path)[text_key(TEXTS[4]), "positive"].label == "negative"


def test_the_page_goes_on_to_the_next_when_python_has_answered(path):
    rows = make_rows()
    review = LabelReview(rows, suspects_of(rows, 4, 0), path)
    answer = ("model.set('decided', [{decision: 'keep'}, null]), model.set('place', 1),"
              "model.set('message', ''), model.set('answered', 1), 0")
    _, _, after, _, back = on_page(review, [
        "press('keep')", f"({answer})", "text(el)", "press('back')", "text(el)"])
    assert TEXTS[0] in after and "2 of 2, 1 decided" in after and "waiting" not in after
    assert TEXTS[4] in back and "kept" in back


def test_a_review_that_is_a_script_is_shown_as_text(path):
    rows = make_rows(["<img src=x onerror=alert(1)>"], [0])
    shown, = on_page(LabelReview(rows, suspects_of(rows, 0), path), ["text(el)"])
    assert "<img src=x" in shown
    empty, = on_page(LabelReview(rows, suspects_of(rows), path), ["text(el)"])
    assert "There is nothing" in empty
