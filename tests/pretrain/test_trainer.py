"""The trainer: resumption bit for bit, hybrids at their ends, log, refusals, recipes, command line."""

import json
import math
import os
import signal
import sys
import threading
import time
from dataclasses import asdict, replace
from itertools import pairwise

import pandas as pd
import pytest
import torch
from torch.testing import assert_close
from toy_runs import OBJECTIVES, PIXELS, fresh, seeded, small, source, trainer

from nbhelpers.files import DATA
from nbhelpers.models import MismatchedWeights, decoder_of, load, manifest, mini_vit, save_encoder, wrap
from nbhelpers.models.mini import standardise
from nbhelpers.pretrain import SOURCES, Trainer, description, moments, pretrain, queue, recipe, trained_name
from nbhelpers.pretrain.__main__ import main
from nbhelpers.pretrain.recipes import CLASSES, STUDIES
from nbhelpers.pretrain.schedule import epoch_order, generator, learning_rate
from nbhelpers.pretrain.trainer import device_name, fast_precision, stop_signals


def weights(run):
    return torch.cat([v.flatten().float() for v in run.objective.state_dict().values()])


def generated(name="toy/train"):
    made = replace(source(), name=name)
    made.known_by_labels = True
    return made


def test_an_encoder_that_standardises_gets_the_same_in_training_and_after(tmp_path):
    images = source(blue=2)  # of channels whose deviations differ
    run = Trainer(small("mim"), images, images, tmp_path)
    assert run.recipe.standardised and len(set(images.std)) > 1
    encoder, batch = run.encoder(), images.batch(range(8))
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in (encoder.mean, encoder.std))
    seen = standardise((batch / 255 - mean) / std)
    assert_close(seen, standardise(batch / 255))
    assert description(run, "shapes")["std"] == [round(value, 6) for value in encoder.std]


def test_the_device_of_a_run_on_cpus_is_all_cores_that_it_may_use(monkeypatch):
    for cores, name in ((1, "one CPU core"), (8, "8 CPU cores")):
        monkeypatch.setattr(torch, "get_num_threads", lambda cores=cores: cores)
        assert device_name(torch.device("cpu")) == name


SPLITS = {"shapes": lambda split: source() if split == "train" else source(16)}


@pytest.mark.parametrize(
    ("objective", "precision"),
    [*((objective, torch.float32) for objective in OBJECTIVES), ("hybrid-0.4", torch.bfloat16)],
)
def test_a_run_that_was_killed_in_its_second_epoch_ends_as_if_it_had_not_been(objective, precision, tmp_path):
    def part():
        images = source(24)  # three steps an epoch
        return Trainer(small(objective, steps=7), images, source(16), tmp_path, precision=precision)

    whole = part()
    losses = torch.stack(list(whole.steps()))
    first = part()
    found = list(first.steps(until=4))
    first.save()
    assert first.validation_loss() == first.validation_loss()  # and leaves the run as it was
    found.extend(first.steps(until=5))  # lost with the process
    second = part()
    assert second.step == 4
    assert torch.equal(losses, torch.stack([*found[:4], *second.steps()]))
    assert found[4] == losses[4] and torch.equal(weights(whole), weights(second))


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_bfloat16_trains_as_float32_does_but_for_rounding(objective, tmp_path):
    exact, rounded = (
        trainer(objective, tmp_path / str(precision), precision, batch_size=32)
        for precision in (torch.float32, torch.bfloat16)
    )
    assert all(p.dtype == torch.float32 for p in rounded.objective.parameters())
    # The first step alone, of no few images: batch norm magnifies rounding where images look alike to a fresh
    # encoder, the more so the fewer they are, and from step to step.
    losses = [torch.stack(list(run.steps(1))) for run in (exact, rounded)]
    assert not torch.equal(*losses)
    torch.testing.assert_close(*losses, rtol=0.02, atol=0)


