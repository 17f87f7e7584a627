#!/bin/bash
#SBATCH --job-name=starzoo
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=16
#SBATCH --time=8:00:00
#SBATCH --signal=USR1@120
#SBATCH --open-mode=append
#SBATCH --requeue

# Fit a star on several nodes. Edit the lines above and the two below, activate starzoo's environment, and submit:
#   sbatch examples/slurm.sh user/a user/b --holdout user/c --dataset user/images
out=star
gpus=4

host=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
status=$out/status.json
rm -f -- "$status" # of an earlier attempt

# Before the time limit SLURM sends USR1 to each node's shell. The shell passes the signal on to the processes of the
# run, which write a checkpoint and end with code 75. torchrun, their parent, must not see it: it would end them at once.
srun bash -c '
    (trap "" USR1 && exec "$@") & torchrun=$!
    trap "pkill -USR1 -P $torchrun" USR1 TERM
    while kill -0 "$torchrun" 2> /dev/null; do wait "$torchrun"; done
    wait "$torchrun"
' bash torchrun --nnodes "$SLURM_JOB_NUM_NODES" --nproc_per_node "$gpus" --rdzv_id "$SLURM_JOB_ID" --rdzv_backend c10d \
    --rdzv_endpoint "$host:$((20000 + SLURM_JOB_ID % 10000))" -m starzoo.cli fit-star "$@" --out "$out"
code=$?

# torchrun ends with 1 on any failure. The run's own exit code is in its folder.
if [[ $code -ne 0 ]]; then
    own=$(sed -n 's/.*"exit_code": *\([1-9][0-9]*\).*/\1/p' -- "$status" 2> /dev/null)
    code=${own:-$code}
fi
if [[ $code -eq 75 ]]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
