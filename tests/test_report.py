import csv
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from sets import packed_set

from budgetopt import terminal
from budgetopt.allocation import Allocation
from budgetopt.budget import Budget
from budgetopt.packing import UniformLevels
from budgetopt.report.files import front_csv
from budgetopt.report.picture import COLUMNS, MAX_ROWS, sample_sheet
from budgetopt.report.plots import front_figure, text_plot
from budgetopt.report.tables import closing_lines, duration, front_table, plan_lines, plan_table, trials_table
from budgetopt.result import FrontPoint, Result
from budgetopt.search import config
from budgetopt.search.study import Record

FOLDER = Path("runs/mine")


def point(size, accuracy, half=0.02, dominated=False, **allocation):
    interval = (max(0.0, accuracy - half), min(1.0, accuracy + half))
    path = FOLDER / "front" / f"{size}.bopt"
    return FrontPoint(
        size, 50, accuracy, half, interval, 0.01, accuracy + 0.005, 0.02, dominated, Allocation(**allocation), path
    )


@pytest.fixture
def result():
    front = [point(100, 0.5), point(1000, 0.8, dominated=True, levels=4), point(20_000, 0.9, ipc=99)]
    references = {
        "all data": {"accuracy": 0.95, "half_width": 0.01, "bytes": 64_000},
        "whole training set, losslessly coded": {"bytes": 17_000},
        "not possible": {"bytes": None},
    }
    return Result(FOLDER, Budget(30_000), "digits", "glyph-1", front, front[2], references, 7, 0.625)


def record(number, size, accuracy):
    return Record(number, "complete", Allocation(ipc=number + 1), size, 50, accuracy, 0.01, "a.bopt", None)


def printed(renderable, width=200):
    console = Console(record=True, width=width, file=io.StringIO())
    console.print(renderable)
    return console.export_text()


# ----------------------------------------------------------------------------------------------------------------------
# text plot
# ----------------------------------------------------------------------------------------------------------------------
def marks(lines, mark):
    """(column, row) of every `mark`, row 0 at the top."""
    cells = [line.split("┤", 1)[1] for line in lines if "┤" in line]
    return {(x, y) for y, row in enumerate(cells) for x, cell in enumerate(row) if cell == mark}


def test_no_points_no_plot():
    assert text_plot([], []) == []


def test_corners_and_the_middle_of_the_octaves():
    points = [(100, 0.2), (200, 0.4), (400, 0.6)]
    lines = text_plot(points, points[2:], width=21, height=11)
    assert marks(lines, "·") == {(0, 10), (10, 5)}
    assert marks(lines, "●") == {(20, 0)}


def test_the_front_is_drawn_over_the_trials():
    points = [(100, 0.2), (400, 0.6)]
    assert marks(text_plot(points, points), "·") == set()
    assert len(marks(text_plot(points, points), "●")) == 2


def test_axes_are_labelled():
    lines = text_plot([(100, 0.2), (4000, 0.65)], [], width=40, height=6)
    assert len(lines) == 8
    assert lines[0].startswith(" 65.0% ┤")
    assert lines[5].startswith(" 20.0% ┤")
    assert lines[-1].split() == ["100", "B", "4,000", "B"]
    assert {len(line) for line in lines} == {48}


@pytest.mark.parametrize("points", [[], [(100, 0.5)], [(100, 0.5)] * 3])
def test_one_point_is_no_plot(points):
    assert text_plot(points, points[:1], width=10, height=4) == []


@pytest.mark.parametrize(
    "points", [[(100, 0.5), (200, 0.5)], [(100, 0.2), (100, 0.3)], [(9, 1.0), (99, 1.0), (8, 0.999)]]
)
def test_single_points_and_flat_sets(points):
    lines = text_plot(points, points[:1], width=10, height=4)
    assert len(lines) == 6
    assert len(marks(lines, "●")) == 1
    labels = [line[:6] for line in lines if "%" in line[:6]]
    assert len(set(labels)) == 2