def test_views_are_the_same_in_either_precision(tmp_path, monkeypatch):
    seen = []
    for precision in (torch.float32, torch.bfloat16):
        run = trainer("hybrid-0.4", tmp_path / str(precision), precision)
        monkeypatch.setattr(run.objective, "loss", lambda *views: seen.append(views) or torch.zeros(()))
        run.validation_loss()
    first, second = seen[: len(seen) // 2], seen[len(seen) // 2 :]
    for ours, theirs in zip(first, second, strict=True):
        assert ours and all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_without_units_for_bfloat16_a_cpu_trains_in_float32(monkeypatch, tmp_path):
    for native, precision in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda native=native: native)
        assert trainer("mim", tmp_path, precision=None).precision is precision


@pytest.mark.parametrize(("weight", "pure"), [("0", "mim"), ("1", "cl")])
def test_hybrid_at_either_end_is_the_pure_run_bit_for_bit(weight, pure, tmp_path):
    # clipping ties all parameters together, in an order that must be the same
    hybrid, alone = (
        trainer(objective, tmp_path / objective, clip=1e-2) for objective in (f"hybrid-{weight}", pure)
    )
    assert torch.equal(torch.stack(list(hybrid.steps(5))), torch.stack(list(alone.steps(5))))
    ours, theirs = hybrid.objective.encoder.state_dict(), alone.objective.encoder.state_dict()
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())
    assert hybrid.validation_loss() == alone.validation_loss()


def test_labels_of_validation_images_are_compared_by_name(tmp_path):
    images = source(16)
    renumbered = replace(images, labels={"shape": 1 - images.labels["shape"]}, classes={"shape": ("b", "a")})
    runs = [Trainer(small("supervised"), source(), val, tmp_path) for val in (images, renumbered)]
    list(runs[0].steps(until=5))
    runs[1].objective.load_state_dict(runs[0].objective.state_dict())
    assert runs[0].validation_loss() == runs[1].validation_loss()


def test_a_run_lowers_its_validation_loss_and_logs_it(tmp_path):
    run = trainer("mim", tmp_path, steps=30, learning_rate=2e-2)
    before = run.validation_loss()
    assert run.run(log_every=10)
    log = pd.read_csv(tmp_path / "log.csv")
    assert {"loss", "learning_rate", "wall_time_s"} <= set(log)
    assert log["step"].tolist() == [10, 20, 30]
    assert log["val_loss"].iloc[-1] < before
    assert log["images"].iloc[-1] == 240
    assert (log["images_per_second"] > 0).all()


def test_the_log_goes_on_where_the_run_was_stopped(tmp_path, monkeypatch):
    """A row is of the steps since the one before, the last step has one, and only training takes time."""
    chosen = small("mim", steps=9)
    losses = torch.stack(list(trainer("mim", tmp_path / "whole", steps=9).steps()))
    now, body = [0.0], Trainer.body

    def step(run):
        now[0] += 2
        body(run)

    monkeypatch.setattr(Trainer, "body", step)
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    for until in (5, 9):
        trainer("mim", tmp_path / "part", steps=9).run(log_every=2, until=until)
        now[0] += 1000  # of another process
    log = pd.read_csv(tmp_path / "part" / "log.csv")
    assert log["step"].tolist() == [2, 4, 6, 8, 9]
    assert log["images"].tolist() == [16, 32, 48, 64, 72]
    assert log["wall_time_s"].tolist() == [4, 8, 12, 16, 18]
    assert log["images_per_second"].tolist() == [4] * 5
    rows = [losses[:2], losses[2:4], losses[5:6], losses[6:8], losses[8:]]
    assert log["loss"].tolist() == pytest.approx([float(each.mean()) for each in rows], rel=1e-6)
    rates = [float(learning_rate(chosen, torch.tensor((step - 1) / 9))) for step in log["step"]]
    assert log["learning_rate"].tolist() == pytest.approx(rates, rel=1e-5)


