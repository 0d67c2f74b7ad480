"""Losses against naive float64 oracles written as loops; masks, momentum, frozen parts."""

import math
from dataclasses import replace

import pytest
import torch
from toy_runs import PIXELS, seeded, source

from nbhelpers.models import CHECKPOINTS, MaskedAutoencoder, wrap
from nbhelpers.models.mini import mini_vit
from nbhelpers.pretrain.augment import Augmentation, View
from nbhelpers.pretrain.dino import DINO, Head, self_distillation
from nbhelpers.pretrain.hybrid import Hybrid
from nbhelpers.pretrain.latent import Latent, masked_smooth_l1, standardised_mean
from nbhelpers.pretrain.mae import MAE, hidden_mse, kept_patches, normalised_patches, reconstruct
from nbhelpers.pretrain.moco import MoCo, info_nce
from nbhelpers.pretrain.simmim import SimMIM, block_mask, masked_l1, patches
from nbhelpers.pretrain.supervised import Supervised


def tiny(objective=MoCo, **options):
    torch.manual_seed(0)
    colour = "jitter" if objective in (MoCo, DINO) else "none"
    view = View(Augmentation(colour=colour), **PIXELS)
    return objective(mini_vit(32, 2, 2, 16), view, **options)


def images(count=6):
    return source(count).images


def untrained(model):
    """Names of the parameters that no gradient reached."""
    return {name for name, p in model.named_parameters() if p.grad is None}


def frozen(model):
    return {name for name, p in model.named_parameters() if not p.requires_grad}


def info_nce_by_loops(query, key, temperature):
    query, key = query.double(), key.double()
    total = 0.0
    for i in range(len(query)):
        similarity = []
        for j in range(len(key)):
            dot = sum(float(a) * float(b) for a, b in zip(query[i], key[j], strict=True))
            similarity.append(dot / float(query[i].norm()) / float(key[j].norm()) / temperature)
        total -= similarity[i] - math.log(sum(math.exp(s) for s in similarity))
    return 2 * temperature * total / len(query)


@pytest.mark.parametrize("temperature", [0.1, 0.2, 1.0])
def test_info_nce_equals_its_definition(temperature):
    query, key = torch.randn(2, 5, 4, generator=seeded())
    expected = info_nce_by_loops(query, key, temperature)
    assert float(info_nce(query, key, temperature)) == pytest.approx(expected, rel=1e-5)


def test_moco_loss_is_symmetric_info_nce_of_its_parts():
    model, batch = tiny().train(), images()
    loss = model(batch, seeded(3))
    one, two = model.views(batch, seeded(3))

    def query(view):
        return model.predictor(model.projector(model.encoder(view)))

    def key(view):
        return model.momentum_projector(model.momentum_encoder(view))

    expected = info_nce_by_loops(query(one), key(two), 0.2) + info_nce_by_loops(query(two), key(one), 0.2)
    assert float(loss) == pytest.approx(expected, rel=1e-4)
    loss.backward()
    assert untrained(model) == frozen(model)
    assert {"encoder.patch_embed.proj.weight", "encoder.pos_embed"} <= frozen(model)
    assert all(name.startswith(("momentum_", "encoder.p")) for name in frozen(model))


@pytest.mark.parametrize("objective", [MoCo, DINO])
def test_views_take_turns_in_the_renderings_of_a_thing(objective):
    model, first = tiny(objective), images()
    second = 255 - first
    views = model.views(torch.cat([first, second], 1), seeded(3))
    for place, rendering in enumerate((first, second)):
        alone = model.views(rendering, seeded(3))
        assert [torch.equal(*pair) for pair in zip(views, alone, strict=True)] == [not place, bool(place)]


@pytest.mark.parametrize("loss", [masked_l1, masked_smooth_l1])
def test_errors_of_a_prediction_in_half_precision_are_added_up_in_full(loss):
    prediction, target = torch.randn(2, 2, 50, 40, generator=seeded())
    where = torch.rand(2, 50, generator=seeded(1)) < 0.5
    half = prediction.bfloat16()
    assert torch.equal(
        loss(half, target.bfloat16(), where), loss(half.float(), target.bfloat16().float(), where)
    )


@pytest.mark.parametrize(
    ("loss", "error"),
    [
        (masked_l1, abs),
        (masked_smooth_l1, lambda e: e**2 / 2 if abs(e) < 1 else abs(e) - 0.5),
        (hidden_mse, lambda e: e**2),
    ],
)
def test_losses_of_hidden_patches_equal_their_definitions(loss, error):
    prediction, target = 2 * torch.randn(2, 3, 5, 4, generator=seeded())
    where = mask = torch.rand(3, 5, generator=seeded(1)) < 0.6
    if loss is hidden_mse:  # which is told what is visible
        where = torch.tensor([[0, 4], [1, 2], [3, 0]])
        mask = torch.ones(3, 5, dtype=torch.bool).scatter(1, where, False)
    pairs = zip(prediction[mask].flatten().tolist(), target[mask].flatten().tolist(), strict=True)
    errors = [error(one - other) for one, other in pairs]
    assert float(loss(prediction, target, where)) == pytest.approx(sum(errors) / len(errors), rel=1e-5)


