"""Hooks exposing each block's query, key, value and the residual stream while an encoder runs."""

from __future__ import annotations

import inspect
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
MATMUL = {torch.matmul, Tensor.matmul, Tensor.__matmul__}
SOFTMAX = {torch.softmax, Tensor.softmax, F.softmax}
TWO_LINES = """write the block's attention as the one call that can be seen,
    -  x = (q @ k.transpose(-2, -1) * scale).softmax(-1) @ v
    +  x = torch.nn.functional.scaled_dot_product_attention(q, k, v, scale=scale)"""


@dataclass(frozen=True)
class Attention:
    """The arguments of one block's softmax(scale q k^T + bias) v, as the model uses them, and the result.

    Query and key come after query/key normalisation and rotary positions; prefix tokens are included. A hook
    on the probabilities, such as one that switches a head off, shows in `output` and in the stream.

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

    @property
    def patches(self) -> Tensor:
        """The patch tokens, `B N D` in float32 or better; prefix tokens dropped."""
        patches = self.tokens[:, self.prefix :]
        return patches.float() if patches.dtype in (torch.float16, torch.bfloat16) else patches


@contextmanager
def capture(
    encoder: Encoder,
    on_attention: Callable[[Attention], None] | None = None,
    on_stream: Callable[[Stream], None] | None = None,
    places: Collection[str] = PLACES,
) -> Iterator[None]:
    """Call back with every block's attention and residual stream while the encoder runs in the `with` block.

    The callbacks get the live tensors; nothing is kept here, so memory does not grow with depth or images.
    The model computes what it computes without capture: calls of `F.scaled_dot_product_attention`,
    `F.multi_head_attention_forward` and, where attention is written out, of matmul and softmax are observed,
    and PyTorch's fast path of `nn.MultiheadAttention`, which makes no such call, is off. Only calls from
    inside a block count, so pooling heads do not. Every pass is checked to have run all blocks in order with
    one attention of `B H N D` each. Hooks and interception end with the `with` block, also after an
    exception.

    Args:
        encoder: from `nbhelpers.models`.
        on_attention: called once per block and pass.
        on_stream: called for depth 0..L at "block" and for depth 1..L at "+sa".
        places: which of "block" and "+sa" `on_stream` asks for.

    Raises:
        UnsupportedArchitecture: "+sa" asked of blocks that have no such place.
        ValueError: an unknown place, or no callback.
        RuntimeError: captured layers differ from the model's in number or shape, an attention that cannot be
            observed, or the encoder never ran.

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
    fast_path = torch.backends.mha.get_fastpath_enabled()
    with ExitStack() as stack:
        torch.backends.mha.set_fastpath_enabled(False)
        stack.callback(torch.backends.mha.set_fastpath_enabled, fast_path)
        for i, block in enumerate(encoder.blocks):
            depth = i + 1
            enter = block.register_forward_pre_hook(partial(tap.enter, depth), with_kwargs=True)
            stack.callback(enter.remove)
            stack.callback(block.register_forward_hook(partial(tap.leave, depth)).remove)
            if on_stream is not None and "+sa" in places:
                inside = block.get_submodule(encoder.after_attention)
                stack.callback(inside.register_forward_pre_hook(partial(tap.between, depth)).remove)
        if on_attention is not None:
            stack.enter_context(tap)
        yield
    tap.finish()


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
        self.product: tuple[Tensor, Tensor] | None = None  # operands of the block's last q k^T
        self.softmax: tuple[Tensor, Tensor, Tensor] | None = None  # q, k and logits of its last softmax
        self.ran = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if self.running is None:
            return result
        if func is F.scaled_dot_product_attention:
            self._fused(result, *args, **kwargs)
        elif func is F.multi_head_attention_forward:
            self._multi_head(func, args, kwargs)
        elif func in MATMUL and result.ndim == 4:
            self._matmul(result, *args, *kwargs.values())
        elif func in SOFTMAX and self.product and self._square(result):
            self.softmax = (*self.product, args[0] if args else kwargs["input"])
        elif func is F.dropout and self.softmax and self.encoder.module.training:
            self._check(dropout=1.0)
        return result

    def enter(self, depth: int, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before a block: a new pass starts at depth 1."""
        if depth == 1 and self.last == self.encoder.depth:
            self.last = 0
        if depth != self.last + 1:
            raise RuntimeError(
                f"{self.encoder.name}: block {depth} started after block {self.last}; passes inside "
                f"capture() must run blocks 1 to {self.encoder.depth} in order"
            )
        if depth == 1 and "block" in self.places:
            self._stream(0, "block", args or tuple(kwargs.values()))
        self.running, self.calls = depth, {"attention": 0, "+sa": 0}
        self.product = self.softmax = None

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
                    f"{self.calls[what]} times instead of once; without torch.compile, {TWO_LINES}"
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
        # HuggingFace's blocks give tensors, tuples or output objects.
        tokens = getattr(value, "last_hidden_state", value)
        tokens = tokens[0] if isinstance(tokens, tuple) and tokens else tokens
        expected = (encoder.tokens, encoder.width)
        if not isinstance(tokens, Tensor) or tokens.ndim != 3 or tuple(tokens.shape[1:]) != expected:
            found = tuple(tokens.shape) if isinstance(tokens, Tensor) else type(value).__name__
            raise RuntimeError(
                f"{encoder.name}: stream at depth {depth} ({place}) is {found}, not B N D with N D = "
                f"{expected} ({encoder.prefix} prefix tokens, grid {encoder.grid})"
            )
        self.on_stream(Stream(depth, place, tokens, encoder.prefix, encoder.grid))

    def _fused(
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
        """A call of `F.scaled_dot_product_attention`."""
        self._check(dropout_p, attn_mask, is_causal)
        self._attention(query, key, value, output, attn_mask, scale)

    def _multi_head(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A call of `F.multi_head_attention_forward`: query, key and value are projected once more."""
        bound = inspect.signature(function).bind(*args, **kwargs)
        bound.apply_defaults()
        call = bound.arguments
        unusual = ("bias_k", "static_k", "static_v", "key_padding_mask", "q_proj_weight")
        if call["add_zero_attn"] or any(call[name] is not None for name in unusual):
            raise UnsupportedArchitecture(
                f"{self.encoder.name}: block {self.running} adds keys, masks some or projects them apart"
            )
        self._check(call["dropout_p"] if call["training"] else 0.0, call["attn_mask"], call["is_causal"])
        biases = [None] * 3 if call["in_proj_bias"] is None else call["in_proj_bias"].chunk(3)
        query, key, value = (
            F.linear(call[name], weight, bias).unflatten(-1, (call["num_heads"], -1)).permute(1, 2, 0, 3)
            for name, weight, bias in zip(
                ("query", "key", "value"), call["in_proj_weight"].chunk(3), biases, strict=True
            )
        )
        mask = call["attn_mask"]
        mask = mask.unflatten(0, query.shape[:2]) if mask is not None and mask.ndim == 3 else mask
        output = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        self._attention(query, key, value, output, mask, None)

    def _matmul(self, result: Tensor, first: Tensor, second: Tensor) -> None:
        """A product of four-dimensional tensors: q k^T, or the probabilities of the last softmax times v."""
        if self.softmax is None and self._square(result):
            self.product = (first, second.mT)
        elif self.softmax is not None and self._square(first):
            (query, key, logits), self.softmax, self.product = self.softmax, None, None
            bias = logits - query @ key.mT  # what came between: a scale, a position bias
            self._check(mask=bias.isfinite() if bias.isneginf().any() else None)
            self._attention(query, key, second, result, bias if bias.any() else None, 1.0)

    def _square(self, tensor: Tensor) -> bool:
        """Whether a tensor holds a number per pair of tokens: `B H N N`."""
        return tensor.ndim == 4 and tuple(tensor.shape[2:]) == (self.encoder.tokens,) * 2

    def _check(self, dropout: float = 0.0, mask: Tensor | None = None, causal: bool = False) -> None:
        """Refuse what makes the maps others than softmax(scale q k^T + bias)."""
        if dropout > 0:
            raise RuntimeError(f"{self.encoder.name}: attention dropout is on; call encoder.module.eval()")
        if causal or (mask is not None and mask.dtype == torch.bool):
            raise UnsupportedArchitecture(f"{self.encoder.name}: block {self.running} masks some tokens")

    def _attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        output: Tensor,
        bias: Tensor | None,
        scale: float | None,
    ) -> None:
        """Check and hand on a block's attention."""
        encoder, depth = self.encoder, self.running
        self.calls["attention"] += 1
        expected = (encoder.heads, encoder.tokens)
        shapes = [tuple(t.shape) for t in (query, key, value)]
        if any(len(shape) != 4 or shape[1:3] != expected for shape in shapes):
            raise RuntimeError(
                f"{encoder.name}: attention of block {depth} has query, key, value {shapes}, not B H N D "
                f"with H N = {expected} ({encoder.prefix} prefix tokens, grid {encoder.grid})"
            )
        self.on_attention(
            Attention(
                depth=depth,
                query=query,
                key=key,
                value=value,
                output=output,
                bias=bias,
                scale=query.shape[-1] ** -0.5 if scale is None else scale,
                prefix=encoder.prefix,
                grid=encoder.grid,
                patch_size=encoder.patch_size,
            )
        )