def test_a_look_at_the_encoder_leaves_the_run_as_it_is(tmp_path):
    whole = torch.stack(list(trainer("cl", tmp_path / "whole").steps()))
    run = trainer("cl", tmp_path / "part")
    first = list(run.steps(3))
    encoder = run.encoder()
    assert (encoder.mean, encoder.std) == (run.train.mean, run.std)
    before = encoder.fingerprint
    assert torch.equal(whole, torch.stack([*first, *run.steps()]))
    assert encoder.fingerprint == before != run.encoder().fingerprint
    assert all(part.training for part in run.objective.modules())  # batch norm over the batch


def test_validation_is_on_whole_batches_of_the_first_images_each_with_views_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setitem(Trainer.__init__.__globals__, "VALIDATION_IMAGES", 20)
    images = source(8).select([*range(8)] * 3)
    run = Trainer(small("mim"), source(), images, tmp_path, precision=torch.float32)
    assert all(torch.equal(batch[0], images.images[:8]) for batch in run.val) and len(run.val) == 2
    seen = []
    monkeypatch.setattr(run.objective, "loss", lambda *views: seen.append(views) or torch.zeros(()))
    run.validation_loss()
    assert not torch.equal(seen[0][0], seen[1][0])


def test_a_run_draws_nothing_from_the_random_numbers_of_others(tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    list(trainer("mim", tmp_path).steps(2))
    assert torch.equal(torch.rand(3), expected)


def test_gradients_are_clipped_after_they_were_averaged(tmp_path, monkeypatch):
    def averaged(parameters):
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad.mul_(1e3)

    monkeypatch.setitem(Trainer.body.__globals__, "average_gradients", averaged)
    run = trainer("mim", tmp_path, clip=1e-2)
    run.body()
    norms = [p.grad.norm() for p in run.objective.parameters() if p.grad is not None]
    assert float(torch.stack(norms).norm()) == pytest.approx(1e-2, rel=1e-3)


def test_a_disk_that_is_full_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    run = trainer("mim", tmp_path)
    list(run.steps(2))
    run.save()

    def full(state, file):
        file.write(b"half of it")
        raise OSError(28, "No space left on device")

    list(run.steps(3))
    with monkeypatch.context() as disk, pytest.raises(OSError, match="No space"):
        disk.setattr(torch, "save", full)
        run.save()
    assert trainer("mim", tmp_path).step == 2


def test_a_second_signal_acts_at_once():
    handler = signal.getsignal(signal.SIGTERM)
    with stop_signals() as came:
        assert not came() and signal.getsignal(signal.SIGTERM) is not handler
        signal.raise_signal(signal.SIGTERM)
        assert came() and signal.getsignal(signal.SIGTERM) is handler


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_step_saves_and_the_next_run_goes_on(number, tmp_path, monkeypatch):
    whole = torch.stack(list(trainer("mim", tmp_path / "whole").steps()))
    handler = signal.getsignal(number)
    run = trainer("mim", tmp_path / "part")
    step = run.body
    monkeypatch.setattr(run, "body", lambda: step() or (run.step == 3 and signal.raise_signal(number)))
    assert not run.run()
    assert signal.getsignal(number) is handler
    again = trainer("mim", tmp_path / "part")
    assert again.step == 4
    assert torch.equal(torch.stack(list(again.steps())), whole[4:])


def test_the_warm_up_ends_on_the_cosine():
    chosen = recipe("shapes", "cl")
    rate = learning_rate(chosen, torch.tensor(chosen.warmup, dtype=torch.float64))
    assert float(rate) == pytest.approx(chosen.learning_rate * (1 + math.cos(math.pi * chosen.warmup)) / 2)


def test_moments_are_log_spaced_up_to_the_end():
    chosen = recipe("cifar10", "cl")
    steps = moments(chosen)
    assert len(steps) == 10 and steps[-1] == chosen.steps
    ratios = [later / earlier for earlier, later in pairwise(steps)]
    assert ratios == pytest.approx([ratios[0]] * 9, rel=0.02)
    assert moments(replace(chosen, images=2048, batch_size=256)) == [8]  # shorter than the first moment
    assert moments(chosen, count=1) == steps[:1]


def test_a_finished_mae_is_put_away_with_its_decoder(tmp_path, monkeypatch):
    monkeypatch.setenv("NBHELPERS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(pretrain.__globals__, "SOURCES", SPLITS)
    for name, count in (("KNN_TRAIN", 40), ("KNN_TEST", 16)):
        monkeypatch.setitem(pretrain.__globals__, name, count)
    chosen = small("mae", steps=2)
    assert pretrain(chosen, "shapes", folder=tmp_path / "encoders")
    row = manifest(tmp_path / "encoders")["shapes.mae.w32.n16"]
    assert (row["objective"], row["images_seen"], row["device"]) == ("MIM", 16, "one CPU core")
    assert row["precision"] == str(fast_precision("cpu")).removeprefix("torch.")
    assert row["images_per_second"] > 0
    assert len(row["knn_by_depth"]["shape"]) == 3
    encoder = load(tmp_path / "encoders" / "shapes.mae.w32.n16.safetensors", device="cpu")
    assert (encoder.width, decoder_of(encoder).width, decoder_of(encoder).depth) == (32, 96, 4)
    trained = trainer("mae", tmp_path / "cache" / "pretrain" / "shapes.mae.w32.n16", None, steps=2)
    for key, value in trained.objective.saved.state_dict().items():
        assert torch.equal(encoder.module.state_dict()[key], value.half().float()), key


def test_a_run_can_begin_with_a_trained_encoder(tmp_path):
    first = trainer("mim", tmp_path / "first")
    list(first.steps(3))
    kept = {key: value.clone() for key, value in first.objective.encoder.state_dict().items()}
    start = wrap(first.objective.encoder, **PIXELS)
    run = Trainer(small("hybrid-0.4"), source(), source(16), tmp_path / "second", start=start)
    for encoder in (run.objective.encoder, run.objective.cl.momentum_encoder):
        assert all(torch.equal(value, kept[key]) for key, value in encoder.state_dict().items())
    list(run.steps(2))  # trains a copy
    assert all(torch.equal(value, kept[key]) for key, value in start.module.state_dict().items())
    with pytest.raises(MismatchedWeights, match=r"patch_embed\.proj\.weight"):
        Trainer(small("mim", width=48), source(), source(16), tmp_path / "third", start=start)
    for change in ({"heads": 4}, {"standardised": False}):  # whose weights have the same names and shapes
        with pytest.raises(MismatchedWeights, match=r"has 2 heads behind a Standardised.*, the recipe"):
            Trainer(small("mim", **change), source(), source(16), tmp_path / "third", start=start)


def test_a_run_is_stopped_goes_on_and_knows_all_devices_it_was_trained_on(tmp_path):
    first = trainer("mim", tmp_path)
    assert not first.run(stop_after=0.0)
    assert first.devices == ["one CPU core"]
    first.devices = ["a GPU"]
    first.save()
    second = trainer("mim", tmp_path)
    assert second.step == 1
    assert second.run(until=4) and second.step == 4 and not second.done
    ours, measured = second.objective.encoder.state_dict(), second.encoder().module.state_dict()
    assert all(torch.equal(value, measured[name]) for name, value in ours.items())
    third = trainer("mim", tmp_path)
    assert third.step == 4 and third.run() and third.done
    assert third.devices == ["a GPU", "one CPU core"]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"precision": torch.bfloat16}, "precision"),
        ({"recipe": small("cl", learning_rate=1e-3)}, "learning_rate"),
        ({"train": source(48)}, "training images"),
        ({"train": generated("toy/train, nuisance 4")}, "training images"),
        ({"val": source(24)}, "validation images"),
        ({"start": None}, "start"),
        ({"start": fresh(1)}, "start"),
    ],
)
def test_a_run_goes_on_with_nothing_but_what_it_began_with(change, named, tmp_path):
    usual = {"recipe": small("cl"), "train": generated(), "val": source(16), "folder": tmp_path}
    usual |= {"precision": torch.float32, "start": fresh()}
    Trainer(**usual).save()
    Trainer(**usual)
    with pytest.raises(ValueError, match=f"differs in .*{named}"):
        Trainer(**usual | change)


