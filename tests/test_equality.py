"""Our loop and transformers.Trainer end in the same weights where the settings are the same.

Each loop runs in a process of its own: transformers.Trainer leaves its precision in the state that
accelerate shares.
"""
import forked
import pytest
from safetensors.torch import load_file

SCRIPT = '''
import sys
from unittest.mock import patch

import torch
from datasets import ClassLabel, Dataset, Features, Value
from safetensors.torch import save_model

from sftbook import plan, trainer
from sftbook.tasks.text_classification import TextClassification

checkpoint, out, *loops = sys.argv[1:]
words = "striker goal match keeper coach team shares profit bank market oil rose fell".split()
texts = [" ".join(words[(i * k) % len(words)] for k in range(1, 3 + i % 7)) for i in range(32)]
columns = Features({"text": Value("string"), "label": ClassLabel(names=["no", "yes", "maybe"])})
rows = Dataset.from_dict({"text": texts, "label": [i % 3 for i in range(32)]}, columns)
task = TextClassification.from_rows(rows, checkpoint=checkpoint, max_length=32)
features = task.encode(rows)
same = dict(learning_rate=1e-3, num_train_epochs=2, per_device_train_batch_size=6, weight_decay=0.1,
            warmup_steps=0.2, max_grad_norm=0.5, seed=7, bf16=False)


def initial_model():
    torch.manual_seed(0)
    model = task.init_model()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


def in_order(lengths, size, **_):
    return [list(range(i, min(i + size, len(lengths)))) for i in range(0, len(lengths), size)]


def ours(**changes):
    model, config = initial_model(), trainer.TrainingConfig(**same | changes)
    with patch.object(plan, "length_batches", in_order):
        trainer.Trainer(model, task.loss, task.collate, config).fit(features)
    return model


def theirs():
    import transformers

    model = initial_model()
    settings = transformers.TrainingArguments(
        out, **same, train_sampling_strategy="sequential", save_strategy="no",
        logging_strategy="no", report_to="none", disable_tqdm=True, use_cpu=True)
    loop = transformers.Trainer(model, settings, train_dataset=features, data_collator=task.collate)
    loop.train()
    return model


runs = {"theirs": theirs, "ours": ours, "untrained": initial_model,
        "decay": lambda: ours(weight_decay=0.2), "warm-up": lambda: ours(warmup_steps=4),
        "clipping": lambda: ours(max_grad_norm=0.6), "rate": lambda: ours(learning_rate=1.01e-3)}
for name in loops:
    save_model(runs[name](), f"{out}/{name}.safetensors")
'''


@pytest.fixture(scope="module")
def weights(tiny_checkpoint, tmp_path_factory):
    "Of each loop, and of ours with one setting a little off."
    folder = tmp_path_factory.mktemp("equality")
    loops = [["theirs"], ["ours", "untrained", "decay", "warm-up", "clipping", "rate"]]
    done = [forked.code(SCRIPT, tiny_checkpoint, folder, *names) for names in loops]
    assert [process.returncode for process in done] == [0, 0], done
    return {path.stem: load_file(path) for path in folder.glob("*.safetensors")}


def largest_difference(ours, theirs):
    """Over all weights but the biases of keys: softmax cancels them, so their gradient is rounding
    noise, which Adam scales up to full steps in any loop."""
    assert ours.keys() == theirs.keys()
    return max((ours[n] - theirs[n]).abs().max().item() for n in ours if "key.bias" not in n)


def test_equal_settings_end_in_equal_weights(weights):
    assert largest_difference(weights["untrained"], weights["theirs"]) > 5e-3
    assert largest_difference(weights["ours"], weights["theirs"]) < 1e-5


@pytest.mark.parametrize("planted", ["decay", "warm-up", "clipping", "rate"])
def test_equality_notices_a_setting_that_is_off(weights, planted):
    assert largest_difference(weights[planted], weights["theirs"]) > 1e-5
