"""Executes notebooks with their kernels: run_notebooks.py [--write] FILE...

With --write a notebook's outputs are replaced, without what changes from run to run. Ends with 1 at the first error.
"""

import re
import sys
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from jupyter_client.kernelspec import NoSuchKernel
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

ROOT = Path(__file__).resolve().parent.parent
SECONDS_PER_CELL = 600


def clean(notebook: nbformat.NotebookNode) -> None:
    """Leaves nothing that differs between two runs, or names a machine's folders."""
    notebook.metadata = {
        "kernelspec": {"display_name": "Deno", "language": "typescript", "name": "deno"},
        "language_info": {"file_extension": ".ts", "mimetype": "text/x.typescript", "name": "typescript"},
    }
    for cell in notebook.cells:
        cell.metadata = {}
        for output in cell.get("outputs", []):
            if "metadata" in output:
                output.metadata = {}


def machine_paths(notebook: nbformat.NotebookNode) -> list[str]:
    """Outputs that name folders of this machine."""
    folders = {ROOT, Path.home(), Path(tempfile.gettempdir())}
    private = re.compile("|".join(["file://"] + [re.escape(f"{folder}/") for folder in folders if str(folder) != "/"]))
    return [text for cell in notebook.cells for output in cell.get("outputs", []) if private.search(text := str(output))]


def execute(path: Path, write: bool) -> bool:
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    done = 0

    def progress(cell, cell_index):
        nonlocal done
        done += cell.cell_type == "code"
        if sys.stderr.isatty():
            left = (time.monotonic() - begin) * (len(code) - done + 1) / max(done - 1, 1)
            about = f", about {left:.0f} s left" if done > 1 else ""
            print(f"\r\x1b[2K{path.stem}: cell {done} of {len(code)}{about}", end="", file=sys.stderr, flush=True)

    begin = time.monotonic()
    client = NotebookClient(
        notebook,
        timeout=SECONDS_PER_CELL,
        kernel_name="deno",
        resources={"metadata": {"path": str(path.parent)}},
        on_cell_start=progress,
    )
    try:
        client.execute()
    except (CellExecutionError, CellTimeoutError, DeadKernelError, NoSuchKernel) as error:
        print(f"\n✗ {path.stem}: cell {done} of {len(code)} failed ({type(error).__name__})\n{error}", file=sys.stderr)
        return False
    clean(notebook)
    found = machine_paths(notebook)
    if found:
        print(f"\n✗ {path.stem}: an output names a folder of this machine: {found[0][:300]}", file=sys.stderr)
        return False
    if write:
        nbformat.write(notebook, path)
    clear = "\r\x1b[2K" if sys.stderr.isatty() else ""
    print(f"{clear}✓ {path.stem}: {len(code)} cells, {time.monotonic() - begin:.1f} s", file=sys.stderr)
    return True


if __name__ == "__main__":
    arguments = sys.argv[1:]
    files = [Path(argument) for argument in arguments if argument != "--write"]
    for file in files:
        if not execute(file, "--write" in arguments):
            sys.exit(1)
