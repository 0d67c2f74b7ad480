"""Every registered metric, held to the same battery."""

from dataclasses import replace

import pandas as pd
import pytest
import torch
from metric_battery import (
    IMAGES,
    LAYOUT,
    MOMENTS,
    SUMS,
    assert_same,
    batch,
    computed,
    feed,
    forward_pass,
    spoilt,
)

from nbhelpers.capture import Stream
from nbhelpers.metrics import METRICS, attention, streams

pytestmark = pytest.mark.parametrize("name", list(METRICS))


@pytest.fixture(scope="module")
def records():
    return forward_pass()


def test_frame_is_tidy(name, records):
    metric = METRICS[name]
    frame = computed(name, [records])
    extra = [] if metric.column == "head" else [metric.column]
    assert list(frame.columns) == ["metric", "depth", "head", *extra, "value", "low", "high", "images"]
    assert set(frame["metric"]) == {name}
    assert frame["depth"].between(0, LAYOUT.depth).all()
    assert (frame["images"] == IMAGES).all()
    assert not frame.duplicated(["depth", "head", *extra]).any()
    if name == "image_spectrum":  # an eigenvalue of all images is no mean over images
        assert frame[["low", "high"]].isna().all(axis=None)
    else:
        assert (frame["low"] <= frame["value"]).all() and (frame["value"] <= frame["high"]).all()
    low, high = metric.range
    if name != "image_spectrum":
        assert frame["value"].between(low - 1e-9, high + 1e-9).all()
    if metric.reference:
        assert low <= metric.reference(LAYOUT) <= high


@pytest.mark.parametrize(
    "split", [[[0], [1], [2], [3], [4], [5]], [[5, 4, 3], [2, 1, 0]], [[3, 0, 4, 1, 5], [2]]]
)
def test_split_and_order_change_nothing(name, records, split):
    assert_same(computed(name, [batch(records, indices) for indices in split]), computed(name, [records]))


def test_pieces_of_any_size_change_nothing(name, records, monkeypatch):
    expected = computed(name, [records])
    monkeypatch.setattr(attention, "MAPS_CPU", 1)
    monkeypatch.setattr(streams, "NUMBERS", 200)  # two images
    assert_same(computed(name, [records]), expected)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_two_processes_equal_one(name, records, ranks, rank):
    expected = computed(name, [records])
    frames = list(ranks.glob(f"{name}.*.{rank}.pkl"))
    assert len(frames) == (2 if name in (SUMS, MOMENTS) else 1)
    for frame in frames:
        assert_same(pd.read_pickle(frame), expected)


def test_half_precision_is_close_to_double(name, records):
    frame = computed(name, [forward_pass(dtype=torch.bfloat16)])
    expected = computed(name, [records])
    scale = expected["value"].abs().max()
    assert (frame["value"] - expected["value"]).abs().max() < 0.02 * scale


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_non_finite_input_raises_and_says_where(name, records, value):
    with pytest.raises(ValueError, match=r"(attention|output|block).* at depth [0-2]: .*NaN or infinite"):
        computed(name, [spoilt(records, value)])


def test_input_stays_as_it_was_and_no_graph_is_kept(name):
    records, untouched = forward_pass(), forward_pass()
    for record in records:
        for tensor in vars(record).values():
            if isinstance(tensor, torch.Tensor):
                tensor.requires_grad_()
    metric = feed(METRICS[name].of(LAYOUT), records)
    assert not any(state.requires_grad for state in metric.metric_state.values())
    for record, before in zip(records, untouched, strict=True):
        for field, tensor in vars(record).items():
            if isinstance(tensor, torch.Tensor):
                assert torch.equal(tensor, getattr(before, field))


def test_one_image_is_enough(name, records):
    with_one = computed(name, [batch(records, [0])])
    assert with_one["value"].isna().all() if name == "image_spectrum" else with_one["value"].notna().all()
    assert len(with_one) and with_one[["low", "high"]].isna().all(axis=None)


def test_an_image_of_equal_tokens_leaves_the_others_values(name, records):
    """Values that such an image does not have are left out, and counted; nothing is lost."""
    blank = [replace(r, tokens=torch.zeros_like(r.tokens)) if isinstance(r, Stream) else r for r in records]
    mixed = [
        replace(r, tokens=torch.cat([b.tokens[:1], r.tokens[1:]])) if isinstance(r, Stream) else r
        for r, b in zip(records, blank, strict=True)
    ]
    frame, others = computed(name, [mixed]), computed(name, [batch(records, range(1, IMAGES))])
    assert frame["value"].notna().all()
    if name in ("token_spectrum", "token_effective_rank", "token_norm_peak"):
        assert_same(frame, others)
    else:
        assert (frame["images"] == IMAGES).all()
    alone = computed(name, [batch(blank, [0, 1])])
    undefined = ("token_spectrum", "token_effective_rank", "token_norm_peak", "image_spectrum")
    assert alone["value"].isna().all() == (name in undefined)
