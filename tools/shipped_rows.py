"Rows that a tool makes from public archives and the package carries: how they are put in place."
import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from sftbook.core import CorpusError, sha256


def write_rows(path: Path, rows: list[dict], schema, notice: str, about: dict):
    "Rows as a Parquet file; beside it their notice, and a manifest with what is to say about them."
    pq.write_table(pa.Table.from_pylist(rows, schema), path, compression="zstd",
                   compression_level=22, row_group_size=len(rows), data_page_size=2**24,
                   dictionary_pagesize_limit=2**24, write_statistics=False)
    path.with_name("NOTICE").write_text(notice)
    manifest = dict(sha256=sha256(path), rows=len(rows), **about)
    text = json.dumps(manifest, indent=1, sort_keys=True) + "\n"
    path.with_name("MANIFEST.json").write_text(text)


def replace_rows(target: Path, build: Callable, check: bool = False) -> list[str]:
    """Let `build(home, path)` write the Parquet file `path` and what belongs beside it; put the
    files that differ in the place of those of `target`, the manifest last, or only name them.
    Nothing is touched before all is there."""
    files = f"{target.name}.parquet", "NOTICE", "MANIFEST.json"
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as home:
        new = Path(home) / "new"
        new.mkdir()
        build(Path(home), new / files[0])
        changed = [name for name in files if not (target / name).exists()
                   or (target / name).read_bytes() != (new / name).read_bytes()]
        if not check:
            target.mkdir(exist_ok=True)
            for name in changed:
                (new / name).replace(target / name)
        return changed


def command_line(doc: str, archives: str, make: Callable) -> int:
    "The command line of such a tool; `make(archives, check)` names what has changed."
    parser = argparse.ArgumentParser(description=doc,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--archives", type=Path, help=archives)
    parser.add_argument("--check", action="store_true", help="write nothing")
    options = parser.parse_args()
    try:
        changed = make(options.archives, options.check)
    except CorpusError as e:
        sys.exit(str(e))
    print("changed: " + ", ".join(changed) if changed else "nothing has changed")
    return int(options.check and bool(changed))
