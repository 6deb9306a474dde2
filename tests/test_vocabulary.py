"Files of quantised weights that are cut or altered, and vocabularies that are cut."
import json
import random
import struct
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
)

from sftbook import corpora
from sftbook.core import ConfigError, CorpusError
from sftbook.model import checkpoint_pooling
from sftbook.quantised import BLOCK, convert_quantised, pack_map, read_quantised, unpack_blocks
from sftbook.vocabulary import character_level, trim_vocabulary

# ---- a small file of quantised weights, written from the description of the format

HIDDEN, LAYERS, WIDE, POSITIONS = 32, 2, 64, 24
PIECES = ["<s>", "<pad>", "</s>", "<unk>", "▁", "a", "b", "▁a", "ab", "▁ab", "你", "好", "你好",
          "é", "<mask>"]
WORDS = len(PIECES) + 3  # more vectors than pieces, as in the real file
REPLACED = {"Ａ": "a", "\u200b": " ", "\u0001": "", "①": "1"}
DENSE = {"q": (HIDDEN, HIDDEN), "k": (HIDDEN, HIDDEN), "v": (HIDDEN, HIDDEN),
         "ao": (HIDDEN, HIDDEN), "fi": (WIDE, HIDDEN), "fo": (HIDDEN, WIDE)}


