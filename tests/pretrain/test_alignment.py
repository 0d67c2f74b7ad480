"""Gradients of two losses block by block: against autograd by hand, analytic cases, and along training."""

import math

import pytest
import torch
from toy_runs import PIXELS, fresh, seeded, small, source

from nbhelpers.pretrain.alignment import block_alignment, block_gradients, gradient_alignment
from nbhelpers.pretrain.recipes import build


def hybrid(weight="0.3"):
    return build(small(f"hybrid-{weight}"), fresh().module.requires_grad_(), **PIXELS).train()


def test_gradients_are_those_of_autograd_and_measuring_them_leaves_the_objective_as_it_is():
    model = hybrid()
    views = model.views(source(8).images, seeded(3))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    losses, gradients = block_gradients(model, views)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    for number, (term, part) in enumerate([(model.mim, views[:2]), (model.cl, views[2:])]):
        model.zero_grad()
        loss = term.loss(*part)
        loss.backward()
        assert float(losses[number]) == pytest.approx(loss.item(), rel=1e-6)
        for depth, block in enumerate(model.encoder.blocks):
            expected = torch.cat([p.grad.flatten() for p in block.parameters()])
            assert torch.allclose(gradients[number, depth], expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("weight", ["0", "1"])
def test_one_loss_has_nothing_to_agree_with(weight):
    model = hybrid(weight)
    views = model.views(source(8).images, seeded(0))
    with pytest.raises(ValueError, match=f"lambda = {weight} leaves one loss"):
        block_gradients(model, views)


def test_agreement_equals_its_definition():
    gradients = torch.randn(5, 2, 3, 7, generator=seeded(0)) + 0.5
    frame = block_alignment(gradients).set_index(["metric", "depth"])

    def dot(a, b):
        return sum(float(x) * float(y) for x, y in zip(a, b, strict=True))

    def cos(a, b):
        return dot(a, b) / math.sqrt(dot(a, a) * dot(b, b))

    pairs = [(j, k) for j in range(5) for k in range(5) if j != k]
    means = []
    for depth in range(3):
        mim, cl = gradients[:, 0, depth], gradients[:, 1, depth]
        same = [cos(mim[k], cl[k]) for k in range(5)]
        error = math.sqrt(sum((c - sum(same) / 5) ** 2 for c in same) / 4 / 5)
        crossed, ours, theirs = (
            sum(dot(a[j], b[k]) for j, k in pairs) for a, b in ((mim, cl), (mim, mim), (cl, cl))
        )
        expected = {
            "cosine": sum(same) / 5,
            "conflict": sum(c < 0 for c in same) / 5,
            "mim_cosine": sum(cos(mim[j], mim[k]) for j, k in pairs) / 20,
            "cl_cosine": sum(cos(cl[j], cl[k]) for j, k in pairs) / 20,
            "mim_norm": sum(math.sqrt(dot(g, g)) for g in mim) / 5,
            "cl_norm": sum(math.sqrt(dot(g, g)) for g in cl) / 5,
            "direction": crossed / math.sqrt(ours * theirs) if min(ours, theirs) > 0 else math.nan,
        }
        for metric, value in expected.items():
            assert frame.loc[(metric, depth + 1), "value"] == pytest.approx(value, nan_ok=True), metric
        means.append(sum(same) / 5)
        # for a mean, the jackknife's error is the standard error
        assert frame.loc[("cosine", depth + 1), "high"] == pytest.approx(means[-1] + 2.776445 * error)
    assert frame.loc["slope", "value"].item() == pytest.approx((means[2] - means[0]) / 2)


def test_direction_is_free_of_the_noise_of_batches():
    generator = seeded(0)
    signal = torch.randn(2, 1, 400, generator=generator)
    true = float(torch.cosine_similarity(signal[0], signal[0] + signal[1]))
    pair = torch.stack([signal[0], signal[0] + signal[1]])
    frame = block_alignment(pair + 3 * torch.randn(40, 2, 1, 400, generator=generator)).set_index("metric")
    assert abs(frame.loc["cosine", "value"]) < 0.2
    assert frame.loc["direction", "value"] == pytest.approx(true, abs=0.1)
    assert frame.loc["direction", "low"] < true < frame.loc["direction", "high"]


@pytest.mark.parametrize(
    ("gradients", "message"),
    [
        (torch.ones(2, 2, 3, 4), r"at least 3 batches"),
        (torch.ones(4, 3, 3, 4), r"\(4, 3, 3, 4\)"),
        (torch.zeros(4, 2, 3, 4), "zero"),
        (torch.full((4, 2, 3, 4), torch.nan), "not finite"),
    ],
)
def test_agreement_names_what_is_wrong(gradients, message):
    with pytest.raises(ValueError, match=message):
        block_alignment(gradients)


def test_along_training_the_first_row_is_the_initialisation():
    chosen, images = small("hybrid-0.3", steps=4), source(48)
    frame = gradient_alignment(chosen, images, images, steps=[0, 4], batches=3)
    assert frame["step"].unique().tolist() == [0, 4]
    assert frame["images"].unique().tolist() == [0, 32]
    values = frame.set_index(["step", "metric"])["value"]
    assert values[4, "mim_loss"].item() < values[0, "mim_loss"].item()
    again = gradient_alignment(chosen, images, images, steps=[0], batches=3)
    assert again.equals(frame[frame["step"] == 0])
    for steps, batches, named in (([0], 7, "7 batches of 8 from 48 images"), ([0, 5], 3, "0 to 5 of 4")):
        with pytest.raises(ValueError, match=named):
            gradient_alignment(chosen, images, images, steps=steps, batches=batches)
