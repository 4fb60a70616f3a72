#!/bin/bash
# reste slurm render configs/imagenet/resnet18_reste.yaml data.root=/data/imagenet --nodes 2 --gpus-per-node 8 --time 24:00:00 --container reste.sif --mount /data/imagenet
#SBATCH --job-name=resnet18_reste
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
#SBATCH --nodes=2 --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue

RUN=runs/resnet18_reste
REQUEUES=20  # at most
FAILURES=3  # in a row that saved no checkpoint, at most
JOB=$RUN/slurm/$SLURM_JOB_ID

# A signal to this shell becomes the run's STOP file: all ranks see it, save and leave together. TERM means that SLURM
# ends the job: by scancel, or by preemption, after which SLURM itself may queue it again.
listen() { trap 'touch "$RUN/STOP"' USR1; trap 'touch "$RUN/STOP"; ending=1' TERM; }
alone() {
    (trap "" USR1 TERM; "$@") &
    while wait $!; kill -0 $! 2>/dev/null; do :; done  # a signal ends a wait early
}

# On every node: one agent with all of its GPUs, which starts the ranks. SLURM runs this script on node 0, so
# that the address from which srun was started is where the agents meet; rank 0 may be on any node.
agent() {
    apptainer exec --nv --pwd "$PWD" --bind "$PWD" --bind /data/imagenet reste.sif \
        torchrun --nnodes=2 --node-rank="$SLURM_NODEID" --nproc-per-node=8 \
        --master-addr="$SLURM_LAUNCH_NODE_IPADDR" --master-port="$PORT" --rdzv-id="$SLURM_JOB_ID" \
        -m trainer configs/imagenet/resnet18_reste.yaml data.root=/data/imagenet
}

newest() { ls "$RUN/checkpoints" 2>/dev/null | grep '^step_[0-9]*$' | tail -n 1 | grep . || echo "the beginning"; }
stuck() { [ "$(tail -n "$FAILURES" "$JOB.starts" | grep -cxF "$(newest)")" = "$FAILURES" ]; }
finish() { echo "$(date -Is) $2" | tee -a "$JOB.history"; exit "$1"; }
requeue() {
    [ "${SLURM_RESTART_COUNT:-0}" -lt "$REQUEUES" ] || finish "$code" "$1; requeued $REQUEUES times, now over"
    echo "$(date -Is) $1; requeued, to go on from $(newest)" | tee -a "$JOB.history"
    scontrol requeue "$SLURM_JOB_ID"
    exit "$code"
}

mkdir -p "$RUN/slurm" && touch "$JOB.starts" || exit 1
[ ! -e "$JOB.finished" ] || finish 0 "finished in an earlier start"
! stuck || finish 1 "$FAILURES starts in a row saved no checkpoint; last: $(newest)"
newest >> "$JOB.starts"
rm -f "$JOB.code" "$RUN/STOP"
export RESTE_STARTED_AT=$(date +%s.%N)  # a STOP file from here on is meant for this start
listen

export RESTE_EXIT_FILE=$JOB.code  # torchrun turns every exit code into 1; the ranks leave theirs here
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=120  # else torchrun kills the ranks 30 s after a TERM, while they save
# A port that nobody listens on, below those that the kernel gives to outgoing connections.
until PORT=$((15000 + RANDOM % 15000)); ! (: < "/dev/tcp/127.0.0.1/$PORT") 2>/dev/null; do :; done
# Ranks notice a lost peer by themselves; --wait ends those that do not.
alone srun --cpus-per-task="$SLURM_CPUS_ON_NODE" --wait=60 \
    bash -c "$(declare -p RUN PORT; declare -f listen alone agent); listen; alone agent"
trap "" USR1; trap "ending=1" TERM; rm -f "$RUN/STOP"  # from here on it would stop the next start

code=$(cat "$JOB.code" 2>/dev/null || echo 1)
[ -z "$ending" ] || finish "$code" "ended by SLURM with exit code $code; last checkpoint: $(newest)"
case $code in
    0) touch "$JOB.finished"; finish 0 "finished" ;;
    85) requeue "stopped on request" ;;
    2 | 3 | 4) finish "$code" "ended with exit code $code: starting again would not help" ;;
esac
! stuck || finish 1 "failed $FAILURES times in a row without a new checkpoint; last: $(newest)"
requeue "failed, see above"
