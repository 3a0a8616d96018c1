#!/usr/bin/env bash
# Both pipelines at their smallest with another version of Python: tests/smoke.sh 3.12
# Where the interpreter or its packages are missing, a line says so.
set -euo pipefail
cd "$(dirname "$0")/.."
version=$1
environment=build/smoke-$version
for python in "python$version" "$HOME"/.pyenv/versions/"$version".*/bin/python; do
  "$python" -c '' 2>/dev/null && break
  python=
done
if [ -z "$python" ]; then
  echo "smoke: Python $version is not here"
  exit 0
fi
if [ ! -e "$environment/.installed" ]; then
  "$python" -m venv "$environment"
  if ! timeout 300 "$environment/bin/pip" install --quiet --constraint tests/constraints.txt --editable '.[train]' \
    2>"$environment/pip.log"; then
    echo "smoke: the packages for Python $version cannot be installed in five minutes, see $environment/pip.log"
    exit 0
  fi
  touch "$environment/.installed"
fi
root=$PWD
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
cd "$scratch"
export OMP_NUM_THREADS=1
v() { "$root/$environment/bin/python" -m vlatool --quiet "$@" >/dev/null; }
train() { v train "$@" --set total_train_steps=1 --data.num-workers 0; }

v sample spartan raw --episodes 2
v preprocess spartan raw --preset world-windows --output data
train --preset diffusion-policy-tiny --data data --output runs/policy
v verify runs/policy

v sample libero libero --episodes 4
v preprocess libero libero --preset future-vla-tiny-data --output A
v preprocess images A --output shards
train --preset future-vla-tiny-tokenizer --data shards --output runs/tokenizer
v encode A --tokenizer runs/tokenizer
v tokenizer fit-fast A --output fast --vocab-size 256 --scale 5
v build-dataset A --preset future-vla-tiny-build --fast fast
v compose --tiny --output start
train --preset future-vla-tiny --init-from start --data A/samples --output runs/vla
v verify A/samples
echo "smoke: both pipelines work with Python $version"
