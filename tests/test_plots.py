"""Plots return axes that hold the frame's numbers."""

import base64
import io
import re
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch

from nbhelpers import plots
from nbhelpers.capture import capture
from nbhelpers.metrics import token_pca
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
    assert {"CL", "MIM", "single heads", "chance"} == {*ax.get_legend_handles_labels()[1]}
    assert ax.get_ylim()[0] < 0 and ax.get_ylim()[1] > 1  # the bounds of NMI, whatever is drawn


def test_further_seeds_are_drawn_without_a_second_legend_entry(frame):
    again = frame.assign(model=frame["model"] + ".s1", seed=1)
    ax = plots.by_depth(pd.concat([frame, again]), "nmi")
    labels = [line.get_label() for line in ax.get_lines() if not line.get_label().startswith("_")]
    assert labels == ["CL", "MIM", "other seeds"]
    assert len(ax.get_lines()) == 4 + 1


def test_encoders_of_two_studies_are_not_called_alike(frame):
    other = frame.assign(model=frame["model"].str.replace("shapes", "cifar10"), value=0.5)
    ax = plots.by_depth(pd.concat([frame, other]), "nmi")
    assert ax.get_legend_handles_labels()[1] == ["shapes.cl", "shapes.mim", "cifar10.cl", "cifar10.mim"]
    assert len({(line.get_color(), line.get_marker()) for line in ax.get_lines()}) == 4
    titles = [f"shapes: {study}.{model}" for study in ("shapes", "cifar10") for model in ("cl", "mim")]
    assert plots.per_model([pd.concat([frame, other])])[1] == titles


def test_a_later_seed_alone_is_named_and_has_its_panel(frame):
    again = frame.assign(model=frame["model"] + ".s1", seed=1, study="shapes")
    assert plots.by_depth(again, "nmi").get_legend_handles_labels()[1] == ["CL", "MIM"]
    assert plots.per_model([again])[1] == ["shapes: CL", "shapes: MIM"]


def test_a_decoder_follows_its_encoder(frame):
    decoder = frame[frame["model"] == "shapes.mim"].assign(model="shapes.mim:decoder")
    colon = frame[frame["model"] == "shapes.cl"].assign(model="random:vit_tiny_patch16_224")
    moved = plots.behind_encoder(pd.concat([frame, decoder, colon], ignore_index=True))
    assert moved.groupby("model")["depth"].agg(["min", "max"]).T.to_dict("list") == {
        "random:vit_tiny_patch16_224": [1, 3],
        "shapes.cl": [1, 3],
        "shapes.mim": [1, 3],
        "shapes.mim:decoder": [4, 6],
    }
    lines = plots.published_by_depth(published(), "nmi", models=("MAE",), decoder=True).containers
    assert [len(line[0].get_xdata()) for line in lines] == [12, 8]


def test_models_of_one_objective_look_different():
    looks = [plots.line_style(f"shapes.{name}", "MIM") for name in ("mim", "mae", "mae:decoder")]
    assert looks[0] == plots.STYLES["MIM"]
    assert len({str(look) for look in looks}) == 3
    assert plots.line_style("shapes.hybrid-0.2", "hybrid") == plots.STYLES["hybrid"]


def test_any_number_of_widths_can_be_told_apart():
    widths = [f"shapes.cl.w{width}" for width in (8, 16, 32, 64)]
    looks = plots.line_styles([("shapes.cl", "CL"), *((name, "CL") for name in widths)])
    assert len({(look["marker"], look["linestyle"]) for look in looks.values()}) == 5


