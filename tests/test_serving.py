"""The service as a program: answers of the run, exchanges and deaths of models under load, an
orderly end, and clients that send what nobody should. The large numbers (20,000 malformed requests,
100 exchanges, ten minutes of overload) are those of tests/benchmarks/serving_load.py."""
import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
import serving_clients as clients
from datasets import ClassLabel, Dataset, Features, Value

from sftbook.cli import main
from sftbook.core import quiet

pytest.importorskip("fastapi")

SPORT = "the striker scored goal match keeper coach final team won cup".split()
BUSINESS = "shares profit bank market oil rose fell quarter a the".split()


def texts(n, seed=0):
    "Texts of very different lengths, sport and business in turn."
    rng = random.Random(seed)
    return [" ".join(rng.choices((SPORT, BUSINESS)[i % 2], k=rng.randrange(1, 60)))
            for i in range(n)]


def labelled(n):
    kinds = Features(text=Value("string"), label=ClassLabel(names=["sport", "business"]))
    return Dataset.from_dict({"text": texts(n), "label": [i % 2 for i in range(n)]}, features=kinds)


@pytest.fixture(scope="module")
def folders(tmp_path_factory, tiny_checkpoint):
    "Two saved runs: a small network, and a linear model."
    from sftbook.tasks.linear import fit_linear
    from sftbook.tasks.protocol import fine_tune, predict
    from sftbook.tasks.saved_runs import save_run
    from sftbook.tasks.text_classification import TextClassification
    from sftbook.trainer import TrainingConfig

    home, rows = tmp_path_factory.mktemp("runs"), labelled(64)
    task = TextClassification.from_rows(rows, checkpoint=str(tiny_checkpoint), max_length=64)
    with quiet():
        tuned = fine_tune(task, rows, config=TrainingConfig(num_train_epochs=2))
    runs = dict(tiny=(task, tuned.model), linear=fit_linear(rows))
    for name, (of, model) in runs.items():
        save_run(home / name, of, model, of.metrics(predict(of, model, rows), rows))
    return home


@pytest.fixture(scope="module")
def service(folders):
    "Both of them, served by the command."
    words = (f"tiny={folders / 'tiny'}", folders / "linear", "--queue", 64, "--batch-size", 16,
             "--max-rows", 64, "--seconds", 120, "--feedback", folders / "corrections.db")
    running = clients.Running(*words)
    yield running
    running.end()


def predict(service, name, instances, **more):
    return clients.ask(service, f"/v1/models/{name}:predict", {"instances": instances}, **more)


@contextlib.contextmanager
def held(service):
    "The workers stand still; how many rows they would have read is known."
    workers = service.workers()
    for worker in workers:
        worker.suspend()
    try:
        yield
    finally:
        for worker in workers:
            worker.resume()


def until(condition, seconds=120):
    "Wait for something that another process does."
    end, wake = time.monotonic() + seconds, threading.Event()
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        wake.wait(0.05)


def metric(service, start):
    lines = clients.ask(service, "/metrics")[2].splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(start))


def test_the_modules_that_talk_with_clients_do_not_import_torch():
    code = "import sys, sftbook.serving, sftbook.run_process; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr


def test_a_library_that_is_missing_is_named_and_a_folder_that_is_no_run_is_refused(capsys):
    with pytest.raises(SystemExit) as end:
        main(["serve", "runs/nowhere"])
    said = capsys.readouterr().err
    assert end.value.code == 2 and "no such folder" in said and "Traceback" not in said


@pytest.mark.parametrize("name", ["tiny", "linear"])
def test_answers_are_those_of_the_run_row_by_row(service, folders, name):
    from sftbook.tasks.saved_runs import load_run
    rows = texts(60, seed=1)
    expected = load_run(folders / name).predict(rows)
    with ThreadPoolExecutor(8) as threads: # alone, among rows of others
        alone = list(threads.map(lambda row: predict(service, name, row)[2], rows))
    together = predict(service, name, rows)[2]
    tensor = dict(name="text", datatype="BYTES", shape=[len(rows)], data=rows)
    long = clients.ask(service, f"/v2/models/{name}/infer", dict(inputs=[tensor]))[2]["outputs"]
    for i, label in enumerate(expected.names):
        scores = dict(zip(expected.label_names, expected.probabilities[i].tolist()))
        for answer in (alone[i]["predictions"][0], together["predictions"][i]):
            assert answer["prediction"] == label == long[0]["data"][i]
            assert answer["probabilities"] == pytest.approx(scores, abs=2e-4)
    flat = [p for row in expected.probabilities.tolist() for p in row]
    assert long[1]["data"] == pytest.approx(flat, abs=2e-4)


def test_a_bad_row_has_its_problem_and_its_neighbours_their_answers(service):
    status, _, said = predict(service, "tiny", ["goal", "", 7, None, "\ud800", "x" * 10**6, ["a"],
                                                "profit"])
    assert status == 200 and all("prediction" in said["predictions"][i] for i in (0, 7))
    assert all("problem" in answer for answer in said["predictions"][1:7])


