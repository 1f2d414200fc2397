"""How much memory a training step takes, by formula: no torch, no weights, nothing downloaded.

Peak = weights + optimiser + the larger of what the passes hold and what the step holds. Bytes throughout.

- weights in NF4 and their double-quantised scales: Dettmers et al., QLoRA (arXiv:2305.14314), sections 2 and 3;
- what a decoder layer keeps for the backward pass: counted tensor by tensor as in Korthikanti et al.
  (arXiv:2205.05198), for InternLM2's own block and without the attention matrix, which FlashAttention
  recomputes (Dao et al., arXiv:2205.14135);
- what ZeRO divides by the processes: Rajbhandari et al. (arXiv:1910.02054), section 5; bucket sizes are
  DeepSpeed's documented defaults;
- optimiser states: two per weight, in 32 bits for AdamW, in 8 bits with a scale per 256 for bitsandbytes'
  (Dettmers et al., arXiv:2110.02861).

What the numbers are held to is in ``tests/training/test_memory.py``: measured peaks, within 15 %.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

GIB = 2**30
# "nf4_fp8": held in NF4, multiplied in FP8.
Base = Literal["nf4", "fp8", "nf4_fp8", "plain"]
Optimiser = Literal["adamw", "adamw8bit", "paged_adamw8bit", "compensated_adamw8bit"]

# Of one weight: half a byte, a byte per 64 for the scale, and four bytes per 256 of those scales.
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
NF4_SINGLE_BYTES = 0.5 + 4 / 64
# One copy for the forward product and one for the backward product.
FP8_BYTES = 2.0
# Rows of logits that the loss holds at a time (huanhuan.training.loss.CHUNK).
LOSS_ROWS = 2048
# DeepSpeed: elements of a reduce bucket, and of gathered weights that stage 3 keeps alive.
REDUCE_BUCKET = 500_000_000
LIVE_PARAMETERS = 1_000_000_000
# Weights that CompensatedAdamW8bit updates at a time (huanhuan.training.optimizer.PART).
OPTIMISER_PART = 2**29


@dataclass(frozen=True)
class Shape:
    """The sizes of an InternLM2; every count below follows from them."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    vocabulary: int

    @property
    def head_size(self) -> int:
        """Channels of one attention head."""
        return self.hidden // self.heads

    @property
    def fused(self) -> int:
        """Rows of ``wqkv``: queries, keys and values of every head."""
        return (self.heads + 2 * self.kv_heads) * self.head_size

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        """``name: (inputs, outputs)`` of the linear layers of one decoder layer, and the output head."""
        return {
            "wqkv": (self.hidden, self.fused),
            "wo": (self.hidden, self.hidden),
            "w1": (self.hidden, self.intermediate),
            "w3": (self.hidden, self.intermediate),
            "w2": (self.intermediate, self.hidden),
            "output": (self.hidden, self.vocabulary),
        }

    @property
    def decoder_parameters(self) -> int:
        """Weights of the linear layers of all decoder layers: what NF4 and FP8 compress."""
        return self.layers * sum(rows * columns for name, (rows, columns) in self.linears.items() if name != "output")

    @property
    def parameters(self) -> int:
        """All weights: decoder, norms, embedding and head.

        >>> round(SHAPES["7b"].parameters / 1e9, 2), round(SHAPES["1.8b"].parameters / 1e9, 2)
        (7.74, 1.89)
        """
        norms = (2 * self.layers + 1) * self.hidden
        return self.decoder_parameters + norms + 2 * self.vocabulary * self.hidden

    @property
    def kv_bytes(self) -> int:
        """Bytes that one token takes in the key-value cache, in 16 bits: 131,072 for the 7B model."""
        return 2 * self.layers * self.kv_heads * self.head_size * 2

    def adapter_parameters(self, rank: int, targets: Sequence[str]) -> int:
        """Weights of LoRA of ``rank`` on the linear layers ``targets``."""
        return sum(
            rank * (rows + columns) * (1 if name == "output" else self.layers)
            for name, (rows, columns) in self.linears.items()
            if name in targets
        )


SHAPES = {
    "20b": Shape(6144, 48, 48, 8, 16384, 92544),
    "7b": Shape(4096, 32, 32, 8, 14336, 92544),
    "1.8b": Shape(2048, 24, 16, 8, 8192, 92544),
}


