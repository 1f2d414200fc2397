"""A plan as lines for a reader."""

from __future__ import annotations

from collections.abc import Iterator

from huanhuan.training.alternatives import Alternative
from huanhuan.training.memory import GIB, Run
from huanhuan.training.plan import Plan, duration, needed
from huanhuan.training.plan_data import TOKENS_PER_CHARACTER


def describe_run(run: Run) -> str:
    """``QLoRA 64, NF4, checkpointing, 8192 tokens``."""
    method = f"LoRA rank {run.rank}" if run.rank else "full"
    plain = "bf16" if run.dtype_bytes == 2 else "fp32"
    base = {"nf4": "NF4", "fp8": "FP8", "nf4_fp8": "NF4 × FP8", "plain": plain}[run.base]
    parts = [method, base, run.optimiser, f"{run.tokens} tokens/pass"]
    if run.checkpointing:
        parts.append("checkpointing")
    if run.gpus > 1:
        parts.append(f"{run.gpus} GPUs")
    if run.zero:
        parts.append(f"ZeRO-{run.zero}")
    return ", ".join(parts)


def report(plan: Plan, others: list[Alternative]) -> Iterator[str]:
    """The whole answer, line by line."""
    memory, machine, on_gpu = plan.memory, plan.machine, plan.machine.name != "CPU"
    yield f"配方 / recipe: {plan.recipe.path.stem}（{plan.recipe.base}: {describe_run(plan.run)}）"
    several = f" × {machine.gpus}" if machine.gpus > 1 else ""
    yield f"机器 / machine: {machine.name}{several}，可用 {machine.memory / GIB:.1f} GiB / free"
    yield "每张卡的内存 / memory of one GPU:" if on_gpu else "内存 / memory:"
    for label, size in (
        ("权重 / weights", memory.weights),
        ("优化器 / optimiser", memory.optimiser),
        ("梯度 / gradients", memory.gradients),
        ("激活 / activations", memory.activations),
        ("试答 KV / KV of sampled replies", memory.kv),
        ("通信 / communication", memory.buffers),
    ):
        if size:
            yield f"  {size / GIB:7.2f} GiB  {label}"
    yield f"  {memory.peak / GIB:7.2f} GiB  峰值 / peak（激活与梯度不同时占满 / activations and gradients are not full at once）"
    yield f"  {needed(memory, gpu=on_gpu) / GIB:7.2f} GiB  含运行时与碎片 / with the runtime and gaps"
    if memory.host:
        yield f"  {memory.host / GIB:7.2f} GiB  卸载到内存 / offloaded to the host's memory"
    yield from _data_lines(plan)
    yield from _time_lines(plan)
    if plan.fits:
        yield "结论 / verdict: 能跑 / it runs"
        return
    yield "结论 / verdict: 跑不了 / it does not run"
    for each in plan.obstacles:
        yield f"  {each}"
    yield "能跑的 / what runs:" if others else "没有更小的配方能跑 / no recipe of configs/ runs here"
    for each in others:
        yield f"  {each.line()}"


def _data_lines(plan: Plan) -> Iterator[str]:
    data, pack = plan.data, plan.recipe.pack_length
    counted = (
        "用底模的分词器数出 / counted with the base's tokenizer"
        if data.exact
        else f"按每字 {TOKENS_PER_CHARACTER} 个 token 估计 / estimated at {TOKENS_PER_CHARACTER} tokens a character"
    )
    packs = f"，{data.packs(pack)} 包 / packs of {pack}" if pack else ""
    yield (
        f"数据 / data: {len(data.lengths)} 段对话 / dialogues，{data.tokens} tokens（{counted}），"
        f"{data.share:.0%} 计入损失 / supervised{packs}"
    )


def _time_lines(plan: Plan) -> Iterator[str]:
    if plan.speed is None:
        yield "时间 / time: 不知道这张卡的速度，加 --card 卡名 / this card's speed is not known: add --card NAME"
        return
    times = plan.times
    parts = "，".join(f"{label} {duration(seconds)}" for label, seconds in times.items() if seconds >= 0.5)
    yield (
        f"时间 / time: 约 {duration(sum(times.values()))}（{parts}；{plan.length.steps} 步 / steps = "
        f"{plan.length.epochs:.3g} 遍 / epochs，"
        f"{_rate(plan.speed.tokens)} tokens/s，{plan.speed.source}）；另加载入与编译 / loading and compiling come on top"
    )


def _rate(tokens: float) -> str:
    return f"{tokens:,.0f}" if tokens >= 10 else f"{tokens:.2g}"