def test_a_run_that_goes_on_with_another_objective_of_the_same_name_says_so(tmp_path, monkeypatch):
    first = trainer("mim", tmp_path)
    list(first.steps(until=1))
    first.save()

    class Other(CLASSES["mim"]):
        def loss(self, *views):
            return 7 + super().loss(*views)

    monkeypatch.setitem(CLASSES, "mim", Other)
    with pytest.warns(UserWarning, match="other code of Other"):
        trainer("mim", tmp_path)


def test_a_trained_encoder_is_not_replaced_and_has_no_seed_of_another_architecture(tmp_path, monkeypatch):
    monkeypatch.setenv("NBHELPERS_CACHE", str(tmp_path))
    monkeypatch.setitem(SOURCES, "shapes", lambda split: source())
    chosen = small("mim")
    name, architecture = trained_name(chosen, "shapes"), chosen.architecture | {"image_size": 16, "heads": 4}
    row = {"study": "shapes", "objective": "MIM", "seed": 0, "architecture": architecture, **PIXELS}
    path = save_encoder(mini_vit(**architecture), name, row, tmp_path)
    before = path.read_bytes()
    with pytest.raises(FileExistsError, match=f"{name}, which would be replaced"):
        pretrain(replace(chosen, learning_rate=1e-4), "shapes", folder=tmp_path)
    with pytest.raises(ValueError, match="has heads 4, not 2"):
        pretrain(replace(chosen, seed=1), "shapes", folder=tmp_path)
    row |= {"architecture": architecture | {"heads": 2}, "recipe": asdict(chosen)}
    save_encoder(mini_vit(**row["architecture"]), name, row, other := tmp_path / "other")
    monkeypatch.setattr(Trainer, "run", lambda *_, **__: False)
    with pytest.warns(UserWarning, match="another learning_rate; tables"):
        pretrain(replace(chosen, seed=1, learning_rate=1e-4), "shapes", folder=other)
    assert path.read_bytes() == before
    with pytest.raises(ValueError, match="shapes and cifar10"):
        pretrain(chosen, "folder:photographs")


