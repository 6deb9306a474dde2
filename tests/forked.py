"""Processes that begin with the large libraries already imported: a server imports them once and
forks for each. A notebook or a command needs half a second then, where it needed six. What is
tested about the start of a process, its signals, pipes or consoles, needs a process of its own."""
import multiprocessing
import os
import sys
import tempfile
import traceback
from pathlib import Path
from typing import NamedTuple

LARGE = ["nbdev.test", "pandas", "matplotlib.pyplot", "torch", "transformers.models.auto",
         "transformers.models.bert.modeling_bert", "datasets", "sklearn.linear_model",
         "sklearn.feature_extraction.text", "accelerate", "ipywidgets"]
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(LARGE)


class Done(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


def _child(function, arguments, environment, folder, files):
    "Be the process: its folder, its environment, its outputs in files."
    for number, file in zip((1, 2), files):
        os.dup2(os.open(file, os.O_WRONLY), number)
    os.chdir(folder)
    os.environ.update(environment)
    try:
        function(*arguments)
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
        code = 1
    else:
        code = 0
    if isinstance(code, str):
        print(code, file=sys.stderr)
    sys.exit(code if isinstance(code, int) else int(code is not None))


def run(function, *arguments, environment=(), folder="."):
    "What `function` of a module that can be imported wrote, and how it ended."
    with tempfile.TemporaryDirectory() as home:
        files = [Path(home) / name for name in ("stdout", "stderr")]
        for file in files:
            file.touch()
        process = SERVER.Process(target=_child, args=(
            function, arguments, dict(environment), str(folder), list(map(str, files))))
        process.start()
        process.join()
        return Done(process.exitcode, *(file.read_text(errors="replace") for file in files))


def _command(words):
    from sftbook.cli import main
    main(words)


def command(folder, *words):
    "A command of sftbook, in `folder`."
    return run(_command, list(map(str, words)), folder=folder)


def _code(source, words):
    sys.argv = ["-c", *words]
    exec(compile(source, "<code>", "exec"), {"__name__": "__main__"})


def code(source, *words, environment=()):
    "A program, as `python -c` runs it; what it imports of sftbook is imported anew."
    return run(_code, source, list(map(str, words)), environment=environment)
