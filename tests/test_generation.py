"The small GPT that comes with the package, and what generation once got wrong."
from pathlib import Path

import pytest
import torch

import sftbook
from sftbook.folders import check_manifest
from sftbook.foundations.generation import KVCache, beam_search, generate
from sftbook.foundations.small_gpt import load_gpt

FOLDER = Path(sftbook.__file__).parent / "checkpoints" / "sftbook-gpt"


@pytest.fixture(scope="module")
def gpt():
    return load_gpt()


def test_it_is_whole_and_small():
    check_manifest(FOLDER)
    assert (FOLDER / "model.safetensors").stat().st_size < 6_000_000


def test_the_end_token_begins_a_document(gpt):
    ids = torch.tensor([[gpt.end]])
    with torch.inference_mode():
        log_probs = gpt.model(ids)[0, -1].log_softmax(-1)
    tokens = [gpt.tokenizer.id_to_token(int(i)) for i in log_probs.topk(20).indices]
    first = tokens[:5]  # no space before the first word
    assert not any(token.startswith("Ġ") for token in first), tokens


def test_one_beam_is_greedy(gpt):
    ids = torch.tensor([[gpt.end, *gpt.tokenizer.encode("The company said").ids]])
    beam, _ = beam_search(gpt.model, ids, 12, 1, end_token=gpt.end)
    greedy = generate(gpt.model, ids, 12, end_token=gpt.end)[0]
    assert torch.equal(beam, greedy[: len(beam)])


def test_selecting_rows_of_a_cache_keeps_all_layers_together():
    cache = KVCache()
    for layer in (0, 1):
        rows = torch.arange(3.0)[:, None, None, None].expand(3, 2, 4, 5) + 10 * layer
        cache.update(layer, rows, -rows)
    cache.select(torch.tensor([2, 2, 0, 1]))
    assert cache.length == 4
    for layer in (0, 1):
        keys, values = cache.layers[layer]
        expected = [2 + 10 * layer, 2 + 10 * layer, 10 * layer, 1 + 10 * layer]
        assert keys[:, 0, 0, 0].tolist() == expected
        assert torch.equal(values, -keys)
