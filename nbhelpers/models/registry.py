"""Public checkpoints that the book compares: where they are, how their keys read, how they saw images."""

from __future__ import annotations

from nbhelpers.models.checkpoint import Checkpoint
from nbhelpers.models.download import Source
from nbhelpers.models.mae import from_original
from nbhelpers.models.weights import Layout, Weights, from_hugging_face

HALF = (0.5, 0.5, 0.5)


def _beit_from_hugging_face(weights: Weights) -> Weights:
    """BEiT's and data2vec's keys as Hugging Face writes them, with or without the model's name in front."""
    return from_hugging_face({key.removeprefix("beit."): value for key, value in weights.items()})


_INDEX = r".*relative_position_index"  # a buffer that follows from the grid
MOCO_V3 = Layout(
    root=("state_dict",),
    prefix="module.base_encoder.",
    drop=(r"head\..*",),
    foreign=(r"module\.(momentum_encoder|predictor)\..*",),
)
SIMMIM = Layout(root=("model",), prefix="encoder.", drop=("mask_token", _INDEX), foreign=(r"decoder\..*",))
BEIT = Layout(root=("model", "module"), drop=("mask_token", _INDEX, r"lm_head\..*", r"cls_pt_.*"))
BEIT_HF = Layout(
    drop=(r"(beit\.)?embeddings\.mask_token", _INDEX, r"lm_head\..*"), convert=_beit_from_hugging_face
)
MSN = Layout(root=("target_encoder",), prefix="module.", drop=(r"fc\..*",))
MSN_HF = Layout(drop=(r"embeddings\.mask_token",), convert=from_hugging_face)
IBOT = Layout(root=("state_dict",), drop=("masked_embed", r"head\..*"))
IBOT_FULL = Layout(root=("teacher",), prefix="backbone.", drop=("masked_embed",), foreign=(r"head\..*",))
IBOT_FULL_DDP = Layout(
    root=("teacher",), prefix="module.backbone.", drop=("masked_embed",), foreign=(r"module\.head\..*",)
)
MAE_VISUALIZE = Layout(root=("model",), convert=from_original)

# BEiT's positions: one table of relative biases for all blocks, no absolute ones.
_BEIT = {
    "use_abs_pos_emb": False,
    "use_rel_pos_bias": False,
    "use_shared_rel_pos_bias": True,
    "init_values": 0.1,
    "global_pool": "token",  # keeps the final norm over tokens, as in pre-training
}
_FB = "https://dl.fbaipublicfiles.com"
_HF = "https://huggingface.co/{}/resolve/main/pytorch_model.bin"
_IBOT_HOST = "https://lf3-nlp-opensource.bytetos.com/obj/nlp-opensource/archive/2022/ibot"
_BEIT2_RELEASE = "https://github.com/addf400/files/releases/download/BEiT-v2/{}"
_BEIT_BLOB = "https://conversationhub.blob.core.windows.net/beit-share-public/{}"
_DRIVE = "https://drive.usercontent.google.com/download?id={}&export=download&confirm=t"


def _sources(*addresses: str) -> tuple[Source, ...]:
    """Sources without a known checksum: none of these hosts publishes any."""
    return tuple(Source(address) for address in addresses)


def _tagged(family: str, objective: str, paper: str, *tags: str, notes: str = "") -> list[Checkpoint]:
    """Checkpoints that timm carries."""
    names = [f"{family}.{tag.partition('.')[0]}" for tag in tags]
    return [Checkpoint(n, objective, paper, tag=tag, notes=notes) for n, tag in zip(names, tags, strict=True)]


def _moco_v3() -> list[Checkpoint]:
    shared = {"licence": "CC-BY-NC-4.0", "layouts": (MOCO_V3,), "interpolation": "bilinear"}
    return [
        Checkpoint(
            f"mocov3.{architecture}",
            "CL",
            "2104.02057",
            architecture=architecture,
            options=options,
            sources=_sources(f"{_FB}/moco-v3/{file}-300ep/{file}-300ep.pth.tar"),
            notes=notes,
            **shared,
        )
        for architecture, file, options, notes in (
            ("vit_small_patch16_224", "vit-s", {"num_heads": 12}, "12 heads, where other ViT-S have 6"),
            (
                "vit_base_patch16_224",
                "vit-b",
                {},
                "the linear-vit-b-300ep file is another one: with a classifier",
            ),
        )
    ]


