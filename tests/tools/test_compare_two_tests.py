"""Two runs on the page of imgcls compare: their confusion matrices, and the images that they disagree on."""

import base64
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from support.browser import LOOK, View, look, needs_chromium
from support.many_runs import CLASSES, write_matrix
from support.runs import Here, write_run

import imgcls


def write_predictions(run: Path, wrong: dict[int, tuple[str, float]]) -> None:
    """Writes the test of a run on digits, as it would be with the images `wrong` taken for other classes."""
    images = imgcls.load_data().sets["test"]
    rows = ["name,target,prediction,confidence,index"]
    for i, target in enumerate(images.targets.tolist()):
        prediction, confidence = wrong.get(i, (CLASSES[target], 0.9))
        rows.append(f"{images.name(i)},{CLASSES[target]},{prediction},{confidence},{i}")
    (run / "test" / "predictions.csv").write_text("\n".join([*rows, ""]))


def test_two_tests_image_by_image(here: Here) -> None:
    """The images that one run gets right and the other wrong come with small pictures, those first of which
    the wrong one is surest. Where tests do not compare, one line says why."""
    one, other = write_run(Path("runs/a"), 0.9), write_run(Path("runs/b"), 0.8)

    def compared() -> dict[str, Any]:
        here("compare", "runs=[runs/a,runs/b]", "hydra.run.dir=out")
        (text,) = re.findall(r'id="data">(.*?)</script>', Path("out/index.html").read_text())
        found: dict[str, Any] = json.loads(text)["two"]
        return found

    assert "a has no test/predictions.csv; imgcls eval checkpoint=RUN" in compared()["why"]
    write_predictions(one, {3: ("odd", 0.5)})
    write_predictions(other, {i: ("odd", 0.3 + i / 100) for i in (3, *range(10, 40))})
    found = compared()
    assert found["why"] == found["no_pictures"] == ""
    assert found["counts"] == [len(imgcls.load_data().sets["test"]) - 31, 30, 0, 1]
    assert found["p"] == pytest.approx(2 * 0.5**30)
    assert [card["index"] for card in found["alone"][0]] == [str(i) for i in range(39, 15, -1)]
    picture = Image.open(io.BytesIO(base64.b64decode(found["alone"][0][0]["picture"].partition(",")[2])))
    assert picture.format == "JPEG" and picture.size == (96, 96)
    assert Path("out/index.html").stat().st_size < 300_000
    table = (other / "test" / "predictions.csv").read_text()
    (other / "test" / "predictions.csv").write_text(table.replace("\n0,", "\nother,", 1))
    assert "of other images or labels: 0 0" in compared()["why"]
    (other / "test" / "predictions.csv").write_text("\n".join([*table.splitlines()[:9], ""]))
    assert re.search(r"of [\d,]+ and 8 images", compared()["why"])
    (other / "test" / "predictions.csv").write_text("name,cat,dog\n0,1,0\n")
    assert "gives an image more or less than one class" in compared()["why"]
    (other / "test" / "predictions.csv").write_text(table)
    config = (one / "config.yaml").read_text()  # a run directory names no code that is then run
    (one / "config.yaml").write_text(config.replace("_target_: imgcls.data.digits", "_target_: os"))
    found = compared()
    assert found["counts"][1] == 30 and "picture" not in found["alone"][0][0] and found["no_pictures"]


@needs_chromium
def test_two_runs_in_a_browser(here: Here, tmp_path: Path) -> None:
    """Three matrices, of each and of the difference, and the report of a test behind the name of its run."""
    for place, name in enumerate(("a", "b c#%")):
        run = write_run(Path("runs") / name, 0.9 - place / 10)
        write_matrix(run, CLASSES, [[30 - place, place]])
        (run / "test" / "index.html").write_text("<title>the report</title>")
        write_predictions(run, dict.fromkeys(range(place, 9), ("odd", 0.5)))
    here("compare", "runs=runs", "hydra.run.dir=out")
    probe = """() => ({
      cells: [...document.querySelectorAll(".matrices svg")].map(s => s.querySelectorAll(".cell").length),
      pictures: [...document.querySelectorAll(".cards img")].filter(i => i.naturalWidth === 96).length,
      links: [...document.querySelectorAll("#runs a")].map(a => a.getAttribute("href")),
      said: document.getElementById("pair").textContent,
      overlaps: LOOK().overlaps, wide: document.documentElement.scrollWidth - innerWidth,
    })""".replace("LOOK", f"({LOOK})")
    (said,) = look([View(Path("out/index.html"), 1000)], probe, tmp_path)
    assert said["cells"] == [10, 20, 20] and said["pictures"] == 1 and said["overlaps"] == []
    assert said["links"] == ["../runs/a/test/index.html", "../runs/b%20c%23%25/test/index.html"]
    assert "b c#% alone on 1," in said["said"] and said["wide"] <= 0