def test_losses_of_nothing_are_undefined_and_shapes_are_checked():
    zeros = torch.zeros(1, 2, 3)
    for loss, nothing in ((masked_l1, torch.zeros(1, 2).bool()), (hidden_mse, torch.tensor([[0, 1]]))):
        assert loss(zeros, zeros, nothing).isnan()
    for loss, wrong, named in (
        (masked_l1, torch.ones(1, 3).bool(), r"\(1, 3\)"),
        (hidden_mse, torch.tensor([[0], [1]]), r"\(2, 1\)"),
    ):
        with pytest.raises(ValueError, match=named):
            loss(zeros, zeros, wrong)


def test_masks_are_squares_of_the_right_share():
    mask = block_mask(50, (8, 12), 2, 0.6, seeded())
    squares = mask.view(50, 4, 2, 6, 2)
    assert torch.equal(squares.any(4).any(2), squares.all(4).all(2))
    assert bool((mask.sum((1, 2)) == 4 * math.ceil(0.6 * 24)).all())
    assert 0.4 < mask.float().mean(0).min()
    for grid, ratio, named in (((7, 8), 0.6, "7 x 8"), ((8, 8), 0.0, "not 0")):
        with pytest.raises(ValueError, match=named):
            block_mask(1, grid, 2, ratio, seeded())


def test_patches_are_in_token_order():
    batch = images(2).float()
    cut = patches(batch, 4)
    assert torch.equal(cut[1, 6].view(4, 4, 3), batch[1, :, 4:8, 8:12].permute(1, 2, 0))


def test_simmim_does_not_see_masked_pixels_and_is_judged_on_them():
    model, batch, generator = tiny(SimMIM), images(), seeded(3)
    view = model.view(batch, generator)
    mask = block_mask(len(batch), (4, 4), 2, 0.6, generator).flatten(1)
    hidden = mask.view(-1, 4, 4).repeat_interleave(4, 1).repeat_interleave(4, 2)[:, None]
    changed = torch.where(hidden, torch.randn_like(view), view)
    same = model.predict(changed, mask), model.predict(view, mask)
    assert torch.allclose(*same, atol=1e-6)
    seen = torch.where(hidden, view, torch.randn_like(view))
    assert not torch.allclose(model.predict(seen, mask), same[1], atol=1e-3)
    loss = model(batch, seeded(3))
    assert torch.equal(loss, masked_l1(same[1], patches(view, 4), mask))
    loss.backward()
    assert untrained(model) == {"encoder.pos_embed"}


def test_targets_are_standardised_over_images_and_patches_in_every_channel():
    outputs = [10 * k + (k + 1) * torch.randn(4, 3, 2, generator=seeded(k)) for k in range(2)]
    found = standardised_mean(outputs)
    for d in range(2):
        expected = torch.zeros(12, dtype=torch.float64)
        for output in outputs:
            values = output[..., d].flatten().double()
            deviation = (values - values.mean()).square().mean().sqrt()
            expected += (values - values.mean()) / deviation / 2
        torch.testing.assert_close(found[..., d].flatten().double(), expected, rtol=1e-3, atol=1e-4)
    assert torch.equal(standardised_mean([torch.ones(4, 3, 2)]), torch.zeros(4, 3, 2))  # a collapsed teacher


def test_latent_loss_compares_hidden_patches_with_the_teacher_of_the_whole_view():
    model, batch = tiny(Latent, averaged_blocks=1), images()
    with torch.no_grad():
        for weight in model.teacher.parameters():
            weight.add_(0.1 * torch.randn(weight.shape, generator=seeded()))
    loss = model(batch, seeded(3))
    view, mask = model.views(batch, seeded(3))
    features = model.teacher.forward_intermediates(view, indices=[1], output_fmt="NLC")[1][0]
    target = standardised_mean([features])
    torch.testing.assert_close(loss, masked_smooth_l1(model.predict(view, mask), target, mask))
    loss.backward()
    assert untrained(model) == frozen(model)
    assert all(name.startswith("teacher.") or name == "encoder.pos_embed" for name in untrained(model))


HYBRID = {"mim": {"mask_ratio": 0.5}, "cl": {"augmentation": Augmentation(colour="jitter"), "hidden": 32}}


