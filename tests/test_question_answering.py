"Marked answers: whatever the text, the windows and the scores, a mark is where it is said to be."
import json

import pytest
import torch
from datasets import Dataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from sftbook.core import ConfigError, DataError
from sftbook.evaluation.generation import token_f1
from sftbook.evaluation.reports import Report
from sftbook.preprocessing.answer_spans import answer_rows
from sftbook.preprocessing.squad_files import answer_problem, load_squad
from sftbook.tasks.protocol import FineTuned
from sftbook.tasks.question_answering import (
    Found, QuestionAnswering, answer_questions, best_spans, choose_null_threshold, found_texts,
    sentence_by_overlap)
from sftbook.tasks.saved_runs import load_run, save_run

WORDS = "the a striker goal match keeper coach bank market oil rose fell cup ! ? unknown 猫 😀"
WORDS = WORDS.split()
SLOW = dict(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
NONE = dict(text=[], answer_start=[])


@pytest.fixture(scope="module")
def run(tiny_checkpoint):
    "A reader of random weights: what it marks is noise, and has to be the same noise."
    torch.manual_seed(1)
    task = QuestionAnswering(str(tiny_checkpoint), max_length=24, stride=5, longest=6)
    model = task.init_model()
    for weights in model.parameters():
        torch.nn.init.normal_(weights, std=0.3)
    return FineTuned(task, model.eval(), None)


# --- the decoder


def by_trying(starts, ends, readable, longest):
    found = [(starts[i] + ends[j], -i, -j) for i in range(len(starts)) if readable[i]
             for j in range(i, min(len(ends), i + longest)) if readable[j]]
    return max(found, default=None)


@given(st.integers(1, 14), st.integers(1, 20), st.data())
@settings(deadline=None)
def test_the_decoder_finds_what_trying_all_pairs_finds(n, longest, data):
    numbers = arrays.arrays("float32", n, elements=st.integers(-5, 5))
    starts, ends = data.draw(numbers), data.draw(numbers)
    readable = data.draw(st.lists(st.booleans(), min_size=n, max_size=n))
    wanted = by_trying(starts.tolist(), ends.tolist(), readable, longest)
    batch = (torch.tensor(one)[None] for one in (starts, ends, readable))
    first, last, score = (one[0].item() for one in best_spans(*batch, longest))
    if wanted is None:
        assert score == float("-inf")
    else:
        assert score == wanted[0] and starts[first] + ends[last] == score
        assert readable[first] and readable[last] and first <= last < first + longest


# --- from characters to tokens and back


@given(st.lists(st.sampled_from(WORDS), min_size=1, max_size=60), st.data())
@settings(max_examples=60, **SLOW)
def test_the_tokens_that_are_trained_on_are_the_answer(run, words, data):
    gaps = data.draw(st.lists(st.sampled_from([" ", "\n", "   "]), min_size=len(words),
                              max_size=len(words)))
    context = "".join(map("".join, zip(words, gaps)))
    a = data.draw(st.integers(0, len(words) - 1))
    b = min(len(words), a + data.draw(st.integers(1, 3)))
    start = sum(len(w) + len(g) for w, g in zip(words[:a], gaps))
    text = "".join(map("".join, zip(words[a:b], gaps[a:b]))).rstrip()
    row = dict(question="the goal", context=context,
               answers=dict(text=[text], answer_start=[start]))
    features = run.task.encode(Dataset.from_list([row]))
    held = [f for f in features if f["labels"] != [0, 0]]
    assert held and run.task.truncated == 0
    for f in held:
        i, j = f["labels"]
        assert context[f["first"][i]:f["last"][j]] == text


@given(st.lists(st.sampled_from(WORDS), min_size=1, max_size=80))
@settings(max_examples=40, **SLOW)
def test_an_answer_is_cut_out_of_its_context(run, words):
    context = " ".join(words)
    (answer,) = answer_questions(run, [("the goal", context)])
    assert 0 <= answer.start < answer.end <= len(context)
    assert answer.text == (context[answer.start:answer.end] if answer.score > 0 else "")


def test_several_rows_and_one_row_are_answered_alike(run):
    pairs = [("the goal", " ".join(WORDS * n)) for n in (1, 4, 2)]
    together = answer_questions(run, pairs)
    for pair, answer in zip(pairs, together):
        (alone,) = answer_questions(run, [pair])
        assert (alone.start, alone.end) == (answer.start, answer.end)
        assert alone.score == pytest.approx(answer.score, abs=1e-4)


def test_an_answer_longer_than_the_overlap_is_counted(run):
    context = " ".join(["oil"] * 60)
    row = dict(question="the goal", context=context,
               answers=dict(text=[context], answer_start=[0]))
    assert all(f["labels"] == [0, 0] for f in run.task.encode(Dataset.from_list([row])))
    assert run.task.truncated == 1


# --- the threshold


@given(st.lists(st.tuples(st.integers(-4, 4), st.sampled_from(["", "oil rose", "cup"])), min_size=1,
                max_size=12))
@settings(deadline=None)
def test_no_threshold_is_better_than_the_chosen_one(rows):
    contexts = ["the oil rose"] * len(rows)
    answers = [dict(text=[a], answer_start=[0]) if a else NONE for _, a in rows]
    table = Dataset.from_dict(dict(context=contexts, answers=answers),
                              Dataset.from_list([dict(context="", answers=dict(
                                  text=["a"], answer_start=[0]))]).features)
    found = [Found(4, 12, float(score)) for score, _ in rows]
    there = [a["text"] or [""] for a in answers]

    def judged(threshold):
        return token_f1(there, found_texts(found, contexts, threshold)).value
    best = max(judged(t) for t in [-9, *(score + 0.5 for score, _ in rows)])
    assert judged(choose_null_threshold(found, table)) == pytest.approx(best)


# --- what is saved


def test_a_saved_run_opens_in_plain_transformers(run, tmp_path):
    from transformers import AutoModelForQuestionAnswering, AutoTokenizer
    report = Report("question-answering", 1, {})
    folder = save_run(tmp_path / "run", run.task, run.model, report)
    again = load_run(folder)
    pairs = [("the goal", " ".join(WORDS))]
    assert answer_questions(again, pairs) == answer_questions(run, pairs)
    plain = AutoModelForQuestionAnswering.from_pretrained(folder)
    inputs = AutoTokenizer.from_pretrained(folder)("the goal", "oil rose", return_tensors="pt")
    with torch.no_grad():
        out = plain(**inputs)
    rows = Dataset.from_list([dict(question="the goal", context="oil rose")])
    batch = run.task.collate(run.task.encode(rows))
    with torch.no_grad():
        starts, ends, _ = run.task.infer(run.model, batch)
    assert torch.equal(batch["input_ids"], inputs["input_ids"])
    assert torch.allclose(out.start_logits, starts, atol=1e-5)
    assert torch.allclose(out.end_logits, ends, atol=1e-5)


# --- bad input


def test_a_question_of_ten_thousand_words_is_refused_by_its_row(run):
    with pytest.raises(DataError, match="row 1: the question has 10,000 tokens"):
        answer_questions(run, [("goal", "oil rose"), ("oil " * 10_000, "oil rose")])


def test_empty_questions_and_texts_are_told_together(run):
    with pytest.raises(DataError, match="2 problems") as e:
        answer_questions(run, [(" ", "oil"), ("oil", "oil"), ("oil", "")])
    assert "pair 0, question" in str(e.value) and "pair 2, context" in str(e.value)
    assert answer_questions(run, []) == []


def test_a_place_beside_the_answer_is_refused_before_training(run):
    answers = dict(text=["rose"], answer_start=[3])
    row = dict(question="the goal", context="oil rose", answers=answers)
    with pytest.raises(DataError, match="row 0: the context has ' ros' at 3"):
        run.task.encode(Dataset.from_list([row]))


def test_windows_that_bring_nothing_new_are_refused():
    with pytest.raises(ConfigError, match="stride 60"):
        QuestionAnswering(max_length=128, stride=60)


@pytest.mark.parametrize("value", ['[1, 2]', '{"data": [{"paragraphs": 7}]}', '{"data": []}', "[]",
                                   '{"data": [{"paragraphs": [{"qas": [{"id": 1}]}]}]}'])
def test_files_that_are_none_of_squads_are_refused(value, tmp_path):
    path = tmp_path / "bad.json"
    path.write_text(value)
    with pytest.raises(DataError):
        load_squad(path)


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=5),
                    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
                        st.sampled_from(["data", "paragraphs", "qas", "context", "question", "id",
                                         "answers", "text", "answer_start"]), inner, max_size=4)))
