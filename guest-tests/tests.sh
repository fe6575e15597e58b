# shellcheck shell=bash
# The tests themselves, as the host sees them. Sourced by run.
#
# t_NAME returns 0 (pass), 1 (fail) or 77 (skip) and leaves a word on it in ANSWER. They run in
# this order on one daemon, with a guest that is booted again only where the test is about that; the
# last ones start daemons of their own (state.sh has more of these).

# shellcheck disable=SC2034 # run, host.sh and tests.sh share their variables

TESTS=(limits discard fio ext4 compact fstrim e2fsck swap swap-freed reboot qemu-exit restarts
    kernel-log daemon-stats blank-restart daemon-exit read-only engine
    kills terms state-cold defaults microvm images bios unshared)
# These start daemons and guests of their own.
OWN_DAEMON='read-only engine kills terms state-cold defaults microvm bios unshared'

# No blanks: it travels to the guest as one word.
COMPLAINTS='I/O.error|critical.(target|medium|space)|EXT4-fs.(error|warning)|blocked.for.more|BUG:|WARNING:|Call.Trace|virtio_blk.*(fail|error)|not.a.head'

describe() {
    case $1 in
    limits) echo "size, block size, queues, discard limits, serial, cache mode as Linux sees them" ;;
    discard) echo "discards and zeroes at odd places, also unaligned: neighbours stay intact" ;;
    fio) echo "fio --verify, 512 B to 256 KiB, on two queues" ;;
    ext4) echo "ext4 -o discard, many files, remount, checksums" ;;
    compact) echo "half of the files deleted and trimmed, the daemon told to compact: its arena shrinks by that" ;;
    fstrim) echo "the daemon's memory shrinks after files are deleted and trimmed" ;;
    e2fsck) echo "e2fsck -fn after all that, and the other files are intact" ;;
    swap) echo "swap under memory pressure: every page verified, discards sent" ;;
    swap-freed) echo "the daemon's memory shrinks after the swapping program ends" ;;
    reboot) echo "the guest reboots inside one QEMU, under load: data still there" ;;
    qemu-exit) echo "QEMU ends and a new one starts on the same daemon: data still there" ;;
    restarts) echo "QEMU started again and again under load, half of them by SIGKILL: nothing lost" ;;
    kernel-log) echo "the guest's kernel had no complaint" ;;
    daemon-stats) echo "the daemon's figures: no failed request, stored and arena bytes add up" ;;
    blank-restart) echo "a new, blank daemon does not show a blank disk to a running guest" ;;
    daemon-exit) echo "SIGTERM: exit status 0 after a summary" ;;
    engine) echo "fio --verify on an engine that reorders, refuses a tenth of its jobs and fails a hundredth" ;;
    kills) echo "daemon with a state SIGKILLed at random moments under fio --verify, a new one at once: nothing lost" ;;
    terms) echo "the same by SIGTERM: the daemon leaves nothing in flight, the guest sees a pause" ;;
    state-cold) echo "QEMU and daemon both end, also by SIGKILL under load: the state has all data" ;;
    defaults) echo "QEMU's default options: boots, survives three SIGKILLs of the daemon, disk detached and attached" ;;
    microvm) echo "the same on a microvm, whose disk is behind virtio-mmio and cannot be detached" ;;
    images) echo "seven ordinary images (GPT, MBR, ext4, vfat, xfs, btrfs) loaded: mounted, right, writable" ;;
    bios) echo "a loaded disk boots: firmware, boot loader, kernel, its own file system" ;;
    unshared) echo "guest memory that is not shared: the daemon says what is missing" ;;
    read-only) echo "a disk filled by --load and served with --read-only: right contents, no writes" ;;
    esac
}

mb() { awk -v b="${1:-0}" 'BEGIN { printf "%.1f MiB", b / 1048576 }'; }

t_limits() { ask 20 limits "$(bytes "$SIZE")" "$QUEUES" "$SERIAL"; }
t_discard() { ask 60 discard; }
t_fio() { ask 180 fio; }

