"""Runs the notebooks, in an empty folder, and stores what they show: python notebooks/run.py"""

import os
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parent
ORDER = ("look_at_data", "look_into_a_run", "compare_runs")


def main() -> None:
    with tempfile.TemporaryDirectory() as place:
        style = Path(place, "matplotlibrc")
        style.write_text("figure.dpi: 50\n")  # small pictures: the files stay below 400 kB
        os.environ |= {"MATPLOTLIBRC": str(style), "MPLBACKEND": "module://matplotlib_inline.backend_inline"}
        os.environ.pop("WANDB_API_KEY", None)
        for name in ORDER:
            path = FOLDER / f"{name}.ipynb"
            book = nbformat.read(path, as_version=4)
            NotebookClient(book, timeout=600, resources={"metadata": {"path": place}}).execute()
            for cell in book.cells:
                cell.metadata.pop("execution", None)  # times of this machine
            book.metadata = nbformat.from_dict({"kernelspec": book.metadata.kernelspec})
            nbformat.write(book, path)
            print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