def test_one_failure_does_not_flatten_the_rest():
    points = [(100 + i, 0.8 + i / 1000) for i in range(40)] + [(150, 0.0)]
    rows = {y for _, y in marks(text_plot(points, [], height=10), "·")}
    assert rows == set(range(10))


def test_front_outside_the_trials_stays_inside_the_plot():
    lines = text_plot([(100, 0.5), (200, 0.6)], [(10, 0.1), (9000, 0.99)], width=10, height=4)
    assert marks(lines, "●") == {(0, 3), (9, 0)}


# ----------------------------------------------------------------------------------------------------------------------
# lines and tables
# ----------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0:00"),
        (5.4, "0:05"),
        (59.6, "1:00"),
        (285, "4:45"),
        (3599, "59:59"),
        (3600, "1:00:00"),
        (90061, "25:01:01"),
    ],
)
def test_duration(seconds, text):
    assert duration(seconds) == text


def test_plan(digits):
    resolved, _ = config.resolve("30kb", trials=12, time_limit=90, workers=3, seed=5)
    lines = plan_lines(resolved, digits, "runs/mine", 98)
    plan = dict(lines)
    assert list(plan) == [
        "budget", "dataset", "protocol", "objectives", "search space", "workers", "limit", "results",
    ]  # fmt: skip
    assert plan["budget"] == "30,000 bytes (240,000 bits), smallest file about 98 bytes"
    sizes = f"{len(digits.train):,} train / {len(digits.val):,} validation"
    assert plan["dataset"] == f"digits: {sizes}, 10 classes, samples 1×8×8"
    assert plan["protocol"].startswith(f"glyph-1 ({resolved.protocol.hash}): convnet width 32, 200 steps of 128")
    assert plan["objectives"] == "coreset, dm"
    assert plan["search space"] == "image"
    assert plan["workers"].startswith("3")
    assert plan["limit"] == "12 trials, 1:30 in all, seed 5"
    assert plan["results"] == "runs/mine"
    text = printed(plan_table(lines))
    assert all(value in text for value in plan.values())


def test_trials_table_shows_the_largest_files():
    front = [record(i, 100 * (i + 1), 0.5 + i / 100) for i in range(8)]
    text = printed(trials_table(front, 3))
    assert "600" in text
    assert "800" in text
    assert "57.0%" in text
    assert "500" not in text
    assert str(front[7].allocation) in text
    assert printed(trials_table([], 3)).split() == ["bytes", "validation", "allocation"]


def test_front_table(result):
    lines = printed(front_table(result)).splitlines()
    assert "test accuracy" in lines[0]
    rows = [" ".join(line.split()) for line in lines[1:]]
    assert rows[0] == f"100 50 50.0% ± 2.0% 50.5% {result.front[0].allocation}"
    assert rows[1].endswith("(dominated on test)")
    assert rows[2].startswith("best 20,000 50 90.0% ± 2.0% 90.5%")
    assert rows[3] == "64,000 95.0% ± 1.0% all data"
    assert rows[4] == "17,000 as all data whole training set, losslessly coded"
    assert rows[5].startswith("n/a")
    assert sum(row.startswith("best") for row in rows) == 1


def test_a_member_that_was_fine_tuned_says_from_what(result):
    child = replace(result.front[0], parent=7, total_steps=1200, dominated_on_test=True)
    rows = [" ".join(line.split()) for line in printed(front_table(replace(result, front=[child]))).splitlines()]
    assert rows[1].endswith(f"{child.allocation}, from trial 7, 1,200 steps in all (dominated on test)")
    assert "from trial" not in printed(front_table(result))


def test_half_width_is_not_clipped(result):
    near_one = point(500, 0.995, half=0.02)
    shown = Result(FOLDER, Budget(30_000), "digits", "glyph-1", [near_one], near_one, {}, 7, 0.625)
    assert "99.5% ± 2.0%" in printed(front_table(shown))