def packed(rng, shape):
    "Blocks of random values, and the weights that they stand for."
    n = int(np.prod(shape))
    values = rng.integers(0, 16, (n // 32, 32))
    scales = rng.uniform(0.01, 0.1, n // 32).astype(np.float16)
    halves = (values[:, :16] | values[:, 16:] << 4).astype(np.uint8)
    data = b"".join(s.tobytes() + h.tobytes() for s, h in zip(scales, halves))
    return data, ((values - 8) * scales[:, None].astype(np.float32)).reshape(shape)


def all_tensors(rng):
    "(name, kind, bytes, weights) of all tensors."
    def plain(name, shape):
        weights = rng.normal(size=shape).astype(np.float32)
        return name, 0, weights.tobytes(), weights

    yield ("emb.word", 1, *packed(rng, (WORDS, HIDDEN)))
    yield plain("emb.pos", (POSITIONS, HIDDEN))
    yield plain("emb.type", (2, HIDDEN))
    yield plain("emb.ln.w", HIDDEN)
    yield plain("emb.ln.b", HIDDEN)
    for i in range(LAYERS):
        for name, shape in DENSE.items():
            yield (f"l{i}.{name}.w", 1, *packed(rng, shape))
            yield plain(f"l{i}.{name}.b", shape[0])
        for name in ("aln", "oln"):
            yield plain(f"l{i}.{name}.w", HIDDEN)
            yield plain(f"l{i}.{name}.b", HIDDEN)


def small_file(seed=0):
    "A whole file, the end of its directory, and its weights by their short names."
    tensors = list(all_tensors(np.random.default_rng(seed)))
    texts = [piece.encode() for piece in PIECES]
    starts = np.cumsum([0, *map(len, texts)])
    scores = [0.] * 4 + [-4. if len(p) == 1 else -3. for p in PIECES[4:-1]] + [0.]
    sizes = HIDDEN, LAYERS, 2, WIDE, WORDS, POSITIONS, 2
    head = b"E5S1" + struct.pack("<I7ifi", 1, *sizes, 1e-12, 32)
    head += struct.pack("<5iQ", len(PIECES), 0, 2, 1, 3, starts[-1])
    head += starts.astype("<u4").tobytes() + np.array(scores, "<f4").tobytes() + b"".join(texts)
    entries = b"".join(struct.pack(f"<IB{len(r)}I", ord(c), len(r), *map(ord, r))
                       for c, r in REPLACED.items())
    head += struct.pack("<iI", len(REPLACED), len(entries)) + entries
    at = len(head) + 4 + sum(23 + len(name) for name, *_ in tensors)
    directory, first = struct.pack("<i", len(tensors)), at
    for name, kind, data, weights in tensors:
        directory += struct.pack("<H", len(name)) + name.encode()
        directory += struct.pack("<BIQQ", kind, weights.size, first, len(data))
        first += len(data)
    weights = {name: w for name, _, _, w in tensors}
    return head + directory + b"".join(data for _, _, data, _ in tensors), at, weights


FILE, DIRECTORY_ENDS, WEIGHTS = small_file()


@pytest.fixture
def read(tmp_path):
    "Read bytes as a file of quantised weights."
    def reader(data):
        (tmp_path / "x-q4.bin").write_bytes(data)
        return read_quantised(tmp_path / "x-q4.bin")

    return reader


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    "The small file as a checkpoint."
    folder = tmp_path_factory.mktemp("converted")
    (folder / "x-q4.bin").write_bytes(FILE)
    convert_quantised(folder, corpora.find_corpus("e5-small"))
    return folder


def test_a_small_file_is_read(read):
    model = read(FILE)
    assert model.pieces == PIECES and model.replaced == REPLACED
    assert model.special == {"bos": 0, "eos": 2, "pad": 1, "unk": 3}
    assert model.sizes["num_hidden_layers"] == LAYERS and model.sizes["layer_norm_eps"] == 1e-12
    for short, name in (("emb.word", "embeddings.word_embeddings.weight"),
                        ("l1.fi.w", "encoder.layer.1.intermediate.dense.weight"),
                        ("l0.oln.b", "encoder.layer.0.output.LayerNorm.bias")):
        assert np.array_equal(model.tensor(name), WEIGHTS[short])


def test_a_converted_file_is_what_transformers_opens(converted):
    tokenizer = AutoTokenizer.from_pretrained(converted)
    state = AutoModel.from_pretrained(converted).state_dict()
    assert np.array_equal(state["embeddings.word_embeddings.weight"].numpy(), WEIGHTS["emb.word"])
    assert np.array_equal(state["encoder.layer.1.attention.output.dense.weight"].numpy(),
                          WEIGHTS["l1.ao.w"])
    assert len(WEIGHTS) == len([n for n in state if "pooler" not in n and "_ids" not in n])
    assert tokenizer.tokenize("Ａb 你好\u200ba\u0001b") == ["▁ab", "▁", "你好", "▁ab"]
    assert tokenizer("a")["input_ids"] == [0, 7, 2] and tokenizer.mask_token_id == len(PIECES) - 1
    assert tokenizer("e\u0301", add_special_tokens=False)["input_ids"] == [4, 13]  # composed
    assert checkpoint_pooling(str(converted)) == "mean"
    assert not (converted / "x-q4.bin").exists() and "MIT" in (converted / "README.md").read_text()


def test_every_cut_is_noticed(read):
    places = [*range(0, DIRECTORY_ENDS + 64, 3), *range(DIRECTORY_ENDS, len(FILE), 997)]
    for n in [*places, len(FILE) - 1]:
        with pytest.raises(CorpusError):
            read(FILE[:n])


def test_no_altered_count_leads_anywhere(read):
    "Groups of four bytes before the tensors become huge, -1, the least number and 0, in turn."
    numbers = [struct.pack("<i", n) for n in (2**31 - 1, -1, -2**31, 0)]
    places, refused = range(0, DIRECTORY_ENDS - 8, 3), 0
    tracemalloc.start()
    for i, at in enumerate(places):
        try:
            read(FILE[:at] + numbers[i % 4] + FILE[at + 4:])
        except CorpusError:
            refused += 1
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20 * len(FILE), f"{peak:,} bytes for a file of {len(FILE):,}"
    assert refused > 0.8 * len(places)  # the others are scores, characters and texts of pieces


FIELDS = {"hidden": 8, "layers": 12, "heads": 16, "feed-forward": 20, "words": 24, "positions": 28,
          "segments": 32, "epsilon": 36, "block": 40, "pieces": 44, "bos": 48, "eos": 52, "pad": 56,
          "unk": 60, "blob": 64}


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("new", [0, -1, 2**31 - 1, -2**31, 10**6])
def test_a_header_that_cannot_be_is_refused(read, field, new):
    if field in ("bos", "eos", "pad", "unk") and new == 0:
        new = 2 if field == "bos" else 0
        new = 1 if field == "eos" else new
    at = FIELDS[field]
    data = FILE[:at] + struct.pack("<i", new) + FILE[at + 4:]
    if data != FILE:
        with pytest.raises(CorpusError):
            read(data)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, DIRECTORY_ENDS - 1), st.integers(0, 255)), max_size=4))
