"""StreamingData source: sets that `imgcls pack format=litdata` made, read from a directory or object storage.

Training reads one shard after another, in litdata's order for (seed, epoch, batch size, ranks, workers); the
draws for a sample are a function of (seed, epoch, index) as everywhere. Evaluation reads by index, so that
each image counts once on any number of ranks.
"""

import hashlib
import logging
import tempfile
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, default_collate

from imgcls.config.paths import cache_dir
from imgcls.config.training import Node
from imgcls.data.batch import Batch, in_channels
from imgcls.data.loading.manifest import check_files, facts_of
from imgcls.data.loading.shards import StreamingDataLoader, StreamingDataset, check_shards, get_downloader
from imgcls.data.module import Place
from imgcls.data.packed import Pack, PackedData, PackedImages
from imgcls.errors import UserError
from imgcls.processes import world_size
from imgcls.seeding import key_seed

for name in ("litdata", "botocore"):
    logging.getLogger(name).setLevel(logging.WARNING)
# Lightning warns of a stream that has a length; ours is right.
warnings.filterwarnings("ignore", message="Your `IterableDataset` has `__len__` defined")

Stream = TypeVar("Stream", bound=StreamingDataset)


@dataclass
class Shards(Pack):
    """The table of a split, and its images by index. A shard is fetched once and kept."""

    url: str = ""
    options: Node | None = None
    alike = None
    stream: StreamingDataset | None = field(init=False, default=None)

    def open(self, kind: type[Stream], **settings: Any) -> Stream:
        """Returns litdata's data set of the shards, after a look at the index that says how they are read."""
        index = self.root / self.split / "index.json"
        check_shards(index, len(self.records))
        if self.url != str(self.root):
            settings["cache_dir"] = str(self.root / "shards")
        where = f"{self.url}/{self.split}"
        stream = kind(where, storage_options=self.options, index_path=str(index), **settings)
        # litdata's copy may be an older one.
        check_shards(Path(stream.input_dir.path or "", index.name), len(self.records))
        # Its way for local files gives whole shards to ranks: not the same number to each, and to some none.
        stream.posix_fast = None
        return stream

    def image(self, index: int, channels: int) -> Tensor:
        if self.stream is None:
            self.stream = self.open(StreamingDataset)
            # After a slice litdata keeps whole shards; else it would ask for each image by itself.
            _ = self.stream[:1]
        return self.read(self.stream[index], index, channels)

    def read(self, item: dict[str, Any], index: int, channels: int) -> Tensor:
        """Returns the image `(C, H, W) uint8` in a sample that litdata read."""
        return self.decoded(torch.frombuffer(bytearray(item["image"]), dtype=torch.uint8), index, channels)


class TrainingStream(StreamingDataset):
    """The training samples of one rank, augmented in workers: a `Batch` of one, without an axis for it."""

    images: PackedImages
    shards: Shards

    def __getitem__(self, index: Any) -> Batch:
        images, place, epoch = self.images, index.index, self.current_epoch - 1  # litdata counts from 1
        channels, key = images.spec.channels, epoch * len(images) + place
        stored = in_channels(self.shards.read(super().__getitem__(index), place, channels), channels)
        image = images.transformed(torch.tensor([key]), [stored])[0]
        return Batch(image, images.targets[place], torch.tensor(place), torch.tensor(True))


class StreamLoader(StreamingDataLoader):
    """litdata's loader; resumes within an epoch with the same batches, or raises UserError where it can't."""

    resumed = False

    def __iter__(self) -> Any:
        # litdata's own sign stays if an epoch's last batch is not asked for twice: the next would be empty
        self.restore, self.resumed = self.resumed, False
        yield from super().__iter__()

    def load_state_dict(self, obj: dict[str, Any]) -> None:
        end = len(self) * (self.batch_size or 1)
        if obj["num_samples_yielded"] >= end:  # litdata's would go on with an empty epoch
            self.current_epoch = obj["current_epoch"]
            return
        before = obj["dataset"]
        for key, now in (("num_workers", self.num_workers or 1), ("batch_size", self.batch_size)):
            if before[key] != now:
                began = f"this epoch of the stream began with {before[key]}; go on with that"
                raise UserError(f"data.{key}={now}: {began}")
        super().load_state_dict(obj)
        self.resumed = True


