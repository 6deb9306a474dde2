"""What the service bears, and what others bear with the same model and threads on the same machine.

    python tests/benchmarks/serving_load.py                    all of it, about an hour
    python tests/benchmarks/serving_load.py --short            the same in about two minutes
    python tests/benchmarks/serving_load.py --only peers kills
    python tests/benchmarks/serving_load.py --peer-python peer/bin/python

LitServe is measured where the Python of `--peer-python` has it; a virtual environment for it:

    python -m venv peer && peer/bin/pip install litserve torch transformers

Requests come at times that were drawn beforehand and do not wait for answers (an open loop): a
client of a slow service does not ask less, and the time of an answer begins when it was due. One
request holds one title. Results go to nbs/serving_load.json, which the chapter on the load shows.

peers      capacity (answers a second with 64 clients that wait), then times at 0.5 and 0.9 of it
overload   three times the capacity: who is accepted is answered, memory stays, no 5xx but 503
swaps      models exchanged under load
kills      the worker killed under load: seconds until it is ready again
malformed  requests that nobody should send
"""
import argparse
import asyncio
import json
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(HERE.parent))

import serving_clients as clients  # noqa: E402

SIZES = { # (short, whole)
    "rows": (200, 4000), "capacity_seconds": (5, 30), "rate_seconds": (5, 60),
    "overload_seconds": (15, 600), "swaps": (5, 100), "kills": (2, 10), "malformed": (500, 20_000)}


# ---- the model

def titles():
    "Titles of news with their topics; the first 200 are put aside."
    from sftbook.corpora import load_corpus
    news = load_corpus("bbc-news").remove_columns("text").rename_column("title", "text")
    return news.shuffle(seed=0)


def make_run(folder, rows):
    "MiniLM, fine-tuned on titles for one epoch."
    from sftbook.core import quiet
    from sftbook.tasks.protocol import fine_tune, predict
    from sftbook.tasks.saved_runs import save_run
    from sftbook.tasks.text_classification import TextClassification
    from sftbook.trainer import TrainingConfig

    news = titles()
    test = news.select(range(200))
    train = news.select(range(200, min(len(news), 200 + rows)))
    task = TextClassification.from_rows(train, max_length=64)
    with quiet():
        tuned = fine_tune(task, train, config=TrainingConfig(num_train_epochs=1))
    report = task.metrics(predict(task, tuned.model, test), test)
    save_run(folder, task, tuned.model, report)


# ---- services

class Ours:
    "sftbook serve."
    path = "/v1/models/news:predict"

    def __init__(self, run, threads):
        self.running = clients.Running(f"news={run}", "--threads", threads, "--max-bytes", 2**20)
        self.host, self.port = self.running.host, self.running.port
        self.process = psutil.Process(self.running.process.pid)

    def body(self, text):
        return json.dumps({"instances": [text]}).encode()

    def label(self, answer):
        return answer["predictions"][0]["prediction"]

    def end(self):
        self.running.process.send_signal(signal.SIGTERM)
        code = self.running.process.wait(120)
        self.running.end()
        assert code == 0, code


class Peer:
    "One of serving_peers.py."
    path, host = "/predict", "127.0.0.1"

    def __init__(self, kind, python, run, threads):
        with socket.create_server((self.host, 0)) as free:
            self.port = free.getsockname()[1]
        command = [python, HERE / "serving_peers.py", kind, run, self.port, threads]
        self.log = tempfile.TemporaryFile("w+")
        self.started = subprocess.Popen(list(map(str, command)), stdout=self.log, stderr=self.log)
        self.process = psutil.Process(self.started.pid)
        for _ in range(3000):
            if self.started.poll() is not None:
                break
            try:
                answer = asyncio.run(Client(self).ask("warm up"))
                if answer[0] == 200:
                    return
            except OSError:
                pass
            time.sleep(0.1)  # nothing says when a stranger is ready
        self.log.seek(0)
        raise RuntimeError(f"{kind} does not answer:\n{self.log.read()[-2000:]}")

    def body(self, text):
        return json.dumps({"text": text}).encode()

    def label(self, answer):
        return answer["label"]

    def end(self):
        for process in [*self.process.children(recursive=True), self.process]:
            process.kill()
        self.started.wait()


# ---- a generator of load