@dataclass(frozen=True)
class Run:
    """The switches of a recipe that decide about memory."""

    shape: Shape
    base: Base = "plain"
    dtype_bytes: int = 2
    """Of the weights that are not compressed, and of activations."""
    bfloat16: bool = True
    """Whether anything is computed in it: older cards cannot."""
    double_quant: bool = True
    rank: int = 0
    """Of the LoRA adapters; 0 trains every weight."""
    targets: tuple[str, ...] = ()
    adapter_bytes: int = 4
    optimiser: Optimiser = "adamw"
    checkpointing: bool = False
    budget: float = 1.0
    """Share of a compiled layer's activations that is kept; the rest is computed again."""
    tokens: int = 8192
    """Of one forward pass: the pack's length times the batch size."""
    supervised: float = 0.4
    """Share of the tokens that are learned."""
    accumulation: int = 1
    gpus: int = 1
    zero: int = 0
    """DeepSpeed's stage; 0 is plain data parallelism."""
    offload_optimiser: bool = False
    offload_weights: bool = False
    reply_tokens: int = 256
    """Longest sampled reply with its prompt."""

    def changed(self, **changes: object) -> Run:
        """A copy with some switches set otherwise."""
        return replace(self, **changes)  # pyright: ignore[reportArgumentType]


@dataclass(frozen=True)
class Memory:
    """Bytes on one GPU; ``host`` is what offloading puts into the machine's memory, all processes together."""

    weights: float
    gradients: float
    optimiser: float
    activations: float
    """The most that the forward and backward passes hold, the loss included."""
    step: float
    """Temporaries of the optimiser's step."""
    kv: float
    """The key-value cache of a sampled reply."""
    buffers: float
    """Of the communication between processes."""
    accumulates: bool
    host: float = 0.0

    @property
    def peak(self) -> float:
        """The most that is allocated at any time.

        Without accumulation a step begins without gradients: they grow while the backward pass gives
        activations back, so only the larger of the two counts.
        """
        fixed = self.weights + self.optimiser + self.buffers
        passes = self.activations + (self.gradients if self.accumulates else 0.0)
        return fixed + max(passes, self.gradients + self.step, self.kv)


def memory_of(run: Run) -> Memory:
    """The memory of a training step on each of ``run.gpus`` GPUs."""
    trained, width = _trained(run)
    weights, gradients = _weights(run), float(trained * width)
    states, step = _optimiser(run, trained, width)
    buffers = host = 0.0
    if run.zero:
        # DeepSpeed trains in the model's 16 bits and keeps a float32 copy in the optimiser.
        gradients = float(trained * run.dtype_bytes)
        states = (states + _float32_copy(run, trained)) / run.gpus
        # A float32 copy of the gradients comes before the step.
        step = step / run.gpus + trained * 4.0 / run.gpus
        # Up to stage 2 two, because communication overlaps with the backward pass; of their full size however little
        # is trained.
        buffers = (1.0 if run.zero == 3 else 2.0) * REDUCE_BUCKET * run.dtype_bytes
    elif run.gpus > 1:
        # DistributedDataParallel reduces gradients in buckets as large as they are.
        buffers = gradients
    if run.zero >= 2:
        gradients /= run.gpus
    if run.zero == 3:
        if run.gpus > 1 or run.offload_weights:  # else every weight is where it is needed already
            buffers += min(LIVE_PARAMETERS, run.shape.parameters) * run.dtype_bytes
        weights /= run.gpus
        if run.offload_weights:
            host, weights = host + weights, 0.0
    if run.offload_optimiser:
        host, states, step = host + states + gradients, 0.0, 0.0
    return Memory(
        weights=weights,
        gradients=gradients,
        optimiser=states,
        activations=_activations(run) + (_handed_over(run) if run.offload_optimiser else 0.0),
        step=step,
        kv=run.shape.kv_bytes * run.reply_tokens * run.dtype_bytes / 2,
        buffers=buffers,
        accumulates=run.accumulation > 1,
        host=host * run.gpus,
    )


def checkpoint_of(run: Run) -> tuple[float, float]:
    """Bytes of a checkpoint on the disk, of all processes together: the trained weights, and the optimiser's states."""
    trained, width = _trained(run)
    # What is paged lies in files like the rest.
    stored = run.changed(optimiser="adamw8bit") if run.optimiser == "paged_adamw8bit" else run
    states, _ = _optimiser(stored, trained, width)
    if run.zero:
        width, states = run.dtype_bytes, states + _float32_copy(run, trained)
    return float(trained * width), states


def _float32_copy(run: Run, trained: int) -> float:
    """Bytes of what DeepSpeed keeps beside weights in 16 bits."""
    return trained * (4.0 if run.dtype_bytes == 2 else 0.0)