def test_hybrid_gradient_is_the_weighted_sum_of_its_terms():
    model, weight = tiny(Hybrid, weight=0.3, **HYBRID), 0.3
    views = model.views(images(), seeded(3))
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}

    def gradients(loss):
        parts = torch.autograd.grad(loss, list(trained.values()), allow_unused=True)
        return {n: g for n, g in zip(trained, parts, strict=True) if g is not None}

    whole = gradients(model.loss(*views))
    mim, cl = gradients(model.mim.loss(*views[:2])), gradients(model.cl.loss(*views[2:]))
    cl = {name: g for name, g in cl.items() if "patch_embed" not in name}  # as MoCo leaves it alone
    assert set(whole) == set(trained) == mim.keys() | cl.keys()
    for name, gradient in whole.items():
        expected = (1 - weight) * mim.get(name, torch.zeros(())) + weight * cl.get(name, torch.zeros(()))
        error = (gradient - expected).norm() / expected.norm().clamp(min=1e-4)
        assert error < 1e-2, name


def test_a_hybrid_of_more_than_all_is_refused():
    with pytest.raises(ValueError, match=r"1\.5"):
        tiny(Hybrid, weight=1.5, **HYBRID)


def test_normalised_patches_equal_their_definition():
    cut = torch.randn(2, 3, 5, generator=seeded())
    for patch, result in zip(cut.flatten(0, 1), normalised_patches(cut).flatten(0, 1), strict=True):
        values = [float(v) for v in patch]
        mean = sum(values) / 5
        deviation = math.sqrt(sum((v - mean) ** 2 for v in values) / 4 + 1e-6)
        assert result.tolist() == pytest.approx([(v - mean) / deviation for v in values], abs=1e-6)
    assert float(normalised_patches(torch.ones(1, 1, 5)).abs().max()) == 0


def test_kept_patches_are_distinct_and_everywhere():
    keep = kept_patches(200, 16, 0.75, seeded())
    assert keep.shape == (200, 4)
    assert all(len(set(row)) == 4 for row in keep.tolist())
    assert 20 < keep.flatten().bincount(minlength=16).min()
    with pytest.raises(ValueError, match="0 of 16 patches visible"):
        kept_patches(1, 16, 0.95, seeded())


def test_mae_sees_visible_patches_alone_and_is_judged_on_hidden_ones():
    model, batch = tiny(MAE, decoder={"width": 16, "depth": 1, "heads": 2}), images()
    view, keep = model.views(batch, seeded(3))
    seen = []
    model.encoder.blocks[0].register_forward_hook(lambda _m, inputs, _o: seen.append(inputs[0].shape[1]))
    assert torch.equal(model(batch, seeded(3)), model.loss(view, keep))
    assert seen == [1 + 4, 1 + 4]
    visible = torch.zeros(len(view), 16).scatter(1, keep, 1.0).view(-1, 1, 4, 4)
    visible = visible.repeat_interleave(4, 2).repeat_interleave(4, 3).bool()
    other = torch.randn(view.shape, generator=seeded(1))
    hidden_changed = torch.where(visible, view, other)
    assert torch.allclose(model.autoencoder(hidden_changed, keep), model.autoencoder(view, keep), atol=1e-6)
    changed = torch.where(visible, other, view)
    assert not torch.allclose(model.autoencoder(changed, keep), model.autoencoder(view, keep), atol=1e-3)
    target = normalised_patches(patches(view, 4))
    expected = hidden_mse(model.autoencoder(view, keep), target, keep)
    assert torch.equal(model.loss(view, keep), expected)
    expected.backward()
    assert untrained(model) == {"encoder.pos_embed", "autoencoder.decoder.pos_embed"}
    assert model.saved is model.autoencoder


@pytest.mark.parametrize("standardised", [False, True])
def test_a_reconstruction_from_perfect_predictions_is_the_image(standardised, monkeypatch):
    pictures = images(3)
    module = MaskedAutoencoder(mini_vit(16, 1, 2, 16, standardised=standardised), width=8, depth=1, heads=1)
    encoder = wrap(module, blocks="encoder.blocks", mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3))
    perfect = lambda pixels, keep: normalised_patches(module.patchify(pixels))  # noqa: E731
    monkeypatch.setattr(module, "forward", perfect)
    shown, filled = reconstruct(encoder, pictures, mask_ratio=0.75)
    assert (filled.int() - pictures.int()).abs().max() <= 1
    grey = (shown == 128).flatten(2).all(1)
    assert grey.float().mean() == pytest.approx(0.75)
    assert torch.equal(shown.flatten(2)[:, 0][~grey], pictures.flatten(2)[:, 0][~grey])
    plain = torch.full_like(pictures, 7)  # which does not vary
    assert torch.equal(reconstruct(encoder, plain)[1], plain)
    monkeypatch.setattr(module, "forward", lambda pixels, keep: torch.zeros_like(perfect(pixels, keep)))
    flat = reconstruct(encoder, pictures, mask_ratio=0.75)[1]
    assert torch.equal(flat.flatten(2)[:, 0][~grey], pictures.flatten(2)[:, 0][~grey])
    assert not torch.equal(flat, filled)
    public = CHECKPOINTS["mae_visualize.vit_base_patch16_224"]  # which predict pixels as they are
    tiny_sizes = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2}
    encoder = replace(public, options=tiny_sizes).build()
    monkeypatch.setattr(encoder.module, "forward", lambda pixels, _: encoder.module.patchify(pixels))
    assert (reconstruct(encoder, pictures)[1].int() - pictures.int()).abs().max() <= 1
    with pytest.raises(TypeError, match="no decoder"):
        reconstruct(wrap(mini_vit(16, 1, 2, 16), **PIXELS), pictures)