t_ext4() {
    ask 120 ext4_fill || return
    EXT4_READY=$GUEST_PID
}

# shrunk BEFORE BYTES: since BEFORE, "orig_data_size mem_used_total", both have fallen, the former by BYTES.
shrunk() {
    local o0 m0 o1 m1
    read -r o0 m0 <<<"$1"
    read -r o1 m1 < <(stat_of orig_data_size mem_used_total) || no_stats || return
    ANSWER="stored $(mb "$o0") -> $(mb "$o1"), arena $(mb "$m0") -> $(mb "$m1")"
    if [ "$o1" -ge $((o0 - $2)) ] || [ "$m1" -ge $((m0 - $2 / 8)) ]; then
        ANSWER="the memory did not come back: $ANSWER"
        return 1
    fi
}

# until_upkeep COMMAND...: tries it again and again, since what is freed goes back to the host by itself,
# within two seconds where the machine is not busy.
until_upkeep() {
    local end=$((SECONDS + 15 * PATIENCE))
    until "$@"; do
        [ $SECONDS -lt $end ] || return 1
        sleep 0.5
    done
}

no_stats() {
    ANSWER="the daemon gives no figures on SIGUSR1"
    return 1
}

t_compact() {
    local deleted o0 c0 m0 o1 c1 m1 moved
    [ "${EXT4_READY:-}" = "$GUEST_PID" ] || ask 120 ext4_fill || return
    EXT4_READY=$GUEST_PID
    read -r o0 c0 m0 < <(stat_of orig_data_size compr_data_size mem_used_total) || no_stats || return
    ask 60 ext4_halve || return
    deleted=$ANSWER
    moved=$(daemon_compact "$DAEMON_PID" "$DAEMON_LOG") || { ANSWER="the daemon does not compact on SIGUSR2"; return 1; }
    read -r o1 c1 m1 < <(stat_of orig_data_size compr_data_size mem_used_total) || no_stats || return
    ANSWER="$deleted; stored $(mb "$o0") -> $(mb "$o1"), compressed $(mb "$c0") -> $(mb "$c1"), arena $(mb "$m0") -> $(mb "$m1"); ${moved#compacted: }"
    # By nine tenths of the compressed bytes that went, and down to what objects need and 5 %.
    [ "$c1" -lt "$c0" ] && [ $((m0 - m1)) -ge $(((c0 - c1) * 9 / 10)) ] && [ "$m1" -le $((c1 + c1 / 20 + (512 << 10))) ]
}

t_fstrim() {
    local before trimmed
    [ "${EXT4_READY:-}" = "$GUEST_PID" ] || ask 120 ext4_fill || return
    EXT4_READY=$GUEST_PID
    before=$(stat_of orig_data_size mem_used_total) || no_stats || return
    ask 60 ext4_trim || return
    trimmed=$ANSWER
    # At least a quarter of the corpus has to be gone (the test before took half); it compresses to
    # well over an eighth.
    until_upkeep shrunk "$before" $((CORPUS_MIB << 18)) || return
    ANSWER+="; ${trimmed#/mnt: }"
}

t_e2fsck() {
    if [ "${EXT4_READY:-}" != "$GUEST_PID" ]; then
        ask 120 ext4_fill || return
    fi
    EXT4_READY=
    ask 90 ext4_check
}

t_swap() {
    ask 120 swap_fill || return
    SWAP_ON=$GUEST_PID
}

t_swap-freed() {
    local before
    # With memhog still there its pages are in swap; when it ends Linux discards what it frees.
    [ "${SWAP_ON:-}" = "$GUEST_PID" ] || ask 120 swap_fill || return
    SWAP_ON=
    ask 60 hog_start || return
    before=$(stat_of orig_data_size mem_used_total) || no_stats || return
    ask 60 hog_end || return
    until_upkeep shrunk "$before" $((16 << 20))
}

