"Translation: what comes through, what is found, and what plain transformers makes of it."
import pytest
import torch
from datasets import Dataset

from sftbook.preprocessing.placeholders import (
    PLACES, count_kept, hide_pair, hide_spans, restore_spans)
from sftbook.tasks.phrase_translation import PhraseWeights, TokenModel, learn_phrases
from sftbook.tasks.protocol import predict
from sftbook.tasks.translation import Translation, pairs_to_learn, train_tokenizer, translate_beams
from sftbook.tasks.translation_memory import TranslationMemory
from sftbook.tasks.word_alignment import align, both_ways
from sftbook.translation_pairs import OUT_OF_DOMAIN, load_translation_pairs, paired_rows

PAIRS = [("See page 14.", "参见第 14 页。"), ("Click the icon.", "点击图标。"),
         ("Open the file.", "打开文件。"), ("Close page 3.", "关闭第 3 页。"),
         ("Open page 5 of LibreOffice.", "打开 LibreOffice 的第 5 页。")]


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vocabulary")
    sides = [side for pair in PAIRS for side in hide_pair(*pair)]
    train_tokenizer(sides * 2, 120).save_pretrained(folder)
    return Translation(str(folder), sizes=dict(hidden_size=32, encoder_layers=1, decoder_layers=1,
                                               heads=2, feed_forward=32))


def rows(pairs=PAIRS):
    return Dataset.from_list([{"translation": {"en": en, "zh": zh}} for en, zh in pairs])


@pytest.mark.parametrize("text", ["", "no spans", "a 1 b 2", "⟦0⟧ and 7",
                                  "https://example.org/x?y=1 ok",
                                  " ".join(map(str, range(40)))])
def test_what_is_hidden_comes_back(text):
    hidden, spans = hide_spans(text)
    assert restore_spans(hidden, spans) == text.replace("⟦", "[").replace("⟧", "]")


def test_a_placeholder_that_the_model_made_up_is_left_out():
    assert restore_spans("⟦0⟧ ⟦7⟧ ⟦99⟧", ["x"]) == "x  "


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("seed", range(4))
def test_the_search_is_that_of_transformers(task, beams, seed):
    torch.manual_seed(seed)
    model = task.init_model().eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(3)
    batch = task.collate(task.encode(rows()))
    theirs = model.generate(batch["input_ids"], attention_mask=batch["attention_mask"],
                            num_beams=beams, max_new_tokens=15, do_sample=False)
    for found, text in zip(translate_beams(model, batch, beams, 15), theirs.tolist()):
        best = found[0][1]
        assert text[1:len(best) + 1] == best


def test_rows_that_were_searched_together_and_alone_have_one_translation(task):
    torch.manual_seed(0)
    model = task.init_model()
    together = [p.text for p in predict(task, model, rows())]
    alone = [predict(task, model, rows([pair]))[0].text for pair in PAIRS]
    assert together == alone


def test_the_reference_of_a_test_row_does_not_change_what_is_read(task):
    with_it = rows([("See page 14.", "没有数字")])
    without = rows([("See page 14.", "参见第 14 页。")])
    assert task.encode(with_it) == task.encode(without)


def test_rows_to_learn_from_go_both_ways(task):
    learned = pairs_to_learn(rows())
    assert len(learned) == 2 * len(PAIRS)
    features = task.encode(learned)
    assert all(f["labels"][-1] == task.tokenizer.eos_token_id for f in features)
    loss, targets = task.loss(task.init_model(), task.collate(features))
    assert targets == sum(len(f["labels"]) for f in features) and torch.isfinite(loss)


def test_phrases_lose_no_span(task):
    translate = learn_phrases(PAIRS * 2, task.tokenizer)
    texts = ["See page 77 of LibreOffice, see https://example.org.", "1 2 3 4 5 6 7", "Open 9."]
    kept, total = count_kept(texts, [translate(text) for text in texts])
    assert kept == total > 8


def test_a_row_that_may_not_be_looked_at_is_not():
    texts = [([5, 6], [7]), ([5, 8], [9])]
    tokens = [[f[0] for f, _ in texts], TokenModel([e for _, e in texts], 1)]
    assert tokens[1].log_prob(tokens[1].start, 7) < 0
    memory = TranslationMemory(PAIRS)
    assert memory.closest(["Click the icon."], [[1]])[0].row != 1


def test_alignment_finds_a_dictionary():
    learned = align([([1, 2], [11, 12]), ([1, 3], [11, 13]), ([4, 3], [14, 13])], 20, rounds=8)
    assert learned.of(2, 12) > 0.7 and learned.of(3, 13) > 0.7
    assert both_ways([0, 1], [0, 1]) == {(0, 0), (1, 1)}


def test_more_weight_on_tokens_makes_no_shorter_texts(task):
    texts = ["Open the icon.", "Click the file."]
    short, long = (learn_phrases(PAIRS * 2, task.tokenizer, PhraseWeights(token=w))
                   for w in (-3, 3))
    assert sum(len(long(t)) for t in texts) >= sum(len(short(t)) for t in texts)


def test_what_is_shipped_has_its_reasons():
    pairs = load_translation_pairs()
    assert len(pairs) == 48773 and OUT_OF_DOMAIN not in pairs["source"]
    assert sum(row["dropped"] == "a twin of a test row" for row in paired_rows()) == 398
    assert len(PLACES) == 12
