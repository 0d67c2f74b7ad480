"""`analyse` in one pass, its cache and its errors; two processes equal one."""

import ast
import importlib
from dataclasses import replace
from functools import wraps
from itertools import cycle
from pathlib import Path

import pandas as pd
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from pandas.testing import assert_frame_equal
from PIL import Image
from timm.models.beit import Beit

import nbhelpers
from nbhelpers.capture import capture
from nbhelpers.files import ROOT, cache_dir
from nbhelpers.images import ArraySource
from nbhelpers.measure import BEYOND_PLACE, IDENTITY, analyse, attention_maps, object_attention_by_depth
from nbhelpers.metrics import METRICS, attention_distance, feature_variance, nmi
from nbhelpers.metrics.base import Metric
from nbhelpers.metrics.streams import Streams
from nbhelpers.models import Encoder, UnsupportedArchitecture, load, mini_vit, wrap

# The package exports a function of the same name, which hides the module from attribute access.
module = importlib.import_module("nbhelpers.measure")
NAMES = ["attention_distance", "nmi", "attention_entropy"]


def tiny(seed=0):
    torch.manual_seed(seed)
    module = mini_vit(32, 2, 2, image_size=16)
    return wrap(module, mean=(0.5,) * 3, std=(0.25,) * 3, name="toy.cl", objective="CL", seed=seed)


def toy(images=7):
    pixels = torch.randint(256, (images, 3, 16, 16), generator=torch.Generator().manual_seed(0))
    labels = {"class": torch.zeros(images).long()}
    return ArraySource("toy/test", pixels.to(torch.uint8), labels, {"class": ("a",)})


@pytest.fixture(autouse=True)
def scratch_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("NBHELPERS_CACHE", str(tmp_path / "cache"))


def test_figures_are_what_the_documented_functions_give():
    encoder, images = tiny(), toy()
    frame = analyse(encoder, images, NAMES)
    assert list(frame.columns[:4]) == list(IDENTITY)
    assert (frame["study"] == "toy").all()
    assert set(frame["metric"]) == set(NAMES)
    maps = attention_maps(encoder, images.batch(range(7)))  # L B H N N
    for depth, layer in enumerate(maps, start=1):
        distances = attention_distance(layer, encoder.grid, encoder.patch_size)
        for name, values in (("nmi", nmi(layer)), ("attention_distance", distances)):
            chosen = (frame["metric"] == name) & (frame["depth"] == depth) & (frame["head"] >= 0)
            expected = values.double().mean(0).tolist()
            assert frame[chosen]["value"].tolist() == pytest.approx(expected, rel=1e-5)


def test_only_the_model_computes_in_half_precision(monkeypatch):
    full = analyse(tiny(), toy(), list(METRICS), cache=False)
    monkeypatch.setattr(module, "HALF_PRECISION", ("cpu",))
    seen, on_attention = [], Streams.on_attention

    def watch(self, record):
        seen.append((record.query.dtype, torch.is_autocast_enabled("cpu")))
        on_attention(self, record)

    monkeypatch.setattr(Streams, "on_attention", watch)
    encoder = tiny()
    module.feed(encoder, toy(), [METRICS["nmi"].of(encoder)], 4)
    assert set(seen) == {(torch.bfloat16, False)}
    half = analyse(encoder, toy(), list(METRICS), cache=False)
    assert half["value"].to_numpy() == pytest.approx(
        full["value"].to_numpy(), rel=0.05, abs=0.05, nan_ok=True
    )


def test_the_cache_is_used_and_knows_weights_images_and_code(monkeypatch):
    class Again(Exception):
        """The encoder is run again."""

    def feed(*_):
        raise Again

    first = analyse(tiny(), toy(), NAMES)
    monkeypatch.setattr(module, "feed", feed)
    assert_frame_equal(analyse(tiny(), toy(), NAMES), first)
    for encoder, images, cache in ((tiny(1), toy(), True), (tiny(), toy(6), True), (tiny(), toy(), False)):
        with pytest.raises(Again):
            analyse(encoder, images, NAMES, cache=cache)
    monkeypatch.setattr(module, "code_version", lambda kind: "other code")
    with pytest.raises(Again):
        analyse(tiny(), toy(), NAMES)


