#!/bin/sh
# shellcheck shell=dash
# /main of the guests of benches/compare-guest: reads commands from the serial console, does them, answers.
#
#   command   ID STEP ARGUMENT...
#   answer    @@ result id=ID verdict=pass|fail NAME=VALUE... text=TEXT
#             @@ end id=ID. so that the host sees when the line before is whole
#
# Disks are found by their serials: "corpus" has the data, "ours" is the daemon's. zram is the guest's own.

# Made by make-initramfs: lets the full programs win over busybox's own small ones.
# shellcheck disable=SC1091
. /etc/tools
zram=/sys/block/zram0

text='' figures=
put() { figures="$figures $*"; }
fail() { text="$*"; return 1; }
quiet() {
    "$@" >/tmp/out 2>&1 && return
    text="$1 $2: $(tail -n 2 /tmp/out | tr '\n' ' ')"
    return 1
}
vmstat() { awk -v k="$1" '$1 == k { print $2 }' /proc/vmstat; }
meminfo() { awk -v k="$1:" '$1 == k { print $2 }' /proc/meminfo; }
of_serial() { echo "/dev/$(grep -lx "$1" /sys/block/vd*/serial | cut -d/ -f4)"; }
device() {
    case $1 in
    zram) echo /dev/zram0 ;;
    *) of_serial "$1" ;;
    esac
}

# What the zram driver says of itself, and what it has beside its pool: its table, buffers, codec contexts.
put_zram() {
    local orig compr used limit max same rest beside
    # shellcheck disable=SC2034 # the limit and the rest are only in the way
    read -r orig compr used limit max same rest <$zram/mm_stat
    beside=$(awk '/\[zram\]/ { bytes += $2 } END { print bytes + 0 }' /proc/vmallocinfo)
    put orig="$orig" compr="$compr" used="$used" max="$max" same="$same" beside="$beside"
}

step_limits() {
    echo 3 >/proc/sys/vm/drop_caches
    put total_kib="$(meminfo MemTotal)" free_kib="$(meminfo MemAvailable)" algorithms="$(tr ' ' + <$zram/comp_algorithm)"
}

# zram_on ALGORITHM LEVEL BYTES: a fresh device; "-" leaves the level alone.
step_zram_on() {
    echo 1 >$zram/reset || fail "reset" || return
    echo "$1" >$zram/comp_algorithm || fail "this kernel's zram has no $1" || return
    if [ "$2" != - ]; then
        [ -e $zram/algorithm_params ] || fail "this kernel's zram takes no level" || return
        echo "algo=$1 level=$2" >$zram/algorithm_params || fail "this kernel's zram refuses level $2 of $1" || return
    fi
    echo "$3" >$zram/disksize || fail "disksize"
}
step_zram_off() { echo 1 >$zram/reset || fail "reset"; }

# copy TARGET MIB: the corpus to the start of a disk.
step_copy() {
    quiet dd if="$(of_serial corpus)" of="$(device "$1")" bs=1M count="$2" conv=fsync || return
    echo 3 >/proc/sys/vm/drop_caches
    [ "$1" != zram ] || put_zram
}
step_discard() { quiet blkdiscard "$(device "$1")"; }

# Starts a program that keeps its memory; it ends by a line into its pipe. hold PIPE ARGUMENT...
hold() {
    local pipe=$1
    shift
    rm -f "$pipe" "$pipe.out"
    mkfifo "$pipe"
    # If memory ends, the kernel should take this one and not its init.
    sh -c 'echo 1000 >/proc/self/oom_score_adj && exec workset "$@"' hold "$@" <"$pipe" >"$pipe.out" 2>&1 &
    held=$!
}
# is_held PIPE: waits until it is, or has ended.
is_held() {
    until grep -q '^held' "$1.out"; do
        kill -0 "$held" 2>/dev/null || return
        sleep 0.2
    done
}

# swap TARGET MIB TOUCHES SEED LOCKED-MIB: the job on a guest that swaps to the target. When it is done and still
# has its memory, says "@@ held" with the figures of that moment, and waits for a line.
step_swap() {
    local dev ballast out in status=0
    dev=$(device "$1")
    echo 3 >/proc/sys/vm/drop_caches
    # Reading ahead is for disks that seek.
    echo 0 >/proc/sys/vm/page-cluster
    quiet mkswap "$dev" || return
    # The daemon gets freed memory back by discards; zram is told of each slot by other means.
    if [ "$1" = zram ]; then
        quiet swapon "$dev" || return
    else
        quiet swapon -d "$dev" || return
    fi
    if [ "$5" -gt 0 ]; then
        hold /tmp/ballast lock "$5"
        ballast=$held
        exec 8>/tmp/ballast
        is_held /tmp/ballast || fail "cannot lock $5 MiB" || return
    fi
    put free_kib="$(meminfo MemAvailable)"
    out=$(vmstat pswpout) in=$(vmstat pswpin)
    hold /tmp/job "$(of_serial corpus)" "$2" "$3" "$4"
    exec 9>/tmp/job
    is_held /tmp/job
    put "$(awk '{
        for (i = 2; i <= NF; i++) { split($i, pair, "="); value[$1 "_" pair[1]] = pair[2] }
    } END {
        printf "fill_s=%s touch_s=%s check_s=%s wrong=%s", value["filled_seconds"], value["touched_seconds"],
            value["checked_seconds"], value["checked_wrong"]
    }' /tmp/job.out)"
    put pswpout="$(($(vmstat pswpout) - out))" pswpin="$(($(vmstat pswpin) - in))" \
        swap_kib="$(($(meminfo SwapTotal) - $(meminfo SwapFree)))"
    [ "$1" != zram ] || put_zram
    echo
    echo "@@ held id=$id."
    read -r _ </dev/console
    echo >&9
    exec 9>&-
    wait "$held" || status=$?
    if [ "$5" -gt 0 ]; then
        echo >&8
        exec 8>&-
        wait "$ballast"
    fi
    put status=$status
    [ $status = 0 ] || text=$(grep -v '^held' /tmp/job.out | tail -n 1)
    if dmesg | grep -E 'I/O error|BUG:|blocked for more' >/tmp/out; then
        fail "$(head -n 1 /tmp/out)"
        return
    fi
    ! dmesg -c | grep -q 'Out of memory' || text='killed: out of memory'
    quiet swapoff "$dev"
}

step_poweroff() { poweroff -f; }

stty -echo 2>/dev/null
echo
echo "@@ ready kernel=$(uname -r)"
while IFS= read -r line; do
    # shellcheck disable=SC2086
    set -- $line
    [ $# -ge 2 ] || continue
    id=$1 name=$2
    shift 2
    text='' figures=
    verdict=pass
    "step_$name" "$@" </dev/null || verdict=fail
    # A line of its own even if the kernel has just written half of one.
    echo
    echo "@@ result id=$id verdict=$verdict$figures text=$text"
    echo "@@ end id=$id."
done
