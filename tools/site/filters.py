"""nbdev's filters for the book: the same as nbdev's own, but exported code stays to be read, and symbols get a table of parameters."""
import importlib
import re
from functools import reduce

from nbdev.config import create_output, get_config
from nbdev.processors import FilterDefaults
from nbdev.process import Processor

from apidoc import ApiBlock

HIDDEN = {"hide", "default_exp"}
EXPORTED = {"export", "exports", "exporti"}
# FrontmatterProc drops what follows the title in its cell; rm_export drops exported cells; add_links links to a host;
# exec_show_docs runs exported cells again; the others move what we place ourselves
NOT_OURS = {"FrontmatterProc", "rm_export", "add_links", "exec_show_docs", "add_fold", "mv_exports"}


def mark_exported(cell):
    "Hidden cells go; exported ones are marked, for the page shows them as the source of what they define."
    if cell.cell_type != "code":
        return
    if HIDDEN & cell.directives_.keys():
        del cell["source"]
    elif EXPORTED & cell.directives_.keys():
        cell.metadata["exported"] = True


class show_symbols(Processor):
    "`show_doc(name)` answered from the exported package: nothing in the notebook runs, and a dataclass has its source at hand."

    def begin(self):
        exported = [cell.directives_["default_exp"] for cell in self.nb.cells if "default_exp" in cell.directives_]
        self.module = importlib.import_module(f"{get_config().lib_name}.{exported[0][0]}") if exported else None

    def cell(self, cell):
        shown = re.search(r"^show_doc\((.*?)\s*(?:,.*)?\)", cell.source, re.M) if cell.cell_type == "code" else None
        if shown and self.module:
            try:
                symbol = reduce(getattr, shown.group(1).split("."), self.module)
            except AttributeError as error:
                raise RuntimeError(f"{self.module.__name__} has no {shown.group(1)}: run nbdev_export first") from error
            cell["outputs"] = create_output(ApiBlock(symbol, name=shown.group(1))._repr_markdown_(), "markdown")


class BookFilter(FilterDefaults):
    "What `nbdev.serve.proc_nbs` applies to each notebook."

    def base_procs(self):
        ours = [proc for proc in super().base_procs() if proc.__name__ not in NOT_OURS]
        where = [proc.__name__ for proc in ours].index("clean_show_doc")
        return [*ours[:where], show_symbols, *ours[where:], mark_exported]
