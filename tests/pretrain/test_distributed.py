"""Two gloo processes with half a batch each against one process with all of it."""

import os
import socket

import pytest
import torch
from torch.multiprocessing import start_processes
from toy_runs import PIXELS, source, trainer

from nbhelpers.models import mini_vit
from nbhelpers.pretrain import recipe
from nbhelpers.pretrain.distributed import average_gradients, mean_over_ranks, process_group, share
from nbhelpers.pretrain.recipes import build
from nbhelpers.pretrain.schedule import epoch_order, generator, stream_seed

OBJECTIVES = ("cl", "mim", "latent", "supervised", "dino")
BATCH, PROCESSES = 8, 2


def model(objective):
    """In double precision: batch norm over few rows, all alike at first, magnifies rounding errors."""
    torch.manual_seed(0)
    encoder = mini_vit(32, 2, 2, 16)
    encoder.patch_embed.register_forward_pre_hook(lambda _module, inputs: (inputs[0].double(),))
    return build(recipe("shapes", objective), encoder, **PIXELS).double()


def joint_batch():
    batch = source(BATCH, 3)
    return batch.images, batch.labels["shape"]


def parts(one, loss):
    gradients = {name: p.grad for name, p in one.named_parameters() if p.grad is not None}
    return {"loss": loss.detach(), "gradients": gradients, "buffers": dict(one.named_buffers())}


def process(rank, folder, port):
    """What each of the two processes does, started as by torchrun; the parent looks at what it leaves."""
    place = {"MASTER_ADDR": "localhost", "MASTER_PORT": port}
    os.environ.update(place, RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(PROCESSES))
    with process_group("cpu") as device:
        torch.save(one_of_two(rank, folder, device), folder / f"{rank}.pt")


def one_of_two(rank, folder, device):
    result = {}
    for objective in OBJECTIVES:
        one = model(objective)
        images, labels = (share(part) for part in joint_batch())
        labels = (labels,) if one.label else ()
        loss = one(images, generator(0, 5, process=rank), *labels)
        loss.backward()
        average_gradients(one.parameters())
        result[objective] = parts(one, loss)
        result[objective]["loss"] = mean_over_ranks(loss.detach())
    run = trainer("cl", folder / f"rank{rank}", device=device, steps=4)
    result["shown"] = [run.order, run.val[0][0]]
    run.run(stop_after=0.0)
    result["stopped"] = run.step
    run.run(log_every=2)
    rows = [(row["loss"], row["val_loss"]) for row in run.rows]
    result["seed"] = run.generator.initial_seed()
    return result | {"run": {"step": run.step, "weights": run.objective.state_dict(), "rows": rows}}


@pytest.fixture(scope="module")
def results(tmp_path_factory, start_method):
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    start_processes(process, (folder, port), PROCESSES, start_method=start_method)
    return folder, [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(PROCESSES)]


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_two_processes_have_the_loss_and_the_gradients_of_one(objective, results):
    one = model(objective)
    images, labels = joint_batch()
    shares = [
        one.views(part, generator(0, 5, process=rank)) for rank, part in enumerate(images.chunk(PROCESSES))
    ]
    views = [torch.cat(parts) for parts in zip(*shares, strict=True)]
    loss = one.loss(*views, *([labels] if one.label else []))
    loss.backward()
    expected = parts(one, loss)
    for found in (each[objective] for each in results[1]):
        torch.testing.assert_close(found["loss"], expected["loss"], rtol=1e-6, atol=0)
        assert found["gradients"].keys() == expected["gradients"].keys()
        for kind in ("gradients", "buffers"):
            for name, value in expected[kind].items():
                torch.testing.assert_close(found[kind][name], value, rtol=1e-5, atol=1e-7, msg=name)


def test_processes_part_each_batch_between_them(results):
    orders, validation = zip(*(each["shown"] for each in results[1]), strict=True)
    assert torch.equal(torch.cat(orders, dim=1), epoch_order(40, BATCH, 0, seed=0))
    assert torch.equal(torch.cat(validation), source(16).images[:BATCH])


def test_processes_stop_together_stay_equal_and_the_first_alone_writes(results):
    folder, (first, second) = results
    assert first["stopped"] == second["stopped"] == 1
    assert first["run"]["step"] == second["run"]["step"] == 4
    assert first["run"]["rows"] == second["run"]["rows"]
    assert [each["seed"] for each in (first, second)] == [stream_seed(0, 3, rank) for rank in range(2)]
    for name, value in first["run"]["weights"].items():
        assert torch.equal(value, second["run"]["weights"][name]), name
    assert sorted(path.name for path in (folder / "rank0").iterdir()) == ["checkpoint.pt", "log.csv"]
    assert not (folder / "rank1").exists()
    resumed = trainer("cl", folder / "rank0", steps=4)  # in one process
    assert resumed.step == 4


def test_batches_that_cannot_be_shared_out_are_refused(monkeypatch):
    monkeypatch.setitem(share.__globals__, "world_size", lambda: PROCESSES + 1)
    with pytest.raises(ValueError, match="8 images"):
        share(torch.arange(8))