def test_a_key_holds_the_device_and_all_the_images(monkeypatch):
    """A probe learns from some images and is tested on others; a GPU computes in bfloat16."""
    encoder, one, two, computed = tiny(), toy(6), toy(7), []

    def compute(names):
        computed.append(names)
        return {"probe": pd.DataFrame({"value": [len(computed)]})}

    def number(*images):
        return module.cached(encoder, images, {"probe": []}, compute)["probe"]["value"].item()

    pairs = [(one, two), (two, two), (one, one), (two, one), (one, two)]
    assert [number(*pair) for pair in pairs] == [1, 2, 3, 4, 1]
    monkeypatch.setattr(Encoder, "device", torch.device("cuda"))
    assert number(one, two) == 5


def test_processes_read_what_the_first_has_kept_and_nothing_else(monkeypatch):
    """Those that disagreed on what is missing would wait for each other without end."""
    theirs = pd.DataFrame({"value": [3.0]})
    monkeypatch.setattr(module, "world_size", lambda: 2)
    monkeypatch.setattr(module, "rank", lambda: 1)
    monkeypatch.setattr(
        module.dist, "broadcast_object_list", lambda frames: frames.__setitem__(0, {"nmi": theirs})
    )
    found = module.cached(tiny(), [toy()], {"nmi": []}, lambda missing: pytest.fail("computed again"))
    assert_frame_equal(found["nmi"], theirs)


def test_code_that_was_edited_after_its_import_keeps_and_reads_nothing(monkeypatch):
    with monkeypatch.context() as edited:
        edited.setattr(module, "IMPORTED", 0.0)
        with pytest.warns(
            UserWarning, match="attention.py.* linear.py.* changed since nbhelpers was imported"
        ):
            analyse(tiny(), toy(), NAMES)
    assert not [*cache_dir().glob("frames/*")]
    analyse(tiny(), toy(), NAMES)
    assert [*cache_dir().glob("frames/*")]


def test_a_metric_of_ones_own_is_not_answered_from_the_cache(monkeypatch):
    name = "feature_variance"
    before = analyse(tiny(), toy(), [name])["value"]
    ours = replace(METRICS[name], function=lambda tokens: 2 * feature_variance(tokens))
    monkeypatch.setitem(METRICS, name, ours)
    assert analyse(tiny(), toy(), [name])["value"].tolist() == pytest.approx([*(2 * before)])


def test_a_metric_in_the_cache_is_not_computed_again_beside_others(monkeypatch):
    first = analyse(tiny(), toy(), NAMES[:1])
    fed, feed = [], module.feed
    monkeypatch.setattr(module, "feed", lambda *args: (fed.extend(args[2]), feed(*args)))
    both = analyse(tiny(), toy(), NAMES[:2])
    assert [accumulator.metric.name for accumulator in fed] == [NAMES[1]]
    assert_frame_equal(both[both["metric"] == NAMES[0]], first, rtol=0, atol=0)
    assert_frame_equal(both, analyse(tiny(), toy(), NAMES[:2], cache=False), rtol=0, atol=0)


def test_of_a_model_with_hooks_nothing_is_kept(tmp_path):
    """A hook changes the numbers and no fingerprint: they must come neither from the cache nor go into it."""
    plain, encoder = analyse(tiny(), toy(), NAMES), tiny()
    encoder.blocks[0].attn.register_forward_pre_hook(lambda _, args: (3 * args[0],))
    kept = set((tmp_path / "cache").rglob("*.csv"))
    changed = analyse(encoder, toy(), NAMES)
    assert (changed["value"] - plain["value"]).abs().max() > 0
    assert set((tmp_path / "cache").rglob("*.csv")) == kept
    assert_frame_equal(analyse(tiny(), toy(), NAMES), plain)


class Inverted(Encoder):
    def preprocess(self, images):
        return super().preprocess(255 - images)


def test_an_encoder_that_changes_its_images_is_another_than_the_plain_one():
    plain = analyse(tiny(), toy(), NAMES, cache=False)
    inverted = analyse(Inverted(**vars(tiny())), toy(), NAMES)
    assert not inverted["value"].equals(plain["value"])
    assert_frame_equal(analyse(tiny(), toy(), NAMES), plain)
    by_hand = tiny()
    by_hand.preprocess = lambda images: Encoder.preprocess(by_hand, 255 - images)
    assert_frame_equal(analyse(by_hand, toy(), NAMES), inverted)


