"""The trainer: resumption bit for bit, log, refusal of another recipe, command line."""

from dataclasses import replace

import pandas as pd
import pytest
import torch

from nbhelpers.images import ArraySource
from nbhelpers.pretrain import Trainer, recipe
from nbhelpers.pretrain.__main__ import main, seconds
from nbhelpers.pretrain.queue import read_queue
from nbhelpers.pretrain.trainer import batch_indices


def source(images=40):
    pixels = torch.randint(256, (images, 3, 16, 16), generator=torch.Generator().manual_seed(0))
    labels = {"class": torch.arange(images) % 2}
    return ArraySource("toy/train", pixels.to(torch.uint8), labels, {"class": ("a", "b")})


def small(objective, steps=10, **changes):
    sizes = {"width": 32, "depth": 2, "heads": 2, "batch_size": 8, "images": 8 * steps}
    return replace(recipe("shapes", objective), **sizes | changes)


def trainer(objective, folder, **changes):
    return Trainer(small(objective, **changes), source(), source(16), folder)


def weights(run):
    return torch.cat([v.flatten().float() for v in run.objective.state_dict().values()])


@pytest.mark.parametrize("objective", ["cl", "mim"])
def test_ten_steps_equal_five_a_kill_and_five(objective, tmp_path):
    whole = trainer(objective, tmp_path / "whole")
    losses = torch.stack(list(whole.steps()))
    first = trainer(objective, tmp_path / "part")
    part = list(first.steps(until=5))
    first.save()
    list(first.steps(until=7))  # steps after the last save are lost with the process
    second = trainer(objective, tmp_path / "part")
    assert second.step == 5
    part += list(second.steps())
    assert torch.equal(losses, torch.stack(part))
    assert torch.equal(weights(whole), weights(second))


def test_a_run_lowers_its_validation_loss_and_logs_it(tmp_path):
    run = trainer("mim", tmp_path, steps=30, learning_rate=2e-2)
    before = run.validation_loss()
    assert run.run(log_every=10)
    log = pd.read_csv(tmp_path / "log.csv")
    assert log["step"].tolist() == [10, 20, 30]
    assert log["val_loss"].iloc[-1] < before
    assert log["images"].iloc[-1] == 240
    assert (log["images_per_second"] > 0).all()


def test_validation_leaves_the_run_unchanged(tmp_path):
    run = trainer("cl", tmp_path)
    before = weights(run)
    assert run.validation_loss() == run.validation_loss()
    assert torch.equal(before, weights(run))


def test_stop_after_saves_and_the_next_run_finishes(tmp_path):
    assert not trainer("mim", tmp_path).run(stop_after=0.0)
    again = trainer("mim", tmp_path)
    assert again.step == 1
    assert again.run()
    assert trainer("mim", tmp_path).done


def test_the_folder_of_another_recipe_is_refused(tmp_path):
    trainer("mim", tmp_path).save()
    with pytest.raises(ValueError, match="differs in learning_rate"):
        trainer("mim", tmp_path, learning_rate=1e-3)


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    run = trainer("mim", tmp_path)
    with torch.no_grad():
        run.objective.decoder.bias.fill_(torch.nan)
    with pytest.raises(FloatingPointError, match="not finite"):
        run.run(log_every=1)
    assert not (tmp_path / "checkpoint.pt").exists()


def test_an_epoch_shows_every_image_once_in_an_order_of_its_own():
    epochs = [torch.cat([batch_indices(12, 4, 3 * e + s, seed=1) for s in range(3)]) for e in range(2)]
    assert all(sorted(e.tolist()) == list(range(12)) for e in epochs)
    assert not torch.equal(*epochs)
    with pytest.raises(ValueError, match="batch of 4"):
        batch_indices(3, 4, 0, seed=0)


def test_seeds_give_different_runs(tmp_path):
    one, two = (trainer("mim", tmp_path / str(seed), seed=seed) for seed in (0, 1))
    assert not torch.equal(weights(one), weights(two))


def test_unknown_recipe_names_the_nearest():
    with pytest.raises(KeyError, match=r"shapes\.cl"):
        recipe("shape", "cl")


def test_command_line_explains_itself_and_checks_durations(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "--stop-after" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["--objective", "cl", "--stop-after", "soon"])
    assert "soon" in capsys.readouterr().err
    assert seconds("90s") == 90


def test_queue_file_is_checked(tmp_path):
    path = tmp_path / "queue.csv"
    path.write_text("name,study,objective,seed\na,shapes,cl,0\na,shapes,mim,0\n")
    with pytest.raises(ValueError, match="lists a more than once"):
        read_queue(path)
    path.write_text("name,study\na,shapes\n")
    with pytest.raises(ValueError, match="needs the columns"):
        read_queue(path)