def _simmim() -> list[Checkpoint]:
    return [
        Checkpoint(
            "simmim.vit_base_patch16_224",
            "MIM",
            "2111.09886",
            licence="MIT",
            architecture="beit_base_patch16_224",
            options=_BEIT,
            sources=_sources(_DRIVE.format("1dJn6GYkwMIcoP3zqOEyW1_iQfpBi8UOw")),
            layouts=(SIMMIM,),
            notes="800 epochs; the only address is a file sharing service with a quota",
        )
    ]


def _mae_visualize() -> list[Checkpoint]:
    return [
        Checkpoint(
            f"mae_visualize{suffix}.{architecture}",
            "MIM",
            "2111.06377",
            licence="CC-BY-NC-4.0",
            architecture=architecture,
            decoder=True,
            sources=_sources(f"{_FB}/mae/visualize/mae_visualize_vit_{size}{suffix}.pth"),
            layouts=(MAE_VISUALIZE,),
            notes="encoder and decoder, trained on unnormalised pixels",
        )
        for architecture, size, suffix in (
            ("vit_base_patch16_224", "base", ""),
            ("vit_large_patch16_224", "large", ""),
            ("vit_large_patch16_224", "large", "_ganloss"),
            ("vit_huge_patch14_224", "huge", ""),
        )
    ]


def _ibot() -> list[Checkpoint]:
    return [
        Checkpoint(
            f"{family}.{architecture}",
            "hybrid",
            "2111.07832",
            licence="Apache-2.0",
            architecture=architecture,
            sources=_sources(f"{_IBOT_HOST}/{file}.pth"),
            layouts=(IBOT, IBOT_FULL, IBOT_FULL_DDP),
            notes=notes,
        )
        for family, architecture, file, notes in (
            ("ibot", "vit_small_patch16_224", "vits_16/checkpoint_teacher", "teacher"),
            ("ibot", "vit_base_patch16_224", "vitb_16/checkpoint_teacher", "teacher, block-wise masks"),
            (
                "ibot_rand_mask",
                "vit_base_patch16_224",
                "vitb_16_rand_mask/checkpoint_teacher",
                "random masks",
            ),
            ("ibot", "vit_large_patch16_224", "vitl_16/checkpoint_teacher", "teacher"),
            ("ibot_22k", "vit_base_patch16_224", "vitb_16_pt22k/checkpoint_student", "student, ImageNet-22k"),
        )
    ]


def _beit() -> list[Checkpoint]:
    return [
        Checkpoint(
            f"beit.beit_{size}_patch16_224",
            "MIM",
            "2106.08254",
            licence="MIT",
            architecture=f"beit_{size}_patch16_224",
            options=_BEIT,
            sources=_sources(
                _HF.format(f"microsoft/beit-{size}-patch16-224-pt22k"),
                _BEIT_BLOB.format(f"beit/beit_{size}_patch16_224_pt22k.pth"),
            ),
            layouts=(BEIT, BEIT_HF),
            mean=HALF,
            std=HALF,
            notes="pre-trained only, ImageNet-22k",
        )
        for size in ("base", "large")
    ]


def _beit_v2() -> list[Checkpoint]:
    return [
        Checkpoint(
            f"beitv2.beitv2_{size}_patch16_224",
            "MIM",
            "2208.06366",
            licence="MIT",
            architecture=f"beitv2_{size}_patch16_224",
            options=_BEIT,
            sources=_sources(
                _BEIT2_RELEASE.format(f"beitv2_{size}_patch16_224_pt1k.pth"),
                _BEIT_BLOB.format(f"beitv2/beitv2_{size}_patch16_224_pt1k.pth"),
            ),
            layouts=(BEIT,),
            notes="pre-trained only, 1600 epochs; the two blocks of the class-token head are left out",
        )
        for size in ("base", "large")
    ]


def _data2vec() -> list[Checkpoint]:
    return [
        Checkpoint(
            f"data2vec.beit_{size}_patch16_224",
            "MIM",
            "2202.03555",
            licence="CC-BY-NC-4.0",
            architecture=f"beit_{size}_patch16_224",
            options=_BEIT,
            sources=_sources(
                f"{_FB}/fairseq/data2vec/data2vec_vision/{folder}/checkpoint-799.pth",
                _HF.format(f"facebook/data2vec-vision-{size}"),
            ),
            layouts=(BEIT, BEIT_HF),
            notes="trained with ImageNet's mean and deviation, whatever the mirror's preprocessor file says",
        )
        for size, folder in (("base", "base_800"), ("large", "large_1600"))
    ]