@pytest.mark.parametrize(
    ("images", "expected"), [("shapes/test", "shapes"), ("folder:/home/me/pets", "folder:/home/me/pets")]
)
def test_a_folder_is_a_study_of_its_own(images, expected):
    frame = module.identified(pd.DataFrame({"value": [1.0]}), tiny(), replace(toy(1), name=images))
    assert frame["study"].item() == expected


@pytest.fixture
def biased():
    """An encoder whose attention is the softmax of its position bias alone."""
    sizes = {"img_size": 16, "patch_size": 4, "embed_dim": 8, "depth": 1, "num_heads": 2, "num_classes": 0}
    encoder = wrap(Beit(**sizes, use_rel_pos_bias=True).eval(), mean=(0.5,) * 3, std=(0.25,) * 3)
    attention = encoder.blocks[0].attn
    torch.nn.init.zeros_(attention.qkv.weight)
    torch.nn.init.normal_(attention.relative_position_bias_table, generator=torch.Generator().manual_seed(0))
    return encoder


def test_a_position_bias_is_part_of_the_maps_that_are_looked_at(biased):
    logits = []
    with capture(biased, on_attention=lambda record: logits.append(record.bias)):
        biased.forward(toy().batch([0]))
    bias = logits[0].expand(1, 2, 17, 17)
    maps = attention_maps(biased, toy().batch([0]))
    torch.testing.assert_close(maps[0], bias[..., 1:, 1:].softmax(-1))
    masks = torch.arange(256).view(16, 16).expand(7, -1, -1) < 128
    frame = object_attention_by_depth(biased, replace(toy(), masks=masks)).query("label == 'class token'")
    expected = bias.softmax(-1)[0, :, 0, 1:9].sum(-1)  # the object is the upper half
    assert frame[frame["head"] >= 0]["value"].tolist() == pytest.approx(expected.tolist(), rel=1e-5)


def test_maps_that_differ_from_pass_to_pass_are_refused():
    encoder, signs = tiny(), cycle((1, -1))
    encoder.blocks[1].register_forward_hook(lambda _, __, tokens: next(signs) * tokens)
    with pytest.raises(UnsupportedArchitecture, match=r"toy\.cl"):
        attention_maps(encoder, toy().batch([0]))


@pytest.mark.parametrize(
    ("function", "stream", "said"),
    [
        (lambda tokens: 1.0, "block", "odd: its function must give a value per image.*float"),
        (lambda tokens: tokens.mean(), "block", r"odd: its function must give a value per image.*\(\)"),
        (lambda maps: maps.mean((-1, -2)), "attention", "odd: expected 1 values .*per_head=True"),
        (lambda maps: maps, "attentions", "odd: no stream is called 'attentions'; nearest: attention"),
    ],
)
def test_what_is_wrong_with_a_metric_of_ones_own_is_named(function, stream, said):
    with pytest.raises(ValueError, match=said):
        analyse(tiny(), toy(), [Metric("odd", function, stream)])


def test_two_metrics_of_one_name_are_refused():
    own = replace(METRICS["nmi"], function=lambda attention: attention[:, :, 0, 0])
    with pytest.raises(ValueError, match="two metrics are named 'nmi'"):
        analyse(tiny(), toy(), ["nmi", own])
    assert len(analyse(tiny(), toy(), ["nmi", "nmi"])) == len(analyse(tiny(), toy(), ["nmi"]))


def test_a_decorated_metric_is_called_as_it_is_decorated():
    @wraps(nmi)
    def sharpened(attention):
        sharp = attention**4
        return nmi(sharp / sharp.sum(-1, keepdim=True))

    found = [
        analyse(tiny(), toy(), [replace(METRICS["nmi"], function=each)])["value"].tolist()
        for each in (nmi, sharpened, lambda attention: sharpened(attention))
    ]
    assert found[0] != found[1] == found[2]


def test_frames_of_another_version_of_a_library_are_not_read(monkeypatch):
    analyse(tiny(), toy(), ["nmi"])
    monkeypatch.setattr(Encoder, "forward", lambda *_: pytest.fail("computed again"))
    analyse(tiny(), toy(), ["nmi"])
    monkeypatch.setattr(module, "version", lambda library: "0.1" if library == "timm" else "1.0")
    with pytest.raises(pytest.fail.Exception, match="computed again"):
        analyse(tiny(), toy(), ["nmi"])


