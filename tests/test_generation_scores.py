"Scores of generated text against the libraries, on random texts, and at the edges."
import math
import re
import string
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nltk.metrics.distance import edit_distance as nltk_distance
from rouge_score import tokenize as rouge_tokenize
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics import BLEU, CHRF

from sftbook.core import ConfigError, DataError
from sftbook.evaluation.generation import (
    answer_f1, bits_per_character, bleu, bleu_of_sums, character_error_rate, chrf, distinct,
    edit_distance, exact_match, normalize_answer, perplexity, ratio_of_sums, repetition, rouge,
    Score, score_interval, score_test, score_tokens, sentence_accuracy, token_f1, word_accuracy)
from sftbook.evaluation.metrics import load_metric, metric_directions
from sftbook.foundations.ngram import bits_per_character as bits_of_the_foundations

WORDS = ["the", "a", "cat", "sat", "on", "mat", "Cat,", "1.5%", "(no)", "-", ".", "在", "三楼",
         "今天的", "会议。", "，", "Writer"]
texts = st.lists(st.sampled_from(WORDS), max_size=9).map(" ".join)
anything = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=20)
ascii_text = st.text(string.printable, max_size=40)
pairs = st.lists(st.tuples(st.lists(texts, min_size=1, max_size=3), texts), min_size=1, max_size=6)
wild = st.lists(st.tuples(anything, anything), min_size=1, max_size=4)


def streams(lists):
    "References as sacrebleu wants them: one list for the first of each row, and so on."
    most = max(map(len, lists))
    return [[r[i] if i < len(r) else None for r in lists] for i in range(most)]


@settings(deadline=None, max_examples=150)
@given(pairs, st.sampled_from(["13a", "zh", "char", "none", "intl"]))
def test_bleu_is_that_of_sacrebleu(rows, tokenize):
    lists, predictions = zip(*rows)
    metric = BLEU(tokenize=tokenize, force=True)
    theirs = metric.corpus_score(list(predictions), streams(lists)).score
    assert 100*bleu(lists, predictions, tokenize).value == pytest.approx(theirs, rel=1e-12)


@settings(deadline=None, max_examples=150)
@given(pairs, st.sampled_from([0, 1, 2]))
def test_chrf_is_that_of_sacrebleu(rows, word_order):
    lists, predictions = zip(*rows)
    theirs = CHRF(word_order=word_order).corpus_score(list(predictions), streams(lists)).score
    assert 100*chrf(lists, predictions, word_order).value == pytest.approx(theirs, rel=1e-12)


@settings(deadline=None, max_examples=100)
@given(wild)
def test_scores_of_any_text_are_in_range(rows):
    there, said = zip(*rows)
    scores = [bleu(there, said), chrf(there, said), exact_match(there, said),
              token_f1(there, said), sentence_accuracy(there, said), repetition(said),
              *rouge(there, said).values()]
    for score in scores:
        assert -1e-12 <= score.value <= 1 + 1e-12, score
    assert character_error_rate(there, said).value >= 0
    assert word_accuracy(there, said).value <= 1
    assert 0 <= distinct(said) <= 1


@settings(deadline=None, max_examples=100)
@given(st.lists(anything, min_size=1, max_size=4))
def test_a_text_agrees_with_itself(said):
    assert exact_match(said, said).value == sentence_accuracy(said, said).value == 1
    assert token_f1(said, said).value == 1
    assert character_error_rate(said, said).value == 0
    assert word_accuracy(said, said).value == 1


@pytest.mark.parametrize("score", [bleu, chrf, exact_match, token_f1, word_accuracy,
                                   sentence_accuracy])
def test_empty_predictions_gain_nothing(score):
    assert score(["the cat sat", "今天的会议"], ["", ""]).value == 0


def test_empty_references():
    assert bleu([""], ["the cat"]).value == chrf([""], ["the cat"]).value == 0
    assert token_f1([""], [""]).value == 1 and token_f1([""], ["x"]).value == 0
    assert character_error_rate(["", "ab"], ["xy", "ab"]).value == 1  # two edits, two characters
    assert rouge([""], ["x"])["ROUGE-L"].value == 0


