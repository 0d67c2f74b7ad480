"""Every registered metric, held to the same battery."""

from dataclasses import replace

import pytest
import torch
from metric_battery import IMAGES, LAYOUT, assert_same, batch, computed, feed, forward_pass, spoilt

from nbhelpers.capture import Stream
from nbhelpers.metrics import METRICS, attention, streams

pytestmark = pytest.mark.parametrize("name", list(METRICS))
# Without a value of an image whose tokens are all equal.
UNDEFINED = ("token_spectrum", "token_effective_rank", "token_norm_peak", "image_spectrum")


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
    low, high = metric.range
    if name == "image_spectrum":  # an eigenvalue of all images is no mean over images
        assert frame[["low", "high"]].isna().all(axis=None)
    else:
        assert (frame["low"] <= frame["value"]).all() and (frame["value"] <= frame["high"]).all()
        assert frame["value"].between(low - 1e-9, high + 1e-9).all()
    if metric.reference:
        assert low <= metric.reference(LAYOUT) <= high


def test_split_and_order_change_nothing(name, records):
    batches = [batch(records, indices) for indices in ([3, 0, 4], [1], [5, 2])]
    assert_same(computed(name, batches), computed(name, [records]))


@pytest.mark.parametrize("shares", [[[0, 3, 1, 5], [4, 2]], [range(IMAGES), []]])
def test_ranks_change_nothing(name, records, shares):
    ranks = [METRICS[name].of(LAYOUT) for _ in shares]
    for metric, indices in zip(ranks, shares, strict=True):
        if indices:
            feed(metric, batch(records, indices))
    first = ranks[0]
    states = {
        id(state): [rank.metric_state[key] for rank in ranks] for key, state in first.metric_state.items()
    }
    first.distributed_available_fn, first.dist_sync_fn = lambda: True, lambda state, group: states[id(state)]
    assert_same(first.compute(), computed(name, [records]))


def test_pieces_of_any_size_change_nothing(name, records, monkeypatch):
    expected = computed(name, [records])
    monkeypatch.setattr(attention, "MAPS_CPU", 1)
    monkeypatch.setattr(streams, "NUMBERS", 200)  # two images
    assert_same(computed(name, [records]), expected)


def test_half_precision_is_close_to_double(name, records):
    frame, expected = computed(name, [forward_pass(dtype=torch.bfloat16)]), computed(name, [records])
    scale = expected["value"].abs().max()
    assert (frame["value"] - expected["value"]).abs().max() < 0.02 * scale


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_non_finite_input_raises_and_says_where(name, records, value):
    with pytest.raises(ValueError, match=r"(attention|output|block).* at depth [0-2]: .*NaN or infinite"):
        computed(name, [spoilt(records, value)])


def test_input_stays_as_it_was_and_no_graph_is_kept(name):
    records, untouched = forward_pass(), forward_pass()
    for record in records:
        for tensor in filter(torch.is_tensor, vars(record).values()):
            tensor.requires_grad_()
    metric = feed(METRICS[name].of(LAYOUT), records)
    assert not any(state.requires_grad for state in metric.metric_state.values())
    for record, before in zip(records, untouched, strict=True):
        for key, value in vars(record).items():
            assert not torch.is_tensor(value) or torch.equal(value, getattr(before, key))


def test_one_image_is_enough(name, records):
    with_one = computed(name, [batch(records, [0])])
    assert with_one["value"].isna().all() if name == "image_spectrum" else with_one["value"].notna().all()
    assert len(with_one) and with_one[["low", "high"]].isna().all(axis=None)


def test_an_image_of_equal_tokens_leaves_the_others_values(name, records):
    """Values that such an image does not have are left out, and counted; nothing is lost."""

    def blank(record, images):
        tokens = record.tokens.clone()
        tokens[:images] = 0
        return replace(record, tokens=tokens)

    blanked = [[blank(r, n) if isinstance(r, Stream) else r for r in records] for n in (1, IMAGES)]
    frame, alone = (computed(name, [each]) for each in blanked)
    assert frame["value"].notna().all()
    if name in UNDEFINED[:3]:
        assert_same(frame, computed(name, [batch(records, range(1, IMAGES))]))
    else:
        assert (frame["images"] == IMAGES).all()
    assert alone["value"].isna().all() == (name in UNDEFINED)
