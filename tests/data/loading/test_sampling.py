"""Shares of classes: exact over epochs, on any number of ranks, and after a stop."""

import csv
from collections import Counter
from collections.abc import Callable
from itertools import chain
from pathlib import Path

import pytest
import torch
from support.command import imgcls
from support.pictures import write_picture
from torch import Tensor, distributed

from imgcls.data.digits import Digits
from imgcls.data.loading.sampling import Sampling, ShareSampler, apportioned, in_words, shares
from imgcls.data.memory import MemoryImages
from imgcls.data.module import Loader
from imgcls.errors import UserError

LONG_TAIL = [400, 150, 61, 25, 9, 3]
TARGETS: Tensor = torch.arange(6).repeat_interleave(torch.tensor(LONG_TAIL))[torch.randperm(648)]


def keys_of(sampler: ShareSampler, epoch: int) -> list[int]:
    sampler.set_epoch(epoch)
    return list(sampler)


def sampler_of(sampling: Sampling = "balanced", seed: int = 3, shuffle: bool = True) -> ShareSampler:
    return ShareSampler(TARGETS, seed, shuffle, sampling)


def test_shares() -> None:
    counts = torch.tensor([100, 25, 1])
    assert shares(counts, "uniform").tolist() == pytest.approx([100 / 126, 25 / 126, 1 / 126])
    assert shares(counts, "balanced").tolist() == pytest.approx([1 / 3] * 3)
    assert shares(counts, "sqrt").tolist() == pytest.approx([10 / 16, 5 / 16, 1 / 16])


def test_apportioned() -> None:
    part = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    assert apportioned(part, 10).tolist() == [5, 3, 2]
    assert apportioned(part, 7).tolist() == [4, 2, 1]  # 3.5, 2.1, 1.4
    assert apportioned(torch.full((3,), 1 / 3, dtype=torch.float64), 8).tolist() == [3, 3, 2]


@pytest.mark.parametrize("sampling", ["balanced", "sqrt"])
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_shares_of_twenty_epochs(monkeypatch: pytest.MonkeyPatch, sampling: Sampling, ranks: int) -> None:
    """Each class is within 2% of its share; an epoch is as long as the split, of which no rank has a key that
    another has."""
    sampler, seen = sampler_of(sampling), Counter[int]()
    monkeypatch.setattr(distributed, "is_initialized", lambda: ranks > 1)
    monkeypatch.setattr(distributed, "get_world_size", lambda: ranks)
    for epoch in range(20):
        parts = []
        for rank in range(ranks):
            monkeypatch.setattr(distributed, "get_rank", lambda rank=rank: rank)
            parts.append(keys_of(sampler, epoch))
        together = list(chain(*parts))
        assert {len(part) for part in parts} == {648 // ranks} and len(set(together)) == len(together)
        seen.update(TARGETS[torch.tensor(together) % 648].tolist())
    expected = shares(torch.tensor(LONG_TAIL), sampling) * 20 * 648
    for label, count in enumerate(expected.tolist()):
        assert seen[label] == pytest.approx(count, rel=0.02)
        assert ranks > 1 or abs(seen[label] - count) < 1


def test_images_of_a_class_come_equally_often_with_draws_of_their_own() -> None:
    sampler = sampler_of()
    keys = list(chain(*(keys_of(sampler, epoch) for epoch in range(5))))
    assert len(set(keys)) == len(keys)  # the draws for a key are those of no other
    often = Counter(key % 648 for key in keys)
    for label in range(6):
        counts = [often[index] for index, target in enumerate(TARGETS.tolist()) if target == label]
        assert max(counts) - min(counts) <= 1


def test_the_order_is_a_function_of_seed_and_epoch() -> None:
    sampler = sampler_of()
    once = [keys_of(sampler, epoch) for epoch in range(3)]
    torch.rand(5)
    assert [keys_of(sampler_of(), epoch) for epoch in (2, 0)] == [once[2], once[0]]
    assert keys_of(sampler_of(seed=4), 0) != once[0]
    labels = TARGETS[torch.tensor(once[0]) % 648]
    assert labels[:20].unique().numel() > 3  # shuffled, not class after class


def test_without_shuffling_each_epoch_has_the_same_order_and_draws_of_its_own() -> None:
    sampler = sampler_of(shuffle=False)
    first, third = keys_of(sampler, 0), keys_of(sampler, 2)
    assert [key % 648 for key in first] == [key % 648 for key in third] and not set(first) & set(third)


def test_a_loader_goes_on_within_an_epoch() -> None:
    def loader() -> Loader:
        data = Digits(sampling="balanced", batch_size=50, fraction=0.5)
        data.setup()
        made = data.train_dataloader()
        assert isinstance(made, Loader)
        made.sampler.set_epoch(1)
        return made

    whole, cut = [batch.indices for batch in loader()], loader()
    batches = iter(cut)
    first = [next(batches).indices for _ in range(4)]
    resumed = loader()
    resumed.load_state_dict(cut.state_dict())
    rest = [batch.indices for batch in resumed]
    assert all(map(torch.equal, whole, [*first, *rest])) and len(whole) == len(first) + len(rest)


@pytest.fixture
def tailed(tmp_path: Path) -> Path:
    """A folder of 8, 6 and 4 training pictures, and one of each class in the other splits."""
    for name, count in (("cat", 8), ("dog", 6), ("fox", 4)):
        for split, number in (("train", count), ("val", 1), ("test", 1)):
            for i in range(number):
                write_picture(tmp_path / "tailed" / split / name / f"{i}.png", seed=i)
    return tmp_path / "tailed"


def test_the_log_says_what_sampling_makes_of_the_counts(
    tailed: Path, here: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    given = ("data=imagefolder", f"data.root={tailed}", "data.image_size=16", "data.num_workers=0")
    tiny = ("data.batch_size=6", "backbone.width=4", "trainer=cpu", "trainer.max_epochs=1", "logger=csv")
    twice = ("data.sampling=balanced", "loss=logit_adjusted")
    here("train", *given, *tiny, *twice, "test=false")
    text = " ".join(capsys.readouterr().out.split())
    assert "data.sampling=balanced loss=logit_adjusted: each makes up for rare classes" in text
    assert "images of a class → samples an epoch: cat 8 → 6.0, dog 6 → 6.0, fox 4 → 6.0" in text
    counts, names = [*range(30, 0, -1)], [f"c{i}" for i in range(30)]
    words = in_words(counts, names, "balanced").split(", ")
    assert len(words) == 11 and words[0] == "c0 30 → 15.5" and words[5] == "…" and words[-1] == "c29 1 → 15.5"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["data.sampling=balanced", "data.repeats=2"], "data.sampling=balanced data.repeats=2: expected one"),
        (["data.sampling=even"], "data.sampling=even: input should be 'uniform', 'balanced' or 'sqrt'"),
    ],
)
def test_refused(said: Callable[..., str], words: list[str], expected: str) -> None:
    assert expected in said("train", *words)


