#!/usr/bin/env bash
# All that only a CUDA device shows, in one command: the GPU tests, the benchmark's rows on a GPU, a short pretraining,
# its blanks, and a classifier made of it. Without such a device the same commands run in miniature, so that the suite
# tests this script.
#
#   tests/gpu.sh [WHEELS [OUTPUT [PART...]]]
#   tests/gpu.sh WHEELS OUTPUT recipe pairs export [TEXT.gz] [PAIRS.zip]
#
# Nothing needs to be installed but the dependencies, and no network is there to be. WHEELS is a folder of wheels of
# those that the machine lacks. OUTPUT is a folder, in which the logs, benchmark.json and the table are left. A PART is
# one of gpu-tests, benchmark, pretraining, fill-mask, fine-tuning: only those named run; the last two need the third.
# Three more run only if they are named, for eight minutes in all, unless one hangs: recipe is configs/pretrain/gpu.yaml on
# TEXT, or on the documentation, pairs the accuracy on the minimal PAIRS, or on the embedded ones, export a model of
# bfloat16 numbers. It is made where it is under 16 MiB; else its size is told.
# Every part runs whatever became of the others. The exit code is 0 if all of them did what they should.
set -uo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
only=" gpu-tests benchmark pretraining fill-mask fine-tuning "
known="${only}recipe pairs export "
text=() pairs=()
[ $# -lt 3 ] || only=" "
for name in "${@:3}"; do
    if [ -f "$name" ]; then
        case $name in *.zip) pairs=("$(realpath "$name")") ;; *) text=("text.source.paths=$(realpath "$name")") ;; esac
    else
        [[ $known == *" $name "* ]] || { echo "there is no part $name: name some of$known" >&2 && exit 2; }
        only+="$name "
    fi
done
[ "$only" != " " ] || { echo "name a part beside the files: some of$known" >&2 && exit 2; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/packages" "$work/home"

logs=${2:-$work/logs}
mkdir -p "$logs" && logs=$(cd "$logs" && pwd) || exit
if [ -n "${1:-}" ]; then
    python3 -m pip install --quiet --no-index --no-deps --target "$work/packages" "$1"/*.whl || exit
fi
export PYTHONPATH=$root:$work/packages${PYTHONPATH:+:$PYTHONPATH}

# The default text is the documentation of the project's dependencies. Which these are stands in the project's metadata,
# which only installing it would write.
if ! python3 -c 'import importlib.metadata as m; m.distribution("mlm")' 2> /dev/null; then
    (cd "$root" && python3 -c 'import setuptools; setuptools.setup()' -q egg_info --egg-base "$work/packages") || exit
fi

limit=600 # seconds of a part
limits=(600 600)
workers=0
sizes=(--size 1x64 --vocabulary 2048 --quick --repeats 1)
steps=20
examples=(data.train_sentences=200 data.test_sentences=100)
shape=(train.budget.minutes=0.05 train.batch_rows=8 vocabulary.size=300 model.encoder.{width=32,heads=2,feedforward_width=64,layers=2})
most=(--most 5)
if python3 -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    limit=400
    limits=(410 70) # of recipe and pairs
    workers=6 # most of the tests' time is compiling, each kernel on one core
    sizes=(--size 12x768 --vocabulary 30000 --row-length 512 --batch-tokens 65536 --repeats 2)
    steps=300
    examples=()
    shape=()
    most=()
    # The README's figures are of this text.
    squad=${MLM_TEST_DATA:-}/english/squad11_wikipedia_paragraphs.txt.gz
    [ ! -f "$squad" ] || sizes+=(--text "$squad")
fi

# part NAME COMMAND...: run it, however it ends; what hangs must not keep the others from running.
part() {
    local name=$1 began=$SECONDS code=0
    shift
    [[ $only == *" $name "* ]] || return 0
    echo "$name: $*" >&2
    # Saving a checkpoint of 1 GB takes some of the seconds after the limit.
    timeout --kill-after=25 $limit "$@" > "$logs/$name.log" 2>&1 || code=$?
    [ $code -eq 0 ] || tail -n 40 "$logs/$name.log" >&2
    echo "$name $code $((SECONDS - began))" >> "$work/parts"
}

# Plugins that happen to be installed there would turn their warnings into errors; the project needs xdist alone.
cd "$root"
export PYTEST_DISABLE_PLUGIN_AUTOLOAD=1
part gpu-tests python3 -m pytest -p xdist.plugin -p no:cacheprovider -n $workers -m gpu --durations=5 --junitxml "$work/gpu-tests.xml" \
    $(grep -rl --include='test_*.py' 'mark\.gpu' tests)

# One folder for the runs and the benchmark: in miniature both have the same vocabulary, which is learned once.
cd "$work/home"
part benchmark python3 -m mlm.benchmark training/concatenate-and-chunk training/modernbert "${sizes[@]}" --output runs
[ ! -f runs/benchmark.json ] || cp runs/benchmark.json "$logs"
part pretraining python3 -m mlm.pretrain "train.budget.steps=$steps" name=pretraining
part fill-mask python3 -m mlm.fill_mask "Return the [MASK] of the list." --json
part fine-tuning python3 -m finetune.cnn_head train.epochs=1 name=fine-tuning "${examples[@]}"

limit=${limits[0]}
[ ${#text[@]} -gt 0 ] || text=(text.source.kind=documentation)
part recipe python3 -m mlm.pretrain gpu name=recipe "${text[@]}" "${shape[@]}"
limit=${limits[1]} # the export of a small model, too, takes less
part pairs python3 -m mlm.evaluate runs/*-recipe --json --pairs "${pairs[@]}" "${most[@]}" --plot "$logs/pairs.png"
# Weights have four bytes a number in a checkpoint, and leave with two.
part export bash -c '[ -n "$(find runs/*-recipe/checkpoints -name weights.safetensors -size +32M)" ] \
    || { python3 -m mlm.export runs/*-recipe float32 && python3 -c "$0"; }' '
import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer
AutoModelForMaskedLM.from_pretrained("float32", dtype=torch.bfloat16).save_pretrained("encoder")
AutoTokenizer.from_pretrained("float32").save_pretrained("encoder")'
for found in runs/*-recipe/{curves.png,results.json}; do
    [ ! -f "$found" ] || cp "$found" "$logs"
done
if [ -d encoder ] && [ "$(du --bytes --summarize encoder | cut -f1)" -lt $((16 << 20)) ]; then cp -r encoder "$logs"; fi

python3 -m tests.gpu_table "$work" "$logs" | tee "$logs/table.txt"
