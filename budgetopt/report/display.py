"""The live display of a run, and plain lines where the output is no terminal."""

from __future__ import annotations

import time

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from budgetopt.data.dataset import Dataset
from budgetopt.report.plots import text_plot
from budgetopt.report.tables import duration, plan_lines, plan_table, trials_table
from budgetopt.search.config import NO_LIMIT, SearchConfig
from budgetopt.search.folder import RunFolder
from budgetopt.search.progress import Observer, Progress
from budgetopt.search.study import Record

SHOWN = 12  # rows of the current front
PLAIN_EVERY = 10.0  # seconds between status lines without a terminal


class ConsoleReport:
    """Prints the plan, then watches: live on a terminal, line by line elsewhere."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def plan(self, config: SearchConfig, dataset: Dataset, out: RunFolder, smallest: int) -> None:
        lines = plan_lines(config, dataset, str(out), smallest)
        if self._console.is_terminal:
            self._console.print(plan_table(lines))
        else:
            for what, value in lines:
                print(f"{what}: {value}", flush=True)

    def finished(self, out: RunFolder) -> None:
        print(f"{out} is finished: nothing was run; another search can learn from it by --warm-start", flush=True)

    def watch(self, progress: Progress) -> Observer:
        return LiveDisplay(self._console, progress) if self._console.is_terminal else PlainLines(progress)


class Silent:
    """For the Python API: says nothing."""

    def plan(self, config: SearchConfig, dataset: Dataset, out: RunFolder, smallest: int) -> None:
        pass

    def finished(self, out: RunFolder) -> None:
        pass

    def watch(self, progress: Progress) -> Observer:
        return Silent()

    def message(self, text: str) -> None:
        pass

    def trial_ended(self, record: Record) -> None:
        pass

    def close(self) -> None:
        pass


def status(progress: Progress) -> str:
    counts = progress.counts
    parts = [f"{len(progress.running)} under way", f"{counts['complete']} done", f"{counts['stopped']} stopped"]
    parts += [f"{counts[name]} {name}" for name in ("infeasible", "failed") if counts[name]]
    final = ""
    if progress.phase != "searching" and progress.final_total:
        final = f" {progress.final_done}/{progress.final_total}"
    clock = f"{duration(progress.elapsed)} elapsed"
    if progress.time_limit < NO_LIMIT:
        clock += f", {duration(progress.remaining)} left"
    return f"{clock} · {progress.phase}{final} · trials: {', '.join(parts)}"


class LiveDisplay:
    """One display: time, trials, the current front as a table and a text plot. Redrawn twice a second."""

    def __init__(self, console: Console, progress: Progress) -> None:
        self._progress = progress
        self._live = Live(
            get_renderable=self._render, console=console, refresh_per_second=2, transient=True, redirect_stderr=False
        )
        self._live.start()

    def _render(self) -> Group:
        progress = self._progress
        front = progress.front()
        points = [(r.bytes, r.accuracy) for r in progress.complete() if r.bytes and r.accuracy is not None]
        marked = [(r.bytes, r.accuracy) for r in front if r.bytes and r.accuracy is not None]
        parts: list[object] = [Text(status(progress), style="bold")]
        if points:
            parts += [trials_table(front, SHOWN), Text("\n".join(text_plot(points, marked)))]
        return Group(*parts)  # type: ignore[arg-type]

    def message(self, text: str) -> None:
        self._live.console.print(text, highlight=False)

    def trial_ended(self, record: Record) -> None:
        if record.state == "failed":
            self.message(f"trial {record.number} failed: {record.message}")

    def close(self) -> None:
        self._live.stop()


class PlainLines:
    """One line for every ended trial that has news, and a status line from time to time."""

    def __init__(self, progress: Progress) -> None:
        self._progress, self._last = progress, 0.0

    def message(self, text: str) -> None:
        print(f"[{duration(self._progress.elapsed)}] {text}", flush=True)

    def trial_ended(self, record: Record) -> None:
        if record.state == "complete":
            self.message(f"trial {record.number}: {record.bytes:,} bytes, {record.accuracy:.1%}, {record.allocation}")
        elif record.state == "failed":
            self.message(f"trial {record.number} failed: {record.message}")
        if time.monotonic() - self._last > PLAIN_EVERY:
            self._last = time.monotonic()
            self.message(status(self._progress))

    def close(self) -> None:
        pass