@pytest.mark.parametrize(
    ("changes", "images", "named"),
    [
        ({}, replace(source(), labels={}, classes={}), r"toy/train .*'shape'"),
        ({}, source(classes=12), r"12 classes of shape, the recipe is of 10.*'classes': 12"),
        ({}, source(blue=0), "toy/train: a colour channel"),
        ({"batch_size": 48}, source(), "batch of 48"),
        ({"seed": -1}, source(), r"seed -1 is not in 0\.\.999"),
        ({"seed": 1000}, source(), "seed 1000"),
    ],
)
def test_what_cannot_be_trained_is_named(changes, images, named, tmp_path):
    with pytest.raises(ValueError, match=named):
        Trainer(small("supervised", **changes), images, images, tmp_path)


@pytest.mark.parametrize(
    "wrong",
    [
        *({name: 0} for name in ("width", "depth", "heads", "patch_size", "images", "batch_size")),
        {"images": -8},
        {"learning_rate": -1e-3},
        {"learning_rate": float("nan")},
        {"heads": 3},
    ],
)
def test_a_recipe_names_a_size_that_cannot_be(wrong):
    ((name, _),) = wrong.items()
    with pytest.raises(ValueError, match=name):
        small("mim", **wrong)


def test_patches_cover_the_image(tmp_path):
    with pytest.raises(ValueError, match=r"patches of 5 pixels .* 16"):
        trainer("cl", tmp_path, patch_size=5)


def test_contrastive_learning_needs_another_image(tmp_path):
    run = Trainer(small("cl"), source(), source(16).subset(1), tmp_path)
    with pytest.raises(ValueError, match="two images or more"):
        run.validation_loss()


