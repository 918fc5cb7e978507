"""Sets that `imgcls pack format=litdata` made, streamed from a directory or from object storage.

Training reads a shard after another, in litdata's order for (seed, epoch, batch size, ranks, workers); what is
drawn for a sample is a function of (seed, epoch, index) as everywhere. Evaluation reads by index, so that each
image counts once on whatever number of ranks.
"""

import hashlib
import logging
import os
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from imgcls.data.base import Batch
from imgcls.data.memory import in_channels
from imgcls.data.packed import Pack, PackedData, PackedImages, check_files, decode_jpeg
from imgcls.data.sampler import world_size
from imgcls.errors import UserError
from imgcls.keyed import key_seed

os.environ.setdefault("LITDATA_DISABLE_VERSION_CHECK", "1")  # it would ask the network at each start
try:
    from litdata import StreamingDataLoader, StreamingDataset
    from litdata.streaming import Cache
    from litdata.streaming.downloader import get_downloader
except ModuleNotFoundError as error:
    raise UserError("streams need litdata, which is not installed; run: pip install 'imgcls[streaming]'") from error
for name in ("litdata", "botocore"):
    logging.getLogger(name).setLevel(logging.WARNING)
warnings.filterwarnings("ignore", message="Your `IterableDataset` has `__len__` defined")  # Lightning; it is right here

SHARD = "64MB"  # large enough for object storage, small enough to shuffle and to fetch ahead
Stream = TypeVar("Stream", bound=StreamingDataset)


def shard_writer(folder: Path) -> Cache:
    """Returns what shards are written with: `writer[place] = sample`, and at the end `done` and `merge`."""
    return Cache(str(folder), chunk_bytes=SHARD)


class Shards(Pack):
    """The table of a split, and its images by index. A shard is fetched once and kept."""

    alike = None

    def __init__(self, folder: Path, url: str, split: str, options: dict[str, Any] | None) -> None:
        self.made_from = folder, url, split, options  # type: ignore[assignment]
        self.folder, self.url, self.split, self.options = folder, url, split, options
        self.records = np.load(folder / f"{split}.npy", mmap_mode="r").view(np.ndarray)
        self.stream: StreamingDataset | None = None

    def open(self, kind: Callable[..., Stream], **settings: Any) -> Stream:
        where = {} if self.url == str(self.folder) else {"cache_dir": str(self.folder / "shards")}
        stream = kind(f"{self.url}/{self.split}", storage_options=self.options, **where, **settings)
        # Its way for local files gives whole shards to ranks: not the same number to each, and to some none.
        stream.posix_fast = None
        return stream

    def image(self, index: int, channels: int) -> Tensor:
        if self.stream is None:
            self.stream = self.open(StreamingDataset)
            self.stream[:1]  # from a slice on it keeps whole shards; else it would ask for each image by itself
        return self.decoded(self.stream[index], index, channels)

    def decoded(self, item: dict[str, Any], index: int, channels: int) -> Tensor:
        content = torch.from_numpy(np.frombuffer(bytearray(item["image"]), np.uint8))
        return decode_jpeg(content, channels, f"{self.url}/{self.split}", self.records["name"][index])


class TrainingStream(StreamingDataset):
    """The training samples of one rank, augmented in the workers: `(image (C, H, W) uint8, target, index)`."""

    images: PackedImages
    shards: Shards

    def __getitem__(self, index: Any) -> tuple[Tensor, Tensor, int]:
        images, place = self.images, index.index
        stored = self.shards.decoded(super().__getitem__(index), place, images.spec.channels)
        torch.default_generator.manual_seed(
            images.sample_seed((self.current_epoch - 1) * len(images) + place)
        )  # it counts from 1
        return images.transform(in_channels(stored, images.spec)), images.targets[place], place


class StreamingData(PackedData):
    """A set that `imgcls pack format=litdata` made, with the splits that it was cut into then.

    Args:
        root: the directory, or its address in object storage: s3://bucket/… and what else litdata reads.
        cache: where what is fetched is kept; null: a folder of the user's cache.
        storage_options: what litdata is to know of the storage; null: what the environment says (AWS_…).
        Other arguments: `PackedData`; `fraction` and `repeats` can be 1 only.
    """

    formats = ("litdata",)

    def __init__(
        self, *, root: str, cache: str | None = None, storage_options: dict[str, Any] | None = None, **packed: Any
    ) -> None:
        self.url, self.cache, self.storage_options = root.rstrip("/"), cache, storage_options
        super().__init__(root=root, **packed)
        if self.fraction < 1 or self.repeats > 1:
            raise UserError("data.fraction and data.repeats: a stream is read whole, once an epoch; set both to 1")
        for split in ("val", "test"):
            if split not in self.manifest["splits"]:
                raise UserError(f"data.root={root} has no {split} split, and a stream can't be cut; pack it again")

    def place(self, root: str) -> Path:
        if "://" not in root and not root.startswith("local:"):
            self.url = str(Path(root).expanduser())
            return Path(self.url)
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "imgcls"
        folder = Path(self.cache).expanduser() if self.cache else home / "streams"
        folder /= hashlib.blake2b(root.encode(), digest_size=8).hexdigest()
        folder.mkdir(parents=True, exist_ok=True)
        self.fetch(folder, "manifest.json")
        return folder

    @property
    def remote(self) -> bool:
        return self.url != str(self.root)

    def fetch(self, folder: Path, name: str) -> None:
        """Fetches a file; one of that name is replaced at once, so that other processes see one or the other."""
        with tempfile.TemporaryDirectory(dir=folder) as own:
            try:
                get_downloader(self.url, own, [], self.storage_options).download_file(
                    f"{self.url}/{name}", f"{own}/{name}"
                )
                Path(own, name).replace(folder / name)
            except Exception as error:  # each kind of storage has errors of its own
                reason = " ".join(str(error).split())[:120] or type(error).__name__
                raise UserError(
                    f"{self.url}/{name} can't be fetched ({reason}); check data.root and the access"
                ) from error

    def prepare_data(self) -> None:
        """Fetches the tables; the shards come while they are read."""
        files = self.manifest["files"]
        if self.remote:
            files = {name: facts for name, facts in files.items() if name.endswith(".npy")}
            for name, facts in files.items():
                try:
                    check_files(self.root, {name: facts}, verify=True)
                except UserError:
                    self.fetch(self.root, name)
        check_files(self.root, files, self.verify)

    def load(self, split: str) -> PackedImages:
        shards = Shards(self.root, self.url, split, self.storage_options)
        return PackedImages(shards, torch.arange(len(shards.records)), self.spec)

    def train_dataloader(self) -> DataLoader[Batch]:
        images = self.sets["train"]
        assert isinstance(images, PackedImages) and isinstance(images.pack, Shards)
        stream = images.pack.open(
            TrainingStream,
            shuffle=self.shuffle,
            drop_last=True,
            seed=key_seed(self.seed) % 2**32,
            item_shuffle_window=0,
        )
        stream.images, stream.shards = images, images.pack
        return StreamingDataLoader(
            stream,
            batch_size=min(self.batch_size, max(len(images) // world_size(), 1)),
            num_workers=self.default_workers() if self.num_workers is None else self.num_workers,
            collate_fn=_batch,
            pin_memory=torch.cuda.is_available(),
        )


def _batch(samples: list[tuple[Tensor, Tensor, int]]) -> Batch:
    images, targets, indices = zip(*samples, strict=True)
    return Batch(torch.stack(images), torch.stack(targets), torch.tensor(indices))