def test_closing_lines(result):
    text = "\n".join(closing_lines(result))
    assert "± 1.0% at best.bopt" in text
    assert (
        "test evaluations in this run: 7 (3 of the front, the others of all data and by 'eval'); hypervolume 0.625"
        in text
    )
    assert f"{FOLDER / 'best.bopt'} (20,000 bytes of 30,000)" in text


def test_names_of_users_are_no_markup(result, monkeypatch, capsys):
    """A file may be called `cust [old].csv`, and `[/` would end a style that was never begun."""
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    for name in ("/data/cust [old].csv", "a [/b] c"):
        shown = replace(result, dataset=name)
        terminal.print_front(terminal.console(), shown)
        out = capsys.readouterr().out
        assert shown.title in " ".join(out.split())
        assert "/data/" not in out
        table = plan_table([("dataset", name), ("note", "[red]x[/red]")])
        console = terminal.console()
        with console.capture() as printed_:
            console.print(table)
        assert name in printed_.get()
        assert "[red]x[/red]" in printed_.get()


# ----------------------------------------------------------------------------------------------------------------------
# files
# ----------------------------------------------------------------------------------------------------------------------
def test_macro_f1_stands_beside_accuracy_where_classes_are_unequal(result):
    front = [replace(p, macro_f1=p.accuracy - 0.123) for p in result.front]
    references = {"all data": result.references["all data"] | {"macro_f1": 0.876}}
    shown = replace(result, front=front, best=front[2], references=references, class_counts=(10, 20, 15))
    lines = printed(front_table(shown)).splitlines()
    assert "test accuracy  macro-F1  validation" in lines[0]
    assert "50.0% ± 2.0%     37.7%" in lines[1]
    assert "87.6%" in lines[-1]
    assert "macro-F1" not in printed(front_table(replace(shown, class_counts=(10, 19, 15))))
    assert "macro-F1" not in printed(front_table(replace(shown, class_counts=())))
    rows = list(csv.DictReader(io.StringIO(front_csv(shown))))
    assert [float(row["macro_f1"]) for row in rows] == pytest.approx([0.377, 0.677, 0.777, 0.876])


def test_front_csv(result):
    rows = list(csv.DictReader(io.StringIO(front_csv(result))))
    assert [row["bytes"] for row in rows] == ["100", "1000", "20000", "64000", "17000", ""]
    for row, p in zip(rows, result.front, strict=False):
        assert (float(row["accuracy"]), float(row["low"]), float(row["high"])) == (p.accuracy, *p.interval)
        assert row["file"] == f"front/{p.bytes}.bopt"
        assert row["dominated_on_test"] == str(p.dominated_on_test)
        found = {k: int(row[k]) if k in ("ipc", "levels") else row[k] for k in p.allocation.to_dict()}
        assert Allocation.from_dict(found) == p.allocation
    assert rows[3]["file"] == "all data"
    assert float(rows[3]["accuracy"]) == 0.95
    assert rows[4]["accuracy"] == ""


def test_front_csv_of_allocations_that_leave_out_defaults(result):
    """Every value is under its own column, whichever member is the best one."""
    front = [point(100, 0.5, rdoq=0.2), point(1000, 0.8, label_bits=3, label_temperature=2.0), point(20_000, 0.9)]
    for best in front:
        rows = list(csv.DictReader(io.StringIO(front_csv(replace(result, front=front, best=best)))))
        for row, p in zip(rows, front, strict=False):
            assert None not in row
            allocation = p.allocation.to_dict()
            assert all(row[key] == str(value) for key, value in allocation.items())
            assert all(row[key] == "" for key in ("rdoq", "label_bits") if key not in allocation)


def test_front_figure(result):
    trials = [record(0, 150, 0.4), Record(1, "stopped", None, 200, 50, 0.1, 0.1, None, None)]
    figure = front_figure(result, trials)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    assert Image.open(buffer).size == (960, 600)
    (axes,) = figure.axes
    assert len(axes.collections[0].get_offsets()) == 1  # only finished trials
    texts = [text.get_text() for text in axes.get_legend().get_texts()]
    assert any("all data: 95.0%" in text for text in texts)
    assert any("budget: 30,000 bytes" in text for text in texts)


