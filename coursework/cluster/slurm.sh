#!/usr/bin/env bash
# Grading on Slurm: an array job in which each task takes a share of the
# submissions, as an ordinary user, each submission in bubblewrap. In the
# project's folder:
#
#   sbatch coursework/cluster/slurm.sh MASTER SUBMISSIONS OUT
#   sbatch --dependency=afterany:JOB --array=0 \
#       coursework/cluster/slurm.sh MASTER SUBMISSIONS OUT --merge
#
# JOB is the number that the first line prints; the second writes the tables.
# OUT lies on a disk that all nodes see. About 50 submissions a task: for
# another number of tasks, N, give sbatch --array=0-<N-1> and
# --export=ALL,SHARDS=N. PYTHON=... names another interpreter than .venv's.
#
# Nothing is lost: a result is a file, there whole or not at all. Submit the
# same line again, or with --array=3 for one task: results that are there are
# kept. What has none yet stands in the table as an error, never as 0 points.
#SBATCH --job-name=coursework
#SBATCH --array=0-5
#SBATCH --cpus-per-task=1
#SBATCH --mem=4G
#SBATCH --time=03:00:00
#SBATCH --output=coursework-%A_%a.log
set -euo pipefail

if [ $# -lt 3 ]; then
    echo "usage: sbatch $0 MASTER SUBMISSIONS OUT [OPTION ...]" >&2
    exit 2
fi
# Slurm runs a copy of this file: its own place says nothing.
cd "${SLURM_SUBMIT_DIR:-.}"
python=${PYTHON:-.venv/bin/python}
# Not SLURM_ARRAY_TASK_COUNT: that is 1 when a single task is run again.
shards=${SHARDS:-6}
index=${SLURM_ARRAY_TASK_ID:?run it through sbatch --array}
# One thread a process: the tasks share the processors among them.
export OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1

case " $* " in
*" --merge "*)
    exec "$python" -m coursework.grade "$@"
    ;;
esac
exec "$python" -m coursework.grade "$@" \
    --shard "$index/$shards" --resume --jobs 1
