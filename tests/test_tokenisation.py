"""Tokenizers written out, against the library, on random corpora.

Few letters, short words and small counts make ties and runs such as aaa frequent, which is where
programs differ.
"""
import json
from collections import Counter

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from sftbook.foundations.tokenisation import (
    byte_letters,
    from_letters,
    longest_pieces,
    seed_pieces,
    to_letters,
    train_bpe,
    train_unigram,
)

ALPHABETS = ("a", "ab", "abcde", "北京大学生", "aé命😀")


def drawn_words(seed, least=1, most=10):
    "Words with counts; every seed has another alphabet."
    rng = np.random.default_rng(seed)
    letters = list(ALPHABETS[seed % len(ALPHABETS)])
    words = ["".join(rng.choice(letters, rng.integers(least, most)))
             for _ in range(rng.integers(2, 40))]
    return Counter(words)


def library(model, trainer, words):
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.train_from_iterator((" ".join([w] * n) for w, n in words.items()), trainer)
    return tokenizer


def in_order(tokenizer):
    vocabulary = tokenizer.get_vocab()
    return sorted(vocabulary, key=vocabulary.get)


@pytest.mark.parametrize("seed", range(40))
def test_merges_numbers_and_encodings_are_those_of_the_library(seed):
    words = drawn_words(seed)
    size = len(set("".join(words))) + seed
    trainer = trainers.BpeTrainer(vocab_size=size, show_progress=False)
    theirs, ours = library(models.BPE(), trainer, words), train_bpe(words, size)
    merges = json.loads(theirs.to_str())["model"]["merges"]
    assert ours.tokens == in_order(theirs)
    assert ours.merges == [tuple(pair) for pair in merges]
    letters = set("".join(words))
    for word in drawn_words(seed + len(ALPHABETS), most=30):
        if letters.issuperset(word):
            assert ours.encode(word) == theirs.encode(word).tokens


@pytest.mark.parametrize("seed", range(20))
def test_a_token_is_made_by_one_merge_only(seed):
    learnt = train_bpe(drawn_words(seed), 80)
    assert len(set(learnt.tokens)) == len(learnt.tokens)
    assert learnt.tokens[-len(learnt.merges):] == [a + b for a, b in learnt.merges]


@pytest.mark.parametrize("seed", range(10))
def test_a_shorter_training_is_the_beginning_of_a_longer_one(seed):
    words = drawn_words(seed)
    short, long = train_bpe(words, 15), train_bpe(words, 60)
    assert long.merges[:len(short.merges)] == short.merges


@pytest.mark.parametrize("seed", range(20))
def test_every_text_comes_back_from_its_bytes(seed):
    rng = np.random.default_rng(seed)
    codes = [c for c in rng.integers(0, 0x110000, 60) if not 0xd800 <= c < 0xe000]
    text = "".join(map(chr, codes)) + "\0\t\n \u3000"
    assert from_letters(to_letters(text)) == text
    words = Counter({to_letters(word): n for word, n in drawn_words(seed).items()})
    learnt = train_bpe(words, 300, start=sorted(byte_letters().values()))
    assert from_letters("".join(learnt.encode(to_letters(text)))) == text


def test_the_letters_of_bytes_are_those_of_the_library():
    assert sorted(byte_letters().values()) == sorted(pre_tokenizers.ByteLevel.alphabet())
    assert len(set(byte_letters().values())) == 256


@pytest.mark.parametrize("seed", range(20))
def test_wordpiece_is_byte_pair_encoding_that_is_cut_greedily(seed):
    words = drawn_words(seed)
    trainer = trainers.WordPieceTrainer(vocab_size=10 + seed, special_tokens=["[UNK]"],
                                        show_progress=False)
    theirs = library(models.WordPiece(unk_token="[UNK]"), trainer, words)
    tokens = in_order(theirs)
    start = [t for t in tokens if t == "[UNK]" or len(t.removeprefix("##")) == 1]
    assert train_bpe(words, 10 + seed, start=start, prefix="##").tokens == tokens
    for word in [*drawn_words(seed + 1, most=30), "a" * 100, "a" * 101]:
        assert longest_pieces(word, tokens) == theirs.encode(word).tokens


@pytest.mark.parametrize("seed", range(10))
def test_unigram_pieces_and_scores_are_those_of_the_library(seed):
    "With many different counts, since ties of the loss are decided by the last bit."
    rng = np.random.default_rng(seed)
    words = {word: int(rng.integers(1, 500)) for word in drawn_words(seed, least=2, most=12)}
    size = len(set("".join(words))) + 3 + seed
    trainer = trainers.UnigramTrainer(vocab_size=size, unk_token="<unk>", special_tokens=[],
                                      show_progress=False)
    model = json.loads(library(models.Unigram(), trainer, words).to_str())["model"]
    theirs, ours = dict(model["vocab"][1:]), train_unigram(words, size)
    assert ours.keys() == theirs.keys()
    assert np.allclose(sorted(ours.values()), sorted(theirs.values()), atol=1e-7)


def test_the_slip_in_the_librarys_loss_is_a_choice():
    words = Counter(dict(zip(drawn_words(2, 3, 12), range(1, 40))))
    sizes = range(10, len(seed_pieces(words)), 2)
    assert any(train_unigram(words, size) != train_unigram(words, size, as_library=False)
               for size in sizes)


def test_seeds_are_repeated_and_end_where_texts_part():
    seeds = {piece for piece in seed_pieces({"low": 5, "lower": 2, "newest": 6, "widest": 3})
             if len(piece) > 1}
    assert seeds == {"low", "ow", "we"}  # est always ends a word, lo is always followed by w