# Requests are in flight when the device is reset, as in a real reboot of a busy machine.
t_reboot() {
    local seed=900000 last
    ask 40 pattern_write 1 || return
    ask 10 load_start $seed || return
    expect "^blkgen: done $seed" 60 || return
    tell reboot
    expect_ready || return
    BOOTS=$((BOOTS + 1))
    last=$(last_done)
    ask 40 pattern_verify 1 || return
    ask 40 load_verify "$last" $((last + 3)) || return
    ANSWER="in the same QEMU, under load: the pattern and all of pass $((last - seed + 1)) are there"
}

# The last pass of the load that the guest reported.
last_done() { tr -d '\r' <"$GUEST_LOG" | sed -n 's/^blkgen: done \([0-9]*\)$/\1/p' | tail -n 1; }

t_qemu-exit() {
    ask 40 pattern_write 2 || return
    tell poweroff
    if ! wait_gone "$GUEST_PID" $((20 * PATIENCE)); then
        ANSWER="QEMU does not end after poweroff"
        stop_guest
        return 1
    fi
    forget_guest
    start_guest || return
    ask 40 pattern_verify 2
}

# Each round leaves a mark that is on the disk before the round goes on (the ledger), then writes
# as fast as it can (the load) while QEMU is taken away. The next round finds all marks of all
# rounds, and of the load every block that was reported done, or one that was newer.
t_restarts() {
    local i done_seed=0 last how passes=0 kills=0
    for ((i = 1; i <= ROUNDS; i++)); do
        ask 40 ledger_verify $((i - 1)) || return
        if [ $i -gt 1 ]; then
            # Three ahead: "done" lines on their way out of the serial port die with QEMU.
            ask 40 load_verify "$done_seed" $((done_seed + 3)) || return
        fi
        ask 40 ledger_write "$i" || return
        ask 10 load_start $((done_seed + 10)) || return
        if ! expect "^blkgen: done $((done_seed + 11))" 60; then
            ANSWER="round $i, no progress under load: $ANSWER"
            return 1
        fi
        # Not always at the same place in a pass.
        sleep "0.$(((i * 37) % 10))"
        how=TERM
        if [ $((i % 2)) = 1 ]; then
            how=KILL
            kills=$((kills + 1))
        fi
        end_guest $how
        last=$(last_done)
        passes=$((passes + last - done_seed - 9))
        done_seed=$last
        if tr -d '\r' <"$GUEST_LOG" | grep -a '^blkgen:' | grep -avq '^blkgen: done'; then
            ANSWER="round $i: $(tr -d '\r' <"$GUEST_LOG" | grep -a '^blkgen:' | grep -av '^blkgen: done' | head -n 1)"
            return 1
        fi
        [ -z "${PROGRESS:-}" ] || say "    round $i of $ROUNDS done (SIG$how)"
        start_guest || { ANSWER="round $i: $ANSWER"; return 1; }
    done
    ask 40 ledger_verify "$ROUNDS" || return
    ask 40 load_verify "$done_seed" $((done_seed + 3)) || return
    ANSWER="$ROUNDS times ($kills by SIGKILL), $passes passes of 24 MiB under load, all marks there"
}

# Of this boot in full, and of all boots so far what reached the console (warnings and worse). What
# comes between the command to reboot and the reboot is left out: a Linux that shuts its devices
# down fails what a program submits after that by itself, whatever the back end (seen with 6.1 on
# QEMU's own storage daemon, too).
t_kernel-log() {
    local found
    found=$(cat "$LOGS"/guest-*.log | tr -d '\r' | sed '/^-- reboot/,/Restarting system/d' | grep -a '^\[ *[0-9.]*\]' | grep -aEm1 "$COMPLAINTS" || true)
    if [ -n "$found" ]; then
        ANSWER="in an earlier boot: $found"
        return 1
    fi
    ask 20 kernel_log "$COMPLAINTS" || return
    ANSWER="no complaint in $BOOTS boots so far"
}