def test_a_metric_of_ones_own_gets_all_heads_of_an_image():
    def apart(attention):  # B H N N -> B H
        assert attention.shape[1] == tiny().heads
        return (attention - attention.mean(1, keepdim=True)).abs().sum(-1).mean(-1)

    frame = analyse(tiny(), toy(), [Metric("apart", apart, "attention", per_head=True), "nmi"])
    maps = attention_maps(tiny(), toy().batch(range(7)))  # L B H N N
    expected = torch.stack([apart(layer).mean() for layer in maps])
    found = frame[(frame["metric"] == "apart") & (frame["head"] == -1)]["value"]
    assert found.tolist() == pytest.approx(expected.tolist()) and found.min() > 0


# What has an identity of its own in every key, and what changes no number.
APART = {
    f"nbhelpers.{name}"
    for name in "files names ranks images images.source models models.identity models.weights".split()
}
APART |= {"nbhelpers", "nbhelpers.models.errors", "nbhelpers.measure", "nbhelpers.probes.linear"}


@pytest.mark.parametrize("kind", module.CODE)
def test_the_code_in_a_key_is_all_that_its_files_import(kind, monkeypatch):
    read = []
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", lambda path: read.append(path) or b"")
        module.code_version.__wrapped__(kind)
    names = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in read
    }
    for path in read:
        nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
        own = {node.module for node in nodes if node.module.startswith("nbhelpers")}
        assert own - names <= APART, path


@pytest.mark.parametrize(
    ("kind", "file"),
    [("metrics", "measure.py"), ("probes", "images/filters.py"), ("pretrain", "measure.py")],
)
def test_the_code_in_a_key_is_also_what_is_imported_by_the_name_of_its_room(kind, file):
    assert ROOT / "nbhelpers" / file in module._hashed_files(kind)


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        ("Mean cosine similarity", "Another wording", True),
        ("import torch\n", "import torch  # a remark\n", True),
        ("count - 1", "count - 2", False),
    ],
)
def test_the_code_in_a_key_is_without_docstrings_and_comments(old, new, same, monkeypatch):
    assert old in (ROOT / "nbhelpers/metrics/diversity.py").read_text()
    plain, read = module.code_version.__wrapped__("metrics"), Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: read(path).replace(old.encode(), new.encode()))
    assert (module.code_version.__wrapped__("metrics") == plain) == same


@pytest.mark.parametrize("broken", ["folder", "file"])
def test_what_cannot_be_cached_is_returned(broken, tmp_path, monkeypatch):
    expected = analyse(tiny(), toy(), NAMES, cache=False)
    if broken == "folder":  # a file is where the folder should be
        (tmp_path / "cache").write_text("")
    else:
        (tmp_path / "cache").mkdir()
        (tmp_path / "cache" / "frames").write_text("")
    with pytest.warns(UserWarning, match="cache"):
        assert_frame_equal(analyse(tiny(), toy(), NAMES), expected)


@pytest.mark.parametrize("images", [1, 2])
def test_undefined_values_are_named_and_all_else_is_there(images):
    pixels = toy(1).batch([0]).expand(images, -1, -1, -1)
    source = ArraySource("toy/test", pixels, {}, {})
    with pytest.warns(UserWarning, match="image_spectrum has no value"):
        frame = analyse(tiny(), source, list(METRICS))
    assert set(frame["metric"]) == set(METRICS)
    spectrum = frame["metric"] == "image_spectrum"
    assert frame[spectrum]["value"].isna().all() and frame[~spectrum]["value"].notna().all()


def test_what_an_encoder_is_too_small_for_is_named_and_all_else_is_there():
    """One head agrees with none; on 2 x 2 patches no frequency lies below Nyquist."""
    encoder = wrap(mini_vit(8, 1, 1, patch_size=8, image_size=16), mean=(0.5,) * 3, std=(0.25,) * 3)
    with pytest.warns(UserWarning, match="head_cosine has no value for 7 of 7"):
        frame = analyse(encoder, toy(), list(METRICS))
    without = frame[frame["value"].isna()]
    assert set(without["metric"]) == {
        "head_map_cosine",
        "centred_head_map_cosine",
        "head_cosine",
        "delta_log_amplitude",
        "fourier_diagonal",
    }
    assert set(frame["metric"]) == set(METRICS) and not without["images"].any()