@pytest.mark.parametrize("path, said, status, field", [
    ("/v1/models/tiny:predict", b"{", 422, "body"),
    ("/v1/models/tiny:predict", {"instances": []}, 422, "instances"),
    ("/v1/models/tiny:predict", {"instances": [""]}, 422, "instances[0]"),
    ("/v1/models/tiny:predict", {"instances": ["x" * 10**6]}, 413, "instances[0]"),
    ("/v1/models/tiny:predict", {"instances": ["a"] * 65}, 413, "instances"),
    ("/v1/models/tiny:predict", b" " * 5_000_000, 413, None),
    ("/v1/models/tinny:predict", {"instances": ["a"]}, 404, "tinny"),
    ("/v2/models/tiny/infer", {"inputs": []}, 422, "inputs"),
    ("/v2/models/tiny/versions/0/infer", {"inputs": []}, 404, "tiny"),
    ("/v2/repository/models/tiny/load", {}, 403, None),
    ("/nowhere", None, 404, None),
    ("/v1/models/tiny", {}, 405, None),
])
def test_a_mistake_is_answered_with_its_field(service, path, said, status, field):
    found, _, answer = clients.ask(service, path, said)
    assert (found, answer.get("field")) == (status, field) and answer["error"]


def test_examples_of_the_description_can_be_sent(service):
    said = clients.ask(service, "/openapi.json")[2]
    for path, operations in said["paths"].items():
        body = operations.get("post", {}).get("requestBody")
        if body:
            example = body["content"]["application/json"]["examples"]["rows"]["value"]
            version = clients.ask(service, "/v1/models/tiny")[2]["version"]
            address = path.replace("{name}", "tiny").replace("{version}", version)
            assert clients.ask(service, address, example)[0] == 200


def test_the_page_needs_no_other_host(service):
    status, headers, page = clients.ask(service, "/")
    assert status == 200 and "default-src 'none'" in headers["content-security-policy"]
    assert "http:" not in page and "https:" not in page and "//" not in page.replace("</", "")


def test_corrections_are_kept_beside_the_answers(service, folders):
    from sftbook.feedback import FeedbackStore
    said = [dict(row="late goal", correct="sport", predicted="business"),
            dict(row="shares fell", correct="business")]
    for name in ("tiny", "linear"):
        path = f"/v1/models/{name}:feedback"
        status, _, told = clients.ask(service, path, dict(corrections=said))
        assert (status, told) == (200, dict(model=name, kept=2))
        wrong = dict(corrections=[said[0], said[1] | dict(correct="weather")])
        status, _, told = clients.ask(service, path, wrong)
        assert (status, told["field"]) == (422, "corrections[1].correct")
    store = FeedbackStore(folders / "corrections.db")
    kept = store.corrections("tiny")
    store.close()
    facts = clients.ask(service, "/v1/models/tiny")[2]
    assert [(one.row, one.correct, one.predicted, one.version) for one in kept] == [
        ("late goal", "sport", "business", facts["version"]),
        ("shares fell", "business", None, facts["version"])]


def test_malformed_requests_break_nothing_and_are_told_nothing(service):
    counts, leaks = clients.malformed(service, ["tiny", "linear"], 300)
    assert not leaks and sum(counts.values()) == 300 and counts.get(422, 0) > 30, counts
    assert predict(service, "tiny", "goal")[0] == 200


def test_a_client_that_leaves_is_cancelled(service):
    left = 'sftbook_requests_total{route="/v1/models/{name}:predict",status="499"}'
    before = metric(service, left)
    with held(service):
        for _ in range(3): # the first may already be with the worker
            body = json.dumps({"instances": ["goal"] * 16}).encode()
            with socket.create_connection((service.host, service.port)) as connection:
                connection.sendall(b"POST /v1/models/tiny:predict HTTP/1.1\r\nhost: x\r\n"
                                   b"content-length: %d\r\n\r\n" % len(body) + body)
        until(lambda: metric(service, left) == before + 3)
        assert predict_later(service, 16).running()
    until(lambda: metric(service, 'sftbook_waiting{model="tiny"}') == 0)


def predict_later(service, rows):
    "A request that will be answered when the workers go on; it has been queued."
    threads = ThreadPoolExecutor(1)
    future = threads.submit(predict, service, "tiny", ["goal"] * rows)
    until(future.running)
    threads.shutdown(wait=False)
    return future


def test_a_full_queue_says_when_to_come_again(service):
    with held(service):
        waiting = [predict_later(service, 60) for _ in range(3)]
        until(lambda: any(future.done() for future in waiting))
        full = [future.result() for future in waiting if future.done()]
    assert {status for status, _, _ in full} == {503}
    assert all(int(headers["retry-after"]) >= 1 for _, headers, _ in full)
    answered = [future.result() for future in waiting]
    assert sum(status == 200 for status, _, _ in answered) >= 1