def test_any_number_of_models_can_be_told_apart():
    public = [("mocov3", "CL"), ("dino", "CL"), ("simmim", "MIM"), ("mae", "MIM")]
    models = [(f"{name}.vit_base_patch16_224", objective) for name, objective in public]
    looks = plots.line_styles(models)
    assert [looks[name]["color"] for name, _ in models] == [
        plots.STYLES[like]["color"] for like in ("CL", "DINO", "MIM", "MAE")
    ]
    models += [(f"{i}.vit_small_patch16_224.dino", "CL") for i in range(20)] + [("shapes.cl", "CL")]
    looks = plots.line_styles(models)
    strangers = [looks[name] for name, _ in models if "small" in name]
    assert len({look["color"] for look in strangers}) == 20
    assert not {look["color"] for look in strangers} & {look["color"] for look in plots.STYLES.values()}
    assert plots.line_style("one.vit", "MIM") == plots.STYLES["MIM"]  # alone, it may look like ours


def test_two_encoders_of_one_name_are_no_zig_zag_line(frame):
    with pytest.raises(ValueError, match=r"shapes\.(cl|mim) .*two encoders"):
        plots.by_depth(pd.concat([frame, frame.assign(value=0.5)]), "nmi")
    labelled = pd.concat([frame.assign(label=name) for name in ("shape", "texture")])
    with pytest.raises(ValueError, match="choose one label"):
        plots.by_depth(labelled, "nmi")


def test_an_undefined_value_is_a_gap_with_a_note(frame):
    frame.loc[(frame["depth"] == 2) & (frame["model"] == "shapes.cl"), "value"] = np.nan
    ax = plots.by_depth(frame, "nmi")
    assert np.isnan(ax.get_lines()[0].get_ydata()).tolist() == [False, True, False]
    assert [text.get_text() for text in ax.texts] == ["undefined: shapes.cl at 2"]


def test_a_download_holds_the_numbers(frame):
    address = re.search(r'href="data:text/csv;base64,([^"]+)"', plots.download(frame, "nmi").data)[1]
    again = pd.read_csv(io.BytesIO(base64.b64decode(address)))
    pd.testing.assert_frame_equal(again, frame, check_dtype=False)


def test_a_legend_below_names_every_line_once(frame):
    axes = plots.panels(["one", "two"])
    for ax in axes:
        plots.by_depth(frame, "nmi", ax)
    names = [text.get_text() for text in plots.legend_below(axes).get_texts()]
    assert "CL" in names and len(names) == len(set(names))


def test_a_title_names_both_sources_of_mixed_rows():
    sources = ["stored 2026-11-24", "computed", "stored 2026-11-27"]
    frame = pd.DataFrame({"study": "shapes", "source": sources})
    assert plots.title(frame).endswith("stored 2026-11-27, computed in this build")
    assert plots.title(frame[1:2]).endswith(")\ncomputed in this build")
    assert plots.title(frame[:1]).endswith(")\nstored 2026-11-24")


def test_what_all_encoders_of_a_legend_share_is_its_title():
    (ax,) = plots.panels(["one"])
    for name in ("CL, width 64", "MIM, width 64", "other seeds"):
        ax.plot([0, 1], label=name)
    legend = plots.legend_below([ax])
    assert "width 64" in legend.get_title().get_text()
    assert [text.get_text() for text in legend.get_texts()] == ["CL", "MIM", "other seeds"]
    ax.plot([0, 1], label="DINO")  # of the usual width
    assert plots.legend_below([ax]).get_texts()[0].get_text() == "CL, width 64"


def test_a_legend_does_not_say_of_a_public_model_what_others_share(frame):
    models = {"shapes.cl": "shapes.cl.w64", "shapes.mim": "deit_tiny_patch16_224"}
    ax = plots.by_depth(frame.replace({"model": models}), "nmi", reference=(0.5, "chance"))
    texts = [text.get_text() for text in plots.legend_below([ax]).get_texts()]
    assert texts == ["CL, width 64", "deit_tiny_patch16_224", "chance"]


def test_other_seeds_come_behind_the_encoders_of_all_panels():
    axes = plots.panels(["one", "two"])
    for ax, names in zip(axes, (("CL", "other seeds", "chance"), ("CL", "hybrid 0.5")), strict=True):
        for name in names:
            ax.plot([0, 1], label=name)
    texts = [text.get_text() for text in plots.legend_below(axes).get_texts()]
    assert texts == ["CL", "chance", "hybrid 0.5", "other seeds"]


