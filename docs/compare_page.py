"""Draws docs/compare_page.png: trains 27 small networks on digits, compares them, and opens the page.

python docs/compare_page.py     two minutes on two cores; needs Chromium
"""

import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

HERE = Path(__file__).parent
SETTINGS = ["backbone.width=4,8,16", "optimizer.lr=0.001,0.003,0.01", "seed=0,1,2"]
CHOSEN = '#view=deviation&smooth=0.3&keep=["optimizer.lr",[0.001,0.003]]'


def say(*command: str) -> None:
    subprocess.run(command, check=True, cwd=folder)


with tempfile.TemporaryDirectory() as folder:
    imgcls = [sys.executable, "-m", "imgcls"]
    say(*imgcls, "train", "-m", *SETTINGS, "trainer.max_epochs=10", "logger=csv", "sweep.name=page")
    say(*imgcls, "compare", "runs=runs/sweeps/page", "average=seed", "hydra.run.dir=page")
    browser = [
        "chromium",
        "--headless",
        "--no-sandbox",
        "--hide-scrollbars",
        f"--user-data-dir={folder}/profile",
    ]
    say(
        *browser,
        "--window-size=1100,1530",
        "--screenshot=page.png",
        f"file://{folder}/page/index.html{CHOSEN}",
    )
    picture = Image.open(Path(folder, "page.png")).convert("RGB")
    picture.quantize(128).save(HERE / "compare_page.png", optimize=True)
