"""The list of a folder's files: what it holds, when it is made anew, and that workers share it."""

import json
import logging
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from support.pictures import write_picture

from imgcls.data.imagefolder import FolderImages, ImageFolder
from imgcls.data.loading import folders as module
from imgcls.data.loading.folders import as_names, folder_index

CLASSES = ["cat", "dog", "fox"]
TICK = 0.02  # seconds; longer than a step of the clock that stamps files


@pytest.fixture(autouse=True)
def soon_settled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SETTLED_NS", int(TICK * 1e9))


@pytest.fixture
def listings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The classes listed since the test began, in order."""
    listed: list[str] = []
    original = module.list_images

    def counting(folder: Path, name: str, errors: list[OSError]) -> Any:
        listed.append(name)
        return original(folder, name, errors)

    monkeypatch.setattr(module, "list_images", counting)
    return listed


def indexed(folder: Path, classes: list[str] = CLASSES, wait: bool = True) -> list[str]:
    """Returns the paths of a folder that has not been touched for a while; fails where counts don't fit
    them."""
    if wait:
        time.sleep(2 * TICK)
    counts, paths = folder_index(folder, classes)
    found = [os.fsdecode(name) for name in as_names(paths).tolist()]
    assert [sum(path.startswith(f"{name}/") for path in found) for name in classes] == counts.tolist()
    return found


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def cache_file(tmp_path: Path) -> Path:
    (file,) = (tmp_path / ".cache" / "imgcls").iterdir()
    return file


def test_the_second_time_nothing_is_listed(folder: Path, listings: list[str]) -> None:
    write_picture(folder / "cat" / "b" / "c" / "ü ä.PNG")
    (folder / "dog" / os.fsdecode(b"\xff.jpg")).symlink_to(folder / "dog" / "00.jpg")
    first = indexed(folder)
    assert first == files(folder) and len(first) == 38 and listings == CLASSES
    assert indexed(folder) == first and listings == CLASSES


def add(folder: Path) -> None:
    write_picture(folder / "cat" / "new.jpg")


def add_nested(folder: Path) -> None:
    write_picture(folder / "cat" / "deep" / "er" / "new.jpg")


def add_in_a_class_that_is_a_link(folder: Path) -> None:
    write_picture(folder.parent / "elsewhere" / "new.jpg")


def remove(folder: Path) -> None:
    (folder / "dog" / "05.jpg").unlink()


def rename(folder: Path) -> None:
    (folder / "fox" / "sub" / "a.jpg").rename(folder / "fox" / "sub" / "b.jpg")


def move(folder: Path) -> None:
    (folder / "cat" / "00.jpg").rename(folder / "dog" / "moved.jpg")


def remove_a_folder(folder: Path) -> None:
    (folder / "fox" / "sub" / "a.jpg").unlink()
    (folder / "fox" / "sub").rmdir()


def rename_a_folder(folder: Path) -> None:
    (folder / "fox" / "sub").rename(folder / "fox" / "bus")


def exchange_classes(folder: Path) -> None:
    for before, after in (("cat", "x"), ("dog", "cat"), ("x", "dog")):
        (folder / before).rename(folder / after)


def add_and_restore_the_time(folder: Path) -> None:
    """As tar and rsync do."""
    before = (folder / "cat").stat()
    add(folder)
    os.utime(folder / "cat", ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize(
    "change",
    [add, add_nested, add_in_a_class_that_is_a_link, remove, rename, move, remove_a_folder, rename_a_folder,
     exchange_classes, add_and_restore_the_time],
)  # fmt: skip
def test_a_change_is_seen(folder: Path, listings: list[str], change: Any) -> None:
    write_picture(folder / "fox" / "sub" / "a.jpg")
    write_picture(folder.parent / "elsewhere" / "a.jpg")
    classes = [*CLASSES, "owl"]
    (folder / "owl").symlink_to(folder.parent / "elsewhere")
    before = indexed(folder, classes)
    assert indexed(folder, classes) == before and listings == classes
    change(folder)
    after = indexed(folder, classes)
    owls = [f"owl/{name}" for name in files(folder.parent / "elsewhere")]
    assert after == sorted({*files(folder), *owls})  # pathlib does not look into links
    assert (after != before) != (change is exchange_classes)  # the names stayed, the pictures did not
    assert listings == classes * 2
    assert indexed(folder, classes) == after and listings == classes * 2


def test_hidden_files_and_links_to_folders(folder: Path) -> None:
    """Neither is listed, as before there was a cache."""
    (folder / "cat" / "link").symlink_to(folder / "dog")
    write_picture(folder / "cat" / ".hidden" / "00.jpg")
    write_picture(folder / "cat" / ".00.jpg")
    assert len(indexed(folder)) == len(indexed(folder)) == 36


def test_a_folder_just_changed_is_not_trusted(
    folder: Path, listings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file added within one step of the clock leaves the folder's times as they are."""
    monkeypatch.setattr(module, "SETTLED_NS", 60 * 10**9)
    assert len(indexed(folder)) == 36
    before = (folder / "cat").stat()
    (folder / "cat" / "12.jpg").hardlink_to(folder / "cat" / "00.jpg")
    stamps = module._stamps
    monkeypatch.setattr(
        module, "_stamps", lambda *args: stamps(*args) * 0 + before.st_ctime_ns
    )  # a stopped clock
    assert len(indexed(folder)) == 37 and listings == CLASSES * 2
    monkeypatch.setattr(module, "SETTLED_NS", 0)
    assert len(indexed(folder)) == 37
    (folder / "cat" / "12.jpg").unlink()
    assert len(indexed(folder)) == 37 and listings == CLASSES * 3  # such a clock would deceive it