def test_a_legend_of_long_names_leaves_the_panels_their_size(frame):
    heights = []
    with plt.style.context(Path(plots.__file__).with_name("book.mplstyle")):
        for name in ("one", "a name that takes two thirds of the width of the whole figure, by itself"):
            axes = plots.panels(["one", "two"])
            for i in range(3):
                axes[0].plot([0, i], label=f"{name} {i}")
            legend = plots.legend_below(axes)
            axes[0].figure.draw_without_rendering()
            heights.append(axes[0].get_window_extent().height)
    assert heights[0] == pytest.approx(heights[1], rel=0.02)
    assert legend.get_window_extent().width <= axes[0].figure.bbox.width


def test_shared_axes_are_named_once(frame):
    axes = plots.panels(["one", "two", "three"], sharex=True, sharey=True)
    for ax in axes:
        plots.by_depth(frame, "nmi", ax)
    assert [ax.yaxis.label.get_visible() for ax in axes] == [True, False, True]
    assert [ax.xaxis.label.get_visible() for ax in axes] == [False, True, True]  # nothing is below the second


def test_a_missing_metric_is_answered_with_those_there(frame):
    with pytest.raises(ValueError, match="there are nmi"):
        plots.by_depth(frame, "nmj")


def test_published_curves_are_marked_as_such():
    ax = plots.published_by_depth(published(), "nmi")
    assert "published" in ax.get_title()
    assert len(ax.containers) == 2
    with pytest.raises(ValueError, match="no published curve"):
        plots.published_by_depth(published(), "attention_entropy")


def test_a_legend_stands_in_the_cell_without_a_panel(frame):
    axes = plots.panels(["one", "two", "published"], sharey=True)
    for ax in axes[:2]:
        plots.by_depth(frame, "nmi", ax)
    theirs = plots.published_by_depth(published(), "nmi", axes[2], reference=(0.7, "theirs"))
    assert [ax.get_subplotspec().rowspan.start for ax in axes] == [0, 0, 1]
    assert theirs.get_ylim() == axes[0].get_ylim()
    plots.legend_below(axes)
    assert not theirs.figure.legends
    names = [text.get_text() for text in theirs.figure.axes[-1].get_legend().get_texts()]
    assert sorted(names) == ["CL", "CL: MoCo v3", "MIM", "MIM: SimMIM", "theirs"]


def test_an_encoder_of_another_length_looks_like_the_usual_one_but_dashed(frame):
    names = {"shapes.cl": "CL", "shapes.cl.n600000": "CL, 600,000 images"}
    usual = frame[frame["objective"] == "CL"]
    ax = plots.by_depth(pd.concat([usual.assign(model=name) for name in names]), "nmi")
    assert ax.get_legend_handles_labels()[1] == list(names.values())
    short, long = ax.get_lines()
    assert short.get_color() == long.get_color()
    assert (short.get_linestyle(), long.get_linestyle()) == ("-", "--")
    assert (short.get_markerfacecolor(), long.get_markerfacecolor()) == (short.get_color(), "white")


def test_a_decoder_of_another_length_stays_dotted():
    styles = plots.line_styles([(f"shapes.mae.n512000{part}", "MAE") for part in ("", ":decoder")])
    assert [look["linestyle"] for look in styles.values()] == ["--", ":"]


def test_a_panel_says_whether_its_numbers_are_stored(frame):
    assert "computed in this build" in plots.title(frame)
    assert "stored 2026-01-02" in plots.title(frame.assign(source="stored 2026-01-02"))


