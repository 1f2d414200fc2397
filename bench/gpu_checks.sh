#!/usr/bin/env bash
# The checks that need a CUDA card, besides the training runs of bench/train.py; one that fails does not keep the others.
#   bench/gpu_checks.sh WORK_FOLDER [serve] [zero] [layers] [loss] [ranks]
# Logs and tables are written to WORK_FOLDER/results; exit code 1 if a check failed.
set -uo pipefail
work=${1:?usage: bench/gpu_checks.sh WORK_FOLDER [serve] [zero] [layers] [loss] [ranks]}
shift
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
results=$work/results
mkdir -p "$results"
failed=()

base() { # NAME [OPTION…]: a base with random weights, made once
    local folder=$work/$1
    shift
    [ -f "$folder/config.json" ] || $python bench/random_base.py "$folder" "$@" >&2 || return 1
    echo "$folder"
}

check() { # NAME COMMAND…
    local name=$1 start=$SECONDS
    shift
    echo "\$ $*"
    if "$@" >"$results/$name.log" 2>&1; then echo "# $name: ok, $((SECONDS - start)) s"; else
        echo "# $name: failed with $?, $((SECONDS - start)) s; the end of $results/$name.log:"
        failed+=("$name")
    fi
    tail -n 12 "$results/$name.log"
}

[ $# -gt 0 ] || set -- serve zero layers loss ranks
for name; do
    case $name in
    serve) HUANHUAN_LMDEPLOY_BACKEND=pytorch check serve $python bench/serve.py "$(base base)" --out "$results" ;;
    zero) check zero $python bench/check_zero.py --base "$(base layers4 --layers 4)" --out "$results" ;;
    layers) check layers $python bench/check_gpu.py --base "$(base layers2 --layers 2)" --out "$results" ;;
    loss) check loss $python bench/first_loss.py --base "$(base base)" ;;
    ranks)
        check ranks $python bench/train.py --base "$(base base)" --steps 24 --limit 90 --out "$results" \
            lora-rank-8 lora lora-rank-256
        ;;
    *)
        echo "$name: 不认识 / unknown check: choose from serve zero layers loss ranks" >&2
        exit 2
        ;;
    esac
done
[ ${#failed[@]} -eq 0 ] || { echo "失败 / failed: ${failed[*]}" >&2; exit 1; }
