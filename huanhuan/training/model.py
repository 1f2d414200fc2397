"""The model that recipes train: XTuner's ``SupervisedFinetune`` over packs of whole dialogues."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers.integrations import is_deepspeed_zero3_enabled
from xtuner.model import SupervisedFinetune

from huanhuan.errors import UserError
from huanhuan.training.attention import Kernel, choose_kernel, locate_documents
from huanhuan.training.fp8 import freeze_in_fp8, supports_fp8
from huanhuan.training.layers import Kernels, decoder_layer, hidden_states, limit_activations
from huanhuan.training.loss import summed_cross_entropy, supervised_positions
from huanhuan.training.zero3 import gathered_loss, is_partitioned, join_lone_process, make_leaves, through_module


class PackedFinetune(SupervisedFinetune):
    """Fine-tunes InternLM2 on packs (see :mod:`huanhuan.training.data` for their shape).

    Switches of the recipe, beside XTuner's own ``llm``, ``lora`` and ``use_activation_checkpointing``:

    - ``attention``: "auto", "flex", "varlen" or "sdpa" (:mod:`huanhuan.training.attention`);
    - ``kernels``: "plain", "compile" (each decoder layer through torch.compile) or "liger"; on a CPU always
      "plain";
    - ``activation_budget``: with "compile", the share of its activations that a layer keeps; the rest is computed
      again in the backward pass, as ``use_activation_checkpointing`` does with all of them;
    - ``fused_loss``: liger-kernel's fused linear cross-entropy; on a CPU a chunked one of the same value;
    - ``fp8_base``: products with the frozen layers under LoRA adapters run in FP8, and the weights are held in it
      unless they are in NF4 (:mod:`huanhuan.training.fp8`);
    - ``adapter_dtype``: of the LoRA weights. float32 keeps small updates from being rounded away, and the
      products still run in the base's dtype.

    ``device_map`` is what XTuner adds to the recipe under ``framework = "huggingface"``; the trainer places the model.
    """

    def __init__(
        self,
        llm: Any,
        lora: Any = None,
        *,
        attention: Kernel = "auto",
        kernels: Kernels = "plain",
        activation_budget: float = 1.0,
        fused_loss: bool = True,
        fp8_base: bool = False,
        adapter_dtype: torch.dtype = torch.float32,
        use_activation_checkpointing: bool = False,
        device_map: Any = None,
        **kwargs: Any,
    ) -> None:
        join_lone_process()
        self.adapter_dtype = adapter_dtype
        self.fp8_base = fp8_base
        # XTuner would switch on the checkpointing of the released code's own forward, which is not the one
        # that trains here.
        super().__init__(llm, lora=lora, use_activation_checkpointing=False, **kwargs)
        self.attention: Kernel = attention
        self.kernels: Kernels = kernels
        self.activation_budget = activation_budget
        self.fused_loss = fused_loss
        self.checkpointing = use_activation_checkpointing
        self.partitioned = is_partitioned()
        if self.partitioned:
            make_leaves([*self.causal_lm.model.layers, self.causal_lm.get_output_embeddings()])
        super().train()

    def train(self, mode: bool = True) -> PackedFinetune:
        """Set the mode of every module, if it is not the mode already.

        The training loop asks for it each step, and a 7B model under adapters has 3,000 modules.
        """
        return self if mode == self.training else super().train(mode)

    @staticmethod
    def _prepare_for_flash_attn(cfg: Any, llm_cfg: Any) -> Any:
        """Attention of the released code, which only generation uses: SDPA unless the recipe says otherwise.

        XTuner's own method asks ``torch.cpu.is_bf16_supported()``, which does not exist, and does not know
        that InternLM2 has SDPA.
        """
        if getattr(cfg, "attn_implementation", None) is None:
            cfg.attn_implementation = "sdpa"
        return cfg

    def _dispatch_lm_model_cfg(self, cfg: Any, max_position_embeddings: int | None = None) -> Any:
        """Also on a machine without CUDA; the weights shard by shard where they are not divided among GPUs."""
        if not is_deepspeed_zero3_enabled():
            cfg.setdefault("low_cpu_mem_usage", True)
        if not torch.cuda.is_available() and getattr(cfg, "quantization_config", None) is not None:
            let_transformers_quantise_on_cpu()
        return super()._dispatch_lm_model_cfg(cfg, max_position_embeddings)

    def build_llm_from_cfg(self, llm_cfg: Any, use_varlen_attn: bool, max_position_embeddings: int | None) -> nn.Module:
        """Build the base without XTuner's dispatch, which replaces methods of modules that training bypasses."""
        if isinstance(llm_cfg, dict):
            llm_cfg = self._dispatch_lm_model_cfg(llm_cfg, max_position_embeddings)
        llm: Any = self._build_from_cfg_or_module(llm_cfg)
        llm.config.use_cache = False
        for module in llm.modules():
            # On a CPU with AVX512-BF16, bitsandbytes repacks NF4 weights the first time a layer runs in eval
            # mode; the kernel of that layout has no backward pass, so every later step would lose gradients.
            if hasattr(module, "support_avx512bf16_for_cpu"):
                module.support_avx512bf16_for_cpu = False
        return llm

    def _prepare_for_lora(self, peft_model: str | None = None, use_activation_checkpointing: bool = True) -> None:
        """Freeze the base and add the adapter, everything else in the dtype the recipe gives it.

        PEFT's ``prepare_model_for_kbit_training`` casts embeddings, norms and the head to float32: 3 GiB more
        for a 7B model, and float32 products in the head.
        """
        from mmengine.runner import load_checkpoint
        from peft import get_peft_model

        base: Any = self.llm.requires_grad_(False)
        adapter: Any = self.lora
        self.llm = get_peft_model(base, adapter, autocast_adapter_dtype=False)
        if _initialisation_is_off():
            _initialise_lora(self.llm)
        for parameter in self.llm.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.to(self.adapter_dtype)
        if peft_model is not None:
            load_checkpoint(self, peft_model)
        if self.fp8_base:
            device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
            if device.type == "cuda" and not supports_fp8(device):
                card = torch.cuda.get_device_name()
                raise UserError(f"{card}: 不支持 FP8 / has no FP8: 改用 huanhuan_lora / use huanhuan_lora")
            freeze_in_fp8(self.llm, device)

    @property
    def causal_lm(self) -> Any:
        """The InternLM2ForCausalLM itself, without PEFT's wrapper."""
        llm: Any = self.llm
        return llm.get_base_model() if self.use_lora else llm

    @functools.cached_property
    def _compiled_layer(self) -> Callable[..., Tensor]:
        if self.activation_budget < 1:
            limit_activations(self.activation_budget)
        # Left to itself, PyTorch remembers on disk that another run had packs of another length, and compiles
        # slower kernels for packs of any.
        return cast("Callable[..., Tensor]", torch.compile(decoder_layer, dynamic=False))

    def _hidden_states(self, data: dict[str, Any]) -> Tensor:
        """Final hidden states ``(length, hidden_size)`` of one pack."""
        input_ids = data["input_ids"].squeeze(0)
        model = self.causal_lm
        if data["longest"] > model.config.max_position_embeddings:
            raise UserError(
                f"[max_length] 对话有 {data['longest']} 个 token / a dialogue has {data['longest']} tokens: 底模只到 / the base "
                f"reaches {model.config.max_position_embeddings}: 调小 max_length / lower max_length"
            )
        on_gpu = input_ids.device.type == "cuda"
        kernels: Kernels = self.kernels if on_gpu else "plain"
        if self.partitioned and kernels == "compile":
            # Weights that come and go, and DeepSpeed's own F.linear, are nothing to compile.
            kernels = "liger"
        # Validation packs differ in length: compiling for them would cost more than it saves.
        compiled = kernels == "compile" and self.training
        kernel = choose_kernel(self.attention, input_ids.device, model.dtype, compiled=compiled)
        if kernel == "flex" and not compiled and self.attention == "auto":
            kernel = choose_kernel("auto", input_ids.device, model.dtype)
        documents = locate_documents(data["starts"], len(input_ids), data["longest"], kernel, compiled=compiled)
        layer_function = self._compiled_layer if compiled else decoder_layer
        return hidden_states(
            model,
            input_ids,
            data["position_ids"].squeeze(0),
            documents,
            kernels="plain" if kernels == "compile" else kernels,
            layer_function=through_module(layer_function) if self.partitioned else layer_function,
            checkpointing=self.checkpointing and self.training,
        )

    def _summed_loss(self, hidden: Tensor, targets: Tensor, *, fused: bool = False) -> Tensor:
        head = self.causal_lm.get_output_embeddings()
        if self.partitioned:
            return head(functools.partial(gathered_loss, fused=fused), hidden, targets)
        return summed_cross_entropy(hidden, head, targets, fused=fused)

    def compute_loss(self, data: dict[str, Any], data_samples: Any = None) -> dict[str, Tensor]:
        """``{"loss": …}``: the mean over supervised tokens, weighted over the whole optimiser step.

        ``data["loss_scale"]``, set by :class:`huanhuan.training.loop.PackedTrainLoop`, turns the sum over this
        pack into its share of the mean over every pack of the step, on every GPU; without it the pack stands
        alone.
        """
        # First, because counting them waits for the card: here it has nothing to do yet.
        positions, targets = supervised_positions(data["labels"].squeeze(0))
        hidden = self._hidden_states(data)
        fused = self.fused_loss and hidden.device.type == "cuda"
        total = self._summed_loss(hidden[positions], targets, fused=fused)
        scale = data.get("loss_scale")
        return {"loss": total / max(len(targets), 1) if scale is None else total * scale}

    @torch.no_grad()
    def predict(self, data: dict[str, Any], data_samples: Any = None) -> list[dict[str, float | int]]:
        """What the perplexity metric sums: negative log-likelihood and count of the pack's supervised tokens.

        Returning logits, as XTuner does, would take 92,544 numbers a token.
        """
        positions, targets = supervised_positions(data["labels"].squeeze(0))
        hidden = self._hidden_states(data)
        total = self._summed_loss(hidden[positions], targets)
        return [{"negative_log_likelihood": float(total), "tokens": len(targets)}]


def _initialisation_is_off() -> bool:
    """Whether ``torch.nn.init`` does nothing, as inside XTuner's ``LoadWoInit``."""
    probe = torch.ones(1)
    nn.init.zeros_(probe)
    return bool(probe)


@torch.no_grad()
def _initialise_lora(llm: nn.Module) -> None:
    """What PEFT does by default: ``A`` Kaiming-uniform with a = √5, which is ±1/√inputs, and ``B`` zero."""
    for name, parameter in llm.named_parameters():
        if "lora_A" in name:
            parameter.uniform_(-(parameter.shape[1] ** -0.5), parameter.shape[1] ** -0.5)
        elif "lora_B" in name:
            parameter.zero_()


def let_transformers_quantise_on_cpu() -> None:
    """Let Transformers 4.48 load NF4 without a GPU.

    Its check discards "cpu" from a frozen set, which raises, and would refuse the CPU although bitsandbytes
    has kernels for it now. The quantizer looks the check up in ``transformers.integrations`` on each call.
    """
    import transformers.integrations

    transformers.integrations.validate_bnb_backend_availability = lambda raise_exception=False: True
