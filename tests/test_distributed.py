"What the trainer takes besides a list of rows, and what it must not train by mistake."
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from datasets import Dataset
from test_trainer import LAUNCH, collate, fit, same, words_loss, words_rows

from sftbook.core import ConfigError
from sftbook.trainer import Trainer, TrainingConfig


def mapped_rows(folder, rows=None):
    "Rows in an Arrow file that is mapped, not read."
    table, path = Dataset.from_list(rows or words_rows()).data.table, folder / "rows.arrow"
    with pa.ipc.new_stream(str(path), table.schema) as file:
        file.write_table(table)
    mapped = Dataset.from_file(str(path))
    assert mapped.cache_files[0]["filename"] == str(path)
    return mapped


def shifted(features, rng):
    return {**features, "input_ids": np.roll(features["input_ids"], rng.integers(5)).tolist()}


@pytest.mark.parametrize("more", [{}, {"augment": shifted}], ids=["plain", "augmented"])
def test_rows_of_a_mapped_file_train_like_a_list(tmp_path, more):
    from_list, _ = fit(**more)
    from_file, _ = fit(rows=mapped_rows(tmp_path), **more)
    assert same(from_list, from_file)


def test_rows_in_another_order_are_noticed(tmp_path):
    "The comparison above can fail."
    from_list, _ = fit()
    from_file, _ = fit(rows=mapped_rows(tmp_path, words_rows()[::-1]))
    assert not same(from_list, from_file)


def test_a_run_begun_with_a_list_goes_on_from_a_mapped_file(tmp_path):
    calls, straight = itertools.count(), fit()[0]

    def stopping(model, batch):
        if next(calls) == 5:
            raise KeyboardInterrupt
        return words_loss(model, batch)

    with pytest.raises(KeyboardInterrupt):
        fit(loss=stopping, checkpoints=tmp_path / "c")
    resumed, result = fit(rows=mapped_rows(tmp_path), checkpoints=tmp_path / "c", resume=True)
    assert "resumed after step 4" in result.messages[0] and same(straight, resumed)


def test_a_mapped_file_is_checked_like_a_list(tmp_path):
    mapped = mapped_rows(tmp_path, words_rows(3) + [dict(input_ids=[], labels=0)])
    with pytest.raises(ConfigError, match="row 3"):
        train_words(mapped)
    with pytest.raises(ConfigError, match="no rows"):
        train_words(mapped.select([]))


PROCESSES = """
import json, sys, torch
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from accelerate import PartialState
from sftbook.core import SftbookError
from test_distributed import train_words, mapped_rows
from test_trainer import Words, words_rows
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

home, rank = Path(sys.argv[2]), PartialState(cpu=True).process_index
home = home / str(rank)
home.mkdir()
rows = words_rows(50)
found = {"list": train_words(rows), "file": train_words(mapped_rows(home, rows))}
torch.manual_seed(0)
sharded = fully_shard(Words(), mesh=init_device_mesh("cpu", (2,)))
before = sharded.words.weight.to_local().clone()
try: found["sharded"] = train_words(words_rows(50), sharded)
except (SftbookError, NotImplementedError) as e: found["sharded"] = type(e).__name__
found["untouched"] = torch.equal(before, sharded.words.weight.to_local())
json.dump(found, open(home / "found.json", "w"))
torch.distributed.destroy_process_group()
"""


def train_words(rows, model=None):
    "Weights after two epochs, as lists."
    import torch
    from test_trainer import Words

    torch.manual_seed(0)
    model = model or Words(0.3)
    config = TrainingConfig(learning_rate=0.05, num_train_epochs=2, per_device_train_batch_size=8)
    Trainer(model, words_loss, collate, config).fit(rows)
    return [p.tolist() for p in model.parameters()]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    "What each of two processes wrote."
    home = tmp_path_factory.mktemp("processes")
    (home / "train.py").write_text(PROCESSES, encoding="utf-8")
    env = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    command = [*LAUNCH, str(home / "train.py"), str(Path(__file__).parent), str(home)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return [json.loads((home / rank / "found.json").read_text()) for rank in "01"]


def test_two_processes_may_each_map_the_file(found):
    assert found[0]["file"] == found[0]["list"] == found[1]["file"]


def test_a_sharded_model_is_refused_and_left_alone(found):
    "Gradients of shards are no gradients of the model: better an error than such an update."
    refusals = [process["sharded"] for process in found]
    assert all(process["untouched"] for process in found)
    assert set(refusals) <= {"ConfigError", "NotImplementedError"}, refusals


def test_the_launcher_for_processors_still_starts_one_process(tmp_path):
    "What the chapter warns of; should accelerate change it, the chapter has to change, too."
    script = tmp_path / "who.py"
    script.write_text("import os\nprint('process', os.environ.get('RANK'))\n")
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2",
              "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    done = subprocess.run([*launch, str(script)], capture_output=True, text=True, timeout=120)
    assert done.stdout.split("\n") == ["process None", ""], done.stdout + done.stderr


LEARNS = """
import json, sys
from dataclasses import replace
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from accelerate import PartialState
from sftbook.tasks.protocol import fine_tune
from test_run import STEPS, news, task_of

task, out, rank = task_of(sys.argv[2]), Path(sys.argv[3]), PartialState(cpu=True).process_index
task.pooling = "mean"  # whose layer has weights that take no part
config = replace(STEPS, metric_for_best_model=None, num_train_epochs=2)
ways = {"full": {}, "head": {}, "lora": {}, "gradual": dict(gradual_unfreezing=True)}
for name, settings in ways.items():
    trained = "full" if settings else name
    model = fine_tune(task, news(), None, replace(config, **settings), trained=trained).model
    sums = [p.double().sum().item() for p in model.parameters()]
    (out / f"{name}.{rank}").write_text(json.dumps(sums))
"""


def test_whatever_learns_two_processes_end_in_the_same_weights(tiny_checkpoint, tmp_path):
    (tmp_path / "learns.py").write_text(LEARNS)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    words = [tmp_path / "learns.py", Path(__file__).parent, tiny_checkpoint, tmp_path]
    done = subprocess.run([*LAUNCH, *map(str, words)], env=environment, capture_output=True,
                          text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    for name in ("full", "head", "lora", "gradual"):
        one, two = ((tmp_path / f"{name}.{rank}").read_text() for rank in (0, 1))
        assert one == two and len(json.loads(one)) > 20, name
