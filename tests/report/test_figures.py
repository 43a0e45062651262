import numpy as np
import pytest

from sightline.report.figures import curve_svg, smooth, thin
from sightline.report.run_folder import Curve, read_run


def test_smooth_is_a_centred_mean():
    # 100 values: two on either side, fewer at the ends.
    values = np.arange(100.0)
    values[50] += 5
    smoothed = smooth(values)
    assert smoothed[10] == pytest.approx(10) and smoothed[50] == pytest.approx(51)
    assert smoothed[0] == pytest.approx((0 + 1 + 2) / 3) and smoothed[99] == pytest.approx((97 + 98 + 99) / 3)
    assert smooth(values[:5]).tolist() == values[:5].tolist()


def test_thin_keeps_the_mean_of_what_it_joins():
    steps, values = thin(np.arange(1000.0), np.arange(1000.0), limit=10)
    assert len(steps) == 10 and values[0] == pytest.approx(np.arange(100).mean())
    assert thin(np.arange(3.0), np.arange(3.0))[0].tolist() == [0, 1, 2]


def test_a_long_curve_stays_small():
    curve = Curve("s", "loss", tuple((step, 1 / step) for step in range(1, 20_001)), ((20_000, 0.1),))
    svg = curve_svg([("The model", "a", curve)], "p")
    assert len(svg) < 60_000 and "log scale" in svg and svg.startswith('<svg viewBox="')


def test_runs_share_a_figure_in_their_own_colours_and_marks():
    curve = Curve("s", "loss", ((1, 2.0), (2, 1.0)), ((2, 1.5),))
    alone, both = (curve_svg([("one", "a", curve), ("two", "b", curve)][:count], "p") for count in (1, 2))
    assert "training, smoothed" in alone and "validation" in alone and "var(--b)" not in alone
    assert "var(--a)" in both and "var(--b)" in both and "one" in both and "two" in both
    assert alone.count("opacity") == 1 and "opacity: 0.3" not in both, "each step is drawn of a run alone"


def test_lines_of_several_runs_have_marks_of_their_own():
    curve = Curve("s", "loss", tuple((step, 1 / step) for step in range(1, 100)), ())
    alone, both = (curve_svg([("one", "a", curve), ("two", "twin", curve)][:count], "p") for count in (1, 2))
    assert both.count("fill: var(--a); stroke: var(--a)") > 2, "colour alone tells no run from another"
    assert both.count("fill-opacity: 0; stroke: var(--twin)") > 2, "the twin's circles are empty"
    assert "fill: var(--a)" not in alone


@pytest.mark.parametrize("name", ["lr$\\frac$", "_under", "$x$", "比较"])
def test_a_run_may_be_called_anything(name, recwarn):
    curve = Curve("s", "loss", ((1, 2.0), (2, 1.0)), ())
    assert name in curve_svg([(name, "a", curve), ("two", "b", curve)], "p")
    assert not list(recwarn)


def test_a_long_name_leaves_room_for_the_curve(recwarn):
    curve = Curve("s", "loss", ((1, 2.0), (2, 1.0)), ())
    svg = curve_svg([("first" * 60, "a", curve), ("two", "b", curve)], "p")
    assert "firstfirstfi…tfirstfirst" in svg and not list(recwarn)


def test_numbers_that_no_figure_can_show_are_left_out(tmp_path):
    huge = "1" + "0" * 400
    rows = [f'{{"stage": "s", "step": {step}, "loss": 1}}' for step in ("NaN", "Infinity", huge, "1")]
    rows += [f'{{"stage": "s", "step": 2, "loss": {loss}}}' for loss in ("NaN", huge)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(rows))
    run = read_run(tmp_path)
    assert run.curves == (Curve("s", "loss", ((1, 1.0),), ()),)
    assert [note[-2:] for note in run.notes] == ["3.", "2."]


def test_a_step_logged_twice_counts_once(tmp_path):
    lines = ['{"stage": "s", "step": 1, "loss": 9}', '{"stage": "s", "step": 2, "loss": 8}']
    (tmp_path / "metrics.jsonl").write_text("\n".join([*lines, '{"stage": "s", "step": 2, "loss": 7}']))
    assert read_run(tmp_path).curves == (Curve("s", "loss", ((1, 9.0), (2, 7.0)), ()),)
