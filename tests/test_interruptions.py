"Runs that are killed, stopped or find a damaged checkpoint: the end is the same, or a clear error."
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_trainer import Words, collate, fit, same, words_loss, words_rows

from sftbook import folders
from sftbook.core import (CheckpointError, ConfigError, SftbookError, TrainingError, read_json,
                          write_json)
from sftbook.folders import write_manifest
from sftbook.trainer import Trainer, TrainingConfig

HERE = str(Path(__file__).parent)

# Twenty kills. A process imports everything once and forks a child for each process of each run. A
# hook counts what a run does and sends it SIGKILL in the middle: in a step, before or after a file
# is written, forced to the disk, renamed or deleted.
KILLS = '''
import json, os, random, shutil, signal, socket, sys
from pathlib import Path

import accelerate.utils
import psutil
import safetensors.torch
import torch
import tqdm

home = Path(sys.argv[1])
sys.path.insert(0, sys.argv[2])
import test_trainer
from sftbook import trainer
from sftbook.core import TrainingError
from sftbook.trainer import Trainer, TrainingConfig

HOOKS = {"replace": (os, "replace"), "fsync": (os, "fsync"), "rename": (Path, "rename"),
         "delete": (shutil, "rmtree"), "tensors": (safetensors.torch, "save_file"),
         "weights": (safetensors.torch, "save_model"), "step": (test_trainer, "words_loss")}
SAVING = [kind for kind in HOOKS if kind != "step"]


def hooked(known, kind, seen, kill):
    def call(*arguments, **more):
        seen.append(kind)
        mine = kill and kill[:2] == [kind, seen.count(kind)]
        if mine and kill[2] == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        value = known(*arguments, **more)
        if mine:
            os.kill(os.getpid(), signal.SIGTERM if kill[2] == "asked" else signal.SIGKILL)
        return value

    return call


def train(name, resume, kill, rank):
    seen = []
    for kind, (place, attribute) in HOOKS.items():
        setattr(place, attribute, hooked(getattr(place, attribute), kind, seen, kill))
    torch.manual_seed(0)
    model = test_trainer.Words(dropout=0.4)
    config = TrainingConfig(
        learning_rate=0.05, num_train_epochs=3, per_device_train_batch_size=8, save_steps=2,
        metric_for_best_model="score", bf16=False)
    trainer = Trainer(
        model, test_trainer.words_loss, test_trainer.collate, config,
        evaluate=lambda model: {"score": model.head.weight.sum().item()}, checkpoints=home / name)
    result = trainer.fit(test_trainer.words_rows(80), resume=resume)
    state = result.state
    same = "step epoch tokens rows history evaluations best best_step processes"
    if rank == 0:
        kept = {key: getattr(state, key) for key in same.split()} | dict(
            weights=[p.tolist() for p in model.parameters()], messages=result.messages, seen=seen)
        (home / f"{name}.json").write_text(json.dumps(kept))


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return str(s.getsockname()[1])


def fork(name, resume, kill, rank, processes, port):
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        sys.stdout = sys.stderr = open(home / f"{name}.log", "a")
        if processes > 1:
            os.environ |= dict(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(processes),
                               MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
        train(name, resume, kill if kill and kill[3] == rank else None, rank)
        code = 0
    except TrainingError as error:  # it was asked to stop
        (home / f"{name}.stopped.{rank}").write_text(str(error))
    except BaseException:
        import traceback
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def run(name, processes, resume=False, kill=None):
    "Whether it ended well. As torchrun does it, the death of one process is the end of all."
    port = free_port()
    children = [fork(name, resume, kill, rank, processes, port) for rank in range(processes)]
    codes = []
    while children:
        child, status = os.wait()
        children.remove(child)
        codes.append(os.waitstatus_to_exitcode(status))
        if codes[-1] and not (kill and kill[2] == "asked"):
            for other in children:
                os.kill(other, signal.SIGKILL)
    wanted = [0] * processes
    killed = kill and (-signal.SIGKILL in codes or kill[2] == "asked" and set(codes) == {1})
    assert codes == wanted or killed, (name, codes, (home / f"{name}.log").read_text())
    return not killed


warm = torch.nn.Parameter(torch.ones(1))  # an optimizer imports much with its first step
warm.grad = torch.ones(1)
torch.optim.AdamW([warm], fused=True).step()
draw = random.Random(0)
for processes, runs in ((1, 7), (2, 3)):
    run(f"straight-{processes}", processes)
    seen = json.loads((home / f"straight-{processes}.json").read_text())["seen"]
    for i in range(runs):
        name, kinds = f"killed-{processes}-{i}", list(HOOKS)
        first, second = kinds[i % len(kinds)], draw.choice(kinds)
        for kind, most in ((first, seen.count(first) // 2), (second, 2)):
            rank = draw.randrange(processes) if kind == "step" else 0
            when = [kind, draw.randint(1, max(1, most)), draw.choice(["before", "after"]), rank]
            assert not run(name, processes, (home / name).exists(), when), when
            print(json.dumps([name, *when]), flush=True)
        run(name, processes, True)
    name = f"asked-{processes}"
    assert not run(name, processes, kill=["step", 8, "asked", processes - 1])
    run(name, processes, True)
'''


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    "What twenty kills have left, by name of the run; and the kills."
    home = tmp_path_factory.mktemp("kills")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run([sys.executable, "-c", KILLS, str(home), HERE], env=environment,
                          capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    kills = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    stopped = {path.name: path.read_text() for path in home.glob("*.stopped.*")}
    return {path.stem: read_json(path) for path in home.glob("*.json")}, kills, stopped


def test_twenty_kills_were_spread_over_steps_and_saves(killed):
    _, kills, _ = killed
    assert len(kills) == 20 and len({name for name, *_ in kills}) == 10
    kinds = {kind for _, kind, *_ in kills}
    assert kinds == {"step", "replace", "fsync", "rename", "delete", "tensors", "weights"}


RUNS = [f"killed-1-{i}" for i in range(7)] + [f"killed-2-{i}" for i in range(3)]


@pytest.mark.parametrize("name", RUNS)
def test_a_run_that_was_killed_twice_ends_bit_for_bit_like_one_that_was_not(killed, name):
    runs, *_ = killed
    straight, resumed = runs[f"straight-{name.split('-')[1]}"], runs[name]
    assert not straight["messages"] and resumed["messages"]
    processes = int(name.split("-")[1])
    assert resumed["processes"] == processes and len(resumed["history"]) == 30 // processes
    different = [key for key in straight
                 if key not in ("messages", "seen") and straight[key] != resumed[key]]
    assert different == []


# Signals. SIGTERM ends a run after a step and with a checkpoint, Ctrl-C at once.

@pytest.mark.parametrize("processes", [1, 2])
def test_sigterm_to_one_process_stops_all_after_the_same_step(killed, processes):
    runs, _, stopped = killed
    said = [stopped[f"asked-{processes}.stopped.{rank}"] for rank in range(processes)]
    step = int(re.search(r"after step (\d+)", said[0])[1])
    assert step in (8, 9) and len(set(said)) == 1  # one more where it came after the exchange
    assert f"step-{step:08d}" in said[0] and "--resume" in said[0]
    straight, resumed = runs[f"straight-{processes}"], runs[f"asked-{processes}"]
    assert resumed["messages"] == [f"resumed after step {step} from step-{step:08d}"]
    assert resumed["weights"] == straight["weights"]


def interrupted(number, after):
    "A loss in whose call number `after` a signal comes."
    calls = []

    def loss(model, batch):
        calls.append(1)
        if len(calls) == after:
            signal.raise_signal(number)
        return words_loss(model, batch)

    return loss


def test_sigterm_finishes_the_step_and_gives_the_handler_back(whole, tmp_path):
    before, more = signal.getsignal(signal.SIGTERM), dict(evaluate=score, checkpoints=tmp_path)
    with pytest.raises(TrainingError, match="asked to stop .SIGTERM. and did so after step 6"):
        fit(USUAL, loss=interrupted(signal.SIGTERM, 6), **more)
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["step-00000004", "step-00000006"]
    assert signal.getsignal(signal.SIGTERM) is before
    model, result = fit(USUAL, resume=True, **more)
    assert result.messages == ["resumed after step 6 from step-00000006"] and same(model, whole[1])


def test_sigterm_in_the_last_step_of_an_epoch_loses_no_evaluation(whole, tmp_path):
    more = dict(evaluate=score, checkpoints=tmp_path)
    for last in (8, 4):  # of the second epoch, then of the third, which the resumed run begins
        with pytest.raises(TrainingError):
            fit(USUAL, loss=interrupted(signal.SIGTERM, last), resume=last == 4, **more)
    model, result = fit(USUAL, resume=True, **more)
    assert len(result.state.evaluations) == 3 and same(model, whole[1])


def test_sigterm_without_checkpoints_says_that_nothing_was_kept():
    with pytest.raises(TrainingError, match="nothing was kept"):
        fit(loss=interrupted(signal.SIGTERM, 3))


def test_ctrl_c_stops_at_once_and_costs_the_steps_since_the_last_checkpoint(whole, tmp_path):
    more = dict(evaluate=score, checkpoints=tmp_path)
    with pytest.raises(KeyboardInterrupt):
        fit(USUAL, loss=interrupted(signal.SIGINT, 7), **more)
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000004"]
    model, result = fit(USUAL, resume=True, **more)
    assert result.messages == ["resumed after step 4 from step-00000004"] and same(model, whole[1])


@pytest.mark.parametrize("seconds, kept", [(1e-9, ["11", "12"]), (1e9, ["08", "12"])])
def test_a_checkpoint_is_written_when_the_last_one_is_old(whole, tmp_path, seconds, kept):
    config = TrainingConfig(**vars(USUAL) | dict(save_seconds=seconds))
    model, _ = fit(config, evaluate=score, checkpoints=tmp_path)
    assert [p.name[-2:] for p in sorted(tmp_path.iterdir())] == kept and same(model, whole[1])


# Damage. A run of twelve steps has checkpoints 8 and 12; something happens to 12.

USUAL = TrainingConfig(learning_rate=0.05, bf16=False, metric_for_best_model="score")


def score(model):
    return {"score": model.head.weight.sum().item()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    model, _ = fit(USUAL, evaluate=score, checkpoints=folder)
    assert [p.name for p in sorted(folder.iterdir())] == ["step-00000008", "step-00000012"]
    return folder, model


def flip(file, where=0.5):
    data = bytearray(file.read_bytes())
    data[int(len(data) * where)] ^= 1
    file.write_bytes(data)


def in_place_of(file, make):
    file.unlink()
    make(file)


def alter_manifest(path, change):
    write_json(path / "MANIFEST.json", change(read_json(path / "MANIFEST.json")))


DAMAGE = {  # what happens to a checkpoint, and the file that the message must name
    "cut weights": (lambda p: os.truncate(p / "model.safetensors", 100), "model.safetensors"),
    "weights with another bit": (lambda p: flip(p / "model.safetensors"), "model.safetensors"),
    "moments with another bit": (
        lambda p: flip(p / "optimizer.safetensors"), "optimizer.safetensors"),
    "best weights with another bit": (lambda p: flip(p / "best.safetensors"), "best.safetensors"),
    "generators with another bit": (
        lambda p: flip(p / "random.safetensors", 0.9), "random.safetensors"),
    "a state with another bit": (lambda p: flip(p / "state.json"), "state.json"),
    "a file is missing": (lambda p: (p / "random.safetensors").unlink(), "random.safetensors"),
    "an empty file": (lambda p: (p / "optimizer.safetensors").write_bytes(b""), "optimizer"),
    "zeros, as after a power cut": (
        lambda p: (p / "state.json").write_bytes(bytes(900)), "state.json"),
    "no manifest": (lambda p: (p / "MANIFEST.json").unlink(), "MANIFEST.json"),
    "an empty manifest": (lambda p: alter_manifest(p, lambda m: {}), "MANIFEST.json"),
    "a manifest that is a list": (lambda p: alter_manifest(p, list), "MANIFEST.json"),
    "a manifest that is no JSON": (
        lambda p: (p / "MANIFEST.json").write_text("{"), "MANIFEST.json"),
    "a manifest with another hash": (
        lambda p: alter_manifest(p, lambda m: m | {"state.json": "0" * 64}), "state.json"),
    "a manifest with a hash that is none": (
        lambda p: alter_manifest(p, lambda m: m | {"state.json": [1]}), "state.json"),
    "a manifest that lacks a file": (
        lambda p: alter_manifest(p, lambda m: {k: m[k] for k in m if k != "state.json"}),
        "MANIFEST.json"),
    "a manifest that lists what is elsewhere": (
        lambda p: alter_manifest(p, lambda m: m | {"../step-00000008/state.json": "0"}),
        "state.json"),
    "a name that no system can open": (
        lambda p: alter_manifest(p, lambda m: m | {"a" * 300: "0"}), "a" * 300),
    "a folder in place of a file": (
        lambda p: in_place_of(p / "state.json", Path.mkdir), "state.json"),
    "a pipe in place of a file": (lambda p: in_place_of(p / "state.json", os.mkfifo), "state.json"),
    "a link to a file that is the same today": (
        lambda p: in_place_of(
            p / "state.json", lambda f: f.symlink_to(shutil.copy(__file__, p.parent / "x"))),
        "state.json"),
    "a link in a circle": (
        lambda p: in_place_of(p / "state.json", lambda f: f.symlink_to(f)), "state.json"),
    "a file in place of the folder": (
        lambda p: (shutil.rmtree(p), p.write_text("not a folder")), "MANIFEST.json"),
    "an empty folder": (lambda p: (shutil.rmtree(p), p.mkdir()), "MANIFEST.json")}


@pytest.fixture
def folder(whole, tmp_path):
    "A copy of the run's checkpoints, to be damaged."
    return shutil.copytree(whole[0], tmp_path / "checkpoints")


def resumed(folder):
    return fit(USUAL, evaluate=score, checkpoints=folder, resume=True)


@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(whole, folder, what):
    damage, file = DAMAGE[what]
    damage(folder / "step-00000012")
    model, result = resumed(folder)
    said = [m for m in result.messages if "damaged" in m and "step-00000012" in m and file in m]
    assert said and "What to do" in said[0], result.messages
    assert "resumed after step 8 from step-00000008" in result.messages
    assert same(model, whole[1])
    again, result = resumed(folder)  # the run has written a whole one in its place
    assert "resumed after step 12 from step-00000012" in result.messages and same(again, whole[1])


def test_a_link_to_the_very_file_is_no_checkpoint(folder):
    file = folder / "step-00000012" / "state.json"
    kept = shutil.move(file, folder / "kept.json")
    file.symlink_to(kept)
    assert any("is a link" in m for m in resumed(folder)[1].messages)


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to root")
@pytest.mark.parametrize("name", ["state.json", "MANIFEST.json", "."])
def test_a_checkpoint_that_may_not_be_read_is_skipped(folder, name):
    (folder / "step-00000012" / name).chmod(0)
    try:
        said = resumed(folder)[1].messages
    finally:
        (folder / "step-00000012" / name).chmod(0o700)
    assert "denied" in said[0]


def test_a_file_that_cannot_be_read_is_skipped(folder, monkeypatch):
    def sha256(path):
        if path.parent.name == "step-00000012" and path.name == "state.json":
            raise PermissionError(13, "Permission denied")
        return known(path)

    known = folders.sha256
    monkeypatch.setattr(folders, "sha256", sha256)
    said = resumed(folder)[1].messages
    assert "state.json cannot be read: Permission denied" in said[0]


def test_what_somebody_has_put_into_a_checkpoint_is_said_not_read_and_not_deleted(whole, folder):
    for step in ("step-00000008", "step-00000012"):
        (folder / step / "notes.txt").write_text("mine")
    model, result = resumed(folder)
    assert "notes.txt in step-00000012" in result.messages[0] and same(model, whole[1])
    shutil.rmtree(folder / "step-00000012" / "state.json", ignore_errors=True)
    (folder / "step-00000012" / "state.json").unlink()
    resumed(folder)
    kept = sorted(path.parent.name for path in folder.rglob("notes.txt"))
    assert kept == ["step-00000008", "step-00000012.damaged-1"]


def test_best_weights_that_no_manifest_lists_are_not_used(folder, whole):
    torch.manual_seed(0)
    for step in folder.glob("step-*"):
        shutil.copy(step / "best.safetensors", step / "more.safetensors")
        other = {k: v + 1 for k, v in load_file(step / "best.safetensors").items()}
        save_file(other, step / "best.safetensors")
        alter_manifest(step, lambda m: {k: m[k] for k in m if k != "best.safetensors"})
    with pytest.raises(CheckpointError, match="best.safetensors is not listed"):
        resumed(folder)


def test_the_last_whole_checkpoint_is_not_deleted_for_the_sake_of_a_damaged_one(folder):
    config = TrainingConfig(**vars(USUAL) | dict(save_total_limit=1, save_steps=1))
    flip(folder / "step-00000012" / "model.safetensors")
    calls = []

    def loss(model, batch):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return words_loss(model, batch)

    more = dict(evaluate=score, checkpoints=folder)
    with pytest.raises(KeyboardInterrupt):
        fit(config, loss=loss, resume=True, **more)
    _, result = fit(config, resume=True, **more)
    assert "resumed after step 10 from step-00000010" in result.messages


def edit(path, **changes):
    write_json(path / "state.json", read_json(path / "state.json") | changes)


def save_changed(file, change):
    save_file({name: change(name, tensor) for name, tensor in load_file(file).items()}, file)


class Payload:
    def __reduce__(self):
        return os.mkdir, ("executed",)


def write_huge_header(file):
    file.write_bytes((2**62).to_bytes(8, "little") + b"{}")


STATE, WEIGHTS, MOMENTS = "state.json", "model.safetensors", "optimizer.safetensors"
BEST, DRAWS = "best.safetensors", "random.safetensors"
FORGED = {  # the manifest fits, and a file does not
    "a pickle": (lambda p: (p / WEIGHTS).write_bytes(pickle.dumps(Payload())), WEIGHTS),
    "a pickle of moments": (lambda p: torch.save({"a": torch.ones(1)}, p / MOMENTS), MOMENTS),
    "a header of exabytes": (lambda p: write_huge_header(p / DRAWS), DRAWS),
    "weights of another shape": (
        lambda p: save_changed(p / WEIGHTS, lambda n, t: torch.zeros(3, 3)), WEIGHTS),
    "weights of another format": (
        lambda p: save_changed(p / WEIGHTS, lambda n, t: t.half()), WEIGHTS),
    "a weight is missing": (
        lambda p: save_file({"head.bias": torch.zeros(2)}, p / WEIGHTS), WEIGHTS),
    "a weight too many": (
        lambda p: save_file(load_file(p / WEIGHTS) | {"tail": torch.ones(1)}, p / WEIGHTS),
        WEIGHTS),
    "best weights of another model": (
        lambda p: save_changed(p / BEST, lambda n, t: t.reshape(-1)), BEST),
    "moments of another model": (
        lambda p: save_changed(p / MOMENTS, lambda n, t: t if n.endswith("step") else t[:1]),
        MOMENTS),
    "moments of more weights": (
        lambda p: save_file(load_file(p / MOMENTS) | {"9.step": torch.ones(())}, p / MOMENTS),
        MOMENTS),
    "half of the moments": (
        lambda p: save_file({k: t for k, t in load_file(p / MOMENTS).items()
                             if k != "1.exp_avg_sq"}, p / MOMENTS), MOMENTS),
    "no moments": (lambda p: save_file({}, p / MOMENTS), MOMENTS),
    "names that are no moments": (
        lambda p: save_file({"a": torch.ones(1)}, p / MOMENTS), MOMENTS),
    "no generators": (lambda p: save_file({}, p / DRAWS), DRAWS),
    "generators of another kind": (
        lambda p: save_changed(p / DRAWS, lambda n, t: t[:100].clone()), DRAWS),
    "generators that are no bytes": (
        lambda p: save_changed(p / DRAWS, lambda n, t: t.float()), DRAWS),
    "a state that is a list": (lambda p: write_json(p / STATE, [1]), "version"),
    "a state without a step": (
        lambda p: write_json(p / STATE, {"identity": {}}), "version"),
    "a state of a later version": (lambda p: edit(p, mood="fine"), "version"),
    "an identity that is a text": (lambda p: edit(p, identity="me"), "version"),
    "a step that is a text": (lambda p: edit(p, step="12"), STATE),
    "a step that is true": (lambda p: edit(p, step=True), STATE),
    "a step below zero": (lambda p: edit(p, step=-12), STATE),
    "a step of a hundred digits": (lambda p: edit(p, step=10**100), STATE),
    "the state of another step": (lambda p: edit(p, step=8), STATE),
    "an epoch that ends the run": (lambda p: edit(p, epoch=900), STATE),
    "a history that is no list": (lambda p: edit(p, history={}), STATE),
    "a history of numbers": (lambda p: edit(p, history=[1, 2]), STATE),
    "seconds that are no number": (lambda p: edit(p, seconds=float("nan")), STATE),
    "a format that is none": (lambda p: edit(p, dtype="__doc__"), STATE),
    "a best that nothing has": (lambda p: edit(p, best=None), STATE)}


@pytest.mark.parametrize("what", FORGED)
def test_what_does_not_fit_is_refused_by_name_before_anything_is_loaded(folder, what, monkeypatch):
    monkeypatch.chdir(folder)
    forge, file = FORGED[what]
    forge(folder / "step-00000012")
    write_manifest(folder / "step-00000012")
    torch.manual_seed(5)
    model = Words()
    before = [p.clone() for p in model.parameters()]
    trainer = Trainer(model, words_loss, collate, USUAL, evaluate=score, checkpoints=folder)
    with pytest.raises(SftbookError, match=file) as error:
        trainer.fit(words_rows(), resume=True)
    assert isinstance(error.value, (CheckpointError, ConfigError)) and error.value.remedy
    assert "step-00000012" in str(error.value) and not (folder / "executed").exists()
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters()))


def test_a_place_that_cannot_hold_checkpoints_is_refused_before_the_first_step(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ConfigError, match="not a folder"):
        fit(checkpoints=tmp_path / "file")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="not a folder"):
        fit(checkpoints=tmp_path / "link")