def test_supervised_learns_the_labels_it_is_given():
    model, batch = tiny(Supervised, label="class", classes=3), images()
    labels = torch.arange(6) % 3
    (view,) = model.views(batch, seeded(3))
    total = 0.0
    for row, label in zip(model.classifier(model.encoder(view)).tolist(), labels.tolist(), strict=True):
        logsum = math.log(sum(math.exp(x) for x in row))
        for c, x in enumerate(row):
            total -= (0.9 * (c == label) + 0.1 / 3) * (x - logsum)
    assert float(model(batch, seeded(3), labels)) == pytest.approx(total / 6, rel=1e-5)
    assert model(batch, seeded(3), labels) != model(batch, seeded(3), labels.roll(1))
    model.loss(view, labels).backward()
    assert untrained(model) == {"encoder.pos_embed"}


def self_distillation_by_loops(student, teacher, centre, warm, cold):
    total = 0.0
    for s, t in zip(student.double().tolist(), teacher.double().tolist(), strict=True):
        p = [math.exp((x - c) / cold) for x, c in zip(t, centre.tolist(), strict=True)]
        q = [math.exp(x / warm) for x in s]
        total -= sum(a / sum(p) * math.log(b / sum(q)) for a, b in zip(p, q, strict=True))
    return total / len(student)


def test_self_distillation_equals_its_definition():
    student, teacher = torch.rand(2, 5, 4, generator=seeded())
    centre = torch.tensor([0.5, 0.2, 0.0, 0.1])
    expected = self_distillation_by_loops(student, teacher, centre, 0.1, 0.04)
    assert float(self_distillation(student, teacher, centre, 0.1, 0.04)) == pytest.approx(expected, rel=1e-5)


def test_dino_asks_one_view_what_the_teacher_says_of_the_other():
    model, batch = tiny(DINO, prototypes=8), images()
    model.centre.copy_(torch.rand(8, generator=seeded()) / 10)
    centre = model.centre.clone()
    with torch.no_grad():
        model.teacher_head.prototypes.normal_(generator=seeded(5))
    one, two = model.views(batch, seeded(3))
    # The heads' batch norm sees both views at once.
    both = torch.cat([one, two])
    teachers = model.teacher_head(model.teacher_encoder(both)).chunk(2)
    students = model.head(model.encoder(both)).detach().chunk(2)
    expected = sum(
        self_distillation_by_loops(s, t, centre, 0.1, 0.04) / 2
        for s, t in zip(students, teachers[::-1], strict=True)
    )
    loss = model.loss(one, two)
    assert loss.item() == pytest.approx(expected, rel=1e-4)
    mean = torch.cat(teachers).mean(0)
    assert torch.allclose(model.centre, 0.9 * centre + 0.1 * mean, atol=1e-6)
    loss.backward()
    assert untrained(model) == frozen(model) >= {"teacher_head.prototypes"}


def test_cosines_under_a_temperature_are_those_of_vectors_and_not_rounded_by_autocast():
    query, key = torch.randn(2, 16, 8, generator=seeded())
    head = Head(8, 16, 8, 12)
    head.mlp = torch.nn.Identity()
    for compute in (lambda: info_nce(query, key, 0.1), lambda: head(query)):
        with torch.autocast("cpu"):
            rounded = compute()
        assert torch.equal(rounded, compute())
    for row, logits in zip(query, head(query).tolist(), strict=True):
        cosines = [float(row @ p / row.norm() / p.norm()) for p in head.prototypes]
        assert logits == pytest.approx(cosines, abs=1e-6)


def test_dino_tells_images_apart_from_the_start():
    # Class tokens of a fresh encoder hardly differ; the teacher's logits must.
    torch.manual_seed(0)
    tokens = torch.randn(8) + 0.01 * torch.randn(64, 8)
    assert float(Head(8, 32, 16, 12)(tokens).std(0).mean()) > 0.1
