#!/bin/bash
# A Slurm job that submits itself again until its program has finished: sbatch job.sh
#SBATCH --job-name=survey
#SBATCH --nodes=1
#SBATCH --time=01:00:00
#SBATCH --signal=B:TERM@120

python survey.py "$@" &
program=$!
trap 'kill -TERM $program' TERM  # Slurm signals this script, which passes the signal on

wait $program
status=$?
while [ $status -gt 128 ] && kill -0 $program 2>/dev/null; do  # the signal interrupted `wait`
    wait $program
    status=$?
done

if [ $status -eq 75 ]; then  # rhapsody.EXIT_RESUBMIT: tasks are left
    sbatch job.sh "$@"
    status=0
fi
exit $status