def test_panels_wrap_into_rows():
    axes = plots.panels(["a", "b", "c"])
    assert [ax.get_title() for ax in axes] == ["a", "b", "c"]
    rows = [ax.get_subplotspec().rowspan.start for ax in axes]
    assert rows == [0, 0, 1]
    assert [ax.get_title() for ax in axes[0].figure.axes if ax.axison] == ["a", "b", "c"]


def test_spectra_draw_a_line_per_depth_of_one_model(frame):
    rows = [(depth, rank, -1.0 * depth * rank) for depth in (0, 1, 2) for rank in (1, 2, 3)]
    spectrum = pd.DataFrame(rows, columns=["depth", "rank", "value"])
    spectrum = spectrum.assign(model="shapes.cl", metric="token_spectrum")
    lines = plots.spectra(pd.concat([frame[frame["model"] == "shapes.cl"], spectrum]), "token_spectrum").lines
    assert [line.get_ydata().tolist() for line in lines] == [[0, 0, 0], [-1, -2, -3], [-2, -4, -6]]
    assert len({line.get_color() for line in lines}) == 3
    with pytest.raises(ValueError, match="one model per panel, got shapes"):
        plots.spectra(frame, "nmi")


def test_token_steps_show_where_each_token_was_and_is():
    torch.manual_seed(0)
    encoder = wrap(mini_vit(width=16, depth=2, heads=2), mean=(0.5,) * 3, std=(0.5,) * 3)
    image = torch.randint(256, (1, 3, 32, 32), dtype=torch.uint8)
    steps = []
    with capture(encoder, on_stream=lambda record: steps.append(record.patches[0])):
        encoder.forward(image)
    pairs = list(zip(steps[0::2], steps[1::2], strict=False))
    figure = plots.token_steps({"mine": pairs}, (0.5, 1), {"mine": "#000000"})
    for ax, before, after in zip(figure.axes, steps[0::2], steps[1::2], strict=False):
        lines, dots = ax.collections
        pca = token_pca(before, after, components=2)
        start, end = np.stack(lines.get_segments()).swapaxes(0, 1)
        np.testing.assert_allclose(start, pca.before)
        np.testing.assert_allclose(end, pca.after)
        np.testing.assert_allclose(dots.get_offsets(), pca.after)
        share = (64 * (after - before).mean(0).square().sum() / (after - before).square().sum()).item()
        assert float(ax.get_xlabel().removeprefix("common: ")) == pytest.approx(share, abs=0.006)


def test_maps_lie_over_the_image_at_each_models_own_depth():
    maps = {"small": torch.rand(2, 3, 4, 2, 2), "large": torch.rand(12, 12, 16, 4, 4)}
    image = torch.randint(256, (1, 3, 32, 32), dtype=torch.uint8)
    figure = plots.query_maps(image, maps, [(0.1, 0.6), (0.9, 0.9)], (0.5, 1))
    assert len(figure.axes) == 4 * 3
    assert [ax.get_title() for ax in figure.axes[:3]] == ["", "depth 1", "depth 2"]
    assert [ax.get_title() for ax in figure.axes[6:9]] == ["", "depth 6", "depth 12"]
    assert [ax.get_title() for ax in figure.axes[3:6]] == [""] * 3
    assert [ax.get_ylabel() for ax in figure.axes[::3]] == ["", "small", "", "large"]
    shown = figure.axes[8].get_images()[1].get_array()
    assert torch.equal(torch.as_tensor(shown), maps["large"][11, :, 2].mean(0))
    heads = plots.head_maps(image, maps, (0.1, 0.6), 1)
    titles = [ax.get_title() for ax in heads.axes if ax.axison]
    assert titles[:2] == ["small, depth 2", "head 0"] and titles[-1] == "head 11"
    wide = plots.query_maps(
        image, {"wide": torch.rand(1, 1, 8, 4, 2)}, [(0.3, 0.9)], [1]
    )  # 8 x 16 px patches
    (frame,) = wide.axes[1].patches
    assert (frame.get_xy(), frame.get_width(), frame.get_height()) == ((16, 8), 16, 8)