def test_a_batch_takes_no_more_than_its_memory_and_progress_counts_its_images(monkeypatch):
    encoder, sizes, moves = tiny(), [], []
    expected = analyse(encoder, toy(), NAMES, batch_size=7, cache=False)
    forward = encoder.forward
    encoder.forward = lambda images: (sizes.append(len(images)), forward(images))[1]

    class Bar(module.tqdm):
        def __init__(self, **options):
            assert options["disable"] is None  # drawn on a terminal, by tqdm's own rule
            super().__init__(**options | {"disable": True})

        def update(self, n=1):
            moves.append(n)

    monkeypatch.setattr(module, "tqdm", Bar)
    three = 3 * 4 * encoder.tokens * (24 * 32 + 4 * 2 * encoder.tokens)
    for memory, batches in ((module.MEMORY, [1, 4, 2]), (three, [1, 3, 3])):
        monkeypatch.setattr(module, "MEMORY", memory)
        assert_frame_equal(analyse(encoder, toy(), NAMES, batch_size=4, cache=False), expected)
        assert sizes == [2, *batches] and moves == batches  # two images for comparison, the first alone
        sizes.clear()
        moves.clear()


@pytest.mark.parametrize("together", [True, False])
def test_a_model_that_sees_an_image_twice_is_refused(together):
    encoder = tiny()
    once = encoder.module.forward_features

    def twice(pixels):
        if together:
            return once(torch.cat([pixels, pixels.flip(-1)])).chunk(2)[0]
        return once(pixels) + once(pixels.flip(-1))

    def undefined(tokens):
        return torch.full(tokens.shape[:1], torch.nan)

    encoder.module.forward_features = twice
    with pytest.raises(UnsupportedArchitecture, match=r"toy\.cl: .*several times"):
        analyse(encoder, toy(), ["nmi", Metric("undefined", undefined, "block"), "token_norm"], cache=False)


@pytest.mark.parametrize("watched", [2.0, 1.05, None])  # a factor, or other images change the features
def test_a_model_whose_features_depend_on_hooks_or_on_other_images_is_refused(watched):
    encoder = tiny()

    def change(_, __, x):
        if watched:
            return watched * x if any(block._forward_hooks for block in encoder.blocks) else x
        return x - x.mean(0) if len(x) > 1 else x  # as a batch norm without running statistics

    encoder.blocks[1].mlp.register_forward_hook(change)
    with pytest.raises(UnsupportedArchitecture, match=r"toy\.cl: .*other features.*mixing images"):
        analyse(encoder, toy(), ["token_norm"], cache=False)


class SequenceFirst(torch.nn.Module):
    """Hands its blocks `N B D`, as the default of `nn.MultiheadAttention` takes them."""

    def __init__(self):
        super().__init__()
        self.patch = torch.nn.Conv2d(3, 8, 4, 4)
        self.blocks = torch.nn.Sequential(torch.nn.TransformerEncoderLayer(8, 2, 16))

    def forward(self, pixels):
        return self.blocks(self.patch(pixels).flatten(2).permute(2, 0, 1)).transpose(0, 1)


def test_axes_are_not_mixed_up_where_a_batch_is_as_long_as_an_image_has_tokens():
    layout = {"prefix": 0, "grid": (4, 4), "patch_size": 4, "heads": 2, "width": 8}
    encoder = wrap(SequenceFirst(), **layout, mean=(0.5,) * 3, std=(0.5,) * 3)
    with pytest.raises(RuntimeError, match=r"is \(16, 1, 8\), not B N D"):
        analyse(encoder, toy(32), ["token_norm"], batch_size=16, cache=False)


def test_what_is_no_encoder_no_images_or_no_list_is_named():
    for wrong in ((tiny(), toy().images, NAMES), ("shapes.cl", toy(), NAMES), (tiny(), toy(), "nmi")):
        with pytest.raises(TypeError, match=", ".join(type(each).__name__ for each in wrong)):
            analyse(*wrong)
    with pytest.raises(ValueError, match="at least one metric"):
        analyse(tiny(), toy(), [])