def test_altered_bytes_give_a_model_or_a_message(tmp_path_factory, changes):
    data = bytearray(FILE)
    for at, value in changes:
        data[at] = value
    path = tmp_path_factory.getbasetemp() / "altered-q4.bin"
    path.write_bytes(data)
    try:
        model = read_quantised(path)
    except CorpusError as e:
        assert "altered" in e.remedy
    else:
        with np.errstate(invalid="ignore"):  # bytes of another place may be no numbers
            shapes = {name: model.tensor(name).shape for name in model.tensors}
        assert shapes["embeddings.word_embeddings.weight"] == (WORDS, HIDDEN)


def test_weights_that_are_no_numbers_are_refused(tmp_path):
    word = FILE.index(packed(np.random.default_rng(0), (WORDS, HIDDEN))[0])
    infinite = FILE[:word] + np.float16(np.inf).tobytes() + FILE[word + 2:]
    (tmp_path / "x-q4.bin").write_bytes(infinite)
    with pytest.raises(CorpusError, match="no numbers"):
        convert_quantised(tmp_path, corpora.find_corpus("e5-small"))


def test_other_files_are_left_alone(tmp_path):
    (tmp_path / "model.bin").write_bytes(b"pickle")
    convert_quantised(tmp_path, None)
    assert [p.name for p in tmp_path.iterdir()] == ["model.bin"]


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_blocks_are_unpacked_value_by_value(seed):
    data, weights = packed(np.random.default_rng(seed), (3, 32))
    assert len(data) == 3 * BLOCK.itemsize
    assert np.array_equal(unpack_blocks(data), weights.ravel())


CHARACTERS = st.characters(exclude_categories=["Cs"], exclude_characters="\0")


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(CHARACTERS, st.text(CHARACTERS, max_size=3), min_size=1),
       st.text(CHARACTERS, max_size=1))
def test_a_packed_map_replaces_what_the_map_replaces(replaced, other):
    mapped = normalizers.Precompiled(pack_map(replaced))
    for character in [*replaced, *other]:
        assert mapped.normalize_str(character) == replaced.get(character, character)


# ---- vocabularies

LETTERS = "abcde"
SPECIAL = ["[UNK]", "[PAD]", "[CLS]", "[SEP]", "[MASK]"]


def words(rng, n, letters=LETTERS):
    return ["".join(rng.choices(letters, k=rng.randint(1, 7))) for _ in range(n)]


def texts_of(rng, n, letters=LETTERS):
    return [" ".join(words(rng, rng.randint(1, 8), letters)) for _ in range(n)]


def trained(kind, rng):
    "A tokenizer of one kind, trained on random words, special tokens not at the beginning."
    texts = texts_of(rng, 300)
    if kind == "WordPiece":
        # by hand: a trainer would give every letter a piece, and there would be no unknown words
        pieces = {w[:rng.randint(1, 4)] for w in words(rng, 150)}
        pieces |= {"##" + w[:rng.randint(1, 3)] for w in words(rng, 40)}
        table = {p: i for i, p in enumerate(sorted(pieces) + SPECIAL)}
        backend = Tokenizer(models.WordPiece(table, unk_token="[UNK]"))
        backend.normalizer = normalizers.BertNormalizer()
        backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    elif kind == "Unigram":
        backend = Tokenizer(models.Unigram())
        backend.pre_tokenizer = pre_tokenizers.Metaspace()
        backend.decoder = decoders.Metaspace()
        backend.train_from_iterator(texts, trainers.UnigramTrainer(
            vocab_size=120, special_tokens=SPECIAL, unk_token="[UNK]", show_progress=False))
    else:
        backend = Tokenizer(models.BPE(unk_token=None if kind == "bytes" else "[UNK]"))
        by_bytes = kind == "bytes"
        backend.pre_tokenizer = (pre_tokenizers.ByteLevel(add_prefix_space=False) if by_bytes
                                 else pre_tokenizers.Metaspace())
        alphabet = pre_tokenizers.ByteLevel.alphabet() if by_bytes else []
        backend.train_from_iterator(texts, trainers.BpeTrainer(
            vocab_size=400 if by_bytes else 150, special_tokens=SPECIAL, show_progress=False,
            initial_alphabet=alphabet))
    ids = {token: backend.token_to_id(token) for token in SPECIAL}
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]",
        special_tokens=[("[CLS]", ids["[CLS]"]), ("[SEP]", ids["[SEP]"])])
    tokens = {f"{t[1:-1].lower()}_token": t for t in SPECIAL}
    fast = PreTrainedTokenizerFast(tokenizer_object=backend, **tokens)
    fast.add_tokens(["<user>"])  # behind the model's own pieces
    return fast


