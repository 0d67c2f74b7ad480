import math
from types import SimpleNamespace

import pytest
import torch
from metric_battery import LAYOUT, batch, forward_pass

from nbhelpers.capture import Stream
from nbhelpers.metrics import METRICS, AttentionDistance, DepthwiseMetric, unpad


class Brightness(DepthwiseMetric):
    name, unit, consumes, layout = "brightness", "", frozenset({"block"}), ("depth",)

    def update(self, values):
        self.add(1, values)


def test_mean_and_interval_are_students():
    values = torch.tensor([1.0, 2.0, 4.0, 9.0], dtype=torch.float64)
    metric = Brightness(depth=1)
    metric.update(values[:1])
    metric.update(values[1:])
    row = metric.compute().iloc[0]
    half = 3.182446305284263 * values.std() / 2  # t quantile of 3 degrees of freedom, from a table
    assert row["value"] == 4.0 and row["images"] == 4
    assert math.isclose(row["low"], 4 - half) and math.isclose(row["high"], 4 + half)


def test_single_image_has_no_interval():
    metric = Brightness(depth=1)
    metric.update(torch.tensor([3.0]))
    row = metric.compute().iloc[0]
    assert row["value"] == 3.0 and math.isnan(row["low"]) and math.isnan(row["high"])


def test_unseen_depths_are_left_out():
    metric = Brightness(depth=5)
    metric.update(torch.tensor([3.0]))
    assert metric.compute()["depth"].tolist() == [1]


def test_mean_over_heads_has_its_own_interval():
    metric = AttentionDistance(depth=1, heads=2)
    maps = SimpleNamespace(depth=1, distance=torch.tensor([[1.0, 3.0], [2.0, 2.0], [3.0, 1.0]]))
    metric.update(maps)
    frame = metric.compute().set_index("head")
    assert frame["value"].tolist() == [2, 2, 2] and frame.index.tolist() == [-1, 0, 1]
    assert frame.loc[-1, "low"] == frame.loc[-1, "high"] == 2  # the images' means over heads are all 2
    assert frame.loc[0, "low"] < 1 and frame.loc[0, "high"] > 3


def test_wrong_depth_and_shape_say_what_they_got():
    metric = AttentionDistance(depth=2, heads=3)
    with pytest.raises(ValueError, match=r"attention_distance: depth 3 is outside 0\.\.2"):
        metric.add(3, torch.ones(4, 3))
    with pytest.raises(ValueError, match=r"attention_distance: expected .* \(B cells\) = \(4, 3\)"):
        metric.add(1, torch.ones(4, 2))


def test_unpad_refuses_more_images_than_there_are():
    record = forward_pass(images=3)[0]
    assert isinstance(record, Stream) and len(unpad(record, 2).tokens) == 2
    for images in (0, 4):
        with pytest.raises(ValueError, match=f"{images} images asked of a batch of 3"):
            unpad(record, images)


def test_unpad_keeps_a_bias_shared_by_all_images():
    record = batch(forward_pass(), [0, 1, 2])[4]
    cut = unpad(record, 2)
    assert len(cut.query) == 2 and cut.bias.shape == record.bias.shape


def test_unknown_metric_is_answered_with_the_nearest():
    with pytest.raises(
        KeyError, match="no metric is named 'attention_distanze'; did you mean attention_distance"
    ):
        METRICS["attention_distanze"]
    with pytest.raises(KeyError, match="there are attention_distance, nmi"):
        METRICS["?"]


def test_sizes_come_from_the_encoder():
    assert AttentionDistance.of(LAYOUT).total.shape == (LAYOUT.depth + 1, LAYOUT.heads + 1)
