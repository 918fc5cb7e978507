"""HuggingFace source: a set of the `datasets` library, on the hub, in a local folder or in a Parquet file.
Its files are mapped into memory, so that a set need not fit there."""

import glob
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from imgcls.data.imagefolder import StoredImages
from imgcls.data.loading import table as tables
from imgcls.data.loading.columns import RowError, fault
from imgcls.data.loading.decode import MAX_PIXELS
from imgcls.data.loading.folders import as_bytes
from imgcls.data.loading.splits import SPLITS
from imgcls.data.module import Place
from imgcls.data.rows import Column, RowsModule
from imgcls.errors import UserError, nearest
from imgcls.processes import rank
from imgcls.spec import DataSpec

try:
    import datasets
except ModuleNotFoundError as error:
    install = "pip install -e '.[huggingface]'"
    raise UserError(f"this data needs datasets, which is not installed; in the clone: {install}") from error

log = logging.getLogger(__name__)
datasets.disable_progress_bars()


class HubImages(StoredImages):
    """The images of a set's rows at `order (N,) int64`; `table` gives each as Arrow's table of one cell."""

    def __init__(
        self,
        table: Any,
        order: Tensor,
        paths: Tensor,
        targets: Tensor,
        spec: DataSpec,
        most: int = MAX_PIXELS,
    ) -> None:
        super().__init__(torch.empty(0), order, paths, targets, spec, most)
        self.table = table

    def content(self, index: int) -> np.ndarray:
        cell = self.table[int(self.places[index])].column(0)[0]
        if (data := cell["bytes"]).is_valid:
            return np.frombuffer(data.as_buffer(), np.uint8)
        path = cell["path"].as_py()
        return np.fromfile(path, np.uint8) if path else np.empty(0, np.uint8)

    def contents(self) -> Iterator[bytes | memoryview]:
        yield self.places.numpy().data
        for index in range(0, len(self), len(self) // 1000 + 1):
            yield self.content(index).tobytes()

    def part(self, indices: Tensor) -> Self:
        parts = self.places[indices], self.paths[indices], self.targets[indices]
        return type(self)(self.table, *parts, self.spec, self.max_pixels)


class HuggingFace(RowsModule):
    """A set of the `datasets` library. Splits that it lacks are cut from train, of groups as wholes; a set
    with one split is all train.

    Args:
        name: a folder that `save_to_disk` wrote or that has Parquet files or pictures, a Parquet file, or a
            name on the hub.
        config: the name of one of the set's configurations; null: its only one.
        image_column, label_column: null: the column of the type Image, of ClassLabel or of lists of it.
        group_column: as in `ImageTable`.
        cache: the folder of what the library fetches and converts; null: its own.
        download: whether a name that is not here is looked for on the hub.
        Other arguments: `RowsModule`.

    Raises:
        UserError: the set can't be read, or lacks a column; a label or group is empty (with its row).
    """

    def __init__(
        self,
        *,
        name: Place,
        config: Column | None = None,
        image_column: Column | None = None,
        label_column: Column | None = None,
        group_column: Column | None = None,
        cache: Place | None = None,
        download: bool = True,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        self.place = name
        parts = labelled(splits_in(opened(name, config, cache, download)), label_column)
        whole = joined(parts)
        sizes = [len(part) for part in parts.values()]
        image = column_of(whole, image_column, "image_column", is_image, "Image")
        label = column_of(whole, label_column, "label_column", is_label, "ClassLabel")
        wanted = [label, *([group_column] if group_column else [])]
        if group_column:
            column_of(whole, group_column, "group_column", is_label, "")
        cells = whole.select_columns(wanted).to_pandas()
        if len(parts) > 1:
            self.row_splits = np.repeat([SPLITS.index(split) for split in parts], sizes)
        try:
            labels = labels_of(Path(name), cells, label, whole.features[label])
            if group_column:
                self.row_groups = tables.groups_of(Path(name), cells[group_column], self.row_splits)
        except RowError as error:
            raise (error.within(dict(zip(parts, sizes, strict=True))) if len(parts) > 1 else error) from None
        self.spec = self.spec_of(labels.class_names)
        names = [f"{split}/{row}" for split, size in zip(parts, sizes, strict=True) for row in range(size)]
        undecoded = as_images(whole, image).select_columns([image])
        table = undecoded.with_format("arrow")
        how = torch.from_numpy(labels.targets), self.spec, self.max_pixels
        self.rows = HubImages(table, torch.arange(len(whole)), as_bytes(names), *how)


def opened(name: str, config: str | None, cache: str | None, download: bool) -> Any:
    """Returns what the library makes of a name: a set, or sets by split."""
    place = Path(name).expanduser()
    on_hub = name.count("/") < 2 and not name.startswith((".", "/", "~")) and place.suffix != ".parquet"
    if not place.exists() and not (download and on_hub):
        advice = "expected a folder or a Parquet file, or with data.download=true a name on the hub"
        raise UserError(f"data.name={name}: there is no such folder or file; {advice}")
    try:
        if any((place / file).is_file() for file in ("dataset_dict.json", "state.json")):
            return datasets.load_from_disk(str(place))
        if place.is_file():
            return datasets.load_dataset("parquet", data_files=glob.escape(str(place)), cache_dir=cache)
        return datasets.load_dataset(str(place) if place.exists() else name, config, cache_dir=cache)
    except Exception as error:  # each of the library's readers has errors of its own
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise UserError(f"data.name={name} can't be read ({reason}); check the name and the files") from error


def splits_in(found: Any) -> dict[str, Any]:
    """Returns the parts of a set by split; those with other names are left out, and named."""
    if not isinstance(found, dict):
        return {"train": found}
    if len(found) == 1:
        return {"train": next(iter(found.values()))}
    parts = dict[str, str]()
    for wanted in tables.SPLIT_OF:  # where a split has two names, the first counts, as of folders
        for name in found:
            if name.lower() == wanted:
                parts.setdefault(tables.SPLIT_OF[wanted], name)
    if "train" not in parts:
        raise UserError(f"data.name: the set has the splits {', '.join(found)}, but no train; expected one")
    if rank() == 0 and (others := [name for name in found if name not in parts.values()]):
        log.warning("left out beside the splits %s: %s", ", ".join(parts), ", ".join(others))
    return {split: found[parts[split]] for split in SPLITS if split in parts}


def labelled(parts: dict[str, Any], given: str | None) -> dict[str, Any]:
    """Returns the parts without those that have no labels at all, as tests of challenges, which are named."""
    others = [name for name in parts if name != "train"]
    if not others:
        return parts
    label = column_of(parts["train"], given, "label_column", is_label, "ClassLabel")
    bare = [name for name in others if not has_labels(parts[name], label)]
    if bare and rank() == 0:
        log.warning("left out, as no image there has a label: %s; train is cut for it", ", ".join(bare))
    return {name: part for name, part in parts.items() if name not in bare}


def has_labels(part: Any, label: str) -> bool:
    """Says whether a part has an image with a label: -1 and null are none."""
    if label not in part.features:
        return False
    cells = part.select_columns([label]).to_pandas()[label]
    numbered = isinstance(part.features[label], datasets.ClassLabel)
    return bool((cells >= 0 if numbered else cells.notna()).any())


def joined(parts: dict[str, Any]) -> Any:
    """Returns the parts as one set. Raises UserError: their columns are of different types."""
    try:
        return datasets.concatenate_datasets(list(parts.values()))
    except ValueError as error:
        reason = " ".join(str(error).split())[:300]
        advice = "expected the same columns and classes in all"
        raise UserError(
            f"data.name: the splits {', '.join(parts)} don't fit together ({reason}); {advice}"
        ) from error


def as_images(whole: Any, image: str) -> Any:
    """Returns a set in which a column is one of images, not decoded. Raises UserError: it has none."""
    try:
        return whole.cast_column(image, datasets.Image(decode=False))
    except (TypeError, ValueError, NotImplementedError) as error:  # those of pyarrow are kinds of these
        kind = f"the column is of {whole.features[image]}"
        raise UserError(
            f"data.image_column={image}: {kind}; expected Image, paths or bytes of files"
        ) from error


def is_image(feature: Any) -> bool:
    return isinstance(feature, datasets.Image)


def is_label(feature: Any) -> bool:
    return isinstance(getattr(feature, "feature", feature), datasets.ClassLabel)


def column_of(whole: Any, given: str | None, key: str, fits: Any, kind: str) -> str:
    """Returns the column that is given, or the only one of a type."""
    if given is not None:
        if given not in whole.features:
            raise UserError(f"data.{key}={given}: there is no such column; {nearest(given, whole.features)}")
        return given
    found = [name for name, feature in whole.features.items() if fits(feature)]
    if len(found) != 1:
        has = (
            f"the columns {', '.join(found)} are" if found else f"no column of {', '.join(whole.features)} is"
        )
        raise UserError(f"data.{key}: {has} of the type {kind}; name one, data.{key}=…")
    return found[0]


def labels_of(name: Path, cells: pd.DataFrame, column: str, feature: Any) -> tables.Labels:
    """Returns targets and classes, in the order of a ClassLabel, or of the words of another column."""
    if not is_label(feature):
        return tables.labels_of(name, cells, [column], None)
    if isinstance(feature, datasets.ClassLabel):
        numbers = cells[column].fillna(-1).to_numpy(np.int64, copy=True)
        if (bad := numbers < 0).any():
            raise fault(name, bad, f"the label in column {column!r} is empty")
        return tables.Labels(numbers, tuple(feature.names))
    if (bad := cells[column].isna().to_numpy()).any():
        raise fault(name, bad, f"the label in column {column!r} is empty")
    names: tuple[str, ...] = tuple(feature.feature.names)
    targets = np.zeros((len(cells), len(names)), np.int64)
    rows = np.repeat(np.arange(len(cells)), [len(labels) for labels in cells[column]])
    numbers = np.concatenate(cells[column].to_list())
    known = (numbers >= 0) & (numbers < len(names))  # -1 would be the last, and NaN any
    if not known.all():
        bad = np.isin(np.arange(len(cells)), rows[~known])
        raise fault(name, bad, f"the list in column {column!r} has an empty label, or one of no name")
    targets[rows, numbers.astype(np.int64)] = 1
    return tables.Labels(targets, names)
