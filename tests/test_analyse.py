"""`analyse` in one pass, its cache and its errors; two processes equal one."""

import importlib

import pandas as pd
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from pandas.testing import assert_frame_equal
from PIL import Image

from nbhelpers.capture import capture
from nbhelpers.images import ArraySource, folder
from nbhelpers.measure import IDENTITY, analyse
from nbhelpers.metrics import METRICS, AttentionMaps
from nbhelpers.models import mini_vit, wrap

# The package exports a function of the same name, which hides the module from attribute access.
module = importlib.import_module("nbhelpers.measure")
NAMES = ["attention_distance", "nmi", "attention_entropy"]


def tiny(seed=0):
    torch.manual_seed(seed)
    module = mini_vit(32, 2, 2, image_size=16)
    return wrap(module, mean=(0.5,) * 3, std=(0.25,) * 3, name="toy.cl", objective="CL", seed=seed)


def toy(images=7, name="toy/test"):
    pixels = torch.randint(256, (images, 3, 16, 16), generator=torch.Generator().manual_seed(0))
    return ArraySource(name, pixels.to(torch.uint8), {"class": torch.zeros(images).long()}, {"class": ("a",)})


@pytest.fixture(autouse=True)
def scratch_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("NBHELPERS_CACHE", str(tmp_path / "cache"))


def test_one_pass_gives_what_the_accumulators_give():
    encoder, images = tiny(), toy()
    frame = analyse(encoder, images, NAMES)
    direct = METRICS["nmi"].of(encoder)
    with capture(encoder, on_attention=lambda record: direct.update(AttentionMaps(record))):
        encoder.forward(images.batch(range(7)))
    expected = direct.compute()
    got = frame[frame["metric"] == "nmi"][expected.columns].reset_index(drop=True)
    assert_frame_equal(got, expected, check_dtype=False)
    assert list(frame.columns[:4]) == list(IDENTITY)
    assert (frame["study"] == "toy").all()
    assert set(frame["metric"]) == set(NAMES)


def test_the_batch_size_changes_nothing():
    one, other = (analyse(tiny(), toy(), NAMES, batch_size=b, cache=False) for b in (2, 7))
    assert_frame_equal(one, other)


def test_every_metric_of_the_book_goes_through_one_pass():
    frame = analyse(tiny(), toy(), list(METRICS), cache=False)
    assert set(frame["metric"]) == set(METRICS)
    assert (frame["images"] == 7).all()


def test_only_the_model_computes_in_half_precision(monkeypatch):
    full = analyse(tiny(), toy(), list(METRICS), cache=False)
    monkeypatch.setattr(module, "HALF_PRECISION", ("cpu",))
    seen = []

    class Watch(METRICS["nmi"]):
        def update(self, maps):
            seen.append((maps.record.query.dtype, torch.is_autocast_enabled("cpu"), maps.distance.dtype))
            super().update(maps)

    encoder = tiny()
    module.feed(encoder, toy(), [Watch.of(encoder)], 4)
    assert set(seen) == {(torch.bfloat16, False, torch.float32)}
    half = analyse(encoder, toy(), list(METRICS), cache=False)
    assert half["value"].to_numpy() == pytest.approx(
        full["value"].to_numpy(), rel=0.05, abs=0.05, nan_ok=True
    )


def test_the_cache_is_used_and_knows_weights_and_images(monkeypatch):
    first = analyse(tiny(), toy(), NAMES)
    monkeypatch.setattr(module, "feed", lambda *_: pytest.fail("computed again"))
    assert_frame_equal(analyse(tiny(), toy(), NAMES), first)
    for changed in ((tiny(1), toy(), NAMES), (tiny(), toy(6), NAMES)):
        with pytest.raises(pytest.fail.Exception, match="computed again"):
            analyse(*changed)
    with pytest.raises(pytest.fail.Exception, match="computed again"):
        analyse(tiny(), toy(), NAMES, cache=False)


def test_a_metric_in_the_cache_is_not_computed_again_beside_others(monkeypatch):
    first = analyse(tiny(), toy(), NAMES[:1])
    fed, feed = [], module.feed
    monkeypatch.setattr(module, "feed", lambda *args: (fed.extend(args[2]), feed(*args)))
    both = analyse(tiny(), toy(), NAMES[:2])
    assert [type(accumulator) for accumulator in fed] == [METRICS[NAMES[1]]]
    assert_frame_equal(both[both["metric"] == NAMES[0]], first, rtol=1e-14)
    assert_frame_equal(both, analyse(tiny(), toy(), NAMES[:2], cache=False), rtol=1e-14)


def test_the_cache_keeps_the_digits():
    computed = analyse(tiny(), toy(), NAMES)
    assert_frame_equal(analyse(tiny(), toy(), NAMES), computed, rtol=1e-14)


def test_an_unknown_metric_is_answered_with_the_nearest():
    with pytest.raises(KeyError, match="nmi"):
        analyse(tiny(), toy(), ["nmii"])


def _share(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    frame = analyse(tiny(), toy(), ["nmi", "image_spectrum"], batch_size=2, cache=False)
    frame.to_csv(f"{folder}/{rank}.csv", index=False)
    dist.destroy_process_group()


def test_two_processes_give_the_frame_of_one(tmp_path):
    mp.spawn(_share, args=(str(tmp_path),), nprocs=2)
    whole = analyse(tiny(), toy(), ["nmi", "image_spectrum"], cache=False)
    for rank in range(2):
        assert_frame_equal(
            pd.read_csv(tmp_path / f"{rank}.csv"), whole, rtol=1e-6, atol=1e-8, check_dtype=False
        )


def test_images_of_mixed_sizes_are_resized_one_by_one(tmp_path):
    for index, size in enumerate(((20, 30), (40, 16))):
        pixels = torch.randint(256, (*size, 3), generator=torch.Generator().manual_seed(index))
        Image.fromarray(pixels.to(torch.uint8).numpy()).save(tmp_path / f"{index}.png")
    frame = analyse(tiny(), folder(tmp_path), ["nmi"])
    assert (frame["images"] == 2).all()


def test_the_command_line_hands_everything_to_the_report(monkeypatch, capsys):
    command, asked = importlib.import_module("nbhelpers.analyse"), []
    monkeypatch.setattr(command, "report", lambda *given, **options: asked.append((given, options)) or "page")
    assert (
        command.main(["toy.cl", "--images", "photos", "--out", "out", "--n-images", "2", "--seed", "1"]) == 0
    )
    given, options = asked[0]
    assert given == (["toy.cl"], "folder:photos", "out", 2)
    assert options == {"seed": 1, "batch_size": 64, "device": None}
    assert "page" in capsys.readouterr().out