def test_a_recipe_may_ask_for_more_classes(tmp_path):
    chosen, images = small("supervised"), source(classes=12)
    chosen = replace(chosen, options=chosen.options | {"classes": 12})
    assert Trainer(chosen, images, source(16, 12), tmp_path).objective.classifier.out_features == 12


@pytest.mark.parametrize("when", [{"log_every": 1}, {"save_every": 0.0}, {"stop_after": 0.0}])
def test_a_loss_that_is_not_finite_stops_the_run(when, tmp_path):
    run = trainer("mim", tmp_path)
    with torch.no_grad():
        run.objective.decoder.bias.fill_(torch.nan)
    with pytest.raises(FloatingPointError, match="step 1:"):
        run.run(**when)
    assert not (tmp_path / "checkpoint.pt").exists()


def test_an_epoch_shows_every_image_once_in_an_order_of_its_own():
    epochs = [epoch_order(13, 4, epoch, seed=1) for epoch in range(2)]
    assert all(e.shape == (3, 4) and len(e.unique()) == 12 for e in epochs)
    assert not torch.equal(*epochs)


def test_a_run_shows_each_epoch_in_its_order(tmp_path, monkeypatch):
    images = source(24)  # three steps an epoch
    run = Trainer(small("mim", steps=7), images, source(16), tmp_path, precision=torch.float32)
    shown, loss = [], run._loss
    monkeypatch.setattr(run, "_loss", lambda batch, stream: shown.append(batch[0]) or loss(batch, stream))
    list(run.steps())
    order = torch.cat([epoch_order(24, 8, epoch, seed=0) for epoch in range(3)])[:7]
    assert torch.equal(torch.stack(shown), images.images[order])


def test_seeds_give_different_runs(tmp_path):
    one, two = (trainer("mim", tmp_path / str(seed), seed=seed) for seed in (0, 1))
    assert not torch.equal(weights(one), weights(two))


def test_streams_of_seeds_steps_and_processes_differ():
    def draw(*which):
        return float(torch.rand((), generator=generator(*which), dtype=torch.float64))

    keys = [(seed, step, "cpu", rank) for seed in range(3) for step in range(3) for rank in range(3)]
    assert len({draw(*key) for key in keys}) == len(keys)
    assert draw(0, 5) == float(torch.rand((), generator=seeded(5), dtype=torch.float64))


def test_recipes_of_a_study_differ_in_objective_and_views_alone():
    for rows in STUDIES.values():
        changed = {"objective": "", "options": {}, "augmentation": None}
        assert len({str(replace(row, **changed)) for row in rows.values()}) == 1


def test_views_and_rates_are_those_that_the_stored_encoders_were_trained_with():
    """Figures set encoders of today's recipe beside them."""
    names = ("augmentation", "learning_rate", "weight_decay", "warmup", "clip", "depth", "patch_size")
    for name, row in manifest().items():
        today = json.loads(json.dumps(asdict(recipe(row["study"], row["recipe"]["objective"]))))
        assert {key: today[key] for key in names} == {key: row["recipe"][key] for key in names}, name


def test_command_line_passes_everything_on(monkeypatch):
    asked = []
    monkeypatch.setitem(main.__globals__, "pretrain", lambda *given, **named: asked.append((given, named)))
    sizes = ["--width", "64", "--images", "512", "--batch-size", "32", "--seed", "3"]
    limits = ["--stop-after", "1.5h", "--device", "cpu", "--precision", "float32"]
    assert main(["--nice", "0", "--objective", "cl", *sizes, *limits, "--study", "cifar10"]) == 0
    assert main(["--nice", "0", "--objective", "mim", "--minutes", "2", "--device", "cpu"]) == 0
    chosen = replace(recipe("cifar10", "cl"), width=64, heads=2, images=512, batch_size=32, seed=3)
    assert asked == [
        ((chosen, "cifar10", "cpu", 5400), {"precision": torch.float32}),
        ((recipe("shapes", "mim"), "shapes", "cpu", 120), {"precision": None}),
    ]


