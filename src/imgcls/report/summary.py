"""Test report on the terminal: prints the metrics, the weakest classes, and what to run next."""

from rich.console import Console
from rich.table import Table

from imgcls.report.test_report import Report


def print_summary(title: str, report: Report, lines: dict[str, str]) -> None:
    """Prints the test table, the report in words, and `lines`: where things are and what to run next."""
    metrics = report.short_metrics()
    shown = [name for name in metrics if name != "temperature" and not name.endswith("_unscaled")]
    table = Table(show_edge=False, pad_edge=False)
    for name in shown:
        table.add_column(name, justify="right")
    table.add_row(*(f"{metrics[name]:.4f}" for name in shown))
    console = Console()
    console.print()
    console.print(title, style="bold", soft_wrap=True, highlight=False, markup=False)
    console.print(table)
    for name, text in (in_words(report) | lines).items():
        console.print(f"{name}: {text}", soft_wrap=True, highlight=False, markup=False)


def in_words(report: Report) -> dict[str, str]:
    """Returns the weakest classes, the most confused pairs, and what the temperature changed."""
    metrics, weakest = report.short_metrics(), report.per_class.sort_values("f1").head(3)
    classes = (f"{row['class']} (f1 {row['f1']:.3f})" for row in weakest.to_dict("records"))
    pairs = (
        f"{pair['true']} taken for {pair['predicted']} ({pair['count']}, {pair['share']:.1%})"
        for pair in report.pairs.head(3).to_dict("records")
    )
    words = {"weakest classes": ", ".join(classes), "most confused": ", ".join(pairs)}
    if "temperature" in metrics:
        changes = (
            f"{name.replace('_', ' ')} {metrics[f'{name}_unscaled']:.4f} → {metrics[name]:.4f}"
            for name in ("loss", "calibration_error")
        )
        words["temperature"] = f"{metrics['temperature']:g}: {', '.join(changes)}"
    return {name: text for name, text in words.items() if text}
