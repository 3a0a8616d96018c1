#!/usr/bin/env bash
# Policies of lerobot, and what depends on versions of transformers, in an environment of its own:
# the package caps torch, transformers and numpy.
set -euo pipefail
cd "$(dirname "$0")/.."
environment=build/lerobot
for python in python3.12 "$HOME"/.pyenv/versions/3.12.*/bin/python; do
  "$python" -c '' 2>/dev/null && break
  python=
done
if [ -z "$python" ]; then
  echo "lerobot: Python 3.12 is not here, so its policies are not tested"
  exit 0
fi
if [ ! -e "$environment/.installed" ]; then
  "$python" -m venv "$environment"
  "$environment/bin/pip" install --quiet --editable '.[lerobot,hdf5,serve]' \
    'lerobot[dataset]' 'pytest>=8.3' 'pytest-timeout>=2.3' 'hypothesis>=6.120'
  "$environment/bin/pip" check
  touch "$environment/.installed"
fi
OMP_NUM_THREADS=1 "$environment/bin/python" -m pytest tests/integration/test_lerobot.py \
  tests/integration/test_lerobot_files.py tests/integration/test_upload.py \
  tests/unit/training/test_forecast.py tests/unit/models
