"""nbdev's filters for the book: the same as nbdev's own, but exported code stays to be read, and symbols get a table of parameters."""
from nbdev.config import get_config
from nbdev.processors import FilterDefaults

HIDDEN = {"hide", "default_exp"}
EXPORTED = {"export", "exports", "exporti"}
# rm_export drops exported cells, add_links links to a host, the two others move what we place ourselves
NOT_OURS = {"rm_export", "add_links", "add_fold", "mv_exports"}


def mark_exported(cell):
    "Hidden cells go; exported ones are marked, for the page shows them as the source of what they define."
    if cell.cell_type != "code":
        return
    if HIDDEN & cell.directives_.keys():
        del cell["source"]
    elif EXPORTED & cell.directives_.keys():
        cell.metadata["exported"] = True


class BookFilter(FilterDefaults):
    "What `nbdev.serve.proc_nbs` applies to each notebook."

    def base_procs(self):
        get_config().d["renderer"] = "apidoc.ApiBlock"
        ours = [proc for proc in super().base_procs() if proc.__name__ not in NOT_OURS]
        return ours + [mark_exported]
