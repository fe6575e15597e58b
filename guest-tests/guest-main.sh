#!/bin/sh
# shellcheck shell=dash
# /main of the test guests: reads commands from the serial console, runs them, answers. All that it says
# to the host is a line of this form, where no value but that of text has blanks:
#
#   command   ID STEP ARGUMENT...
#   answer    @@ result id=ID verdict=pass|fail|skip NAME=VALUE... text=TEXT
#   event     @@ EVENT NAME=VALUE... text=TEXT
#
# The host decides what comes next (reboots, kills, the daemon's figures in between). What only the guest
# can see is judged here, where a user would see it; numbers go to the host, which judges them.

# Made by make-initramfs: lets the full programs win over busybox's own small ones.
# shellcheck disable=SC1091
. /etc/tools
# shellcheck source=guest-tests/guest-churn.sh
. /guest-churn.sh
# shellcheck source=guest-tests/guest-zram.sh
. /guest-zram.sh
disk=/dev/vda
sys=/sys/block/vda
mib=1048576
# The disk's parts, in MiB. The kernel is told of them without a partition table on the disk, so
# the first bytes can be tested like all others, and every boot finds the same layout.
# The first 16 MiB are scratch space for the discard test.
keep_at=16 keep_len=80     # survives boots: ledger, load, pattern
ext4_at=96 ext4_len=128
swap_at=224 swap_len=96
fio_at=320 fio_len=64
ledger_off=0 load_off=24 load_len=24 pattern_off=48 pattern_len=32 # inside keep

text='' figures=
# put NAME=VALUE...: figures of this step.
put() { figures="$figures $*"; }
fail() { text="$*"; return 1; }
skip() { text="$*"; return 77; }

# quiet COMMAND...: its output matters only if it fails.
quiet() {
    "$@" >/tmp/out 2>&1 && return
    text="$1 $2: $(tail -n 2 /tmp/out | tr '\n' ' ')"
    return 1
}

# quiet_fio OPTION...: of all that fio prints only what it found wrong matters.
quiet_fio() {
    fio "$@" >/tmp/out 2>&1 && return
    text="fio: $(grep -aE 'verify|error|err=' /tmp/out | head -n 2 | tr '\n' ' ')"
    return 1
}

make_parts() {
    local i=0 p at
    for p in "$keep_at:$keep_len" "$ext4_at:$ext4_len" "$swap_at:$swap_len" "$fio_at:$fio_len"; do
        i=$((i + 1))
        at=${p%:*}
        addpart $disk $i $((at * 2048)) $((${p#*:} * 2048)) || echo "addpart $i failed"
    done
    keep=${disk}1 ext4=${disk}2 swap=${disk}3 fiodev=${disk}4
}

show() { cat "$sys/$1" 2>/dev/null; }

# --- steps ----------------------------------------------------------------------------------------

# What Linux made of the configuration space; the host knows what it has to be.
step_limits() {
    local name
    put size="$(($(show size) * 512))" ro="$(show ro)" serial="$(show serial)"
    put queues="$(find $sys/mq -mindepth 1 -maxdepth 1 | wc -l)"
    put write_cache="$(show queue/write_cache | tr ' ' -)"
    for name in logical_block_size physical_block_size discard_max_bytes discard_granularity write_zeroes_max_bytes \
        max_segments nr_requests; do
        put $name="$(show queue/$name)"
    done
}

# Neighbours of discarded and zeroed ranges stay whole, at the unit the guest may use and below.
step_discard() {
    local l at len i start from to prev area=$((4 * mib))
    l=$(show queue/logical_block_size)
    quiet blkgen write $disk 0 $area 1 || return
    # Odd places and lengths, discard and zeroes in turn, four ways to ask for it.
    i=0 prev=0
    while [ $i -lt 16 ]; do
        at=$((i * 262144 + (i + 1) * l)) len=$(((2 * i + 1) * l))
        case $((i % 4)) in
        0) quiet blkdiscard -o $at -l $len $disk || return ;;
        1) quiet blkdiscard -z -o $at -l $len $disk || return ;;
        2) quiet fallocate -p -o $at -l $len $disk || return ;;
        3) quiet fallocate -z -o $at -l $len $disk || return ;;
        esac
        quiet blkgen zeros $disk $at $len || return
        i=$((i + 1))
    done
    i=0
    while [ $i -lt 16 ]; do
        at=$((i * 262144 + (i + 1) * l)) len=$(((2 * i + 1) * l))
        quiet blkgen verify $disk $prev $((at - prev)) 1 || { text="neighbours before $at: $text"; return 1; }
        prev=$((at + len)) i=$((i + 1))
    done
    quiet blkgen verify $disk $prev $((area - prev)) 1 || { text="neighbours after $prev: $text"; return 1; }

    # Below a page: a discard that the kernel refuses must change nothing; one that it lets through
    # must hit exactly what was asked for. (Sub-page requests that reach the daemon itself need a
    # driver that sends them: tests/ has one, Linux does not when the logical block is 4096.)
    start=$((2 * mib + 8 * 65536))
    quiet blkgen write $disk $start 65536 2 || return
    from=$((start + 4096 + 512)) to=$((from + 9 * 512))
    if blkdiscard -o $from -l $((to - from)) $disk 2>/dev/null; then
        put sector_discards=1
        quiet blkgen verify $disk $start $((from - start)) 2 || return
        quiet blkgen verify $disk $to $((start + 65536 - to)) 2 || return
    else
        put sector_discards=0
        quiet blkgen verify $disk $start 65536 2 || return
    fi
    quiet blkgen write $disk $start 65536 3 || return
    dd if=/dev/zero of=$disk bs=512 seek=$((from / 512)) count=9 conv=notrunc,fsync 2>/dev/null || fail "dd" || return
    quiet blkgen verify $disk $start $((from - start)) 3 || return
    quiet blkgen zeros $disk $from $((to - from)) || return
    quiet blkgen verify $disk $to $((start + 65536 - to)) 3 || return

    # All of the area at once (more than one request), and what follows it is untouched.
    quiet blkgen write $disk 0 $((8 * mib)) 4 || return
    quiet blkdiscard -o 0 -l $area $disk || return
    quiet blkgen zeros $disk 0 $area || return
    quiet blkgen verify $disk $area $area 4 || return
    quiet blkdiscard -z -o $area -l $area $disk || return
    quiet blkgen zeros $disk 0 $((8 * mib)) || return
    put ranges=16
}