def tiny_model(kind, size, tokenizer):
    "A masked model for BERT's kinds, a decoder for BPE; a bias that is not zero."
    torch.manual_seed(0)
    pad = tokenizer.pad_token_id
    if kind in ("BPE", "bytes"):
        return GPT2LMHeadModel(GPT2Config(
            vocab_size=size, n_embd=16, n_layer=1, n_head=2, n_positions=128, pad_token_id=pad,
            bos_token_id=tokenizer.cls_token_id, eos_token_id=tokenizer.sep_token_id))
    model = BertForMaskedLM(BertConfig(
        vocab_size=size, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, max_position_embeddings=128, pad_token_id=pad))
    torch.nn.init.normal_(model.cls.predictions.bias)
    return model


@pytest.fixture(scope="module", params=["WordPiece", "Unigram", "BPE", "bytes"])
def checkpoint(request, tmp_path_factory):
    "A tiny checkpoint of each kind: kind, folder."
    folder, kind = tmp_path_factory.mktemp(request.param), request.param
    tokenizer = trained(kind, random.Random(1))
    tokenizer.save_pretrained(folder)
    tiny_model(kind, len(tokenizer) + 3, tokenizer).save_pretrained(folder)
    return kind, str(folder)


def opened(folder, kind):
    auto = AutoModelForCausalLM if kind in ("BPE", "bytes") else AutoModelForMaskedLM
    return AutoTokenizer.from_pretrained(folder), auto.from_pretrained(folder).eval()


def logits(tokenizer, model, texts):
    batch = tokenizer(texts, padding=True, return_tensors="pt", return_token_type_ids=False)
    with torch.no_grad():
        return batch, model(**batch).logits


@pytest.mark.parametrize("seed", range(6))
def test_given_texts_are_read_as_before(checkpoint, tmp_path, seed):
    kind, source = checkpoint
    rng = random.Random(seed)
    texts = texts_of(rng, 12, LETTERS + "xyé你") + ["a <user> b[MASK]c", ""]
    kept = torch.tensor(trim_vocabulary(source, texts, tmp_path / "cut"))
    old, old_model = opened(source, kind)
    new, new_model = opened(tmp_path / "cut", kind)
    assert len(new) == len(kept) == new_model.config.vocab_size < len(old)
    (before, theirs), (after, ours) = logits(old, old_model, texts), logits(new, new_model, texts)
    assert torch.equal(kept[after["input_ids"]], before["input_ids"])
    assert torch.equal(after["attention_mask"], before["attention_mask"])
    assert torch.allclose(ours, theirs[:, :, kept], atol=1e-6)
    pieces = old.convert_ids_to_tokens(kept.tolist())
    assert new.convert_ids_to_tokens(range(len(kept))) == pieces


def test_special_ids_agree_everywhere(checkpoint, tmp_path):
    kind, source = checkpoint
    trim_vocabulary(source, ["abc de"], tmp_path / "cut")
    new, model = opened(tmp_path / "cut", kind)
    parts = json.loads((tmp_path / "cut" / "tokenizer.json").read_text())
    for token in parts["added_tokens"]:
        assert new.convert_tokens_to_ids(token["content"]) == token["id"] < len(new)
    assert model.config.pad_token_id == new.pad_token_id
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    ids = new("abc", "de")["input_ids"]
    assert [ids[0], ids[-1], ids.count(new.sep_token_id)] == [new.cls_token_id, new.sep_token_id, 2]
    assert new.decode(new("a <user> b")["input_ids"]).count("<user>") == 1


def test_words_that_were_not_given_are_spelt(checkpoint, tmp_path):
    kind, source = checkpoint
    rng = random.Random(3)
    trim_vocabulary(source, texts_of(rng, 3), tmp_path / "cut")
    old, new = map(AutoTokenizer.from_pretrained, (source, tmp_path / "cut"))
    others, longer = texts_of(rng, 200), 0
    for text in others:
        before, after = old(text)["input_ids"], new(text)["input_ids"]
        longer += len(after) > len(before)
        if kind != "WordPiece":  # the one above lacks letters on purpose
            assert after.count(new.unk_token_id) <= before.count(old.unk_token_id)
    assert longer > 0


