"""Every way to run a layer, on the card: the same loss and gradients, and how long each takes.

    python bench/random_base.py /somewhere/small --layers 2
    python bench/check_gpu.py --base /somewhere/small [--out bench/results]

Each case runs in a process of its own. They compile at the same time and are timed one after another. A case passes
if its gradients differ from the same model's in float32 by no more than its arithmetic may (LIMITS) and by no more than
twice what the plain bfloat16 case does; over FP8, whose own error is far larger, by no more than a tenth more than the
plain FP8 case does; and if no pack makes a layer compile anew. Exit code 1 if one does not.
"""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import random
import subprocess
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
TOKENS = 8192


@dataclass(frozen=True)
class Case:
    """A base ("bf16", "nf4", "fp8", "nf4-fp8", "full"), kernels and attention; ``budget`` is torch.compile's for activations."""

    base: str
    kernels: str
    attention: str
    checkpointing: bool = False
    wide: bool = False
    """In float32: the reference."""
    budget: float = 1.0


CASES = {
    "bf16-float32": Case("bf16", "plain", "sdpa", wide=True),
    "bf16-plain": Case("bf16", "plain", "sdpa"),
    "bf16-liger-varlen": Case("bf16", "liger", "varlen"),
    "bf16-compile-flex": Case("bf16", "compile", "flex"),
    "bf16-compile-varlen": Case("bf16", "compile", "varlen"),
    "nf4-float32": Case("nf4", "plain", "sdpa", wide=True),
    "nf4-plain": Case("nf4", "plain", "varlen"),
    "nf4-liger-varlen": Case("nf4", "liger", "varlen"),
    "nf4-compile-flex": Case("nf4", "compile", "flex"),
    "nf4-compile-varlen": Case("nf4", "compile", "varlen"),
    "nf4-liger-varlen-checkpoint": Case("nf4", "liger", "varlen", checkpointing=True),
    "nf4-compile-varlen-checkpoint": Case("nf4", "compile", "varlen", checkpointing=True),
    "nf4-compile-varlen-budget-0.1": Case("nf4", "compile", "varlen", budget=0.1),
    "nf4-compile-varlen-budget-0.25": Case("nf4", "compile", "varlen", budget=0.25),
    "nf4-compile-flex-budget-0.1": Case("nf4", "compile", "flex", budget=0.1),
    "fp8-plain": Case("fp8", "plain", "varlen"),
    "fp8-compile-flex": Case("fp8", "compile", "flex"),
    "fp8-compile-varlen": Case("fp8", "compile", "varlen"),
    "nf4-fp8-plain": Case("nf4-fp8", "plain", "varlen"),
    "nf4-fp8-compile-flex": Case("nf4-fp8", "compile", "flex"),
    "nf4-fp8-compile-varlen": Case("nf4-fp8", "compile", "varlen"),
    "full-float32": Case("full", "plain", "sdpa", wide=True),
    "full-plain": Case("full", "plain", "varlen"),
    "full-compile-varlen": Case("full", "compile", "varlen"),
    "full-liger-varlen-checkpoint": Case("full", "liger", "varlen", checkpointing=True),
}
REFERENCE = {
    "bf16": "bf16-float32",
    "nf4": "nf4-float32",
    "fp8": "bf16-float32",
    "nf4-fp8": "nf4-float32",
    "full": "full-float32",
}
# Distance of the gradients from float32's that the number format may cause over two layers.
LIMITS = {"bf16": 0.05, "nf4": 0.05, "fp8": 0.2, "nf4-fp8": 0.2, "full": 0.05}


def build(case: Case, base: Path) -> Any:
    """The model of a case on the card, its adapters not zero."""
    import torch
    from mmengine.config import ConfigDict
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    from huanhuan.training.model import PackedFinetune

    dtype = torch.float32 if case.wide else torch.bfloat16
    llm: dict[str, Any] = dict(
        type=AutoModelForCausalLM.from_pretrained,
        pretrained_model_name_or_path=str(base),
        trust_remote_code=True,
        torch_dtype=dtype,
    )
    if case.base.startswith("nf4"):
        llm["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_compute_dtype=dtype,
            bnb_4bit_use_double_quant=True,
            bnb_4bit_quant_type="nf4",
        )
    lora = LoraConfig(r=64, lora_alpha=128, target_modules=["wqkv", "wo", "w1", "w2", "w3"], task_type="CAUSAL_LM")
    model = PackedFinetune(
        ConfigDict(llm),
        lora=None if case.base == "full" else lora,
        attention=case.attention,  # pyright: ignore[reportArgumentType]
        kernels=case.kernels,  # pyright: ignore[reportArgumentType]
        use_activation_checkpointing=case.checkpointing,
        activation_budget=case.budget,
        fp8_base=case.base.endswith("fp8"),
        fused_loss=not case.wide and case.kernels != "plain",
    ).cuda()
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_A" in name:
            parameter.data.copy_(torch.randn(parameter.shape) * 0.02)
        elif "lora_B" in name:
            parameter.data.copy_(torch.randn(parameter.shape) * 0.002)
    return model


