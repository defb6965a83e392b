"""Results as one HTML file that needs nothing else, and as a table for the terminal.

`write_report` reads what an evaluation left in its folders (`results.json`, `scores/`, `rows.json`) and, when given, a
training run's `metrics.jsonl`. The page has no link to anything that it loads, and works without JavaScript. Text of
prompts and rows is escaped, and the page's own policy forbids whatever else might be in it.
"""

import base64
import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from t0jax.report.comparing import open_folders, text_table
from t0jax.report.page import context
from t0jax.report.reading import ReportError, read_curves

__all__ = ["ReportError", "compare_table", "write_report"]

_HERE = Path(__file__).parent


def write_report(
    folders: Sequence[Path | str],
    out: Path | str,
    *,
    names: Sequence[str] = (),
    references: Sequence[Mapping[str, Any]] = (),
    run: Path | str | None = None,
) -> Path:
    """Writes one self-contained HTML page.

    Args:
        folders: results folders; several are shown side by side, differences being to the first.
        out: the file to write.
        names: of the folders, in their order; else one folder's model, or the last parts of several folders' paths.
        references: published figures: objects with `dataset`, `model`, `value` (0 to 1), `statistic`, `source`
            {`title`, `link`} and, where it matters, `split` and `mean_of` (the data sets whose mean it is).
        run: folder of a training run or one of its checkpoints, for the run's curves.

    Returns:
        The file.

    Raises:
        ReportError: a folder without results, a broken file, or names that do not fit the folders.
    """
    curves = read_curves(Path(run)) if run is not None else {}
    page = render(context(open_folders(folders, names), references, curves))
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".{out.name}.partial")
    partial.write_text(page, encoding="utf-8", errors="replace")
    os.replace(partial, out)
    return out


def compare_table(folders: Sequence[Path | str], names: Sequence[str] = ()) -> str:
    """Results folders side by side, for a terminal.

    A line a data set: each model's mean over prompts and its difference to the first model's, with 95% bootstrap
    intervals over rows. Then, of generated text, a line a task and metric. Arguments and errors as of `write_report`.
    """
    return text_table(open_folders(folders, names))


def render(content: Mapping[str, Any]) -> str:
    """The page, from what `context` gives."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(percent=_percent, points=_points, between=_between, link=_link)
    script = (_HERE / "table.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template("page.html").render(
        content,
        style=Markup((_HERE / "style.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_hash=digest,
    )


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _points(value: float) -> str:
    """A difference in percentage points, with a true minus sign."""
    return f"{100 * value:+.1f}".replace("-", "\N{MINUS SIGN}")


def _between(interval: tuple[float, float] | None) -> str:
    return (
        f"{_percent(interval[0])}\N{EN DASH}{_percent(interval[1])}" if interval else "\N{EN DASH}"
    )


def _link(address: str) -> str:
    """The address, if it is one of the web; whatever else a file of references holds is no link."""
    return address if address.startswith(("https://", "http://")) else ""
