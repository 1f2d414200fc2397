"""The same training through Transformers' Trainer: what recipes with ``framework = "huggingface"`` name."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer

from huanhuan.training.data import DialogueDataset, collate_pack, count_supervised

ADAPTER = "adapter_model.safetensors"


class PackedTrainer(Trainer):
    """Trains a :class:`huanhuan.training.model.PackedFinetune` on a :class:`DialogueDataset`.

    As in XTuner's loop every supervised token of an optimiser step weighs the same, over accumulated packs and over
    processes. What is saved is an adapter (or a model, if every weight trains) in Hugging Face's layout.
    """

    def __init__(
        self, *, model: nn.Module, train_dataset: DialogueDataset, data_collator: Any = None, **kwargs: Any
    ) -> None:
        for module in model.modules():
            # XTuner has replaced the norms' forward by a Triton kernel of its own, which recipes do not ask for.
            if type(module).__name__.endswith("RMSNorm"):
                module.__dict__.pop("forward", None)
        # XTuner's collator, which it hands over, is for rows that it has packed itself.
        collate = functools.partial(collate_pack, pad_to=train_dataset.pack_length)
        super().__init__(model=model, train_dataset=train_dataset, data_collator=collate, **kwargs)  # pyright: ignore[reportArgumentType]
        # Otherwise the loss would be divided by the accumulated packs once more.
        self.model_accepts_loss_kwargs = True

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int) -> tuple[list[Any], int]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The packs of one optimiser step, and their supervised tokens on every process."""
        packs, _ = super().get_batch_samples(epoch_iterator, num_batches)
        tokens = torch.tensor([sum(map(count_supervised, packs))], device=self.args.device)
        return packs, int(self.accelerator.gather(tokens).sum())  # pyright: ignore[reportAttributeAccessIssue]

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """This pack's share of the mean over the step's supervised tokens."""
        tokens = num_items_in_batch or count_supervised(inputs)
        scale = self.accelerator.num_processes / max(tokens, 1)
        outputs: dict[str, Tensor] = model(data={**inputs["data"], "loss_scale": scale})
        return (outputs["loss"], outputs) if return_outputs else outputs["loss"]

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        folder = output_dir or str(self.args.output_dir)
        llm: Any = self.accelerator.unwrap_model(self.model).llm
        llm.save_pretrained(folder, safe_serialization=True)
        torch.save(self.args, Path(folder) / "training_args.bin")

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        from peft import set_peft_model_state_dict
        from safetensors.torch import load_file

        llm: Any = self.accelerator.unwrap_model(model or self.model).llm
        folder = Path(resume_from_checkpoint)
        if (folder / ADAPTER).is_file():
            set_peft_model_state_dict(llm, load_file(folder / ADAPTER))
            return
        missing = set(llm.state_dict())
        for file in sorted(folder.glob("model*.safetensors")):
            weights = load_file(file)
            llm.load_state_dict(weights, strict=False)
            missing -= weights.keys()
        if missing:
            raise ValueError(f"{folder}: weights are missing: {', '.join(sorted(missing)[:3])} …")