class Client:
    "Asks one service, over connections that are kept."
    def __init__(self, service, patience=120.):
        self.service, self.patience, self.free = service, patience, []

    async def ask(self, text):
        "(status, body) of the answer."
        body = self.service.body(text)
        head = (f"POST {self.service.path} HTTP/1.1\r\nhost: x\r\n"
                f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n")
        reader, writer = self.free.pop() if self.free else await asyncio.open_connection(
            self.service.host, self.service.port)
        try:
            async with asyncio.timeout(self.patience):
                writer.write(head.encode() + body)
                status, length, keep = await self._head(reader)
                answer = await reader.readexactly(length)
        except BaseException:
            writer.close()
            raise
        if keep:
            self.free.append((reader, writer))
        else:
            writer.close()
        return status, answer

    async def _head(self, reader):
        lines = (await reader.readuntil(b"\r\n\r\n")).lower().split(b"\r\n")
        length = next(int(line[15:]) for line in lines if line.startswith(b"content-length:"))
        return int(lines[0].split()[1]), length, b"connection: close" not in lines

    async def ask_safely(self, text):
        "The status; 0 where no answer came."
        try:
            return (await self.ask(text))[0]
        except (OSError, asyncio.IncompleteReadError, TimeoutError):
            return 0


async def closed_loop(service, texts, seconds, at_once=64):
    "Answers a second with so many clients that wait for their answers."
    client, end, count = Client(service), time.perf_counter() + seconds, [0]

    async def one(rng):
        while time.perf_counter() < end:
            count[0] += await client.ask_safely(rng.choice(texts)) == 200

    start = time.perf_counter()
    await asyncio.gather(*(one(random.Random(i)) for i in range(at_once)))
    return count[0] / (time.perf_counter() - start)


async def open_loop(service, texts, rate, seconds, seed=0):
    "(status, seconds since it was due) of requests that come by chance; and how long all took."
    rng, client, told, tasks, due = random.Random(seed), Client(service), [], set(), 0.
    start = time.perf_counter()

    async def one(text, due):
        status = await client.ask_safely(text)
        told.append((status, time.perf_counter() - start - due))

    while (due := due + rng.expovariate(rate)) < seconds:
        if (left := due - (time.perf_counter() - start)) > 0:
            await asyncio.sleep(left)
        task = asyncio.create_task(one(rng.choice(texts), due))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    if tasks:
        await asyncio.wait(tasks)
    return told, time.perf_counter() - start


def summary(told, seconds):
    "What came of an open loop."
    good = sorted(s for status, s in told if status == 200)
    statuses = [status for status, _ in told]
    counts = {str(status): statuses.count(status) for status in set(statuses)}
    at = {f"p{q}_ms": round(1000 * good[int(q / 100 * (len(good) - 1))], 1)
          for q in (50, 99) if good}
    rate = round(len(good) / seconds, 1)
    return dict(requests=len(told), statuses=counts, answers_a_second=rate, **at)


def memory(service):
    "MiB of a service and all that it started, each page once."
    family = [service.process, *service.process.children(recursive=True)]
    return round(sum(p.memory_full_info().pss for p in family) / 2**20)


# ---- what is measured

def measure_peers(run, texts, o):
    kinds = dict(sftbook=lambda: Ours(run, o.threads),
                 pipeline=lambda: Peer("pipeline", sys.executable, run, o.threads))
    if has_litserve(o.peer_python):
        kinds["litserve"] = lambda: Peer("litserve", o.peer_python, run, o.threads)
    found, labels = {}, {}
    for name, start in kinds.items():
        service = start()
        try:
            labels[name] = asyncio.run(all_labels(service, texts))
            asyncio.run(closed_loop(service, texts, 2))
            capacity = asyncio.run(closed_loop(service, texts, o.capacity_seconds))
            at = {}
            for share in (0.5, 0.9):
                told = asyncio.run(open_loop(service, texts, share * capacity, o.rate_seconds))
                at[str(share)] = summary(*told)
            found[name] = dict(capacity=round(capacity, 1), at_share_of_capacity=at,
                               memory_mib=memory(service))
        finally:
            service.end()
        print(name, json.dumps(found[name]), flush=True)
    for name in found:
        same = sum(a == b for a, b in zip(labels["sftbook"], labels[name]))
        found[name]["same_answers"] = f"{same} of {len(texts)}"
    return found


async def all_labels(service, texts):
    client = Client(service)
    return [service.label(json.loads((await client.ask(text))[1])) for text in texts]


def has_litserve(python):
    return not subprocess.run([python, "-c", "import litserve"], capture_output=True).returncode


def measure_overload(run, texts, o):
    service = Ours(run, o.threads)
    try:
        capacity = asyncio.run(closed_loop(service, texts, o.capacity_seconds))
        before, look = memory(service), []
        done = threading.Event()

        def watch():
            while not done.wait(1):
                look.append(memory(service))

        watcher = threading.Thread(target=watch)
        watcher.start()
        told = asyncio.run(open_loop(service, texts, 3 * capacity, o.overload_seconds))
        done.set()
        watcher.join()
        found = summary(*told) | dict(seconds=o.overload_seconds, rate=round(3 * capacity),
                                      memory_mib=dict(before=before, after=memory(service),
                                                      most=max(look, default=before)))
    finally:
        service.end()
    return found


def under_load(service, texts, rate, do):
    "Do something while requests come; what they were told, and what it gave."
    result, seconds, stop = [], 3600, threading.Event()

    async def load():
        rng, client, told, tasks = random.Random(0), Client(service), [], set()
        while not stop.is_set():
            await asyncio.sleep(rng.expovariate(rate))
            task = asyncio.create_task(client.ask_safely(rng.choice(texts)))
            tasks.add(task)
            task.add_done_callback(lambda t: (tasks.discard(t), told.append(t.result())))
        if tasks:
            await asyncio.wait(tasks, timeout=seconds)
        return told

    thread = threading.Thread(target=lambda: result.append(asyncio.run(load())))
    thread.start()
    try:
        given = do()
    finally:
        stop.set()
        thread.join()
    told = result[0]
    return {str(s): told.count(s) for s in sorted(set(told))}, given


def measure_swaps(run, texts, o):
    service = Ours(run, o.threads)

    def swap():
        seconds = []
        for _ in range(o.swaps):
            start = time.perf_counter()
            answer = clients.ask(service.running, "/v2/repository/models/news/load", {},
                                 x_operator_key=clients.OPERATOR)
            assert answer[0] == 200, answer
            seconds.append(time.perf_counter() - start)
        return seconds

    try:
        before = memory(service)
        statuses, seconds = under_load(service, texts, o.gentle, swap)
        return dict(swaps=o.swaps, statuses=statuses, memory_mib=[before, memory(service)],
                    seconds_median=round(statistics.median(seconds), 2))
    finally:
        service.end()


def measure_kills(run, texts, o):
    service = Ours(run, o.threads)

    def kill():
        seconds = []
        for _ in range(o.kills):
            worker, = service.running.workers()
            start = time.perf_counter()
            worker.kill()
            while True:
                now = [w.pid for w in service.running.workers()]
                ready = clients.ask(service.running, "/readyz")[0] == 200
                if ready and now and now != [worker.pid]:
                    break
                time.sleep(0.02)
            seconds.append(time.perf_counter() - start)
        return seconds

    try:
        statuses, seconds = under_load(service, texts, o.gentle, kill)
        return dict(kills=o.kills, statuses=statuses, seconds_most=round(max(seconds), 2),
                    seconds_median=round(statistics.median(seconds), 2))
    finally:
        service.end()


def measure_malformed(run, texts, o):
    service = Ours(run, o.threads)
    try:
        counts, leaks = clients.malformed(service.running, ["news"], o.malformed, seed=1)
        ready = clients.ask(service.running, "/readyz")[0]
        return dict(requests=o.malformed, statuses={str(k): v for k, v in sorted(counts.items())},
                    leaks=len(leaks), examples=[str(leak)[:300] for leak in leaks[:5]], ready=ready)
    finally:
        service.end()


PARTS = dict(peers=measure_peers, overload=measure_overload, swaps=measure_swaps,
             kills=measure_kills, malformed=measure_malformed)


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--threads", type=int, default=2, help="of the model, for everybody")
    parser.add_argument("--gentle", type=float, default=20., help="requests a second, beside swaps")
    parser.add_argument("--peer-python", default=sys.executable)
    parser.add_argument("--run", type=Path, help="a saved run, instead of one that is trained here")
    parser.add_argument("--output", type=Path, default=ROOT / "nbs" / "serving_load.json")
    o = parser.parse_args()
    for name, sizes in SIZES.items():
        setattr(o, name, sizes[not o.short])
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from sftbook.core import hardware
    found = json.loads(o.output.read_text()) if o.output.exists() else {}
    with tempfile.TemporaryDirectory() as home:
        if not o.run:
            o.run = Path(home) / "news"
            make_run(o.run, o.rows)
        texts = titles().select(range(200))["text"][:]
        for part in o.only:
            load = round(os.getloadavg()[0], 1)
            result = PARTS[part](o.run, texts, o)
            found[part] = dict(result=result, short=o.short, threads=o.threads,
                               load_before=load, machine=str(hardware()))
            print(part, json.dumps(found[part]), flush=True)
            o.output.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