@contextlib.contextmanager
def asking(service, name="tiny", clients_at_once=4):
    "Clients that ask all the time; what they were told, as numbers."
    done, told = threading.Event(), []

    def ask():
        while not done.is_set():
            told.append(predict(service, name, ["goal keeper", "bank profit"])[0])

    threads = [threading.Thread(target=ask) for _ in range(clients_at_once)]
    for thread in threads:
        thread.start()
    try:
        yield told
    finally:
        done.set()
        for thread in threads:
            thread.join()


def exchange(service, name):
    return clients.ask(service, f"/v2/repository/models/{name}/load", {},
                       x_operator_key=clients.OPERATOR)


def test_models_are_exchanged_under_load_without_a_failed_request(service):
    with asking(service, "linear") as told:
        answers = [exchange(service, "linear")[0] for _ in range(2)]
        service.process.send_signal(signal.SIGHUP)
        until(lambda: "linear: version" in service.logged())
    assert answers == [200, 200] and set(told) == {200} and len(told) > 4


def test_a_run_that_is_no_good_does_not_take_over(service, folders):
    file = folders / "linear" / "task.json"
    good = file.read_text()
    try:
        file.write_text(good.replace("sport", "sports"))
        status, _, said = exchange(service, "linear")
        assert status == 409 and str(folders) not in json.dumps(said)
        assert predict(service, "linear", "goal keeper")[0] == 200
    finally:
        file.write_text(good)


def test_a_killed_worker_is_replaced_and_who_waits_for_it_is_told(service):
    killed = service.workers()
    with asking(service) as told:
        until(lambda: len(told) > 3)
        start = time.monotonic()
        for worker in killed:
            worker.kill()
        until(lambda: clients.ask(service, "/readyz")[0] == 200
              and not {w.pid for w in killed} & {w.pid for w in service.workers()}, 600)
        seconds, number = time.monotonic() - start, len(told)
        until(lambda: len(told) > number + 3)
    assert set(told) <= {200, 503} and told[-1] == 200
    assert metric(service, 'sftbook_restarts{model="tiny"}') >= 1
    busy = os.getloadavg()[0] > 1.5 * os.cpu_count()
    assert busy or seconds < 5, f"{seconds:.1f} s"


def test_a_worker_that_dies_again_and_again_leaves_no_reader_and_no_pipe_behind(folders):
    from sftbook.core import SftbookError
    from sftbook.run_process import RunProcess
    run = RunProcess(folders / "linear", patience=60.)
    done, answered, opened = threading.Event(), [], psutil.Process().num_fds()

    def ask():
        while not done.is_set():
            with contextlib.suppress(SftbookError):
                answered.append(len(run.answer(["goal", "shares"])))

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    for number in range(1, 31):
        os.kill(run.pid, signal.SIGKILL)
        end, so_far = time.monotonic() + 60, len(answered)
        while run.restarts < number or len(answered) <= so_far:
            assert asking.is_alive() and time.monotonic() < end, f"nothing after kill {number}"
            time.sleep(0.005)
    done.set()
    asking.join(60)
    assert not asking.is_alive() and set(answered) == {2}
    assert psutil.Process().num_fds() <= opened + 3
    run.close()


def test_no_text_of_a_client_is_in_the_log(service):
    predict(service, "tiny", "a secret of mine: goal keeper")
    predict(service, "tiny", ["another secret of mine", 7])
    logged = service.logged()
    assert "secret" not in logged and "Traceback" not in logged
    assert "POST /v1/models/tiny:predict 200" in logged


def test_a_head_that_never_ends_is_given_up(folders, monkeypatch):
    from sftbook import serving
    from sftbook.served_models import ModelStore

    class Stoppable(serving._Server):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            there.append(self)

    there, addresses, answered = [], [], []
    monkeypatch.setattr(serving, "_Server", Stoppable)
    store = ModelStore({"linear": folders / "linear"})
    served = serving.Service(store, serving.ServiceLimits(seconds=1.))
    thread = threading.Thread(target=lambda: answered.append(
        serving.run_service(served, port=0, started=addresses.append)))
    thread.start()
    until(lambda: addresses)
    host, port = addresses[0].removeprefix("http://").split(":")
    heads = [b"", b"GET /livez HT", b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\nGET /li"]
    for head in heads:
        with socket.create_connection((host, int(port)), 60) as connection:
            connection.sendall(head)
            pieces = list(iter(lambda c=connection: c.recv(65_536), b""))
            assert b"200 OK" in pieces[0] if head.endswith(b"/li") else not pieces
    there[0].handle_exit(signal.SIGTERM, None)
    thread.join()
    assert answered == [True]


def test_sigterm_lets_those_who_wait_be_answered_and_ends_with_0(service):
    with held(service):
        waiting = [predict_later(service, 10) for _ in range(3)]
        until(lambda: metric(service, 'sftbook_waiting{model="tiny"}') >= 10)
        service.process.send_signal(signal.SIGTERM)
        until(lambda: not connects(service))
        assert not any(future.done() for future in waiting)
    assert [future.result()[0] for future in waiting] == [200] * 3
    assert service.process.wait(120) == 0
    assert not service.process.stdout.read()


def connects(service):
    try:
        service.connect().connect()
    except OSError:
        return False
    return True
