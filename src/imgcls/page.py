"""The test report as one page, which needs nothing beside itself."""

import base64
import io
from html import escape
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from imgcls.report import Report

STYLE = """
body { font: 16px/1.45 system-ui, sans-serif; color: #222; max-width: 60rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.5rem; margin: 0; } h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
p { margin: .3rem 0; color: #555; } img { max-width: 100%; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .2rem .6rem; border-bottom: 1px solid #ddd; overflow-wrap: anywhere; }
th { border-bottom-color: #888; overflow-wrap: normal; } td:first-child, th:first-child, .names td:nth-child(2), .names th:nth-child(2) { text-align: left; }
td:first-child, th:first-child { padding-left: 0; } .scroll { overflow-x: auto; }
.mistakes { display: flex; flex-wrap: wrap; gap: 1.2rem; }
figure { margin: 0; width: 20.2rem; max-width: 100%; font-size: .9rem; overflow-wrap: anywhere; }
figure img { width: 49%; image-rendering: pixelated; vertical-align: top; } figure small { color: #777; }
@media (max-width: 30rem) {
  th, td { padding: .2rem .3rem; font-size: .9rem; } .scroll img { width: 34rem; max-width: none; }
}
"""


def write_page(report: Report, folder: Path) -> None:
    """Writes `index.html`: all tables, and the pictures that lie in the folder, within the page."""
    metrics, classes = report.metrics, len(report.per_class)
    parts = [
        "<h1>Test report</h1>",
        f"<p>{len(report.predictions):,} images, {classes} classes, {int((~report.right()).sum()):,} mistakes</p>",
        "<h2>Metrics</h2>", metrics_table(metrics),
        "<h2>Confusion matrix</h2>", f'<div class="scroll">{picture(folder / "confusion_matrix.png")}</div>',
    ]  # fmt: skip
    if len(report.pairs):
        shown = report.pairs.head(20).assign(share=report.pairs["share"].map("{:.1%}".format))
        parts += ["<h2>Most confused pairs</h2>", table(shown, "names")]
    parts += ["<h2>Reliability</h2>", picture(folder / "reliability.png")]
    if report.mistakes:
        heat = any(m.evidence is not None for m in report.mistakes)
        parts += ["<h2>Worst mistakes</h2>", "<p>The wrong predictions with the highest confidence."]
        parts += [
            "Beside each: where the evidence for the predicted class lies (Grad-CAM), brighter where there is more."
            if heat
            else "",
            "</p>",
        ]
        parts += ['<div class="mistakes">']
        for mistake in report.mistakes:
            images = [mistake.picture] if mistake.evidence is None else [mistake.picture, mistake.evidence]
            parts += ["<figure>", *(inline(png(image), "") for image in images)]
            parts += [
                f"<figcaption>true: <b>{escape(mistake.target)}</b><br>predicted: <b>{escape(mistake.prediction)}</b>,"
            ]
            parts += [f"{mistake.confidence:.1%}<br><small>{escape(mistake.name)}</small></figcaption></figure>"]
        parts += ["</div>"]
    weakest = report.per_class.sort_values("f1", kind="stable").head(100)
    part = f", {len(weakest)} of {classes:,}" if classes > 100 else ""
    parts += [f"<h2>Classes, weakest first{part}</h2>", table(weakest)]
    head = '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>Test report</title>'
    head += f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head>'
    text = f"{head}<body>\n" + "\n".join(parts) + "\n</body></html>\n"
    (folder / "index.html").write_text(text, encoding="utf-8", errors="replace")


def metrics_table(metrics: dict[str, float]) -> str:
    """Returns the metrics a row each, with those before temperature scaling beside them where there are any."""
    named = {name.removeprefix("test/"): value for name, value in metrics.items()}
    rows = pd.DataFrame({"metric": [n for n in named if not n.endswith("_unscaled")]})
    rows["value"] = rows["metric"].map(named)
    if any(name.endswith("_unscaled") for name in named):
        rows["before scaling"] = rows["metric"].map(lambda name: named.get(f"{name}_unscaled"))
    return table(rows)


def table(frame: pd.DataFrame, kind: str = "") -> str:
    return frame.to_html(
        index=False, border=0, justify="inherit", classes=kind, float_format="{:.4f}".format, na_rep=""
    )


def picture(path: Path) -> str:
    return inline(path.read_bytes(), path.stem) if path.is_file() else ""


def png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def inline(content: bytes, words: str) -> str:
    return f'<img alt="{escape(words)}" src="data:image/png;base64,{base64.b64encode(content).decode()}">'
