#!/usr/bin/env bash
# The whole path on a CUDA host without weights: a random InternLM2-7B, twenty steps of the QLoRA recipe, the
# merge, and a streamed reply of the merged model through LMDeploy. What it printed: docs/gpu-run.md.
#   bench/gpu_run.sh WORK_FOLDER
set -euo pipefail
work=${1:?usage: bench/gpu_run.sh WORK_FOLDER}
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
run() { echo "\$ $*"; local start=$SECONDS; "$@"; echo "# $((SECONDS - start)) s"; }

nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader
$python -c 'import torch, transformers, xtuner, bitsandbytes, lmdeploy; print("torch", torch.__version__, "transformers", transformers.__version__, "xtuner", xtuner.__version__, "bitsandbytes", bitsandbytes.__version__, "lmdeploy", lmdeploy.__version__)'
[ -f "$work/base/config.json" ] || run $python bench/random_base.py "$work/base"
export HUANHUAN_BASE=$work/base HUANHUAN_LMDEPLOY_BACKEND=pytorch
run xtuner train configs/huanhuan_qlora.py --work-dir "$work/run" \
    --cfg-options train_cfg.max_iters=20 train_cfg.max_epochs=None train_cfg.validations=2 default_hooks.logger.interval=5 custom_hooks.2.interval=5
test -s "$work/run/last_checkpoint"
run $python tools/merge_hf.py configs/huanhuan_qlora.py --work-dir "$work/run" --out "$work/merged"
du -sh "$work/merged"
HUANHUAN_ENGINE=lmdeploy run $python tools/chat.py --model "$work/merged" --say "你是谁？" --max-new-tokens 48