def test_a_token_map_has_a_colour_per_group():
    points = pd.DataFrame({"x": [0.0, 1.0, 2.0], "y": [0.0, 1.0, 2.0], "image": [3, 3, 11]})
    ax = plots.token_map(points, "image")
    colours = ax.collections[0].get_facecolors()
    assert (colours[0] == colours[1]).all() and (colours[0] != colours[2]).any()
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["3", "11"]


def test_rows_without_a_head_stand_for_the_whole_layer(frame):
    """As a probe's have none where they stand in one frame with those of a metric that has heads."""
    probe = frame[frame["head"] < 0].drop(columns="head").assign(metric="linear")
    line = plots.by_depth(pd.concat([frame, probe]), "linear").get_lines()[0]
    assert line.get_xdata().tolist() == [1, 2, 3]


def test_by_parameter_draws_over_the_parameter():
    rows = [("a.cl", "CL", 0, "drop", 0.2 * k, 0.1 * k, 0.0, 1.0) for k in (2, 1, 3)]
    columns = ["model", "objective", "seed", "metric", "parameter", "value", "low", "high"]
    ax = plots.by_parameter(pd.DataFrame(rows, columns=columns), "drop", "frequency / Nyquist")
    (line,) = ax.get_lines()
    assert line.get_xdata().tolist() == pytest.approx([0.2, 0.4, 0.6])
    assert line.get_ydata().tolist() == pytest.approx([0.1, 0.2, 0.3])
    assert ax.get_xlabel() == "frequency / Nyquist"


def test_models_of_different_depths_share_the_colours_of_their_bar():
    rows = {"model": "a", "metric": "token_spectrum", "rank": 1, "value": 0.0}
    shallow, deep = (pd.DataFrame(rows | {"depth": range(n)}) for n in (5, 9))
    lines = plots.spectra(shallow, "token_spectrum", depths=8).get_lines()
    others = plots.spectra(deep, "token_spectrum", plt.figure().gca(), depths=8).get_lines()
    assert [line.get_color() for line in lines] == [line.get_color() for line in others[:5]]


def test_spectra_of_frequencies_are_drawn_over_frequency():
    rows = [("a", "fourier_radial", depth, f / 4, -depth * f) for depth in (0, 1) for f in (0, 1, 2)]
    frame = pd.DataFrame(rows, columns=["model", "metric", "depth", "frequency", "value"])
    ax = plots.spectra(frame.assign(rank=None), "fourier_radial")
    assert [line.get_xdata().tolist() for line in ax.get_lines()] == [[0, 0.25, 0.5]] * 2
    assert ax.get_xlabel() == "frequency / Nyquist"


def test_one_model_on_two_studies_has_a_panel_for_each():
    rows = {"model": "a", "metric": "token_spectrum", "depth": 1, "rank": [1, 2], "value": [0.0, -1.0]}
    frame = pd.concat([pd.DataFrame(rows | {"study": study}) for study in ("shapes", "cifar10")])
    panels, titles = plots.per_model([frame])
    assert [len(part) for part in panels] == [2, 2] and titles == ["shapes: a", "cifar10: a"]
    with pytest.raises(ValueError, match="several values at one rank; choose one study"):
        plots.spectra(frame, "token_spectrum")


def test_an_empty_panel_says_why():
    ax = plots.note(plt.gca(), "the stimuli are not on this machine, and there is no stored table of them")
    assert "stored table" in " ".join(text.get_text() for text in ax.texts).replace("\n", " ")
    assert not ax.axison


def test_two_widths_of_one_objective_differ_in_their_marker():
    sizes = (".n512000", ".w64.n256000", ".w64.n256000.s1")
    styles = plots.line_styles([(f"shapes.mae{size}", "MAE") for size in sizes])
    wide, narrow, seed = styles.values()
    assert wide["marker"] != narrow["marker"] and wide["color"] == narrow["color"]
    assert narrow == seed  # of one label
