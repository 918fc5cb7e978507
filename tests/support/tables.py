"""Tables of pictures, as files and as bytes."""

from pathlib import Path
from typing import Any

import pandas as pd

from support.pictures import write_picture

SHAPE = (
    "data.image_size=24",
    "data.mean=[0.5]",
    "data.std=[0.25]",
    "data.batch_size=8",
    "data.num_workers=0",
)


def write_table(folder: Path, each: int = 20) -> pd.DataFrame:
    """Writes pictures of 3 classes and their table `labels.csv`; returns it. `tags` has labels between `;`,
    of some pictures none; `even` and `first` are labels of 0 and 1; a patient has 4 pictures of a class."""
    rows = []
    for label, name in enumerate(("cat", "dog", "fox")):
        for i in range(each):
            path = write_picture(folder / "pictures" / name / f"{i:02}.jpg", seed=100 * label + i)
            tags = [name] * (i % 5 != 0) + ["even"] * (i % 2 == 0 and i % 10 != 0)
            row = {"path": str(path.relative_to(folder)), "label": name, "tags": ";".join(tags)}
            rows.append({**row, "patient": f"{name}{i // 4}", "even": int(i % 2 == 0), "first": int(i < 10)})
    table = pd.DataFrame(rows)
    table.to_csv(folder / "labels.csv", index=False)
    return table


def write_parquet(folder: Path, table: pd.DataFrame, struct: bool = True) -> Path:
    """Writes `images.parquet` with the pictures' bytes in a column `image`: a struct of bytes and path as
    Hugging Face's datasets write it, or plain binary."""
    content = [(folder / path).read_bytes() for path in table["path"]]
    names = [path.replace("/", "_") for path in table["path"]]
    both = [{"bytes": data, "path": name} for data, name in zip(content, names, strict=True)]
    image: Any = both if struct else content
    stored = table.drop(columns="path").assign(image=image)
    stored.to_parquet(folder / "images.parquet", row_group_size=17)
    return folder / "images.parquet"


def write_hub(folder: Path, table: pd.DataFrame) -> Any:
    """Writes a set of Hugging Face's datasets with `save_to_disk`: images as bytes, `label` of
    ClassLabel, `tags` of lists of it. Returns the set."""
    import datasets

    names = sorted(set(table["label"]))
    labels, tags = datasets.ClassLabel(names=names), datasets.ClassLabel(names=[*names, "even"])
    kinds: dict[str, Any] = {"image": datasets.Image(), "label": labels, "tags": datasets.List(tags)}
    features: Any = datasets.Features({**kinds, "patient": datasets.Value("string")})  # type: ignore[arg-type]
    rows: dict[str, Any] = {
        "image": [{"bytes": (folder.parent / path).read_bytes(), "path": None} for path in table["path"]],
        "label": table["label"].tolist(),
        "tags": [cell.split(";") if cell else [] for cell in table["tags"]],
        "patient": table["patient"].tolist(),
    }
    made = datasets.Dataset.from_dict(rows, features=features)
    made.save_to_disk(folder)
    return made