class StreamingData(PackedData):
    """A set that `imgcls pack format=litdata` made, with the splits that it was cut into then.

    Args:
        root: the directory, or its address in object storage: s3://bucket/… or another that litdata reads.
        cache: the folder that keeps what was fetched; null: a folder of the user's cache.
        storage_options: litdata's settings of the storage; null: those of the environment (AWS_…).
        Other arguments: `PackedData`; `fraction` and `repeats` can be 1 only, `sampling` "uniform", and
            `on_error` "raise".
    """

    formats = ("litdata",)

    def __init__(
        self, *, root: Place, cache: Place | None = None, storage_options: Node | None = None, **packed: Any
    ) -> None:
        self.url, self.cache, self.storage_options = root.rstrip("/"), cache, storage_options
        super().__init__(root=root, **packed)
        chosen = self.fraction < 1 or self.repeats > 1 or self.folds is not None or self.sampling != "uniform"
        if chosen or self.on_error != "raise":
            keys = "data.fraction, data.repeats, data.sampling, data.folds, data.on_error"
            raise UserError(f"{keys}: a stream is read whole, once an epoch; leave them out")
        for split in ("val", "test"):
            if split not in self.manifest.splits:
                fault = f"data.root={root} has no {split} split, and a stream can't be cut"
                raise UserError(f"{fault}; pack it again")

    def place(self, root: str) -> Path:
        if "://" not in root and not root.startswith("local:"):
            self.url = str(Path(root).expanduser())
            return Path(self.url)
        folder = Path(self.cache).expanduser() if self.cache else cache_dir() / "streams"
        folder /= hashlib.sha256(root.encode()).hexdigest()[:16]
        folder.mkdir(parents=True, exist_ok=True)
        self.fetch(folder, "manifest.json")
        return folder

    def fetch(self, folder: Path, name: str) -> None:
        """Fetches a file, then replaces the one of that name: other processes see one or the other, whole."""
        with tempfile.TemporaryDirectory(dir=folder) as own:
            try:
                downloader = get_downloader(self.url, own, [], self.storage_options)
                downloader.download_file(f"{self.url}/{name}", f"{own}/fetched")
                (folder / name).parent.mkdir(exist_ok=True)
                Path(own, "fetched").replace(folder / name)
            except Exception as error:  # each kind of storage has errors of its own
                reason = " ".join(str(error).split())[:120] or type(error).__name__
                fault = f"{self.url}/{name} can't be fetched ({reason})"
                raise UserError(f"{fault}; check data.root and the access") from error

    def prepare_data(self) -> None:
        """Fetches the tables and the indices of the shards; the shards come while they are read."""
        if self.sets:  # all was checked before it was read
            return
        files = self.manifest.files
        if self.url != str(self.root):
            files = {name: facts for name, facts in files.items() if name.endswith((".npy", "/index.json"))}
            for name, facts in files.items():
                if not (self.root / name).is_file() or facts_of(self.root / name) != facts:
                    self.fetch(self.root, name)
        check_files(self.root, files, self.verify)

    def load(self, split: str) -> PackedImages:
        shards = Shards(self.root, split, None, self.url, self.storage_options)
        return PackedImages(shards, torch.arange(len(shards.records)), self.spec)

    def train_dataloader(self) -> DataLoader[Batch]:
        images, seed = self.sets["train"], key_seed(self.seed) % 2**32
        assert isinstance(images, PackedImages) and isinstance(images.pack, Shards)
        settings = {"shuffle": self.shuffle, "drop_last": True, "seed": seed, "item_shuffle_window": 0}
        stream = images.pack.open(TrainingStream, **settings)
        stream.images, stream.shards = images, images.pack
        return StreamLoader(
            stream,
            batch_size=min(self.batch_size, max(len(images) // world_size(), 1)),
            num_workers=self.default_workers() if self.num_workers is None else self.num_workers,
            collate_fn=default_collate,
            pin_memory=torch.cuda.is_available(),
        )