def test_what_cannot_be_scored_is_refused():
    for score in (bleu, chrf, rouge, exact_match, token_f1, character_error_rate, word_accuracy):
        with pytest.raises(DataError, match="0 references"):
            score([], [])
        with pytest.raises(DataError, match="row 2"):
            score(["a", []], ["a", "b"])
        with pytest.raises(DataError, match="row 1"):
            score(["a"], [3])
    for losses, counts in (([], []), ([1.], [0]), ([math.nan], [1]), ([-1.], [1])):
        with pytest.raises(DataError, match="finite"):
            perplexity(losses, counts)
    with pytest.raises(ConfigError):
        score_interval(bleu(["a"]*9, ["a"]*9), confidence=2)


@settings(deadline=None, max_examples=150)
@given(ascii_text, ascii_text)
def test_rouge_of_ascii_is_that_of_rouge_score(there, said):
    assert score_tokens(there) == rouge_tokenize.tokenize(there, None)
    theirs = RougeScorer(["rouge1", "rouge2", "rougeL"]).score(there, said)
    ours = rouge([there], [said])
    for name, key in (("ROUGE-1", "rouge1"), ("ROUGE-2", "rouge2"), ("ROUGE-L", "rougeL")):
        assert ours[name].value == pytest.approx(theirs[key].fmeasure, abs=1e-14)


def test_rouge_takes_the_best_reference():
    ours = rouge([["a b c", "x y"]], ["x y z"])["ROUGE-1"]
    assert ours.value == pytest.approx(2*1*(2/3)/(1 + 2/3))


