"""ImageTable source: a table with a row for each image: path or bytes, labels, split and group."""

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field

from imgcls.data.imagefolder import FolderImages, StoredImages, exclude_list
from imgcls.data.loading import columns
from imgcls.data.loading import table as tables
from imgcls.data.loading.folders import as_bytes
from imgcls.data.module import Place
from imgcls.data.rows import Column, RowsModule
from imgcls.errors import UserError


class ImageTable(RowsModule):
    """A table with a row for each image. Splits that it lacks are cut from train, of groups as wholes.

    Args:
        file: the table: .csv, .tsv, .parquet or .jsonl (JSON lines).
        path_column: the column of the paths; in Parquet also of the files' bytes, alone or as a struct of
            `bytes` and `path`, as Hugging Face's datasets write it.
        label_column: the column of the class of each image. Several columns of 0 and 1, a separator, or cells
            that are lists: an image has several labels.
        separator: what stands between two labels of a cell, which may be empty then.
        measures: the label columns hold numbers to be learned by a task of one's own.
        split_column: the column that says train, val or test; null: splits are cut.
        group_column: images with the same word there, such as a patient's, come into one split.
        root: the folder that paths are relative to; null: that of the file.
        exclude: a file that lists images to leave out (`exclude_list`), such as `imgcls inspect` writes.
        Other arguments: `RowsModule`.

    Raises:
        UserError: the table can't be read or lacks a column; with the row: a file is missing or named twice,
            a label, split or group is empty or unknown, a group is in two splits.
    """

    def __init__(
        self,
        *,
        file: Place,
        path_column: Column = "path",
        label_column: Column | Annotated[list[Column], Field(min_length=1)] = "label",
        separator: Column | None = None,
        measures: bool = False,
        split_column: Column | None = None,
        group_column: Column | None = None,
        root: Place | None = None,
        exclude: Place | None = None,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        self.file, self.path_column, self.exclude = Path(file).expanduser(), path_column, exclude
        self.root = self.file.parent if root is None else Path(root).expanduser()
        self.place = self.file
        named = [label_column] if isinstance(label_column, str) else label_column
        if separator is not None and (len(named) > 1 or measures):
            given = f"data.separator={separator}"
            raise UserError(f"{given}: it is for one column of labels; leave it out, or give one column")
        wanted = dict.fromkeys(named, "label_column")
        for key, name in {"split_column": split_column, "group_column": group_column}.items():
            wanted |= {name: key} if name else {}
        stored = columns.holds_files(self.file, path_column)
        wanted |= {} if stored else {path_column: "path_column"}
        table = columns.read_columns(self.file, wanted)
        if measures:
            labels = tables.measures_of(self.file, table, named)
        else:
            labels = tables.labels_of(self.file, table, named, separator)
        self.spec = self.spec_of(labels.class_names)
        if split_column:
            self.row_splits = tables.splits_of(self.file, table[split_column])
        if group_column:
            self.row_groups = tables.groups_of(self.file, table[group_column], self.row_splits)
        how = torch.from_numpy(labels.targets), self.spec, self.max_pixels
        if stored:
            content, places, names = columns.files_in(self.file, path_column)
            parts = torch.from_numpy(content), torch.from_numpy(places)
            self.rows = StoredImages(*parts, as_bytes(names), *how)
        else:
            folder, names = tables.paths_of(self.file, table[path_column], self.root)
            self.rows = FolderImages(folder, as_bytes(names), *how)
        if exclude is not None:
            self.leave_out(exclude_list(exclude))

    def leave_out(self, entries: list[str]) -> None:
        """Takes rows out by their names, of files relative to the root. UserError: a name is of no row."""
        names = [self.name_of(self.rows, row) for row in range(len(self.rows))]
        if unknown := sorted(set(entries) - set(names)):
            advice = "take the line out of it, or make the list anew with imgcls inspect"
            named = f"data.exclude={self.exclude} names {unknown[0]!r}"
            raise UserError(f"{named}, which is no image of {self.file}; {advice}")
        kept = np.flatnonzero(~np.isin(names, entries))
        self.rows = self.rows.part(torch.from_numpy(kept))
        self.row_splits = None if self.row_splits is None else self.row_splits[kept]
        self.row_groups = None if self.row_groups is None else self.row_groups[kept]