# Two jobs, one on each CPU and so on each queue, each over its own half, written then verified.
step_fio() {
    local half=$((fio_len / 2)) common
    common="--filename=$fiodev --rw=randwrite --verify=crc32c --verify_fatal=1 --do_verify=1 --randrepeat=0
        --refill_buffers --buffer_compress_percentage=50 --thread --output-format=terse --group_reporting=0"
    # shellcheck disable=SC2086
    quiet_fio $common --name=d0 --direct=1 --ioengine=libaio --iodepth=16 --size=$((half - 8))m \
        --bssplit=4k/40:8k/15:16k/15:64k/15:256k/15 --offset=0 --cpus_allowed=0 \
        --name=d1 --filename=$fiodev --rw=randwrite --verify=crc32c --verify_fatal=1 --refill_buffers \
        --buffer_compress_percentage=50 --direct=1 --ioengine=libaio --iodepth=16 --size=$((half - 8))m \
        --bssplit=4k/40:8k/15:16k/15:64k/15:256k/15 --offset=${half}m --cpus_allowed=1 || return
    # With a logical block of 4096 only buffered I/O can be smaller: the page cache then makes
    # reads-modifies-writes of it. invalidate (fio's default) makes the verification read the disk.
    # shellcheck disable=SC2086
    quiet_fio $common --name=b --direct=0 --ioengine=psync --size=$((half / 2))m --end_fsync=1 \
        --bssplit=512/25:1k/10:3k/10:4k/20:16k/15:64k/15:256k/5 --offset=$((half / 2))m || return
    put verified_mib=$((half * 2 - 16 + half / 2))
}

