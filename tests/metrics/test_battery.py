"""Every registered metric, held to the same battery."""

import pickle

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
    padded,
    spoilt,
)

from nbhelpers.metrics import METRICS, attention, base

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
    assert metric.consumes <= {"attention", "block", "+sa"} and metric.consumes
    assert isinstance(metric.unit, str)


@pytest.mark.parametrize(
    "split", [[[0], [1], [2], [3], [4], [5]], [[5, 4, 3], [2, 1, 0]], [[3, 0, 4, 1, 5], [2]]]
)
def test_split_and_order_change_nothing(name, records, split):
    assert_same(computed(name, [batch(records, indices) for indices in split]), computed(name, [records]))


def test_pieces_of_any_size_change_nothing(name, records, monkeypatch):
    expected = computed(name, [records])
    monkeypatch.setattr(attention, "CHUNK", {"cpu": 1})
    monkeypatch.setattr(base, "PIECE", 200)  # two images
    assert_same(computed(name, [records]), expected)


def test_padding_of_the_last_batch_changes_nothing(name, records):
    batches = [batch(records, [0, 1, 2, 3]), padded(batch(records, [4, 5]), 2)]
    assert_same(computed(name, batches), computed(name, [records]))


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
def test_non_finite_input_raises_with_the_metrics_name(name, records, value):
    with pytest.raises(ValueError, match=rf"{name}: .*(NaN or infinite|not finite)"):
        computed(name, [spoilt(records, value)])


def test_memory_does_not_grow_with_images(name, records):
    metric = METRICS[name].of(LAYOUT)
    sizes = []
    for _ in range(3):
        sizes.append(len(pickle.dumps(feed(metric, batch(records, [0, 1])))))
    assert max(sizes) - min(sizes) < 64  # a counter may need a byte more


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


def test_reset_starts_anew(name, records):
    metric = feed(METRICS[name].of(LAYOUT), batch(records, [0, 1, 2]))
    metric.reset()
    with (
        pytest.warns(UserWarning, match="before the ``update``"),
        pytest.raises(ValueError, match=f"{name}: no image was seen"),
    ):
        metric.compute()
    assert_same(feed(metric, records).compute(), computed(name, [records]))
