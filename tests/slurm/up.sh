#!/usr/bin/env bash
# A Slurm cluster of this one machine, for tests: installs Debian's packages where they are missing and starts them.
# As root, without systemd: source <(tests/slurm/up.sh) sets the variables; tests/slurm/down.sh ends what was started.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
folder=${SLURM_TEST_DIR:-${TMPDIR:-/tmp}/resnet8-quant-slurm}
host=$(hostname -s)
say() { echo "$*" >&2; } # stdout is for the variables

if ! command -v slurmctld >/dev/null || ! command -v munged >/dev/null; then
  say "installing slurm-wlm and munge"
  apt-get update -qq >&2
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends slurm-wlm munge >&2
fi
if [ -s "$folder/pids" ]; then
  say "a cluster runs already, or was killed: $here/down.sh first"
  exit 1
fi
mkdir -p "$folder"/{state,spool,log,bin}
: >"$folder/pids"
export SLURM_CONF=$folder/slurm.conf

start() { # NAME COMMAND...: in the background; down.sh finds it in the file pids
  local name=$1
  shift
  "$@" >"$folder/log/$name.out" 2>&1 &
  echo "$! $name" >>"$folder/pids"
}
wait_for() {
  for _ in $(seq 200); do
    "$@" >/dev/null 2>&1 && return 0
    sleep 0.1
  done
  say "gave up waiting for: $*; see $folder/log"
  return 1
}

# Munge signs the messages; its package makes a key when it is installed.
install -d -o munge -g munge -m 755 /run/munge
install -d -o munge -g munge -m 700 /var/lib/munge /var/log/munge
munge -n >/dev/null 2>&1 || start munged runuser -u munge -- /usr/sbin/munged -F
wait_for munge -n

memory=$(($(awk '/MemTotal/ {print $2}' /proc/meminfo) / 1024 - 512))
cat >"$SLURM_CONF" <<END
ClusterName=test
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/log/slurmctld.log
SlurmdLogFile=$folder/log/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=2
MailProg=/bin/true
KillWait=2
InactiveLimit=0
EnforcePartLimits=ALL
MinJobAge=300
NodeName=$host NodeAddr=127.0.0.1 CPUs=$(nproc) RealMemory=$memory State=UNKNOWN
PartitionName=test Nodes=ALL Default=YES MaxTime=60 State=UP
END
# There is no accounting database; submitit asks sacct, and would wait for ever for a job that was killed.
install -m 755 "$here/sacct" "$folder/bin/sacct"

start slurmctld /usr/sbin/slurmctld -D -c
wait_for scontrol ping
start slurmd /usr/sbin/slurmd -D -N "$host"
wait_for bash -c 'sinfo -h -o %t | grep -qx idle'
sinfo >&2
echo "export SLURM_CONF=$SLURM_CONF PATH=$folder/bin:\$PATH"
