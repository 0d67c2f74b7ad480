"""Hooks exposing each block's query, key, value and the residual stream while an encoder runs."""

import inspect
import re
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from nbhelpers.models.encoder import Encoder
from nbhelpers.models.errors import UnsupportedArchitecture

PLACES = ("block", "+sa")
MATMUL = {torch.matmul, Tensor.matmul, Tensor.__matmul__}
SOFTMAX = {torch.softmax, Tensor.softmax, F.softmax}
SDPA = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")  # its arguments, in their order
MASKED = -1e4  # where a bias is at most that, a key gets nothing: masks are -inf, or the least of their type
UNUSUAL = ("bias_k", "bias_v", "static_k", "static_v", "key_padding_mask", "q_proj_weight")
TWO_LINES = """write the block's attention as the one call that can be observed:
    -  x = (q @ k.transpose(-2, -1) * scale).softmax(-1) @ v
    +  x = torch.nn.functional.scaled_dot_product_attention(q, k, v, scale=scale)"""


def full_precision(tensor: Tensor) -> Tensor:
    """A tensor of any shape; half precision becomes float32, since sums need the digits, other types stay.

    >>> full_precision(torch.ones(1).bfloat16()).dtype, full_precision(torch.ones(1).double()).dtype
    (torch.float32, torch.float64)
    """
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


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
        return full_precision(self.tokens[:, self.prefix :])


OnAttention = Callable[[Attention], None] | None
OnStream = Callable[[Stream], None] | None


def _as_product(result: Tensor, equation: object, *factors: object) -> tuple[Tensor, Tensor, Tensor] | None:
    """An einsum that is a matrix product for each image and head: its result and factors, else None.

    >>> q, k = torch.rand(2, 3, 5, 4), torch.rand(2, 3, 5, 4)
    >>> equation = "bhid,bhjd->bhij"
    >>> _, first, second = _as_product(torch.einsum(equation, q, k), equation, q, k)
    >>> torch.equal(first, q), torch.equal(second, k.mT)
    (True, True)
    """
    words = re.fullmatch(r"(\w{4}),(\w{4})->(\w{4})", str(equation).replace(" ", ""))
    if words is None:
        return None
    left, right, out = words.groups()
    batch = [x for x in out if x in left and x in right]
    inner = [x for x in left if x in right and x not in out]
    outer = [x for x in out if x not in batch]
    if (len(batch), len(inner), len(outer)) != (2, 1, 2):
        return None
    rows, columns = outer
    first, second = zip((left, right), factors, strict=True)
    if rows in right:
        first, second = second, first

    def ordered(tensor: Tensor, have: str, *last: str) -> Tensor:
        return tensor.permute([have.index(x) for x in (*batch, *last)])

    product = ordered(result, out, rows, columns)
    return product, ordered(first[1], first[0], rows, *inner), ordered(second[1], second[0], *inner, columns)