def test_the_queue_begins_with_the_pairs_and_leaves_out_what_is_there(monkeypatch):
    monkeypatch.setattr(queue, "available", lambda: [])
    models = list(queue.waiting(DATA / "queue.csv"))
    assert set(models[:4]) == {f"{s}.{o}" for s in ("shapes", "cifar10") for o in ("cl", "mim")}
    assert not any(".n" in name for name in models)
    monkeypatch.setattr(queue, "available", lambda: models[:4])
    assert list(queue.waiting(DATA / "queue.csv")) == models[4:]


@pytest.fixture
def interruptible():
    """Ctrl-C raises, also where the tests were started in the background and would ignore it."""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, previous)


@pytest.mark.usefixtures("interruptible")
def test_a_queue_counts_failures_goes_on_and_ends_what_a_signal_stops(monkeypatch, capfd, tmp_path):
    script = """
import pathlib, sys, time
options = dict(option[2:].split("=") for option in sys.argv[2:])
assert (options["study"], options["device"]) == ("shapes", "cpu")
pathlib.Path(sys.argv[1], options["objective"]).touch()
if options["objective"] == "mim":
    raise FloatingPointError("not finite at step 3")
if options["objective"] == "dino":
    time.sleep(600)
"""
    monkeypatch.setenv("NBHELPERS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(queue, "COMMAND", (sys.executable, "-c", script, str(tmp_path)))
    models = {name: {"study": "shapes", "objective": name} for name in ("cl", "mim", "mae", "dino", "latent")}
    first = {name: models[name] for name in ("cl", "mim", "mae")}
    assert queue.train(first, 2, -1.0, "--device=cpu") == 0  # no time left: none is started
    assert not (tmp_path / "cl").exists()
    assert queue.train(first, 2, None, "--device=cpu") == 1
    assert all((tmp_path / name).exists() for name in first)
    output = tmp_path / "cache" / "pretrain" / "mim" / "output.txt"
    assert str(output) in capfd.readouterr().out
    assert "not finite at step 3" in output.read_text()

    def interrupt():
        while not (tmp_path / "dino").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    second = {name: models[name] for name in ("dino", "latent")}
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        queue.train(second, 1, None, "--device=cpu")
    assert time.monotonic() - started < 60
    assert not (tmp_path / "latent").exists()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--queue", "missing.csv"], "missing.csv"),
        (["--queue", "queue.csv"], "width"),
        (["--queue", "queue.csv", "--seed", "3"], "--seed says nothing with --queue"),
        (["--objective", "cl", "--workers", "2"], "--workers says nothing without --queue"),
        (["--objective", "hybrid-1.5"], "shapes.hybrid-0.5"),
        (["--objective", "cl", "--width", "20"], "width 20"),
        (["--objective", "cl", "--device", "tpu9"], "tpu9"),
        (["--objective", "cl", "--device", "meta"], "not on meta"),
        (["--objective", "cl", "--images", "0"], "'0'"),
        (["--objective", "cl", "--minutes", "soon"], "'soon'"),
        (["--objective", "cl", "--stop-after", "soon"], "'soon'"),
    ],
)
def test_command_line_names_bad_input_without_a_traceback(arguments, named, capsys, tmp_path, monkeypatch):
    (tmp_path / "queue.csv").write_text("study,objective,images,seed\nshapes,cl,9,0\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main(["--nice", "0", *arguments])
    assert stopped.value.code in (1, 2)
    assert named in capsys.readouterr().err


def test_a_command_line_that_is_stopped_says_that_the_same_command_goes_on(capsys, monkeypatch):
    def stopped(*args):
        raise KeyboardInterrupt

    monkeypatch.setitem(main.__globals__, "_single", stopped)
    with pytest.raises(SystemExit) as stop:
        main(["--nice", "0", "--objective", "cl"])
    assert stop.value.code == 130 and "same command goes on" in capsys.readouterr().err
