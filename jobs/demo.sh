#!/usr/bin/env bash
# The demo: environment, base model, two reward models, three iterations of online DPO, report.
# bash jobs/demo.sh [key=value ...]     e.g. bash jobs/demo.sh seed=1 run_dir=runs/demo-seed1
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
cd "$ROOT"

echo "psyco_ray demo: trains SmolLM2-135M on the packaged synthetic speeches with 2 cores; about 9 minutes once installed, 15 on a busy machine"
prepare_environment
.venv/bin/psyco-ray demo jobs/demo.yaml --resume "$@"