@contextmanager
def capture(
    encoder: Encoder,
    on_attention: OnAttention = None,
    on_stream: OnStream = None,
    places: Collection[str] = PLACES,
) -> Iterator[None]:
    """Call back with every block's attention and residual stream while the encoder runs in the `with` block.

    Nothing is kept here, so memory does not grow with depth or images. A stream comes as a copy, attention as
    the live tensors.
    The model computes what it computes without capture: calls of `F.scaled_dot_product_attention`,
    `F.multi_head_attention_forward` and, where attention is written out, of matmul, einsum and softmax are
    observed, and PyTorch's fast path of `nn.MultiheadAttention`, which makes no such call, is off. Only
    calls from inside a block count, so pooling heads do not. Every pass is checked to have run all blocks in
    order with one attention of `B H N D` each; a block that is used at several depths counts at each. Hooks
    and interception end with the `with` block, also after an exception.

    Args:
        encoder: from `nbhelpers.models`.
        on_attention: called once per block and pass.
        on_stream: called for depth 0..L at "block" and for depth 1..L at "+sa".
        places: which of "block" and "+sa" `on_stream` asks for.

    Raises:
        UnsupportedArchitecture: "+sa" asked of blocks that have no such place, or where tokens change between
            two blocks.
        ValueError: an unknown place, or no callback.
        RuntimeError: captured layers differ from the model's in number or shape, an attention that cannot be
            observed, or the encoder is in training mode or never ran.

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
            "attention and MLP; describe it with wrap(..., after_attention=...), pass places=('block',), or "
            "do without the metrics that need it: across_attention_cosine, common_update_share"
        )
    if any(part.training for part in encoder.module.modules()):
        what = "has parts in training mode (dropout is on): call encoder.module.eval()"
        raise RuntimeError(f"{encoder.name} {what}")
    tap = _Tap(encoder, on_attention, on_stream, places if on_stream is not None else ())
    fast_path = torch.backends.mha.get_fastpath_enabled()
    with ExitStack() as stack:
        torch.backends.mha.set_fastpath_enabled(False)
        stack.callback(torch.backends.mha.set_fastpath_enabled, fast_path)
        for block in dict.fromkeys(encoder.blocks):  # one that is used at several depths once
            stack.callback(block.register_forward_pre_hook(tap.enter, with_kwargs=True).remove)
            stack.callback(block.register_forward_hook(tap.leave).remove)
            if "+sa" in tap.places:
                inside = block.get_submodule(encoder.after_attention)
                stack.callback(inside.register_forward_pre_hook(tap.between).remove)
        if on_attention is not None:
            stack.enter_context(tap)
        yield
    if tap.last != encoder.depth:
        what = f"the last pass ran {tap.last} of {encoder.depth} blocks; run them all"
        raise RuntimeError(f"{encoder.name}: {what}")


class _Tap(TorchFunctionMode):
    """Keeps account of which block is running, observes its calls, and hands its tensors on.

    Three calls compute attention: `F.scaled_dot_product_attention`; `F.multi_head_attention_forward`, whose
    query, key and value are projected once more; and, written out, q k^T, softmax and the product with v.
    All of them end in `_attention`, with the arguments of the first.
    """

    def __init__(
        self, encoder: Encoder, on_attention: OnAttention, on_stream: OnStream, places: Collection[str]
    ) -> None:
        super().__init__()
        self.encoder, self.blocks, self.places = encoder, encoder.blocks, places
        self.on_attention, self.on_stream = on_attention, on_stream
        self.running = 0  # depth of the block that is running; 0: none
        self.last = 0  # depth of the last block that ran to its end in this pass
        self.left: Tensor | None = None  # tokens after it, which the next block must get; see `_stream`
        self.seen: list[str] = []  # what the running block gave: "attention", "+sa"
        self.product: tuple[Tensor, Tensor] | None = None  # operands of the block's last q k^T
        self.logits: Tensor | None = None  # input of the softmax after it

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if not self.running:
            return result
        if func is F.scaled_dot_product_attention:
            self._attention(result, **dict(zip(SDPA, args, strict=False)), **kwargs)
        elif func is F.multi_head_attention_forward:
            call = inspect.signature(func).bind(*args, **kwargs)
            call.apply_defaults()
            self._multi_head(call.arguments)
        elif func in SOFTMAX and self.product and self._is_square(result):
            self.logits = args[0] if args else kwargs["input"]
        elif func is torch.einsum and (product := _as_product(result, *args)):
            self._matmul(*product)
        elif func in MATMUL and result.ndim == 4:
            try:
                self._matmul(result, *args, *kwargs.values())
            except TypeError as reason:  # Python would say instead that `@` does not know these operands
                raise RuntimeError(str(reason)) from reason
        return result

    def enter(self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before a block, which must be the next one, or the first one of a new pass."""
        last = self.last % len(self.blocks)
        if block is not self.blocks[last]:
            way = f"passes inside capture() must run blocks 1 to {len(self.blocks)} in order"
            what = f"block {self.blocks.index(block) + 1} started after block {last}; {way}"
            raise RuntimeError(f"{self.encoder.name}: {what}")
        given = args or tuple(kwargs.values())
        if last == 0 and "block" in self.places:
            self._stream(0, "block", given)
        elif self.left is not None and not torch.equal(self.left, given[0]):
            raise UnsupportedArchitecture(
                f"{self.encoder.name}: tokens change between blocks {last} and {last + 1}, so what attention "
                "adds cannot be determined; move the change into a block, or ask for one place only, "
                "places=('block',) or places=('+sa',)"
            )
        self.running, self.seen, self.product, self.logits = last + 1, [], None, None

    def between(self, inside: nn.Module, args: tuple[Any, ...]) -> None:
        """Between attention and MLP of the running block."""
        depth, self.running = self.running, 0  # attention that the callback calls is not the block's
        self._stream(depth, "+sa", args)
        self.running = depth
        self.seen.append("+sa")

    def leave(self, block: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """After a block: it must have given what was asked for, once."""
        depth = self.last = self.running
        self.running = 0
        for what, asked in (("attention", self.on_attention is not None), ("+sa", "+sa" in self.places)):
            if asked and self.seen.count(what) != 1:
                raise RuntimeError(
                    f"{self.encoder.name}: block {depth} ({type(block).__name__}) gave {what} "
                    f"{self.seen.count(what)} times instead of once; do not compile it; {TWO_LINES}"
                )
        if self.seen == ["+sa", "attention"]:
            what = f"{self.encoder.after_attention} of block {depth} runs before its attention"
            way = "set after_attention= in wrap() to the first part that runs after the attention"
            raise UnsupportedArchitecture(f"{self.encoder.name}: {what}; {way}")
        if "block" in self.places:
            self._stream(depth, "block", output)

    def _stream(self, depth: int, place: str, value: Any) -> None:
        """Check and hand on the stream."""
        encoder = self.encoder
        # HuggingFace's blocks give tensors, tuples or output objects.
        tokens = getattr(value, "last_hidden_state", value)
        tokens = tokens[0] if isinstance(tokens, tuple) and tokens else tokens
        found = tuple(tokens.shape) if isinstance(tokens, Tensor) else type(value).__name__
        expected = (encoder.tokens, encoder.width)
        if found[1:] != expected:
            first = " Tokens come first: make blocks batch-first." if found[0] == encoder.tokens else ""
            raise RuntimeError(
                f"{encoder.name}: stream at depth {depth} ({place}) is {found}, not B N D with N D = "
                f"{expected} ({encoder.prefix} prefix tokens, grid {encoder.grid}).{first}"
            )
        tokens = tokens.clone()  # since a block may add to its input in place
        follows = place == "block" and "+sa" in self.places and depth < len(self.blocks)
        self.left = tokens if follows else None
        self.on_stream(Stream(depth, place, tokens, encoder.prefix, encoder.grid))

    def _multi_head(self, call: dict[str, Any]) -> None:
        """A call of `F.multi_head_attention_forward` on tokens `N B D`, by its arguments."""
        if call["add_zero_attn"] or any(call[name] is not None for name in UNUSUAL):
            what = "masks some of them or projects queries and keys by separate weights, which cannot be read"
            raise UnsupportedArchitecture(f"{self.encoder.name}: block {self.running} adds keys, {what}")
        tokens = (call["query"], call["key"], call["value"])
        bias, mask = call["in_proj_bias"], call["attn_mask"]
        weights, biases = call["in_proj_weight"].chunk(3), [None] * 3 if bias is None else bias.chunk(3)
        query, key, value = (
            rearrange(F.linear(*part), "n b (h d) -> b h n d", h=call["num_heads"])
            for part in zip(tokens, weights, biases, strict=True)
        )
        if mask is not None and mask.ndim == 3:
            mask = mask.unflatten(0, query.shape[:2])
        p = call["dropout_p"] if call["training"] else 0.0
        output = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        self._attention(output, query, key, value, attn_mask=mask, dropout_p=p, is_causal=call["is_causal"])

    def _matmul(self, result: Tensor, first: Tensor, second: Tensor) -> None:
        """A product of four-dimensional tensors: q k^T, or the probabilities of the last softmax times v."""
        if self.logits is None and self._is_square(result):
            self.product = (first, second.mT)
        elif self.logits is not None and self._is_square(first):
            # A factor for each query, as of a head that is switched off, leaves the maps what they are.
            maps = self.logits.softmax(-1, dtype=torch.float32) * first.float().sum(-1, keepdim=True)
            near = 1e-4 + 4 * max(torch.finfo(each.dtype).eps for each in (self.logits, first))
            if not torch.allclose(maps, first.float(), near, near / self.encoder.tokens, equal_nan=True):
                what = "changes its attention after the softmax over keys (by dropout or talking heads, say)"
                what += ", or takes the softmax over something else"
                raise UnsupportedArchitecture(f"{self.encoder.name}: block {self.running} {what}")
            (query, key), bias = self.product, self.logits - self.product[0] @ self.product[1].mT
            self.product = self.logits = None
            # What came between product and softmax: a scale, a position bias.
            self._attention(result, query, key, second, attn_mask=bias if bias.any() else None, scale=1.0)

    def _is_square(self, tensor: Tensor) -> bool:
        """Whether a tensor holds a number per pair of tokens: `B H N N`."""
        return tensor.ndim == 4 and tuple(tensor.shape[2:]) == (self.encoder.tokens,) * 2

    def _attention(self, output: Tensor, query: Tensor, key: Tensor, value: Tensor, **call: Any) -> None:
        """Check and hand on an attention, by the arguments of `F.scaled_dot_product_attention`."""
        encoder, depth, bias = self.encoder, self.running, call.get("attn_mask")
        if call.get("dropout_p", 0.0) > 0:
            raise RuntimeError(f"{encoder.name}: attention dropout is on in block {depth}; switch it off")
        masked = bias is not None and (bias.dtype == torch.bool or (bias <= MASKED).any())
        if call.get("is_causal") or masked:
            what = "masks some tokens; only attention over all tokens can be read"
            raise UnsupportedArchitecture(f"{encoder.name}: block {depth} {what}")
        self.seen.append("attention")
        expected = (encoder.heads, encoder.tokens)
        shapes = [tuple(t.shape) for t in (query, key, value)]
        if any(len(shape) != 4 or shape[1:3] != expected for shape in shapes):
            raise RuntimeError(
                f"{encoder.name}: attention of block {depth} has query, key and value {shapes}, not B H N D "
                f"with H N = {expected} ({encoder.prefix} prefix tokens, grid {encoder.grid})"
            )
        scale = query.shape[-1] ** -0.5 if call.get("scale") is None else call["scale"]
        layout = (encoder.prefix, encoder.grid, encoder.patch_size)
        self.on_attention(Attention(depth, query, key, value, output, bias, scale, *layout))