step_ext4_fill() {
    quiet mkfs.ext4 -q -F $ext4 || return
    quiet mount -t ext4 -o discard $ext4 /mnt || return
    mkdir -p /mnt/real /mnt/small
    quiet tar -C /mnt/real -xf /corpus.tar || return
    # 1 to 400 lines: sizes below, at and above a page. One awk, as forks are slow under TCG.
    mkdir /mnt/small
    awk 'BEGIN {
        for (n = 0; n < 400; n++) {
            f = "/mnt/small/" n
            for (i = 0; i <= n; i++) print "file " n " of the many small ones" >f
            close(f)
        }
    }' || fail "writing small files" || return
    (cd /mnt && find . -type f -print0 | sort -z | xargs -0 md5sum) >/tmp/sums
    quiet umount /mnt || return
    # Mounted again with an empty cache, all has to come from the disk.
    echo 3 >/proc/sys/vm/drop_caches
    quiet mount -t ext4 -o discard $ext4 /mnt || return
    (cd /mnt && md5sum -c /tmp/sums) >/tmp/out 2>&1 || { fail "md5sum: $(grep -v ': OK' /tmp/out | head -n 2 | tr '\n' ' ')"; return; }
    put files="$(wc -l </tmp/sums)" mib="$(du -sm /mnt | cut -f1)"
}

# Every second file goes, by size, so that about half of the bytes do.
step_ext4_halve() {
    find /mnt/real -type f -exec stat -c '%s %n' {} + | sort -rn | awk 'NR % 2 == 0 { sub(/^[0-9]+ /, ""); print }' >/tmp/half
    tr '\n' '\0' </tmp/half | xargs -0 rm -f
    sync
    fstrim -v /mnt >/tmp/out 2>&1 || { fail "fstrim: $(cat /tmp/out)"; return; }
    sync
    put deleted="$(wc -l </tmp/half)"
}

step_ext4_trim() {
    rm -rf /mnt/real
    sync
    fstrim -v /mnt >/tmp/out 2>&1 || { fail "fstrim: $(cat /tmp/out)"; return; }
    sync
    put trimmed="$(sed -n 's/.*(\([0-9]*\) bytes).*/\1/p' /tmp/out)"
}

# The file system is consistent, and every file that is still there has its bytes.
step_ext4_check() {
    quiet umount /mnt || return
    e2fsck -fn $ext4 >/tmp/out 2>&1 || { fail "e2fsck: $(tail -n 3 /tmp/out | tr '\n' ' ')"; return; }
    echo 3 >/proc/sys/vm/drop_caches
    quiet mount -t ext4 -o discard $ext4 /mnt || return
    (cd /mnt && find . -type f) | sort >/tmp/there
    awk 'NR == FNR { there[$0] = 1; next } { name = substr($0, 35) } name in there' /tmp/there /tmp/sums >/tmp/sums2
    (cd /mnt && md5sum -c /tmp/sums2) >/tmp/out 2>&1 || { fail "md5sum of the files that stayed: $(grep -v ': OK' /tmp/out | head -n 2 | tr '\n' ' ')"; return; }
    put files="$(wc -l </tmp/sums2)" strange=$(($(wc -l </tmp/there) - $(wc -l </tmp/sums2)))
    quiet umount /mnt
}

# A file system on all of the disk, with a file on which fio can run.
step_grow_begin() {
    quiet mkfs.ext4 -q -F $disk || return
    quiet mount -t ext4 $disk /mnt || return
    mkdir /mnt/real
    quiet tar -C /mnt/real -xf /corpus.tar || return
    (cd /mnt && find real -type f -print0 | sort -z | xargs -0 md5sum) >/tmp/sums
    # shellcheck disable=SC2034 # for guest-churn
    fiodev=/mnt/churn
    head -c $((32 * mib)) /dev/zero >/mnt/churn || fail "writing zeroes" || return
    sync
}

# capacity BYTES: Linux has heard of it.
step_capacity() {
    local i=0
    until [ "$(($(show size) * 512))" = "$1" ]; do
        i=$((i + 1))
        [ $i -lt 1000 ] || { fail "the disk has $(($(show size) * 512)) bytes and not $1"; return; }
        sleep 0.1
    done
}

fs_kib() { df -k /mnt | awk 'NR == 2 { print $2 }'; }

step_grow_resize() {
    put before_kib="$(fs_kib)"
    quiet resize2fs $disk || return
    put after_kib="$(fs_kib)"
    head -c $((8 * mib)) /dev/urandom >/mnt/real/new || fail "writing" || return
    (cd /mnt && md5sum real/new) >>/tmp/sums
}

step_grow_end() {
    quiet umount /mnt || return
    e2fsck -fn $disk >/tmp/out 2>&1 || { fail "e2fsck: $(tail -n 3 /tmp/out | tr '\n' ' ')"; return; }
    echo 3 >/proc/sys/vm/drop_caches
    quiet mount -t ext4 $disk /mnt || return
    (cd /mnt && md5sum -c /tmp/sums) >/tmp/out 2>&1 || { fail "md5sum: $(grep -v ': OK' /tmp/out | head -n 2 | tr '\n' ' ')"; return; }
    put files="$(wc -l </tmp/sums)"
    quiet umount /mnt
}