t_daemon-stats() {
    local orig compr mem fr fw
    read -r orig compr mem fr fw < <(stat_of orig_data_size compr_data_size mem_used_total failed_reads failed_writes) ||
        no_stats || return
    ANSWER="stored $(mb "$orig"), compressed $(mb "$compr"), arena $(mb "$mem"), failed reads $fr, failed writes $fw"
    [ "${fr:-x}" = 0 ] && [ "${fw:-x}" = 0 ] && [ "${compr:-0}" -gt 0 ] &&
        [ "$compr" -le "$orig" ] && [ "$mem" -ge "$compr" ]
}

# A store in memory dies with its daemon. A new one must not answer a guest that is still running
# on the old contents: that guest would see zeroes where its data was.
t_blank-restart() {
    ask 40 pattern_write 5 || return
    kill_daemon
    start_daemon "$ALGORITHM" || return
    tell pattern_verify 5
    # QEMU tries again every second; the read must wait, or fail, but not succeed with zeroes.
    if PATIENCE=1 expect "^@@ $SEQ (pass|fail|skip)" 6; then
        case $ANSWER in
        *" pass "*) ANSWER="the new daemon has the old data" ;;
        *Input/output*) ANSWER="refused: the guest gets I/O errors" ;;
        *) ANSWER="a running guest was shown another disk: ${ANSWER#@@ * * }"; stop_guest; return 1 ;;
        esac
    elif alive "$GUEST_PID"; then
        ANSWER="refused: the guest waits"
    else
        ANSWER="QEMU died when its daemon was replaced"
        stop_guest
        return 1
    fi
    stop_guest
    # The newcomer's own guests are served.
    start_guest || return
    ask 40 pattern_write 6 || return
    ask 40 pattern_verify 6 || return
    ANSWER="refused to the running guest, served to the next"
}

t_daemon-exit() {
    stop_guest
    if ! stop_daemon; then
        ANSWER="the daemon did not end within $((10 * PATIENCE)) s of SIGTERM"
        return 1
    fi
    ANSWER="exit status $DAEMON_STATUS, $(grep -ac '^summary: ' "$DAEMON_LOG" || true) summary line(s)"
    [ "$DAEMON_STATUS" = 0 ] && grep -aq '^summary: ' "$DAEMON_LOG"
}

# The engine is asked for everything, so also where the codec would be fast enough inline.
t_engine() {
    local rc=0 jobs refused failed fell fr fw fio
    stop_guest
    stop_daemon || true
    start_daemon "$ALGORITHM" --engine-model reorder=8,refuse=10%,fail=1%,seed=3 || return
    start_guest || return
    ask 240 fio || rc=$?
    fio=$ANSWER
    read -r jobs refused failed fell fr fw < <(stat_of engine_jobs engine_refusals engine_failures \
        engine_fallbacks failed_reads failed_writes) || no_stats || rc=1
    stop_guest
    stop_daemon || true
    ANSWER="$fio; $jobs jobs, $refused refused, $failed failed, $fell done inline, failed requests ${fr:-x} + ${fw:-x}"
    [ $rc = 0 ] && [ "${fr:-x}" = 0 ] && [ "${fw:-x}" = 0 ] && [ "${refused:-0}" -gt 0 ] &&
        [ "${failed:-0}" -gt 0 ] && [ "${fell:-0}" -ge $((refused + failed)) ]
}

t_read-only() {
    local sum rc=0
    stop_guest
    stop_daemon || true
    sum=$(md5sum <"$RUN/corpus.tar")
    start_daemon "$ALGORITHM" --load "$RUN/corpus.tar" --load-format raw --read-only || return
    start_guest || return
    ask 60 read_only "$(stat -c %s "$RUN/corpus.tar")" "${sum%% *}" || rc=$?
    stop_guest
    stop_daemon || true
    return $rc
}