def test_a_file_system_without_times(
    folder: Path, listings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stamps = module._stamps
    monkeypatch.setattr(module, "_stamps", lambda *args: stamps(*args) * 0)
    indexed(folder)
    indexed(folder)
    assert listings == CLASSES * 2


def test_a_folder_that_cannot_be_read(
    folder: Path, listings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it hides may be read later, and that changes no time of the folder above."""
    walk = os.walk

    def refuse(top: Path, onerror: Any) -> Any:
        onerror(PermissionError("no"))
        return walk(top)

    monkeypatch.setattr(module.os, "walk", refuse)
    assert len(indexed(folder)) == len(indexed(folder)) == 36 and listings == CLASSES * 2


@pytest.mark.parametrize("place", [0, 5, 0.3, 0.6, 0.99])
@pytest.mark.parametrize("damage", ["flip", "cut", "zeros"])
def test_a_damaged_cache(
    folder: Path,
    tmp_path: Path,
    listings: list[str],
    caplog: pytest.LogCaptureFixture,
    place: float,
    damage: str,
) -> None:
    expected = indexed(folder)
    file = cache_file(tmp_path)
    content = bytearray(file.read_bytes())
    at = int(place * len(content)) if place < 1 else int(place)
    if damage == "flip":
        content[at] ^= 0x55
    elif damage == "zeros":
        content[at:] = bytes(len(content) - at)
    else:
        del content[at:]
    file.write_bytes(content)
    assert indexed(folder) == expected and listings == CLASSES * 2
    assert indexed(folder) == expected and listings == CLASSES * 2  # mended
    assert not caplog.records


def test_a_cache_of_other_endings(folder: Path, listings: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    write_picture(folder / "cat" / "a.ppm")
    assert len(indexed(folder)) == 37
    monkeypatch.setattr(module, "EXTENSIONS", {".jpg"})
    monkeypatch.setattr(module, "is_image", lambda name: name.endswith(".jpg"))
    assert len(indexed(folder)) == len(indexed(folder)) == 36 and listings == CLASSES * 2


@pytest.mark.parametrize("what", ["file", "read-only", "no home"])
def test_an_unwritable_cache(
    folder: Path, tmp_path: Path, what: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    if what == "file":
        (tmp_path / ".cache").write_text("in the way")
    elif what == "read-only":

        def refuse(*args: Any, **kwargs: Any) -> Any:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(module.tempfile, "TemporaryDirectory", refuse)
    else:
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setattr(
            Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("Could not determine home."))
        )
    with caplog.at_level(logging.INFO):
        assert indexed(folder) == indexed(folder) == files(folder)
    record = caplog.records[0]
    assert record.message.startswith("the list of image files can't be kept (") and "\n" not in record.message


def test_a_full_disk_leaves_nothing(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(tensors: Any, file: Path) -> None:
        file.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "save_file", fail)
    assert len(indexed(folder)) == 36
    assert list((tmp_path / ".cache" / "imgcls").iterdir()) == []


@pytest.mark.slow
def test_several_processes_at_once(folder: Path, tmp_path: Path) -> None:
    code = f"""
import time; from pathlib import Path; from imgcls.data.loading import folders as index
index.SETTLED_NS = 0
for i in range(100):
    index._place(Path({str(folder)!r}), {CLASSES}).unlink(missing_ok=True)
    counts, paths = index.folder_index(Path({str(folder)!r}), {CLASSES})
    assert counts.tolist() == [12] * 3 and index.as_names(paths)[35] == b"fox/11.jpg"
"""
    running = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(2)]
    assert [process.wait() for process in running] == [0, 0]
    assert cache_file(tmp_path).stat().st_size < 10_000


def test_paths_are_mapped(folder: Path, tmp_path: Path) -> None:
    indexed(folder)
    _, paths = folder_index(folder, CLASSES)
    assert str(cache_file(tmp_path)) in Path("/proc/self/maps").read_text() and len(paths) == 36


def _name_and_place(dataset: FolderImages, queue: Any) -> None:
    queue.put((dataset.name(3), dataset.paths.is_shared()))


@pytest.mark.slow
def test_spawned_workers_take_shared_memory(folder: Path) -> None:
    """torch's multiprocessing sends a handle, not the bytes."""
    import torch.multiprocessing

    data = ImageFolder(root=str(folder), image_size=24, mean=[0.5], std=[0.5])
    data.setup()
    dataset = data.sets["train"]
    assert isinstance(dataset, FolderImages)
    context = torch.multiprocessing.get_context("spawn")
    queue = context.Queue()
    worker = context.Process(target=_name_and_place, args=(dataset, queue))
    worker.start()
    name, shared = queue.get()
    worker.join()
    assert name == dataset.name(3) and shared and dataset.paths.is_shared()


# Two workers: what the main process wrote over since it forked stays with them, shared; one alone would own
# it.
MEASURE = """
import json, sys, time
from pathlib import Path
import torch, torchvision
from imgcls.data.imagefolder import ImageFolder
torch.set_num_threads(1)
begin = time.perf_counter()
data = ImageFolder(root=sys.argv[1], image_size=16, mean=[0.5], std=[0.5], batch_size=32, num_workers=2)
data.setup()
seconds, wanted = time.perf_counter() - begin, int(sys.argv[2])
loader, taken, seen = data.train_dataloader(), 0, set()
while taken < wanted:
    batches = iter(loader)
    for batch in batches:
        seen.update(batch.indices.tolist())
        taken += 1
        if taken == wanted:
            break
own = []
for worker in loader._iterator._workers:
    lines = Path(f"/proc/{worker.pid}/smaps_rollup").read_text().splitlines()
    own.append(sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) / 1024)
print(json.dumps({"seconds": seconds, "own": max(own), "taken": taken, "span": max(seen) /
len(data.sets["train"])}))
"""


def write_many(root: Path, count: int, classes: int = 100) -> Path:
    """Makes a folder of hard links to small pictures: a file takes some tens of thousands of links at the
    most."""
    for label in range(classes):
        first = write_picture(root / f"class{label:04}" / "00000000.jpg", seed=label)
        for i in range(1, count // classes):
            os.link(first, f"{first.parent}/{i:08}.jpg")
    return root


@pytest.mark.slow
def test_a_large_set_starts_at_once_and_takes_no_more_memory(tmp_path: Path) -> None:
    figures: dict[int, list[dict[str, float]]] = {}
    for count in (2_000, 200_000):
        root = write_many(tmp_path / str(count), count)
        time.sleep(2.1)  # SETTLED_NS
        for batches in (2, 400):
            command = [sys.executable, "-c", MEASURE, str(root), str(batches)]
            done = subprocess.run(
                command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
            )
            assert not done.returncode, done.stderr
            figures.setdefault(count, []).append(json.loads(done.stdout))
    for count, (first, second) in figures.items():
        print(
            f"\n{count:,} files: first start {first['seconds']:.2f} s, second {second['seconds']:.2f} s, "
            f"a worker's own memory {second['own']:.1f} MiB after {second['taken']} batches of 32"
        )
    assert figures[200_000][1]["seconds"] < 3
    assert figures[200_000][1]["span"] > 0.99
    assert figures[200_000][1]["own"] - figures[2_000][1]["own"] < 3
