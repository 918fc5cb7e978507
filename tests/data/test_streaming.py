"""Streamed sets: each image once, the same number on each rank, an order that is a function of (seed,
epoch)."""

import json
import multiprocessing
import os
import pickle
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from support.checkpoints import write_checkpoint
from support.packs import packed
from support.pictures import write_picture
from support.sets import check_set
from torch import distributed
from torch.utils.data import DataLoader

from imgcls.augment.settings import Augment
from imgcls.data.digits import Digits
from imgcls.data.imagefolder import ImageFolder
from imgcls.data.loading import shards
from imgcls.data.loading.decode import decode
from imgcls.data.loading.manifest import facts_of
from imgcls.data.module import SPLITS, ImageDataModule
from imgcls.data.streaming import StreamingData
from imgcls.errors import UserError


@pytest.fixture(params=[5_000, "64MB"], ids=["shards", "one shard"])
def out(request: pytest.FixtureRequest, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A pack of 41 pictures: 31 train, 3 val, 7 test."""
    for i in range(5):
        write_picture(folder / "cat" / f"more{i}.jpg", seed=50 + i)
    monkeypatch.setattr(shards, "SHARD", request.param)
    packed(folder, format="litdata")
    assert (len(list(Path("out/train").glob("*.bin"))) > 2) == (request.param == 5_000)
    return Path("out").absolute()


def stream_of(root: Path | str, **arguments: Any) -> StreamingData:
    data = StreamingData(root=str(root), **{"num_workers": 0, "batch_size": 4, **arguments})
    data.prepare_data()
    data.setup()
    return data


def order(loader: DataLoader[Any]) -> list[int]:
    return [i for batch in loader for i in batch.indices.tolist()]


def test_the_splits_are_those_of_the_folder(out: Path, folder: Path) -> None:
    source = ImageFolder(root=str(folder), image_size=24, mean=[0.5], std=[0.2])
    source.setup()
    data = stream_of(out)
    assert data.spec == source.spec
    for split in SPLITS:
        mine, theirs = data.sets[split], source.sets[split]
        names = [mine.name(i) for i in range(len(mine))]
        paths = {str(Path(theirs.name(i)).relative_to(folder)): i for i in range(len(theirs))}
        assert sorted(names) == sorted(paths) and (names == list(paths)) == (split != "train")
        assert mine.targets.tolist() == [int(theirs.targets[paths[name]]) for name in names]
        assert all(torch.equal(mine.picture(i), theirs.picture(paths[name])) for i, name in enumerate(names))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("remote", [False, True])
def test_an_epoch(out: Path, folder: Path, workers: int, remote: bool) -> None:
    where = {"root": f"local:{out}", "cache": "cache"} if remote else {"root": str(out)}
    data = stream_of(**where, num_workers=workers)
    loader = data.train_dataloader()
    assert len(loader) == data.batches_per_epoch(1) == 7
    images = data.sets["train"]
    seen = []
    for batch in loader:
        assert batch.images.shape == (4, 3, 24, 24) and batch.images.dtype == torch.uint8
        for image, target, index, _ in zip(*batch, strict=True):
            stored = decode(str(folder / images.name(int(index))), 3)
            assert torch.equal(image, images.evaluate(stored))  # type: ignore[attr-defined]
            assert target == images.targets[index]
            seen.append(int(index))
    assert len(set(seen)) == len(seen) == 28
    for batch in data.val_dataloader():
        assert (
            batch.indices.tolist() == [0, 1, 2]
            and batch.targets.tolist() == data.sets["val"].targets.tolist()
        )
        assert torch.equal(batch.images[1], data.sets["val"].picture(1))


def test_order_and_draws_are_a_function_of_seed_and_epoch(out: Path) -> None:
    def epochs(**arguments: Any) -> list[tuple[list[int], torch.Tensor]]:
        loader = stream_of(out, augment=Augment(crop="resized"), **arguments).train_dataloader()
        batches = [list(loader) for _ in range(2)]
        return [
            (torch.cat([b.indices for b in e]).tolist(), torch.cat([b.images for b in e])) for e in batches
        ]

    one, again, other = epochs(), epochs(), epochs(seed=1)
    for (order_one, images_one), (order_again, images_again) in zip(one, again, strict=True):
        assert order_one == order_again and torch.equal(images_one, images_again)
    assert one[0][0] != one[1][0] and one[0][0] != other[0][0]
    place = one[1][0].index(one[0][0][0]) if one[0][0][0] in one[1][0] else None
    assert place is None or not torch.equal(one[0][1][0], one[1][1][place])  # another crop in another epoch
    still = stream_of(out, shuffle=False).train_dataloader()
    assert order(still) == order(still) == list(range(28))


@pytest.mark.parametrize("workers", [0, 2])
def test_it_goes_on_within_an_epoch(out: Path, workers: int) -> None:
    """The loader's state, which Lightning keeps in a checkpoint, is enough to go on as if never stopped."""
    loader = stream_of(out, num_workers=workers, augment=Augment(crop="resized")).train_dataloader()
    order(loader)  # an epoch
    batches, state = [], None
    for batch in loader:
        batches.append(batch)
        if len(batches) == 3:
            state = loader.state_dict()  # type: ignore[attr-defined]
    resumed = stream_of(out, num_workers=workers, augment=Augment(crop="resized")).train_dataloader()
    resumed.load_state_dict(state)  # type: ignore[attr-defined]
    rest = list(resumed)
    assert len(rest) == 4
    for a, b in zip(rest, batches[3:], strict=True):
        assert torch.equal(a.indices, b.indices) and torch.equal(a.images, b.images)
    assert order(resumed) == order(loader)  # and the epoch after it


def test_classes_are_mixed_in_the_pack(out: Path) -> None:
    assert len(set(stream_of(out).sets["train"].targets[:11].tolist())) == 3


def _rank(rank: int, out: Path, port: Path, queue: Any) -> None:
    distributed.init_process_group("gloo", f"file://{port}", rank=rank, world_size=2)
    data = stream_of(out, num_workers=rank)  # the number of batches doesn't depend on workers
    train = data.train_dataloader()
    found = [
        [b.indices[b.valid].tolist() for b in loader] for loader in (train, train, data.val_dataloader())
    ]
    queue.put((rank, len(train), data.batches_per_epoch(2), found))
    distributed.destroy_process_group()


def test_two_processes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of an odd number of images each counts once in evaluation, and no rank trains longer than the other."""
    for i in range(2):
        write_picture(folder / "cat" / f"more{i}.jpg", seed=50 + i)
    monkeypatch.setattr(shards, "SHARD", 5_000)
    packed(folder, format="litdata")
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    ranks = [
        context.Process(target=_rank, args=(r, Path("out"), Path("port").absolute(), queue)) for r in range(2)
    ]
    for process in ranks:
        process.start()
    results = sorted(queue.get(timeout=120) for _ in ranks)
    for process in ranks:
        process.join(30)
        assert process.exitcode == 0
    count = len(stream_of("out").sets["val"])
    assert count == 3
    assert sorted(i for *_, (_, _, val) in results for batch in val for i in batch) == list(range(count))
    for epoch in (0, 1):
        batches = [found[epoch] for *_, found in results]
        assert {len(b) for b in batches} == {r[1] for r in results} == {r[2] for r in results} == {3}
        everything = [i for rank in batches for batch in rank for i in batch]
        assert len(everything) == len(set(everything)) == 24


def test_it_can_be_pickled(out: Path) -> None:
    images = stream_of(out).sets["train"]
    first = images.picture(0)  # opens the stream, which stays here
    assert torch.equal(pickle.loads(pickle.dumps(images)).picture(0), first)


def refused(**arguments: Any) -> str:
    with pytest.raises(UserError) as caught:
        stream_of(**arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("out", ["64MB"], indirect=True)
def test_what_is_wrong(out: Path, tmp_path: Path) -> None:
    assert refused(root="nope") == (
        "data.root=nope: there is no manifest.json; expected a directory that `imgcls pack` made"
    )
    message = refused(root=f"local:{tmp_path}/nope", cache="cache")
    assert message.startswith(f"local:{tmp_path}/nope/manifest.json can't be fetched (")
    for options in ({"fraction": 0.5}, {"repeats": 2}):
        assert "a stream is read whole, once an epoch" in refused(root=out, **options)
    path, manifest = out / "manifest.json", json.loads((out / "manifest.json").read_text())
    del manifest["splits"]["val"]
    path.write_text(json.dumps(manifest))
    assert refused(root=out) == f"data.root={out} has no val split, and a stream can't be cut; pack it again"
    path.write_text(json.dumps({**manifest, "format": "pixels"}))
    assert refused(root=out).endswith("is packed as pixels; expected litdata; set data=packed")


@dataclass
class Leaves:
    """Pickled, it is a call that leaves a folder behind."""

    trace: Path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.trace),)


def foreign(out: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Changes the index of the training images; the manifest agrees with it."""
    index, manifest = (
        json.loads((out / "train/index.json").read_text()),
        json.loads((out / "manifest.json").read_text()),
    )
    change(index)
    (out / "train/index.json").write_text(json.dumps(index))
    for name in manifest["files"]:
        manifest["files"][name] = asdict(facts_of(out / name))
    (out / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("remote", [False, True])
@pytest.mark.parametrize("out", ["64MB"], indirect=True)
def test_code_in_shards_does_not_run(out: Path, tmp_path: Path, remote: bool) -> None:
    shutil.rmtree(out / "train")
    writer = shards.shard_writer(out / "train")
    for place in range(31):
        writer[place] = {"image": Leaves(tmp_path / "ran"), "label": 0}
    writer.done()
    writer.merge()
    manifest = json.loads((out / "manifest.json").read_text())
    manifest["files"] = {name: facts for name, facts in manifest["files"].items() if (out / name).is_file()}
    (out / "manifest.json").write_text(json.dumps(manifest))
    foreign(out, lambda index: None)
    data = stream_of(root=f"local:{out}" if remote else str(out), cache="cache")
    with pytest.raises(
        UserError, match=r"train/index.json: config.data_format.0: input should be 'bytes'; expected"
    ):
        next(iter(data.train_dataloader()))
    with pytest.raises(UserError, match=r"train/index.json: config.data_format.0"):
        data.sets["train"].picture(0)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda it: it["config"].update(compression="zstd"), "config.compression: input should be null"),
        (lambda it: it["config"].update(encryption={"x": 1}), "config.encryption: input should be null"),
        (lambda it: it["config"].update(data_spec="[]"), "config.data_spec: input should be '"),
        (lambda it: it["config"].update(item_loader="Tokens"), "config.item_loader: input should be '"),
        (lambda it: it.update(shards=[]), "shards: unexpected keyword argument"),
        (lambda it: it.update(updated_at="../../elsewhere"), "updated_at: string should match pattern"),
        (lambda it: it["chunks"][0].update(filename="../../x.bin"), "chunks.0.filename: string should match"),
        (lambda it: it["chunks"][0].update(chunk_size=40), "it has 40 images, and the table 31"),
        (lambda it: it.clear(), "chunks: field required"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("out", ["64MB"], indirect=True)
def test_an_index_that_no_pack_writes(
    out: Path, tmp_path: Path, change: Callable[[dict[str, Any]], object], fault: str
) -> None:
    foreign(out, change)
    before = {path for path in tmp_path.rglob("*") if "cache" not in path.parts}
    for root in (str(out), f"local:{out}"):
        data = stream_of(root=root, cache="cache")
        with pytest.raises(UserError) as caught:
            data.train_dataloader()
        assert f"/train/index.json: {fault}" in str(caught.value) and "\n" not in str(caught.value)
    assert {path for path in tmp_path.rglob("*") if "cache" not in path.parts} == before


@pytest.mark.parametrize("out", ["64MB"], indirect=True)
def test_nothing_is_fetched_to_outside_the_cache(out: Path, tmp_path: Path) -> None:
    (out.parent / "theirs.npy").write_text("ours")
    (tmp_path / "cache").mkdir(exist_ok=True)
    (tmp_path / "kept.npy").write_text("kept")
    manifest = json.loads((out / "manifest.json").read_text())
    manifest["files"]["../../kept.npy"] = asdict(facts_of(out.parent / "theirs.npy"))
    (out / "manifest.json").write_text(json.dumps(manifest))
    assert "files.../../kept.npy" in refused(root=f"local:{out}", cache=str(tmp_path / "cache"))
    assert (tmp_path / "kept.npy").read_text() == "kept"


def test_it_is_a_datamodule(out: Path) -> None:
    assert isinstance(stream_of(out), ImageDataModule) and stream_of(out).class_counts() == [13, 9, 9]


def test_without_litdata(monkeypatch: pytest.MonkeyPatch, folder: Path, said: Callable[..., str]) -> None:
    monkeypatch.setitem(sys.modules, "litdata", None)  # as if it were not there
    expected = "streams need litdata, which is not installed; in the clone: pip install -e '.[streaming]'"
    for arguments in (
        ["pack", f"data.root={folder}", "out=out", "format=litdata"],
        ["train", "data=streaming", "data.root=x"],
    ):
        for module in ("imgcls.data.streaming", "imgcls.data.loading.shards"):
            monkeypatch.delitem(sys.modules, module, raising=False)
        assert said(*arguments) == f"imgcls {arguments[0]}: {expected}"
    assert not Path("out").exists()


def test_the_config(folder: Path) -> None:
    packed(folder, "pack", format="litdata")
    check_set("streaming", "data.root=pack")


@pytest.mark.parametrize("root", ["s3://bucket/set", "local:pack"])
def test_no_network_by_the_word_of_a_checkpoint(
    root: str, said: Callable[..., str], here: Callable[..., None]
) -> None:
    data = {"_target_": "imgcls.data.streaming.StreamingData", "root": root, "cache": "made"}
    write_checkpoint(Path("net.ckpt"), Digits().spec)
    content = torch.load("net.ckpt", weights_only=True)
    torch.save(content | {"config": content["config"] | {"data": data}}, "net.ckpt")
    message = said("eval", "checkpoint=net.ckpt")
    assert "data.root=" in message and "the checkpoint's data lies at" in message
    here("export", "checkpoint=net.ckpt", "out=net.onnx")  # checked on random pixels then
    assert not Path("made").exists()
