"Things several tests need."
import os
import signal
import sys

import pytest


def pytest_configure(config):
    "Workers side by side have one thread each: two of them asking for both cores are slower."
    if "PYTEST_XDIST_WORKER" in os.environ:
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell has put us in the background
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _same_numbers():
    "What is drawn at random does not depend on the tests that ran before."
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup():
    _same_numbers()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call():
    _same_numbers()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """One worker runs all tests of a file, since they share what they prepare (a site, a browser,
    models); notebooks share nothing and go to whoever is free. Files with many tests begin first.
    (Not `--dist loadgroup`: xdist 3.8 marks groups in a field that pytest 9.2 does not read.)"""
    from xdist.scheduler import LoadScopeScheduling

    class OneWorkerAFile(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            file = nodeid.split("::")[0]
            return nodeid if file.endswith("test_notebooks.py") else file

    return OneWorkerAFile(config, log)


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory):
    "A BERT that trains in a second, with a tokenizer, as a folder; nothing is downloaded."
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = ("the a striker goal match keeper coach final team shares profit bank market oil "
             "rose fell scored won quarter cup").split()
    vocabulary = {word: i for i, word in enumerate([*special, *words])}
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    folder = tmp_path_factory.mktemp("checkpoint")
    tokens = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    PreTrainedTokenizerFast(tokenizer_object=backend, **tokens).save_pretrained(folder)
    sizes = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
                 intermediate_size=64, max_position_embeddings=64)
    BertModel(BertConfig(vocab_size=len(vocabulary), **sizes)).save_pretrained(folder)
    return folder