def _msn() -> list[Checkpoint]:
    return [
        Checkpoint(
            f"msn.vit_{size}_patch{patch}_224",
            "CL",
            "2204.07141",
            licence="CC-BY-NC-4.0",
            architecture=f"vit_{size}_patch16_224",
            options={"patch_size": patch},
            sources=_sources(f"{_FB}/msn/{file}ep.pth.tar", _HF.format(f"facebook/vit-msn-{mirror}")),
            layouts=(MSN, MSN_HF),
            interpolation="bilinear",
            notes="target encoder; siamese, with one masked view",
        )
        for size, patch, file, mirror in (
            ("small", 16, "vits16_800", "small"),
            ("base", 16, "vitb16_600", "base"),
            ("large", 16, "vitl16_600", "large"),
            ("base", 4, "vitb4_300", "base-4"),
            ("large", 7, "vitl7_200", "large-7"),
        )
    ]


_QUICK = "with QuickGELU, as trained; timm's names without `quickgelu` put the weights into a GELU network"
CHECKPOINTS: dict[str, Checkpoint] = {
    checkpoint.name: checkpoint
    for group in (
        _moco_v3(),
        _simmim(),
        _tagged(
            "mae",
            "MIM",
            "2111.06377",
            "vit_base_patch16_224.mae",
            "vit_large_patch16_224.mae",
            "vit_huge_patch14_224.mae",
        ),
        _mae_visualize(),
        _tagged(
            "dino",
            "CL",
            "2104.14294",
            "vit_small_patch16_224.dino",
            "vit_small_patch8_224.dino",
            "vit_base_patch16_224.dino",
            "vit_base_patch8_224.dino",
        ),
        _ibot(),
        _beit(),
        _beit_v2(),
        _msn(),
        _data2vec(),
        _tagged(
            "ijepa",
            "MIM",
            "2301.08243",
            "vit_huge_patch14_gap_224.in1k_ijepa",
            "vit_huge_patch16_gap_448.in1k_ijepa",
            "vit_giant_patch16_gap_224.in22k_ijepa",
        ),
        _tagged(
            "dinov2",
            "hybrid",
            "2304.07193",
            *(
                f"vit_{size}_patch14{registers}_dinov2.lvd142m"
                for registers in ("", "_reg4")
                for size in ("small", "base", "large", "giant")
            ),
        ),
        _tagged(
            "dinov3",
            "hybrid",
            "2508.10104",
            *(
                f"vit_{size}_patch16_dinov3.lvd1689m"
                for size in ("small", "small_plus", "base", "large", "huge_plus", "7b")
            ),
            notes="own licence, see timm's model card",
        ),
        _tagged(
            "clip",
            "language",
            "2103.00020",
            "vit_base_patch32_clip_quickgelu_224.openai",
            "vit_base_patch16_clip_quickgelu_224.openai",
            "vit_large_patch14_clip_quickgelu_224.openai",
            "vit_large_patch14_clip_quickgelu_336.openai",
            notes=_QUICK,
        ),
        _tagged(
            "siglip2",
            "language",
            "2502.14786",
            "vit_base_patch16_siglip_224.v2_webli",
            "vit_base_patch16_siglip_512.v2_webli",
            "vit_large_patch16_siglip_256.v2_webli",
            "vit_so400m_patch14_siglip_224.v2_webli",
            "naflexvit_base_patch16_siglip.v2_webli",
            notes="no class token",
        ),
        _tagged(
            "eva02",
            "MIM",
            "2303.11331",
            "eva02_tiny_patch14_224.mim_in22k",
            "eva02_small_patch14_224.mim_in22k",
            "eva02_base_patch14_224.mim_in22k",
            "eva02_large_patch14_224.mim_m38m",
            notes="predicts features of a language model's image encoder",
        ),
        _tagged(
            "aimv2",
            "language",
            "2411.14402",
            *(f"aimv2_{size}_patch14_224.apple_pt" for size in ("large", "huge", "1b", "3b")),
            notes="predicts pixels and captions in turn; no class token",
        ),
        _tagged(
            "deit",
            "supervised",
            "2012.12877",
            "deit_small_patch16_224.fb_in1k",
            "deit_base_patch16_224.fb_in1k",
        ),
    )
    for checkpoint in group
}
BY_TAG: dict[str, Checkpoint] = {each.tag: each for each in CHECKPOINTS.values() if each.tag}