def test_pieces_on_the_way_to_an_unknown_word_stay(tmp_path):
    "Without ab, abc would be found as a, ##bc, and was unknown before."
    table = {p: i for i, p in enumerate(["[UNK]", "[PAD]", "ab", "a", "##bc", "x"])}
    backend = Tokenizer(models.WordPiece(table, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", pad_token="[PAD]")
    fast.save_pretrained(tmp_path / "old")
    tiny_model("WordPiece", len(fast), fast).save_pretrained(tmp_path / "old")
    kept = trim_vocabulary(str(tmp_path / "old"), ["abc xbc"], tmp_path / "cut")
    new = AutoTokenizer.from_pretrained(tmp_path / "cut")
    assert table["ab"] in kept and new("abc")["input_ids"] == [new.unk_token_id]
    assert new.tokenize("xbc") == ["x", "##bc"]


def test_the_rarest_piece_stays(tmp_path):
    "It sets the price of an unknown character; were it cheaper, ab cd would become unknown, bcd."
    pieces = [("[UNK]", 0.), ("[PAD]", 0.), ("ab", -20.), ("cd", -20.), ("bcd", -1.),
              ("zzzz", -50.)]
    cheaper = Tokenizer(models.Unigram(pieces[:-1], unk_id=0))
    assert cheaper.encode("abcd").ids == [0, 4]
    backend = Tokenizer(models.Unigram(pieces, unk_id=0))
    fast = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", pad_token="[PAD]")
    fast.save_pretrained(tmp_path / "old")
    tiny_model("Unigram", len(fast), fast).save_pretrained(tmp_path / "old")
    kept = trim_vocabulary(str(tmp_path / "old"), ["abcd", "bcd"], tmp_path / "cut")
    assert kept == list(range(6))
    new = AutoTokenizer.from_pretrained(tmp_path / "cut")
    assert new("abcd")["input_ids"] == [2, 3]


def test_weights_that_a_checkpoint_lacks_are_not_made_up(converted, tmp_path):
    trim_vocabulary(str(converted), ["ab 你好"], tmp_path / "cut")
    from safetensors import safe_open
    with safe_open(tmp_path / "cut" / "model.safetensors", "pt") as f:
        assert not [name for name in f.keys() if "pooler" in name]
    assert checkpoint_pooling(str(tmp_path / "cut")) == "mean"
    assert "MIT" in (tmp_path / "cut" / "README.md").read_text()


@pytest.mark.parametrize("odd", [dict(dropout=0.1), dict(ignore_merges=True),
                                 dict(end_of_word_suffix="</w>")])
def test_bpe_that_cannot_be_cut_is_refused(tmp_path, odd):
    backend = Tokenizer(models.BPE({"[UNK]": 0, "a": 1, "b": 2, "ab": 3}, [("a", "b")],
                                   unk_token="[UNK]", **odd))
    fast = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", pad_token="[UNK]")
    fast.save_pretrained(tmp_path / "old")
    tiny_model("BPE", len(fast), fast).save_pretrained(tmp_path / "old")
    with pytest.raises(ConfigError, match=next(iter(odd))):
        trim_vocabulary(str(tmp_path / "old"), ["ab"], tmp_path / "cut")
    assert not (tmp_path / "cut").exists()


def test_a_folder_of_somebody_else_is_not_replaced(checkpoint, tmp_path):
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(ConfigError):
        trim_vocabulary(checkpoint[1], ["a"], tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_a_token_for_each_character(converted, tmp_path):
    tokenizer, model = character_level(str(converted))
    assert tokenizer.tokenize("你好 ab") == ["你", "好", "▁a", "b"]
    words = tokenizer([["你", "好", "ab"]], is_split_into_words=True)
    assert words.word_ids(0) == [None, 0, 1, 2, 2, None]
    old = AutoModel.from_pretrained(converted).get_input_embeddings().weight
    rows = [PIECES.index(t) for t in tokenizer.convert_ids_to_tokens(range(len(tokenizer)))]
    assert torch.equal(model.get_input_embeddings().weight, old[torch.tensor(rows)])
    tokenizer.save_pretrained(tmp_path)
    model.save_pretrained(tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path).tokenize("你好 ab") == ["你", "好", "▁a", "b"]