def test_blocks_that_add_in_place_are_measured_as_others(add_in_place):
    names = ["common_update_share", "across_attention_cosine", "across_block_cosine"]
    encoder = tiny()
    plain = analyse(encoder, toy(), names, cache=False)
    add_in_place(encoder)
    assert_frame_equal(analyse(encoder, toy(), names, cache=False), plain, atol=1e-6)


def _frames():
    """Of seven images, and of one with its mask, which leaves nothing to a second process."""
    yield analyse(tiny(), toy(), ["nmi", "image_spectrum"], batch_size=2, cache=False)
    for number in (7, 1):
        masks = torch.arange(256).view(16, 16).expand(number, -1, -1) < 128
        yield object_attention_by_depth(tiny(), replace(toy(number), masks=masks))


def _share(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    for number, frame in enumerate(_frames()):
        frame.to_csv(f"{folder}/{rank}.{number}.csv", index=False)
    dist.destroy_process_group()


def test_two_processes_give_the_frame_of_one(tmp_path, start_method):
    mp.start_processes(_share, args=(str(tmp_path),), nprocs=2, start_method=start_method)
    for number, whole in enumerate(_frames()):
        for rank in range(2):
            found = pd.read_csv(tmp_path / f"{rank}.{number}.csv")
            # A difference of shares that cancel keeps the rounding of the shares, float32.
            cancels = whole.get("label", whole["metric"]).str.endswith(BEYOND_PLACE)
            for rows, atol in ((cancels, 1e-7), (~cancels, 1e-8)):
                assert_frame_equal(found[rows], whole[rows], rtol=1e-6, atol=atol, check_dtype=False)


@pytest.mark.parametrize("verb", ["analyse", "pretrain"])
def test_importing_a_room_does_not_hide_the_verb_of_its_name(verb):
    importlib.import_module(f"nbhelpers.{verb}")
    assert callable(getattr(nbhelpers, verb))


@pytest.fixture
def command(tmp_path, monkeypatch):
    """The command line, with `tiny` for a model, in a folder with three photographs and a text."""
    (tmp_path / "photos").mkdir()
    for index in range(3):
        Image.new("RGB", (50, 40), (index, 90, 200)).save(tmp_path / "photos" / f"{index}.png")
    (tmp_path / "photos" / "about.txt").write_text("not an image")
    command = importlib.import_module("nbhelpers.analyse.__main__")
    monkeypatch.setattr(command, "load", lambda name, device, from_file: tiny())
    monkeypatch.setattr(command, "report", lambda *given, **options: f"page of {given} {options}")
    monkeypatch.chdir(tmp_path)
    return command


def test_the_command_line_hands_everything_to_the_report(command, capsys):
    command.main(["toy.cl", "--images", "photos", "--out", "out", "--n-images", "2", "--seed", "1"])
    said = capsys.readouterr()
    assert "page of (['toy.cl'], 'folder:photos', 'out')" in said.out
    assert "'n_images': 2" in said.out and "'seed': 1" in said.out and "'from_file': None" in said.out
    assert "left out 1 " in said.err and "about.txt" in said.err


def test_a_command_line_that_is_stopped_says_so(command, capsys, monkeypatch):
    def stopped(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "report", stopped)
    with pytest.raises(SystemExit, match=r"^130$"):
        command.main(["toy.cl", "--images", "photos", "--out", "out"])
    assert "stopped" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "named"),
    [
        (["--images", "nowhere"], 1, "nowhere"),
        (["--images", "shapes"], 1, "study:shapes"),
        (["--images", "study:shape"], 1, "shapes and cifar10"),
        (["--images", "photos/about.txt"], 1, "about.txt"),
        (["--images", "empty"], 1, "empty"),
        (["--from-file", "missing.pth"], 1, "missing.pth"),
        (["--device", "toaster"], 1, "toaster"),
        (["--n-images", "0"], 2, "'0'"),
        (["--batch-size", "x"], 2, "'x'"),
        (["toy.mim", "--from-file", "one.pth"], 2, "one MODEL"),
    ],
)
def test_bad_images_options_and_models_are_one_line(
    arguments, code, named, tmp_path, command, capsys, monkeypatch
):
    monkeypatch.setattr(command, "load", load)
    (tmp_path / "shapes").mkdir()
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit) as stop:
        command.main(["--images", "photos", "--out", "out", "random:vit_tiny_patch16_224", *arguments])
    said = capsys.readouterr().err
    assert stop.value.code == code and named in said and "Traceback" not in said
