"""What flows past while an encoder runs: attention inputs and residual stream, block by block."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from nbhelpers.models.encoder import Encoder
from nbhelpers.models.errors import UnsupportedArchitecture

PLACES = ("block", "+sa")


@dataclass(frozen=True)
class Attention:
    """The arguments of one block's softmax(scale q k^T + bias) v, as the model uses them, and the result.

    Query and key come after query/key normalisation and rotary positions; prefix tokens are included.

    Attributes:
        depth: 1..L.
        query: `B H N D`.
        key: `B H N D`.
        value: `B H N D`.
        output: `B H N D`, before the output projection.
        bias: added to the scaled logits, broadcastable to `B H N N`; None where there is none.
        scale: factor of the logits.
        prefix: number of tokens before the patch tokens.
        grid: rows and columns of the patch grid.
        patch_size: height and width of a patch in px.
    """

    depth: int
    query: Tensor
    key: Tensor
    value: Tensor
    output: Tensor
    bias: Tensor | None
    scale: float
    prefix: int
    grid: tuple[int, int]
    patch_size: tuple[int, int]


@dataclass(frozen=True)
class Stream:
    """The residual stream at one place.

    Attributes:
        depth: 0..L; 0 is the embedding, i the output of block i.
        place: "block", or "+sa" inside block `depth`, after the attention residual; before the final norm.
        tokens: `B N D`, prefix included.
        prefix: number of tokens before the patch tokens.
        grid: rows and columns of the patch grid.
    """

    depth: int
    place: str
    tokens: Tensor
    prefix: int
    grid: tuple[int, int]


@contextmanager
def capture(
    encoder: Encoder,
    on_attention: Callable[[Attention], None] | None = None,
    on_stream: Callable[[Stream], None] | None = None,
    places: Collection[str] = PLACES,
) -> Iterator[None]:
    """Call back with every block's attention and residual stream while the encoder runs in the `with` block.

    The callbacks get the live tensors; nothing is kept here, so memory does not grow with depth or images.
    `F.scaled_dot_product_attention` is intercepted (fused kernels stay on; attention layers that timm was
    told to compute unfused are switched to the equal fused call until the end of the `with` block). Only
    calls from inside a block count, so pooling heads do not. Every pass is checked to have run all blocks
    in order with one attention of `B H N D` each. Hooks and interception end with the `with` block, also
    after an exception.

    Args:
        encoder: from `nbhelpers.models`.
        on_attention: called once per block and pass.
        on_stream: called for depth 0..L at "block" and for depth 1..L at "+sa".
        places: which of "block" and "+sa" `on_stream` asks for.

    Raises:
        UnsupportedArchitecture: "+sa" asked of blocks that have no such place.
        ValueError: an unknown place, or no callback.
        RuntimeError: captured layers differ from the model's in number or shape, or the encoder never ran.

    >>> import torch
    >>> from nbhelpers.models import mini_vit, wrap
    >>> encoder = wrap(mini_vit(width=64, depth=2), mean=(0.5,) * 3, std=(0.5,) * 3)
    >>> with capture(encoder, on_attention=lambda a: print(a.depth, tuple(a.query.shape))):
    ...     _ = encoder.forward(torch.zeros(3, 3, 32, 32, dtype=torch.uint8))
    1 (3, 4, 65, 16)
    2 (3, 4, 65, 16)
    """
    if on_attention is None and on_stream is None:
        raise ValueError("capture() needs on_attention, on_stream or both")
    if unknown := set(places) - set(PLACES):
        raise ValueError(f"unknown place {sorted(unknown)}; the places are {PLACES}")
    if on_stream is not None and "+sa" in places and encoder.after_attention is None:
        raise UnsupportedArchitecture(
            f"{encoder.name}: blocks of type {type(encoder.blocks[0]).__name__} have no known place between "
            "attention and MLP; pass places=('block',), or describe it with wrap(..., after_attention=...)"
        )
    tap = _Tap(encoder, on_attention, on_stream, places)
    with ExitStack() as stack:
        for i, block in enumerate(encoder.blocks):
            depth = i + 1
            stack.callback(block.register_forward_pre_hook(partial(tap.enter, depth)).remove)
            stack.callback(block.register_forward_hook(partial(tap.leave, depth)).remove)
            if on_stream is not None and "+sa" in places:
                inside = block.get_submodule(encoder.after_attention)
                stack.callback(inside.register_forward_pre_hook(partial(tap.between, depth)).remove)
        if on_attention is not None:
            stack.enter_context(_fused(encoder))
            stack.enter_context(tap)
        yield
    tap.finish()


@contextmanager
def _fused(encoder: Encoder) -> Iterator[None]:
    """Let every attention layer call the fused function for the duration."""
    unfused = [
        part
        for block in encoder.blocks
        for part in block.modules()
        if getattr(part, "fused_attn", None) is False
    ]
    try:
        for part in unfused:
            part.fused_attn = True
        yield
    finally:
        for part in unfused:
            part.fused_attn = False


class _Tap(TorchFunctionMode):
    """Keeps account of which block is running and hands its tensors on."""

    def __init__(
        self,
        encoder: Encoder,
        on_attention: Callable[[Attention], None] | None,
        on_stream: Callable[[Stream], None] | None,
        places: Collection[str],
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.on_attention = on_attention
        self.on_stream = on_stream
        self.places = places if on_stream is not None else ()
        self.running: int | None = None  # depth of the block that is running
        self.last = 0  # depth of the last block that ran to its end in this pass
        self.calls = {"attention": 0, "+sa": 0}  # of the running block
        self.ran = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is F.scaled_dot_product_attention and self.running is not None:
            self._attention(result, *args, **(kwargs or {}))
        return result

    def enter(self, depth: int, block: nn.Module, args: tuple[Any, ...]) -> None:
        """Before a block: a new pass starts at depth 1."""
        if depth == 1 and self.last == self.encoder.depth:
            self.last = 0
        if depth != self.last + 1:
            raise RuntimeError(
                f"{self.encoder.name}: block {depth} started after block {self.last}; passes inside "
                f"capture() must run blocks 1 to {self.encoder.depth} in order"
            )
        if depth == 1 and "block" in self.places:
            self._stream(0, "block", args)
        self.running, self.calls = depth, {"attention": 0, "+sa": 0}

    def between(self, depth: int, inside: nn.Module, args: tuple[Any, ...]) -> None:
        """Between attention and MLP of a block."""
        self.calls["+sa"] += 1
        # The consumer may call attention itself; that is not the block's.
        self.running = None
        self._stream(depth, "+sa", args)
        self.running = depth

    def leave(self, depth: int, block: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """After a block: it must have given what was asked for, once."""
        self.running, self.last, self.ran = None, depth, True
        wanted = {"attention": self.on_attention is not None, "+sa": "+sa" in self.places}
        for what, asked in wanted.items():
            if asked and self.calls[what] != 1:
                raise RuntimeError(
                    f"{self.encoder.name}: block {depth} ({type(block).__name__}) gave {what} "
                    f"{self.calls[what]} times instead of once; it must call F.scaled_dot_product_attention "
                    "once, uncompiled (no torch.compile, no nn.MultiheadAttention)"
                )
        if "block" in self.places:
            self._stream(depth, "block", output)

    def finish(self) -> None:
        """At the end: something must have run, to the last block."""
        if not self.ran:
            raise RuntimeError(f"{self.encoder.name} did not run inside capture(): no block was called")
        if self.last != self.encoder.depth:
            raise RuntimeError(
                f"{self.encoder.name}: the last pass ended at block {self.last} of {self.encoder.depth}"
            )

    def _stream(self, depth: int, place: str, value: Any) -> None:
        """Check and hand on the stream."""
        encoder = self.encoder
        tokens = value[0] if isinstance(value, tuple) and value else value
        expected = (encoder.tokens, encoder.width)
        if not isinstance(tokens, Tensor) or tokens.ndim != 3 or tuple(tokens.shape[1:]) != expected:
            found = tuple(tokens.shape) if isinstance(tokens, Tensor) else type(value).__name__
            raise RuntimeError(
                f"{encoder.name}: stream at depth {depth} ({place}) is {found}, not B N D with N D = "
                f"{expected} ({encoder.prefix} prefix tokens, grid {encoder.grid})"
            )
        self.on_stream(Stream(depth, place, tokens, encoder.prefix, encoder.grid))

    def _attention(
        self,
        output: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        **_: Any,
    ) -> None:
        """Check and hand on the arguments of `F.scaled_dot_product_attention`."""
        encoder, depth = self.encoder, self.running
        self.calls["attention"] += 1
        expected = (encoder.heads, encoder.tokens)
        shapes = [tuple(t.shape) for t in (query, key, value)]
        if any(len(shape) != 4 or shape[1:3] != expected for shape in shapes):
            raise RuntimeError(
                f"{encoder.name}: attention of block {depth} has query, key, value {shapes}, not B H N D "
                f"with H N = {expected} ({encoder.prefix} prefix tokens, grid {encoder.grid})"
            )
        if dropout_p > 0:
            raise RuntimeError(f"{encoder.name}: attention dropout is on; call encoder.module.eval()")
        if is_causal or (attn_mask is not None and attn_mask.dtype == torch.bool):
            raise UnsupportedArchitecture(f"{encoder.name}: block {depth} masks some tokens")
        self.on_attention(
            Attention(
                depth=depth,
                query=query,
                key=key,
                value=value,
                output=output,
                bias=attn_mask,
                scale=query.shape[-1] ** -0.5 if scale is None else scale,
                prefix=encoder.prefix,
                grid=encoder.grid,
                patch_size=encoder.patch_size,
            )
        )