def squad_tokens(text):
    "The steps of SQuAD's evaluation, one after the other, for ASCII."
    text = "".join(c for c in text.lower() if c not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", text).split()


@settings(deadline=None, max_examples=200)
@given(ascii_text, ascii_text)
def test_answers_in_ascii_are_judged_by_the_rules_of_squad(there, said):
    gold, given_ = squad_tokens(there), squad_tokens(said)
    assert normalize_answer(there) == " ".join(gold)
    same = (Counter(gold) & Counter(given_)).total()
    if not gold or not given_:
        expected = float(gold == given_)
    elif not same:
        expected = 0.
    else:
        precision, recall = same/len(given_), same/len(gold)
        expected = 2*precision*recall/(precision + recall)
    assert answer_f1(there, said) == pytest.approx(expected, abs=1e-14)


@settings(deadline=None, max_examples=200)
@given(anything, anything, anything)
def test_edit_distance_is_a_distance_and_that_of_nltk(a, b, c):
    assert edit_distance(a, b) == nltk_distance(a, b) == edit_distance(b, a)
    assert edit_distance(a, c) <= edit_distance(a, b) + edit_distance(b, c)
    assert edit_distance(list(a), list(b)) == edit_distance(a, b)


def test_the_cut_is_chosen_by_the_references():
    chinese, english = ["今天的会议在三楼举行。"], ["The meeting is on the third floor."]
    assert "tok:zh" in bleu(chinese, english).signature
    assert "tok:13a" in bleu(english, chinese).signature
    assert bleu(chinese, chinese).value == pytest.approx(1)
    assert bleu(chinese, chinese, "13a").value == 0


def test_bits_are_those_of_the_foundations():
    losses, said = [3.5, 20.25], ["abc", "今天的会议"]
    expected = bits_of_the_foundations([-x for x in losses], list(map(len, said)))
    assert bits_per_character(losses, said).value == pytest.approx(expected)


def test_repetition_and_distinct_by_hand():
    assert repetition(["a b a b a b"], n=2).value == 3/5
    assert repetition(["a"], n=4).value == 0
    assert distinct(["a b", "a b"], n=2) == 1/2 and distinct([""]) == 0
    assert distinct(["a b a b"], n=1, first=2) == 1


def test_metrics_are_known_by_name():
    there, said = [["the cat sat on the mat"], ["no smoking", "smoking forbidden"]], [
        "the cat sat on a mat", "smoking forbidden"]
    expected = dict(bleu=bleu(there, said), chrf=chrf(there, said),
                    rougeL=rouge(there, said)["ROUGE-L"], token_f1=token_f1(there, said))
    for name, score in expected.items():
        found = load_metric(name).compute(predictions=said, references=there)
        assert found == {name: pytest.approx(score.value)}
    found = load_metric("bleu").compute(predictions=said, references=there, tokenize="char")
    assert found["bleu"] == pytest.approx(bleu(there, said, "char").value)
    assert metric_directions(["bleu", "character_error_rate"]) == {
        "bleu": True, "character_error_rate": False}


# ---- intervals and tests


def random_bleu(seed, n=40):
    rng = np.random.default_rng(seed)
    there = [" ".join(rng.choice(WORDS, 9)) for _ in range(n)]
    return bleu(there, [" ".join(rng.choice([*t.split(), "x"], 8)) for t in there], "13a")


def copied(score, times=3):
    return replace(score, rows=np.repeat(score.rows, times, axis=0))


def test_copies_in_one_cluster_change_no_interval_and_no_test():
    a, b = random_bleu(1), random_bleu(2)
    of = np.repeat(np.arange(40), 3)
    alone, together = score_interval(a), score_interval(copied(a), of)
    assert (alone.low, alone.high) == pytest.approx((together.low, together.high), abs=1e-12)
    one, three = score_test(a, b), score_test(copied(a), copied(b), of)
    assert one.p_value == three.p_value and one.units == three.units
    assert one.difference.low == pytest.approx(three.difference.low, abs=1e-12)


def test_a_comparison_the_other_way_round():
    a, b = random_bleu(1), random_bleu(2)
    there, back = score_test(a, b, seed=3), score_test(b, a, seed=3)
    assert there.difference.value == -back.difference.value
    assert there.difference.low == pytest.approx(-back.difference.high, abs=0.01)
    assert 0 < there.p_value <= 1


def test_scores_of_different_kinds_are_not_compared():
    a = random_bleu(1)
    for b in (replace(a, rows=a.rows[:9]), replace(a, signature="other"), replace(a, name="other")):
        with pytest.raises(DataError, match="cannot be compared"):
            score_test(a, b)


def test_few_units_promise_nothing():
    a, b = random_bleu(1, 8), random_bleu(2, 8)
    of = [0, 0, 1, 1, 2, 2, 3, 3]
    assert score_interval(a, of).low is None and score_test(a, b, of).difference.low is None
    assert score_interval(a).low is not None
    with pytest.raises(DataError, match="different lengths"):
        score_interval(a, of[1:])


def test_formulas_take_many_sums_at_once():
    a = random_bleu(5)
    assert bleu_of_sums(a.rows[:6].reshape(2, 3, 10)).shape == (2, 3)
    assert bleu_of_sums(a.rows.sum(0)) == pytest.approx(a.value)
    assert ratio_of_sums(np.zeros((3, 2))).tolist() == [0, 0, 0]


@pytest.mark.parametrize("truth", [0.5, 0.97, 0.99])
def test_the_interval_of_a_rate_near_its_edge_holds(truth):
    rng, held = np.random.default_rng(0), []
    for _ in range(400):
        right = rng.random(100) < truth
        rows = np.stack([right, np.ones(100)], 1).astype(float)
        found = score_interval(Score("exact match", rows, ratio_of_sums))
        held.append(found.low <= truth <= found.high)
    assert np.mean(held) > 0.95 - 3*math.sqrt(0.05*0.95/400)


def test_a_rounding_error_is_no_difference_that_was_seen():
    values, ones = np.full(40, 0.3), np.ones(40)
    pair = [Score("F1", np.stack([v, ones], 1), ratio_of_sums) for v in (values, values + 1e-16)]
    assert pair[0].rows[0, 0] != pair[1].rows[0, 0]
    found = score_test(*pair, resamples=20).difference
    assert found.low < -0.03 and found.high > 0.03


@pytest.mark.parametrize("only", [(0.005, 0.005), (0.03, 0.), (0.1, 0.05)])
def test_the_interval_of_a_difference_that_is_seldom_seen_holds(only):
    rng, held = np.random.default_rng(1), []
    for _ in range(300):
        kinds = rng.choice(3, 120, p=[1 - sum(only), *only])
        ones = np.ones(120)
        pair = [Score("F1", np.stack([(kinds == k).astype(float), ones], 1), ratio_of_sums)
                for k in (1, 2)]
        found = score_test(*pair, resamples=20).difference
        held.append(found.low <= only[0] - only[1] <= found.high)
    assert np.mean(held) > 0.95 - 3*math.sqrt(0.05*0.95/300)
