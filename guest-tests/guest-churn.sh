# shellcheck shell=dash
# What test guests do while daemons come and go: passes of fio, one after the other, until told to
# stop. Sourced by guest-main.
#
# There are four rows of passes, two on each CPU and so on each queue, each over a piece of its own at
# depth 32; of different lengths, so that not all start anew at once. Rows 0 and 1 write pages, 2 and 3
# four at a time. What fio (3.33) finds wrong differs by kind of pass, so they take turns:
#
#   watch   verifies behind its back while it writes: checksum, place, and by its number that a
#           block is of this pass
#   whole   a fifth of reads beside the writes, then all of it verified: checksum, place, number
#           and seed. "randrw" is what makes fio compare seeds; with a backlog it never does.
#
# Blocks of one size in a job and no time limit: else fio compares no numbers. The queues are filled
# up only when half empty: a head that was completed then shows as such in the in-flight region for a
# while.

# shellcheck disable=SC2034,SC2154 # shares variables with guest-main
# churn_pass ROW SEED [verify]
churn_pass() {
    local row=$1 seed=$2 kind=watch how bs=4k
    [ $(((seed + row / 2) % 2)) = 0 ] || kind=whole
    [ "$row" -lt 2 ] || bs=16k
    # Without the backlog when it only verifies: that would read blocks before it knows their numbers.
    case $kind$3 in
    watch) how="--rw=randwrite --verify_backlog=128 --verify_backlog_batch=32" ;;
    watchverify) how="--rw=randwrite --verify_only" ;;
    whole) how="--rw=randrw --rwmixread=20" ;;
    wholeverify) how="--rw=randrw --rwmixread=20 --verify_only" ;;
    esac
    # shellcheck disable=SC2086
    fio --name=churn --filename=$fiodev --direct=1 --ioengine=libaio --iodepth=32 --iodepth_low=16 \
        --thread --cpus_allowed=$((row % 2)) --offset=$((row * 8))m --size=$((row + 2))m --bs=$bs \
        --randrepeat=1 --randseed="$seed" $how --verify=crc32c --verify_fatal=1 --do_verify=1 \
        --refill_buffers --buffer_compress_percentage=50 --buffer_compress_chunk=4k \
        --output-format=terse >/tmp/churn.out."$row" 2>&1 && return
    echo "pass $seed of row $row ($kind${3:+, verified again}): $(
        grep -aE 'verify|error|err=' /tmp/churn.out."$row" | head -n 2 | tr '\n' ' '
    )" >/tmp/churn.failed
    # On the console, too: the host reads it after each restart.
    echo "@@ churn-failed row=$row pass=$seed text=$(cat /tmp/churn.failed)" >/dev/console
    return 1
}

churn() { # ROW SEED
    local seed=$2
    while [ ! -e /tmp/churn.stop ]; do
        churn_pass "$1" "$seed" || return
        echo "$seed" >/tmp/churn.last."$1"
        echo "@@ churn row=$1 done=$seed" >/dev/console
        seed=$((seed + 1))
    done
}

# churn_start SEED
step_churn_start() {
    local row
    rm -f /tmp/churn.*
    churners=
    for row in 0 1 2 3; do
        churn $row "$1" &
        churners="$churners $!"
    done
}

# churn_stop FIRST-SEED: lets the passes under way end, then reads all of them again.
step_churn_stop() {
    local row seed passes=0 mib_done=0 again=
    : >/tmp/churn.stop
    # shellcheck disable=SC2086
    wait $churners
    [ ! -e /tmp/churn.failed ] || { fail "$(cat /tmp/churn.failed)"; return; }
    for row in 0 1 2 3; do
        read -r seed </tmp/churn.last.$row || { fail "no pass of fio has ended in row $row"; return; }
        passes=$((passes + seed - $1 + 1)) mib_done=$((mib_done + (seed - $1 + 1) * (row + 2)))
        churn_pass $row "$seed" verify &
        again="$again $!"
    done
    # shellcheck disable=SC2086
    wait $again
    [ ! -e /tmp/churn.failed ] || { fail "$(cat /tmp/churn.failed)"; return; }
    put passes=$passes mib=$mib_done
}