@settings(max_examples=150, **SLOW)
def test_any_json_is_rows_or_a_clear_error(tmp_path, value):
    path = tmp_path / "any.json"
    path.write_text(json.dumps(value))
    try:
        rows = load_squad(path)
    except DataError:
        return
    for row in rows:
        for pair in zip(row["answers"]["text"], row["answers"]["answer_start"]):
            assert answer_problem(row["context"], *pair) is None


# --- rows by rules, and the baseline


@pytest.mark.parametrize("language", ["en", "zh"])
def test_rows_of_the_rules_have_their_answers_and_no_twin_answers(language):
    rows, _ = answer_rows(language, pages=40)
    assert rows and len({row["id"] for row in rows}) == len(rows)
    for row in rows:
        for pair in zip(row["answers"]["text"], row["answers"]["answer_start"]):
            assert answer_problem(row["context"], *pair) is None
    answered = {row["id"]: row for row in rows if row["answers"]["text"]}
    for row in rows:
        if row["id"].endswith("-none"):
            there = answered.get(row["id"].removesuffix("-none"))
            assert there is None or not any(t in row["context"] for t in there["answers"]["text"])


@given(st.text(max_size=60), st.text(max_size=200))
@settings(deadline=None)
def test_the_baseline_marks_a_sentence_of_the_text(question, context):
    found = sentence_by_overlap(question, context)
    text = context[found.start:found.end]
    assert text == text.strip() and 0 <= found.start <= found.end <= len(context)
    assert found.score < 0 or 0 <= found.score <= 1
