"""Plots return axes that hold the frame's numbers."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch

from nbhelpers import plots
from nbhelpers.capture import capture
from nbhelpers.models import mini_vit, wrap
from nbhelpers.results import published


@pytest.fixture
def frame():
    rows = [
        (model, objective, 0, "nmi", depth, head, 0.1 * depth + 0.01 * head)
        for model, objective in (("shapes.cl", "CL"), ("shapes.mim", "MIM"))
        for depth in (1, 2, 3)
        for head in (-1, 0, 1)
    ]
    frame = pd.DataFrame(rows, columns=["model", "objective", "seed", "metric", "depth", "head", "value"])
    low, high = frame["value"] - 0.01, frame["value"] + 0.01
    return frame.assign(study="shapes", source="computed", low=low, high=high)


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def names(ax):
    return ax.get_legend_handles_labels()[1]


def texts(legend):
    return [text.get_text() for text in legend.get_texts()]


def test_by_depth_draws_the_means_of_each_model(frame):
    ax = plots.by_depth(frame, "nmi", heads=True, reference=(0.5, "chance"))
    lines = {line.get_label(): line for line in ax.get_lines()}
    assert lines["CL"].get_xdata().tolist() == [1, 2, 3]
    assert lines["MIM"].get_ydata().tolist() == pytest.approx([0.09, 0.19, 0.29])
    assert lines["CL"].get_color() == plots.STYLES["CL"]["color"]
    dots = sum(len(c.get_offsets()) for c in ax.collections if hasattr(c, "get_offsets"))
    assert dots >= 12
    assert {"CL", "MIM", "single heads", "chance"} == {*names(ax)}
    assert ax.get_ylim()[0] < 0 and ax.get_ylim()[1] > 1  # the bounds of NMI, whatever is drawn


def test_by_parameter_draws_over_the_parameter(frame):
    rows = frame[frame["head"] < 0].iloc[[1, 0, 2]].assign(parameter=[0.4, 0.2, 0.6])
    ax = plots.by_parameter(rows, "nmi", "frequency / Nyquist")
    (line,) = ax.get_lines()
    assert line.get_xdata().tolist() == pytest.approx([0.2, 0.4, 0.6])
    assert line.get_ydata().tolist() == pytest.approx([0.09, 0.19, 0.29])
    assert ax.get_xlabel() == "frequency / Nyquist"


def test_further_seeds_are_drawn_without_a_second_legend_entry(frame):
    again = frame.assign(model=frame["model"] + ".s1", seed=1)
    ax = plots.by_depth(pd.concat([frame, again]), "nmi")
    assert names(ax) == ["CL", "MIM", "other seeds"] and len(ax.get_lines()) == 4 + 1
    # A later seed alone is named, and has its panel.
    assert names(plots.by_depth(again, "nmi", plt.figure().gca())) == ["CL", "MIM"]
    assert plots.per_model([again])[1] == ["shapes: CL", "shapes: MIM"]


def test_encoders_of_two_studies_are_not_called_alike(frame):
    other = frame.assign(model=frame["model"].str.replace("shapes", "cifar10"), value=0.5)
    ax = plots.by_depth(pd.concat([frame, other]), "nmi")
    called = [f"{study}.{model}" for study in ("shapes", "cifar10") for model in ("cl", "mim")]
    assert names(ax) == called
    assert len({(line.get_color(), line.get_marker()) for line in ax.get_lines()}) == 4
    assert plots.per_model([pd.concat([frame, other])])[1] == [f"shapes: {name}" for name in called]


def test_a_decoder_follows_its_encoder(frame):
    renamed = {"shapes.mim": "shapes.mim:decoder", "shapes.cl": "random:vit_tiny_patch16_224"}
    both = pd.concat([frame, frame.replace({"model": renamed})], ignore_index=True)
    moved = plots.behind_encoder(both).groupby("model")["depth"].agg(["min", "max"])
    assert moved.loc["shapes.mim:decoder"].tolist() == [4, 6]
    assert (moved.drop("shapes.mim:decoder") == [1, 3]).all(axis=None)
    lines = plots.published_by_depth(published(), "nmi", models=("MAE",), decoder=True).containers
    assert [len(line[0].get_xdata()) for line in lines] == [12, 8]


def test_every_objective_size_and_part_can_be_told_apart():
    mae = [f"shapes.mae{size}" for size in ("", ".n512000", ".w8", ".w16", ".w32", ".w64")]
    models = ["shapes.mim", *mae, *(f"{name}:decoder" for name in mae)]
    looks = plots.line_styles((model, "MIM") for model in [*models, "shapes.mae.w64.s1"])
    assert looks.pop("shapes.mae.w64.s1") == looks["shapes.mae.w64"]  # of one label
    seen = {(look["marker"], look["linestyle"], look.get("fillstyle")) for look in looks.values()}
    assert len(seen) == len(models)
    assert len({looks[model]["color"] for model in mae}) == 1
    assert {looks[f"{model}:decoder"]["linestyle"] for model in mae} == {":"}
    half = {"linestyle": "--", "fillstyle": "bottom", "mfcalt": "white"}  # hollow ones are published
    assert looks["shapes.mae.n512000"] == plots.STYLES["MAE"] | half
    assert looks["shapes.mim"] == plots.STYLES["MIM"]
    assert plots.line_style("shapes.hybrid-0.2", "hybrid") == plots.STYLES["hybrid"]


def test_any_number_of_models_can_be_told_apart():
    public = [("mocov3", "CL"), ("dino", "CL"), ("simmim", "MIM"), ("mae", "MIM")]
    models = [(f"{name}.vit_base_patch16_224", objective) for name, objective in public]
    likes = [plots.STYLES[like]["color"] for like in ("CL", "DINO", "MIM", "MAE")]
    assert [look["color"] for look in plots.line_styles(models).values()] == likes
    models += [(f"{i}.vit_small_patch16_224.dino", "CL") for i in range(20)] + [("shapes.cl", "CL")]
    looks = plots.line_styles(models)
    strangers = {looks[name]["color"] for name, _ in models if "small" in name}
    assert len(strangers) == 20 and not strangers & {look["color"] for look in plots.STYLES.values()}
    assert plots.line_style("one.vit", "MIM") == plots.STYLES["MIM"]  # alone, it may look like ours


def doubled(frame, **columns):
    """The frame, and its rows again with one column changed."""
    return pd.concat([frame, frame.assign(**columns)])


@pytest.mark.parametrize(
    ("draw", "told"),
    [
        (lambda frame: plots.by_depth(frame, "nmj"), "there are nmi"),
        (lambda frame: plots.by_depth(doubled(frame, value=0.5), "nmi"), "two encoders"),
        (lambda frame: plots.by_depth(doubled(frame.assign(label="a"), label="b"), "nmi"), "one label"),
        (lambda frame: plots.spectra(frame, "nmi"), "one model per panel"),
        (lambda frame: plots.spectra(frame[:1], "nmi"), "no spectrum"),
        (
            lambda frame: plots.spectra(doubled(frame[:1].assign(rank=1), study="b"), "nmi"),
            "choose one study",
        ),
        (lambda frame: plots.published_by_depth(published(), "attention_entropy"), "no published curve"),
    ],
)
def test_rows_that_make_no_line_are_named(draw, told, frame):
    with pytest.raises(ValueError, match=told):
        draw(frame)


def test_an_undefined_value_is_a_gap_with_a_note(frame):
    frame.loc[(frame["depth"] == 2) & (frame["model"] == "shapes.cl"), "value"] = np.nan
    ax = plots.by_depth(frame, "nmi")
    assert np.isnan(ax.get_lines()[0].get_ydata()).tolist() == [False, True, False]
    assert [text.get_text() for text in ax.texts] == ["undefined: shapes.cl at 2"]


def test_a_title_says_whether_numbers_are_stored():
    sources = ["stored 2026-11-24", "computed", "stored 2026-11-27"]
    frame = pd.DataFrame({"study": "shapes", "source": sources})
    assert plots.title(frame).endswith("stored 2026-11-27, computed in this build")
    assert plots.title(frame[1:2]).endswith(")\ncomputed in this build")


@pytest.mark.parametrize(
    ("panels", "title", "told"),
    [
        (
            [["CL, width 64", "MIM, width 64", "other seeds"]],
            "encoders of width 64",
            ["CL", "MIM", "other seeds"],
        ),
        ([["CL, width 64", "DINO"]], "", ["CL, width 64", "DINO"]),  # of the usual width
        ([["CL", "other seeds", "chance"], ["CL", "MIM"]], "", ["CL", "chance", "MIM", "other seeds"]),
    ],
)
def test_a_legend_names_every_line_once_and_what_all_share_in_its_title(panels, title, told):
    axes = plots.panels([""] * len(panels))
    for ax, labels in zip(axes, panels, strict=True):
        for label in labels:
            ax.plot([0, 1], label=label)
    legend = plots.legend_below(axes)
    assert legend.get_title().get_text() == title and texts(legend) == told


def test_a_legend_does_not_say_of_a_public_model_what_others_share(frame):
    models = {"shapes.cl": "shapes.cl.w64", "shapes.mim": "deit_tiny_patch16_224"}
    ax = plots.by_depth(frame.replace({"model": models}), "nmi", reference=(0.5, "chance"))
    assert texts(plots.legend_below([ax])) == ["CL, width 64", "deit_tiny_patch16_224", "chance"]


def test_a_legend_of_long_names_leaves_the_panels_their_size():
    heights, legends = [], []
    with plt.style.context(Path(plots.__file__).with_name("book.mplstyle")):
        for name in ("one", "a name that takes two thirds of the width of the whole figure, by itself"):
            axes = plots.panels(["one", "two"])
            for i in range(3):
                axes[0].plot([0, i], label=f"{name} {i}")
            legend = plots.legend_below(axes)
            axes[0].figure.draw_without_rendering()
            heights.append(axes[0].get_window_extent().height)
            legends.append(legend.get_window_extent())
    assert heights[0] == pytest.approx(heights[1], rel=0.02)
    assert legends[1].width <= axes[0].figure.bbox.width and legends[0].height < legends[1].height / 2


def test_panels_wrap_into_rows_and_name_shared_axes_once(frame):
    axes = plots.panels(["a", "b", "c"], sharex=True, sharey=True)
    for ax in axes:
        plots.by_depth(frame, "nmi", ax)
    assert [ax.get_title() for ax in axes[0].figure.axes if ax.axison] == ["a", "b", "c"]
    assert [ax.get_subplotspec().rowspan.start for ax in axes] == [0, 0, 1]
    assert [ax.yaxis.label.get_visible() for ax in axes] == [True, False, True]
    assert [ax.xaxis.label.get_visible() for ax in axes] == [False, True, True]  # nothing is below the second


def test_a_legend_stands_in_the_cell_without_a_panel_beside_published_curves(frame):
    axes = plots.panels(["one", "two", "three"], sharey=True)
    for ax in axes[:2]:
        plots.by_depth(frame, "nmi", ax)
    theirs = plots.published_by_depth(published(), "nmi", axes[2])
    assert "published" in theirs.get_title() and theirs.get_ylim() == axes[0].get_ylim()
    plots.legend_below(axes)
    assert not theirs.figure.legends
    told = texts(theirs.figure.axes[-1].get_legend())
    assert sorted(told) == ["CL", "CL: MoCo v3", "MIM", "MIM: SimMIM"]


def test_spectra_draw_a_line_per_depth_of_one_model(frame):
    rows = [(depth, rank, -1.0 * depth * rank) for depth in (0, 1, 2) for rank in (1, 2, 3)]
    spectrum = pd.DataFrame(rows, columns=["depth", "rank", "value"]).assign(model="shapes.cl")
    every = pd.concat([frame[:9], spectrum.assign(metric="token_spectrum")])
    lines = plots.spectra(every, "token_spectrum").lines
    assert [line.get_ydata().tolist() for line in lines] == [[0, 0, 0], [-1, -2, -3], [-2, -4, -6]]
    assert len({line.get_color() for line in lines}) == 3
    fourier = spectrum.assign(metric="fourier_radial", frequency=spectrum["rank"] / 4, rank=None)
    ax = plots.spectra(fourier, "fourier_radial", plt.figure().gca(), depths=8)
    assert [line.get_xdata().tolist() for line in ax.get_lines()] == [[0.25, 0.5, 0.75]] * 3
    assert ax.get_xlabel() == "frequency / Nyquist"
    # Models of different depths share the colours of their bar.
    deep = pd.DataFrame({"model": "b", "metric": "nmi", "rank": 1, "value": 0.0, "depth": range(9)})
    others = plots.spectra(deep, "nmi", plt.figure().gca(), depths=8).get_lines()
    assert [line.get_color() for line in ax.get_lines()] == [line.get_color() for line in others[:3]]


def test_token_steps_show_where_each_token_was_and_is():
    torch.manual_seed(0)
    encoder = wrap(mini_vit(width=16, depth=2, heads=2), mean=(0.5,) * 3, std=(0.5,) * 3)
    steps = []
    with capture(encoder, on_stream=lambda record: steps.append(record.patches[0])):
        encoder.forward(torch.randint(256, (1, 3, 32, 32), dtype=torch.uint8))
    pairs = list(zip(steps[0::2], steps[1::2], strict=False))
    figure = plots.token_steps({"mine": pairs}, (0.5, 1), {"mine": "#000000"})
    for ax, (before, after) in zip(figure.axes, pairs, strict=True):
        lines, dots = ax.collections
        start, end = np.stack(lines.get_segments()).swapaxes(0, 1)
        np.testing.assert_allclose(dots.get_offsets(), end)
        common = [(after - before).mean(0).norm(), 0]  # all of the common step is to the right
        np.testing.assert_allclose((end - start).mean(0), common, atol=1e-5)
        share = (64 * (after - before).mean(0).square().sum() / (after - before).square().sum()).item()
        assert float(ax.get_xlabel().removeprefix("common: ")) == pytest.approx(share, abs=0.006)


def test_token_steps_show_a_common_step_that_is_small_beside_the_tokens():
    before = torch.tensor([[0.0, 9.0, 1.0], [0.0, -9.0, 1.0], [0.0, 0.0, -2.0]])
    steps = {"mine": [(before, before + torch.tensor([0.5, 0.0, 0.0]))]}
    (ax,) = plots.token_steps(steps, [1], {"mine": "#000000"}).axes
    start, end = np.stack(ax.collections[0].get_segments()).swapaxes(0, 1)
    np.testing.assert_allclose(end - start, [[0.5, 0]] * 3, atol=1e-6)
    np.testing.assert_allclose(np.abs(end[:, 1]), [9, 9, 0], atol=1e-6)
    assert ax.get_xlabel() == "common: 1.00"


def test_maps_stand_beside_the_picture_that_each_model_saw_at_its_own_depth():
    small, large = (torch.randint(256, (1, 3, side, side), dtype=torch.uint8) for side in (16, 32))
    maps = {
        "small": (small, torch.rand(2, 3, 4, 2, 2)),
        "large": (large, torch.rand(12, 12, 16, 4, 4)),
    }
    figure = plots.query_maps(maps, [(0.1, 0.6), (0.9, 0.9)], (0.5, 1))
    titles = [ax.get_title() for ax in figure.axes]
    assert titles == ["", "depth 1", "depth 2", *[""] * 4, "depth 6", "depth 12", *[""] * 3]
    assert [ax.get_ylabel() for ax in figure.axes[::3]] == ["", "small", "", "large"]
    for ax, image in zip(figure.axes[::3], [small, small, large, large], strict=True):
        (shown,) = ax.get_images()
        assert np.array_equal(shown.get_array(), image[0].permute(1, 2, 0))
    (shown,) = figure.axes[8].get_images()  # the map alone
    assert torch.equal(torch.as_tensor(shown.get_array()), maps["large"][1][11, :, 2].mean(0))
    assert shown.get_alpha() is None and shown.get_clim()[0] == 0
    heads = plots.head_maps(maps, (0.1, 0.6), 1)
    titles = [ax.get_title() for ax in heads.axes if ax.axison]
    assert titles[:2] == ["small, depth 2", "head 0"] and titles[-1] == "head 11"
    wide = plots.query_maps(
        {"wide": (large, torch.rand(1, 1, 8, 4, 2))}, [(0.3, 0.9)], [1]
    )  # 8 x 16 px patches
    with pytest.raises(ValueError, match="place in the image"):
        plots.query_maps(maps, [(-0.5, 0.5)], [1])
    (frame,) = wide.axes[1].patches
    assert (frame.get_xy(), frame.get_width(), frame.get_height()) == ((16, 8), 16, 8)


def test_a_token_map_has_a_colour_per_group():
    points = pd.DataFrame({"x": [0.0, 1.0, 2.0], "y": [0.0, 1.0, 2.0], "image": [3, 3, 11]})
    ax = plots.token_map(points, "image")
    colours = ax.collections[0].get_facecolors()
    assert (colours[0] == colours[1]).all() and (colours[0] != colours[2]).any()
    assert texts(ax.get_legend()) == ["3", "11"]


def test_an_empty_panel_says_why():
    reason = "the stimuli are not on this machine, and there is no stored table of them"
    drawn, ax, last = plots.panels(["shapes", "cifar10", "published"], missing={"cifar10": reason})
    assert " ".join(text.get_text() for text in ax.texts).replace("\n", " ") == reason
    assert not ax.axison and drawn.axison and last.axison and not drawn.texts


def test_without_numbers_there_is_nothing_to_download():
    assert plots.download([], "nmi") is None and plots.download([pd.DataFrame()], "nmi") is None
    both = plots.download([pd.DataFrame({"a": [1]}), pd.DataFrame({"a": [2]})], "nmi").data
    assert "data:text/csv;base64,YQoxCjIK" in both  # a, 1, 2