@pytest.mark.parametrize(("kind", "words"), [(torch.float32, "measures"), (torch.int64, "several labels")])
def test_other_targets_are_refused(kind: torch.dtype, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    images = MemoryImages(torch.zeros(40, 1, 8, 8, dtype=torch.uint8), torch.ones(40, 3, dtype=kind))
    data = Digits(sampling="sqrt")
    monkeypatch.setattr(data, "load", lambda split: images if split == "train" else None)
    data.spec = type(data.spec)(("a", "b", "c"), 1, 8, [0.5], [0.5])
    with pytest.raises(UserError, match=rf"data\.sampling=sqrt: the data has {words}"):
        data.setup()


MODULE = """
import os
import numpy as np
import torch
import imgcls

class Tailed(imgcls.MemoryDataModule):
    def __init__(self, **common):
        super().__init__(**common)
        facts = {"channels": 1, "image_size": 8, "mean": [0.5], "std": [0.5]}
        self.spec = imgcls.DataSpec(("a", "b", "c"), **facts | self.facts)

    def arrays(self, split):
        if split != "train":
            return None
        return np.zeros((150, 8, 8), np.uint8), np.repeat([0, 1, 2], [100, 40, 10])

class Loss(torch.nn.CrossEntropyLoss):
    def forward(self, logits, targets):
        with open(f"seen-{os.environ.get('LOCAL_RANK', '0')}.txt", "a") as file:
            file.write("".join(f"{target}\\n" for target in targets.tolist()))
        return super().forward(logits, targets)
"""


@pytest.mark.slow
def test_two_processes() -> None:
    Path("mine.py").write_text(MODULE)
    given = ["data._target_=mine.Tailed", "data.sampling=balanced", "data.batch_size=6"]
    given += ["loss._target_=mine.Loss", "~loss.label_smoothing"]
    given += ["trainer=ddp_cpu", "trainer.max_epochs=20", "logger=csv", "test=false", "hydra.run.dir=run"]
    path = f"{Path.cwd()}:{Path(__file__).parents[3] / 'src'}"
    done = imgcls("train", *given, PYTHONPATH=path, timeout=300)
    assert done.returncode == 0, done.stderr
    parts = [Path(f"seen-{rank}.txt").read_text().split() for rank in (0, 1)]
    assert len(parts[0]) == len(parts[1]) > 0
    for part in parts:
        assert all(count == pytest.approx(len(part) / 3, rel=0.1) for count in Counter(part).values())
    seen = Counter(chain(*parts))
    assert all(seen[label] == pytest.approx(seen.total() / 3, rel=0.02) for label in "012")
    with Path("run/metrics.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 20
