"""Plots return axes that hold the frame's numbers; figures need alternative texts."""

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from nbhelpers import plots


@pytest.fixture
def frame():
    rows = [
        (model, objective, 0, "nmi", depth, head, 0.1 * depth + 0.01 * head)
        for model, objective in (("shapes.cl", "CL"), ("shapes.mim", "MIM"))
        for depth in (1, 2, 3)
        for head in (-1, 0, 1)
    ]
    frame = pd.DataFrame(rows, columns=["model", "objective", "seed", "metric", "depth", "head", "value"])
    return frame.assign(
        study="shapes", source="computed", low=frame["value"] - 0.01, high=frame["value"] + 0.01
    )


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def test_by_depth_draws_the_means_of_each_model(frame):
    ax = plots.by_depth(frame, "nmi", heads=True, reference=(0.5, "chance"))
    lines = {line.get_label(): line for line in ax.get_lines()}
    assert lines["CL"].get_xdata().tolist() == [1, 2, 3]
    assert lines["MIM"].get_ydata().tolist() == pytest.approx([0.09, 0.19, 0.29])
    assert lines["CL"].get_color() == plots.STYLES["CL"]["color"]
    dots = sum(len(c.get_offsets()) for c in ax.collections if hasattr(c, "get_offsets"))
    assert dots >= 12
    assert any(text.get_text() == "chance" for text in ax.texts)


def test_further_seeds_are_drawn_without_a_second_legend_entry(frame):
    again = frame.assign(model=frame["model"] + ".s1", seed=1)
    ax = plots.by_depth(pd.concat([frame, again]), "nmi")
    labels = [line.get_label() for line in ax.get_lines() if not line.get_label().startswith("_")]
    assert labels == ["CL", "MIM"]
    assert len(ax.get_lines()) == 4


def test_a_missing_metric_is_answered_with_those_there(frame):
    with pytest.raises(ValueError, match="it has nmi"):
        plots.by_depth(frame, "nmj")


def test_published_curves_are_marked_as_such():
    ax = plots.published_by_depth("nmi")
    assert "published" in ax.get_title()
    assert len(ax.containers) == 2
    with pytest.raises(ValueError, match="no published curve"):
        plots.published_by_depth("attention_entropy")


def test_a_panel_says_whether_its_numbers_are_stored(frame):
    assert "computed in this build" in plots.title(frame)
    assert "stored 2026-01-02" in plots.title(frame.assign(source="stored 2026-01-02"))


def test_a_figure_without_alternative_text_is_refused():
    figure, _ = plt.subplots()
    with pytest.raises(ValueError, match="alternative text"):
        plots.show(figure, " ")