def _handed_over(run: Run) -> float:
    """What DeepSpeed makes of the largest gradient on its way to the host.

    Up to stage 2 it looks for infinities in it: two float32 copies and three masks (``_has_inf_or_nan`` in
    ``stage_1_and_2.py``). Stage 3 makes a copy of a process's part, and that in float32 (``partition_grads``).
    """
    largest = _largest(run)
    return largest * (run.dtype_bytes + 4.0) / run.gpus if run.zero == 3 else largest * 11.0


def _largest(run: Run) -> int:
    """Weights of the largest matrix that is trained."""
    linears = run.shape.linears
    if run.rank:
        return max((run.rank * max(linears[name]) for name in run.targets if name in linears), default=0)
    return max(inputs * outputs for inputs, outputs in linears.values())


def _trained(run: Run) -> tuple[int, int]:
    """How many weights are trained, and the bytes of one."""
    if run.rank:
        return run.shape.adapter_parameters(run.rank, run.targets), run.adapter_bytes
    return run.shape.parameters, run.dtype_bytes


def _weights(run: Run) -> float:
    """The base and, with LoRA, the adapters."""
    shape = run.shape
    compressed = shape.decoder_parameters if run.base != "plain" else 0
    packed = NF4_BYTES if run.double_quant else NF4_SINGLE_BYTES
    bytes_each = {"nf4": packed, "nf4_fp8": packed, "fp8": FP8_BYTES, "plain": 0.0}[run.base]
    adapters = shape.adapter_parameters(run.rank, run.targets) * run.adapter_bytes
    return compressed * bytes_each + (shape.parameters - compressed) * run.dtype_bytes + adapters


def _optimiser(run: Run, trained: int, width: int) -> tuple[float, float]:
    """Bytes of the optimiser's states, and of its temporaries during a step."""
    eight_bits = trained * (2 + 2 * 4 / 256)
    if run.optimiser == "adamw":
        # torch's default takes the square root of all second moments at once.
        return trained * 2.0 * (4 if run.zero else width), float(trained * width)
    if run.optimiser == "adamw8bit":
        return eight_bits, 0.0
    if run.optimiser == "paged_adamw8bit":
        # In managed memory, which the driver moves to the host when the card is full.
        return 0.0, 0.0
    # The remainder of each weight, and both moments of the largest one in float32; under ZeRO all weights of a
    # process are one, which is updated part by part.
    part = min(trained, OPTIMISER_PART * run.gpus) if run.zero else _largest(run)
    return eight_bits + (0 if run.zero else trained * width), part * 8.0


def _activations(run: Run) -> float:
    """The most that is held between the first layer's forward and its backward pass."""
    shape, token = run.shape, run.tokens * run.dtype_bytes
    # Attention keeps its queries and keys, rotated, beside the projection that they and the values are part of.
    attention = shape.fused + (shape.heads + shape.kv_heads) * shape.head_size
    # A layer keeps both residual inputs, both norms' outputs and the attention's, and gate, up and their product;
    # and what LoRA's first matrices return.
    layer = 5 * shape.hidden + attention + 3 * shape.intermediate
    layer += run.rank * sum(name != "output" for name in run.targets)
    # Gradients that meet in a layer's backward pass: of gate and up and of the residual.
    backward = (2 * shape.intermediate + shape.hidden) * token
    if run.base in ("nf4", "nf4_fp8"):
        # The matrix that is unpacked for a product, and what it is cast to.
        backward += shape.hidden * shape.intermediate * (run.dtype_bytes + (run.base == "nf4_fp8"))
    if run.checkpointing:
        kept = shape.layers * shape.hidden * token
        backward += layer * token
    else:
        # Attention is never computed again, so that what it takes and gives stays whatever the budget.
        part = max(run.budget * layer, 3 * shape.hidden + attention)
        kept = shape.layers * part * token
        backward += (layer - part) * token
        if run.rank and run.adapter_bytes != run.dtype_bytes:
            # LoRA's products run in the base's dtype: copies of the adapters live until the backward pass.
            kept += shape.adapter_parameters(run.rank, run.targets) * run.dtype_bytes
    return kept + max(backward, _loss(run))


def _loss(run: Run) -> float:
    """What the loss holds: logits of some rows in 16 and 32 bits, the hidden states and their gradient."""
    learned = run.supervised * run.tokens
    logits = min(LOSS_ROWS, learned) * run.shape.vocabulary * (run.dtype_bytes + 4)
    # The head's gradient is made together with the loss.
    head = 0 if run.rank else run.shape.vocabulary * run.shape.hidden * run.dtype_bytes
    return logits + 2 * learned * run.shape.hidden * run.dtype_bytes + head