def batch(seed: int) -> dict[str, Any]:
    """A pack of dialogues of 40 to 400 tokens on the card, a third supervised, 100 tokens of padding."""
    from huanhuan.training.data import Dialogue, collate_pack

    chance = random.Random(seed)
    dialogues, left = [], TOKENS - 100
    while left > 0:
        length = min(chance.randint(40, 400), left)
        ids = [chance.randrange(10, 1500) for _ in range(length)]
        dialogues.append(Dialogue(ids, [-100] * (length - length // 3) + ids[length - length // 3 :], ""))
        left -= length
    data = collate_pack([dialogues], pad_to=TOKENS)["data"]
    return {name: value.cuda() if hasattr(value, "cuda") else value for name, value in data.items()}


def isolation(model: Any, data: dict[str, Any]) -> bool:
    """Whether the middle dialogue's states stay the same to the bit when every other token changes."""
    import torch

    with torch.no_grad():
        before = model._hidden_states(data)
        starts = data["starts"]
        spans = list(itertools.pairwise(starts.tolist()))
        first, last = spans[len(spans) // 2]
        changed = data["input_ids"].clone()
        changed[:, :first] = (changed[:, :first] + 7) % 1500 + 10
        changed[:, last:] = (changed[:, last:] + 7) % 1500 + 10
        after = model._hidden_states({**data, "input_ids": changed})
    return bool((before[first:last] == after[first:last]).all()) and not bool((before[:first] == after[:first]).all())


def run_case(name: str, base: Path, folder: Path, others: int) -> dict[str, Any]:
    """Gradients to ``folder/NAME.pt``; loss, milliseconds a layer and MiB a layer as the result."""
    import statistics

    import torch
    from torch._dynamo.utils import counters

    case = CASES[name]
    started = time.time()
    model = build(case, base)
    model.train()
    data = batch(0)
    loss = model.compute_loss(data)["loss"]
    loss.backward()
    torch.cuda.synchronize()
    row: dict[str, Any] = {"case": name, "loss": float(loss), "first_s": round(time.time() - started, 1)}
    wanted = {key: value.grad for key, value in model.named_parameters() if value.grad is not None}
    if case.base == "full":  # a few of every kind; all of them would be gigabytes
        wanted = {key: each for key, each in wanted.items() if ".layers.0." not in key}
        # The tokens that dialogues are made of, and some that never occur.
        wanted = {key: each[:2048] if len(each) > 50_000 else each for key, each in wanted.items()}
    torch.save({key: each.float().cpu() for key, each in wanted.items()}, folder / f"{name}.pt")
    model.zero_grad()
    compiled = counters["stats"]["unique_graphs"]
    for seed in (1, 2, 3):  # packs of other dialogues: what is traced anew shows here
        model.compute_loss(batch(seed))["loss"].backward()
    row["recompiles"] = counters["stats"]["unique_graphs"] - compiled
    row["isolated"] = isolation(model, data)
    batches = [batch(seed) for seed in range(4, 9)]
    model.zero_grad()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    (folder / f"{name}.ready").touch()
    limit = time.time() + 150
    while len(list(folder.glob("*.ready"))) < others and time.time() < limit:
        time.sleep(0.2)
    layers = len(model.causal_lm.model.layers)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        times = []
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        for data in batches:
            model.zero_grad()
            torch.cuda.synchronize()
            start = time.perf_counter()
            hidden = model._hidden_states(data)
            if data is batches[0]:
                row["mib_layer"] = round((torch.cuda.memory_allocated() - before) / layers / 2**20)
            hidden.backward(hidden.detach())
            torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
        row["ms_layer"] = round(statistics.median(times[1:]) / layers * 1000, 3)
        times = []
        for data in batches:
            torch.cuda.synchronize()
            start = time.perf_counter()
            model.compute_loss(data)["loss"].backward()
            torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
        row["ms_head"] = round(statistics.median(times[1:]) * 1000 - row["ms_layer"] * layers, 2)
        row["tok_s_32"] = round(TOKENS / (row["ms_layer"] * 32 + row["ms_head"]) * 1000)
        if case.base == "full" and not case.wide:
            row["ms_adam_per_b"] = _time_optimiser(model)
    return row


def _time_optimiser(model: Any) -> float:
    """Milliseconds of an optimiser step per 10⁹ weights."""
    import torch

    from huanhuan.training.optimizer import CompensatedAdamW8bit

    weights = [each for each in model.parameters() if each.grad is not None]
    optimiser = CompensatedAdamW8bit(weights, lr=1e-5)
    for _ in range(2):
        optimiser.step()
    torch.cuda.synchronize()
    start = time.perf_counter()
    optimiser.step()
    torch.cuda.synchronize()
    return round((time.perf_counter() - start) * 1e12 / sum(each.numel() for each in weights), 2)


def kernels_agree() -> list[dict[str, Any]]:
    """Attention and loss kernels alone against float32."""
    import torch

    from huanhuan.training.attention import attend, locate_documents
    from huanhuan.training.loss import summed_cross_entropy

    rows = []
    starts = batch(0)["starts"]
    torch.manual_seed(0)
    shapes = ((TOKENS, 32, 128), (TOKENS, 8, 128), (TOKENS, 8, 128))
    wide = [torch.randn(shape, device="cuda").requires_grad_() for shape in shapes]
    upstream = torch.randn(shapes[0], device="cuda")

    def error(got: Any, want: Any) -> float:
        return float((got.float() - want).norm() / want.norm())

    query, key, value = wide
    reference = attend(query, key, value, locate_documents(starts, TOKENS, 512, "sdpa"))
    wanted = torch.autograd.grad(reference, wide, upstream)
    for kernel in ("sdpa", "varlen", "flex"):
        narrow = [each.detach().bfloat16().requires_grad_() for each in wide]
        documents = locate_documents(starts, TOKENS, 512, kernel)
        function: Any = torch.compile(attend) if kernel == "flex" else attend
        output = function(*narrow, documents)
        gradients = torch.autograd.grad(output, narrow, upstream.bfloat16())
        errors = [error(output, reference), *(error(a, b) for a, b in zip(gradients, wanted, strict=True))]
        rows.append({"attention": kernel, "errors": [f"{each:.1e}" for each in errors], "ok": max(errors) < 1e-2})
    del wide, reference, wanted
    head = torch.nn.Linear(4096, 92544, bias=False, device="cuda", dtype=torch.bfloat16).requires_grad_(False)
    hidden = torch.randn(2900, 4096, device="cuda", dtype=torch.bfloat16)
    targets = torch.randint(0, 92544, (2900,), device="cuda")
    for trained in (False, True):
        head.requires_grad_(trained)
        results = {}
        for fused in (False, True):
            given = hidden.clone().requires_grad_()
            took, loss = 0.0, torch.zeros(())
            for _ in range(2):
                given.grad = head.weight.grad = None
                torch.cuda.synchronize()
                start = time.perf_counter()
                loss = summed_cross_entropy(given, head, targets, fused=fused)
                loss.backward()
                torch.cuda.synchronize()
                took = (time.perf_counter() - start) * 1000
            results[fused] = (float(loss.detach()), given.grad, head.weight.grad, round(took, 2))
        plain, fast = results[False], results[True]
        row = {"loss": "fused", "trained_head": trained, "difference": abs(fast[0] / plain[0] - 1)}
        gradients = [error(a, b.float()) for a, b in zip(fast[1:3], plain[1:3], strict=True) if b is not None]
        row |= {"gradients": gradients, "plain_ms": plain[3], "fused_ms": fast[3]}
        rows.append({**row, "ok": row["difference"] < 1e-4 and max(gradients) < 1e-2})
    return [*rows, *fp8_products_agree(), optimiser_agrees()]


def fp8_products_agree() -> list[dict[str, Any]]:
    """FP8 products on the card against the same rounded numbers multiplied in float32, and how long they take."""
    import torch

    from huanhuan.training.fp8 import quantise_rows

    torch.manual_seed(0)
    rows, weight = torch.randn(TOKENS, 4096, device="cuda"), torch.randn(14336, 4096, device="cuda") * 0.02
    (left, left_scale), (right, right_scale) = quantise_rows(rows), quantise_rows(weight)
    exact = (left.float() * left_scale) @ (right.float() * right_scale).t()
    found = []
    for fast in (True, False):
        took, product = 0.0, exact
        for _ in range(3):
            torch.cuda.synchronize()
            start = time.perf_counter()
            product = torch._scaled_mm(
                left,
                right.t(),
                scale_a=left_scale,
                scale_b=right_scale.t(),
                out_dtype=torch.bfloat16,
                use_fast_accum=fast,
            )
            torch.cuda.synchronize()
            took = (time.perf_counter() - start) * 1000
        off = float((product.float() - exact).norm() / exact.norm())
        found.append({"fp8_product": "fast accumulation" if fast else "exact", "error": off, "ms": round(took, 3)})
    return [{**row, "ok": row["error"] < 1e-2} for row in found]


def optimiser_agrees() -> dict[str, Any]:
    """The compiled step of a weight against the same step on the CPU, where nothing is compiled."""
    import torch

    from huanhuan.training.optimizer import CompensatedAdamW8bit

    ends = {}
    for device in ("cpu", "cuda"):
        torch.manual_seed(0)
        weight = torch.nn.Parameter((torch.randn(512, 1024) * 0.02).bfloat16().to(device))
        optimiser = CompensatedAdamW8bit([weight], lr=2e-5, weight_decay=0.01)
        start = weight.detach().float().cpu()
        for _ in range(20):
            weight.grad = torch.randn(512, 1024).bfloat16().to(device)
            optimiser.step()
        together = weight.detach().float() + optimiser.state[weight]["remainder"].float()
        ends[device] = together.cpu() - start
    off = float((ends["cuda"] - ends["cpu"]).norm() / ends["cpu"].norm())
    return {"optimiser": "compiled", "error": off, "ok": off < 1e-2}


def compare(rows: list[dict[str, Any]], folder: Path) -> None:
    """Add to each case how far its gradients are from the reference's."""
    import torch

    loaded: dict[str, Any] = {}

    def gradients(name: str) -> Any:
        if name not in loaded:
            loaded[name] = torch.load(folder / f"{name}.pt", weights_only=True)
        return loaded[name]

    def distance(name: str, other: str) -> float:
        got, want = gradients(name), gradients(other)
        total = sum(float((got[key] - want[key]).norm() ** 2) for key in want)
        return (total / sum(float(each.norm() ** 2) for each in want.values())) ** 0.5

    losses = {row["case"]: row["loss"] for row in rows if "loss" in row}
    for row in rows:
        row["ok"] = False
        base = CASES[row["case"]].base
        reference = REFERENCE[base]
        if "loss" not in row or not {reference, f"{base}-plain"} <= losses.keys():
            continue
        row["gradient_error"] = round(distance(row["case"], reference), 5)
        row["loss_error"] = abs(row["loss"] / losses[reference] - 1)
        plain = distance(f"{base}-plain", reference)
        allowed = min(plain * (1.1 if base.endswith("fp8") else 2), LIMITS[base]) + 1e-6
        row["ok"] = row["gradient_error"] <= allowed and row["loss_error"] < 1e-3
        row["ok"] = row["ok"] and row["isolated"] and not row["recompiles"]


@click.command()
@click.option("--base", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for the table and the logs.")
@click.option("--case", help="Run this one here; used by the program itself.")
@click.option("--others", type=int, default=1, hidden=True)
@click.argument("names", nargs=-1)
def main(base: Path, out: Path, case: str | None, others: int, names: tuple[str, ...]) -> None:
    """Check every case, or NAMES."""
    out.mkdir(parents=True, exist_ok=True)
    if case:
        try:
            row = run_case(case, base, out, others)
        except Exception:
            (out / f"{case}.ready").touch()
            traceback.print_exc()
            sys.exit(1)
        print(json.dumps(row))
        return
    import tempfile

    folder = Path(tempfile.mkdtemp(prefix="check-gpu-"))
    chosen = list(names or CASES)
    environment = os.environ | {"TORCHINDUCTOR_COMPILE_THREADS": "2", "OMP_NUM_THREADS": "1"}
    environment |= {"TORCH_LOGS": "recompiles,graph_breaks"}
    processes = {}
    for name in chosen:
        command = [sys.executable, __file__, "--base", str(base), "--out", str(folder), "--case", name]
        with (out / f"{name}.log").open("w") as log:
            processes[name] = subprocess.Popen(
                [*command, "--others", str(len(chosen))],
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
    rows: list[dict[str, Any]] = []
    deadline = time.time() + 240
    for name, process in processes.items():
        try:
            code = process.wait(max(1.0, deadline - time.time()))
        except subprocess.TimeoutExpired:
            process.kill()
            code = -1
        lines = (out / f"{name}.log").read_text(errors="replace").strip().splitlines() or [""]
        row = json.loads(lines[-1]) if code == 0 else {"case": name, "exit": code, "error": lines[-1][:300]}
        rows.append(row)
    compare(rows, folder)
    rows += kernels_agree()
    for row in rows:
        print(json.dumps(row), flush=True)
    (out / "check_gpu.json").write_text(json.dumps(rows, indent=1))
    sys.exit(0 if all(row["ok"] for row in rows) else 1)


if __name__ == "__main__":
    main()