discards() { awk '{ print $12 }' $sys/stat; }
vmstat() { awk -v k="$1" '$1 == k { print $2 }' /proc/vmstat; }

# shellcheck disable=SC2016
limited_hog() { sh -c 'echo $$ >/sys/fs/cgroup/hog/cgroup.procs && exec memhog "$@" 2' hog "$@"; }

# A memory limit on the hog alone makes the pressure the same in every guest.
step_swap_on() {
    quiet mkswap $swap || return
    quiet swapon -d $swap || return
    mkdir -p /sys/fs/cgroup
    [ -e /sys/fs/cgroup/cgroup.procs ] || mount -t cgroup2 cg /sys/fs/cgroup || { skip "no cgroup2 in this kernel"; return; }
    echo +memory >/sys/fs/cgroup/cgroup.subtree_control || { skip "no memory controller in this kernel"; return; }
    mkdir -p /sys/fs/cgroup/hog
    echo 24M >/sys/fs/cgroup/hog/memory.max
}

step_swap_churn() {
    local out in disc
    disc=$(discards) out=$(vmstat pswpout) in=$(vmstat pswpin)
    limited_hog 80 4 >/tmp/hog 2>&1 ||
        { fail "memhog: $(grep -v ' 0 wrong' /tmp/hog | head -n 2 | tr '\n' ' ')"; return; }
    put pages_out=$(($(vmstat pswpout) - out)) pages_in=$(($(vmstat pswpin) - in)) discards=$(($(discards) - disc))
    put "$(awk '/checked/ { checked += $4; wrong += $7 } END { print "verified=" checked + 0, "wrong=" wrong + 0 }' /tmp/hog)"
}

# A hog that holds its memory until it is told to end, to see what the host gets back.
step_hog_start() {
    local i=0 free
    limited_hog 80 1000 >/tmp/hog 2>&1 &
    hog=$!
    while [ $i -lt 1000 ]; do
        free=$(awk '$1 == "SwapFree:" { print $2 }' /proc/meminfo)
        [ "$free" -gt $(((swap_len - 48) * 1024)) ] || break
        i=$((i + 1))
        sleep 0.5
    done
    put swapped_mib=$(((swap_len * 1024 - free) / 1024))
    [ $i -lt 1000 ] || fail "memhog does not fill the swap"
}
# The swap stays on: Linux discards freed clusters from a worker, a moment later. But each processor keeps the
# last 64 slots that it freed (until 6.13), and one of them keeps its whole cluster from being discarded. The
# end of any swap, here of one that was never used, makes them give these back.
step_hog_end() {
    xargs kill -9 </sys/fs/cgroup/hog/cgroup.procs
    wait "$hog" 2>/dev/null
    quiet mkswap "$fiodev" && quiet swapon "$fiodev" && quiet swapoff "$fiodev"
}

step_pattern_write() { quiet blkgen write $keep $((pattern_off * mib)) $((pattern_len * mib)) "$1"; }
step_pattern_verify() {
    quiet blkgen verify $keep $((pattern_off * mib)) $((pattern_len * mib)) "$1" && blkgen_figures
}
# Of the last verification: "blkgen: N blocks, N wrong".
blkgen_figures() { put "$(sed -n 's/^blkgen: \([0-9]*\) blocks, \([0-9]*\) wrong$/blocks=\1 wrong=\2/p' /tmp/out)"; }

# The ledger: one MiB for each round, written once and on the disk before the round continues.
step_ledger_write() { quiet blkgen write $keep $(((ledger_off + $1) * mib)) $mib $((1000 + $1)); }
step_ledger_verify() {
    local i=1
    while [ $i -le "$1" ]; do
        quiet blkgen verify $keep $(((ledger_off + i) * mib)) $mib $((1000 + i)) || { text="round $i: $text"; return 1; }
        i=$((i + 1))
    done
    put rounds="$1"
}
# The load says "@@ load done=N" on the console: it has to be known after this guest is dead.
step_load_start() { blkgen load $keep $((load_off * mib)) $((load_len * mib)) "$1" >/dev/console 2>&1 & }
step_load_verify() { quiet blkgen verify $keep $((load_off * mib)) $((load_len * mib)) "$1" "$2" && blkgen_figures; }