def test_a_reference_far_outside_does_not_widen_the_figure(result):
    """Lines are drawn up to twice the budget; what lies farther is told in the legend."""
    for budget, drawn in ((30_000, True), (1_000, False)):
        (axes,) = front_figure(replace(result, budget=Budget(budget))).axes
        lines = [line for line in axes.lines if list(line.get_xdata()) == [17_000, 17_000]]
        assert bool(lines) == drawn
        texts = [text.get_text() for text in axes.get_legend().get_texts()]
        assert any("17,000 bytes" in text and text.endswith("(outside)") != drawn for text in texts)


def test_what_is_dominated_on_test_is_hollow_and_no_step_of_the_front(result):
    (axes,) = front_figure(result).axes
    hollow = [line for line in axes.lines if line.get_markerfacecolor() == "white"]
    assert [list(line.get_xdata()) for line in hollow] == [[1000]]
    steps = [list(line.get_xdata()) for line in axes.lines if line.get_drawstyle() == "steps-post"]
    assert steps == [[100, 20_000]]


def test_ticks_are_decimal_as_budgets_are(result):
    (axes,) = front_figure(result).axes
    assert {100, 1000, 2000, 5000, 10_000} <= {round(tick) for tick in axes.get_xticks()}


def packed(shape, counts, levels=2):
    symbols = np.zeros((sum(counts), *shape), np.uint8)
    symbols[:, ..., -1] = levels - 1
    statistics = np.ones(shape[0] if len(shape) == 3 else 1, np.float32)
    return packed_set(symbols, counts, UniformLevels(levels, 0, 9, 0), mean=statistics, std=statistics)


def test_sample_sheet_has_a_row_for_each_class():
    sheet = np.asarray(Image.open(io.BytesIO(sample_sheet(packed((1, 4, 4), (3, 1))))))
    zoom = sheet.shape[1] // (COLUMNS * 5 + 1)
    small = sheet[::zoom, ::zoom]
    assert small.shape == (2 * 5 + 1, COLUMNS * 5 + 1)
    for row, count in enumerate((3, 1)):
        for column in range(COLUMNS):
            tile = small[1 + 5 * row : 5 + 5 * row, 1 + 5 * column : 5 + 5 * column]
            expected = np.array([0, 0, 0, 255 if column < count else 0])
            np.testing.assert_array_equal(tile, np.broadcast_to(expected, (4, 4)))


def test_sample_sheet_shows_all_classes_on_one_scale():
    """Also where the first classes alone, of many samples, are all of one value."""
    symbols = np.zeros((1054, 1, 4, 4), np.uint8)
    symbols[1050:] = np.array([0, 1, 2, 3], np.uint8).reshape(4, 1, 1, 1)
    statistics = np.array([1.0], np.float32)
    held = packed_set(symbols, (1050, 4), UniformLevels(4, 0, 1, 0), mean=statistics, std=statistics)
    sheet = np.asarray(Image.open(io.BytesIO(sample_sheet(held))))
    assert len(np.unique(sheet)) == 4


def test_sample_sheet_is_bounded():
    image = Image.open(io.BytesIO(sample_sheet(packed((1, 4, 4), (15,) * 30))))
    zoom = image.width // (COLUMNS * 5 + 1)
    assert image.height == zoom * (MAX_ROWS * 5 + 1)


def test_sample_sheet_of_constant_samples():
    flat = packed((1, 4, 4), (1, 1))
    flat.symbols[:] = 0
    assert np.asarray(Image.open(io.BytesIO(sample_sheet(flat)))).max() == 0


def test_what_is_no_picture_has_no_sheet():
    assert sample_sheet(packed((2, 4, 4), (1, 1))) is None
    assert sample_sheet(packed((7,), (1, 1))) is not None