# read_only LENGTH MD5: what was loaded is there, the rest is zero, and nothing can be written.
step_read_only() {
    local page=$((($1 + 4095) / 4096))
    [ "$(show ro)" = 1 ] || { fail "ro=$(show ro) in sysfs"; return; }
    [ "$(head -c "$1" $disk | md5sum | cut -d' ' -f1)" = "$2" ] || { fail "contents differ from the file that was loaded"; return; }
    quiet blkgen zeros $disk "$1" $((page * 4096 - $1 + 16 * mib)) || return
    if dd if=/dev/zero of=$disk bs=4096 count=1 conv=fsync 2>/dev/null; then
        fail "a write to a read-only disk worked"
        return
    fi
    put loaded="$1" refused_writes=1
}

# kernel_log REGEX: a test can pass while the kernel had to retry or complain; its log tells.
step_kernel_log() {
    dmesg | grep -E "$1" >/tmp/out
    put complaints="$(wc -l </tmp/out)"
    text=$(head -n 2 /tmp/out | tr '\n' ' ')
}

# images NAME:LABEL:TYPE...: disks that were filled from images, found by their serials, are what they
# were: their partitions are found, their files are right, and new ones stay.
step_images() {
    local image name type dev at=0 rest
    while read -r module; do
        insmod "$module" || { fail "no module $module"; return; }
    done </etc/modules.later
    for image; do
        name=${image%%:*} rest=${image#*:} type=${image##*:}
        dev=$(grep -lx "$name" /sys/block/vd*/serial | cut -d/ -f4)
        [ "$(cat "/sys/block/$dev/queue/logical_block_size")" = 512 ] || { fail "$name: blocks of $(cat "/sys/block/$dev/queue/logical_block_size") bytes"; return; }
        [ "$(cat "/sys/block/$dev/queue/physical_block_size")" = 4096 ] || { fail "$name: physical blocks of $(cat "/sys/block/$dev/queue/physical_block_size") bytes"; return; }
        [ "${rest%%:*}" = none ] || dev=${dev}1
        quiet mount -t "$type" "/dev/$dev" /mnt || { text="$name: $text"; return 1; }
        (cd /mnt && md5sum -c sums) >/tmp/out 2>&1 || { fail "$name: $(grep -v ': OK' /tmp/out | head -n 2 | tr '\n' ' ')"; return; }
        head -c 777777 /dev/urandom >/mnt/new
        md5sum </mnt/new >/tmp/new
        quiet umount /mnt || { text="$name: $text"; return 1; }
        quiet mount -t "$type" "/dev/$dev" /mnt || { text="$name, again: $text"; return 1; }
        [ "$(md5sum </mnt/new)" = "$(cat /tmp/new)" ] || { fail "$name: a new file is not what was written"; return; }
        quiet umount /mnt || { text="$name: $text"; return 1; }
        at=$((at + 1))
    done
    put images=$at
}

# What has the disk open would keep its name from going.
step_disk_gone() {
    local i=0
    while [ -e $sys ]; do
        i=$((i + 1))
        [ $i -lt 700 ] || { fail "$sys is still there"; return; }
        sleep 0.1
    done
}
step_disk_there() {
    local i=0
    until [ -b $disk ] && [ "$(show size)" -gt 0 ]; do
        i=$((i + 1))
        [ $i -lt 1000 ] || { fail "$disk does not appear"; return; }
        sleep 0.1
    done 2>/dev/null
    make_parts
}

step_reboot() { sync; reboot -f; }
step_poweroff() { sync; poweroff -f; }

# --------------------------------------------------------------------------------------------------

stty -echo 2>/dev/null
make_parts
echo
echo "@@ ready kernel=$(uname -r)"
while IFS= read -r line; do
    # shellcheck disable=SC2086
    set -- $line
    [ $# -ge 2 ] || continue
    id=$1 name=$2
    shift 2
    text='' figures=
    echo "-- $name $*"
    "step_$name" "$@" </dev/null
    case $? in
    0) verdict=pass ;;
    77) verdict=skip ;;
    *) verdict=fail ;;
    esac
    # A line of its own even if the kernel has just written half of one.
    echo
    echo "@@ result id=$id verdict=$verdict$figures text=$text"
done
