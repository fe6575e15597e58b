# shellcheck shell=dash
# The steps of a conformance run on the guest's own zram; part of guest-main.sh, as guest-churn.sh is. An answer is
# result=NAME, an error's or ok, and what was read in hexadecimal digits.

zram=/dev/zram0

zram_file() {
    case $1 in
    block_state) echo /sys/kernel/debug/zram/zram0/block_state ;;
    *) echo "/sys/block/zram0/$1" ;;
    esac
}

# zram_result: the name of the error that a program told in /tmp/err.
zram_result() {
    case $(cat /tmp/err) in
    *"Invalid argument"*) result=EINVAL ;;
    *"Device or resource busy"*) result=EBUSY ;;
    *"Argument list too long"*) result=E2BIG ;;
    *"Numerical result out of range"*) result=ERANGE ;;
    *"Permission denied"*) result=EACCES ;;
    *"No such device"*) result=ENODEV ;;
    *"No such file"*) result=ENOENT ;;
    *"Block device required"*) result=ENOTBLK ;;
    *"Operation not supported"*) result=ENOTSUP ;;
    *"Cannot allocate memory"*) result=ENOMEM ;;
    *"No space left on device"*) result=ENOSPC ;;
    *"/output error"* | *"I/O error"*) result=EIO ;;
    *)
        fail "an error without a name: $(tr '\n' ' ' </tmp/err)"
        return
        ;;
    esac
}

# zram_try COMMAND...: result=ok, or the name of its error.
zram_try() {
    result=ok
    "$@" >/tmp/out 2>/tmp/err || zram_result || return
    put result=$result
}

step_zram_start() {
    while read -r module; do
        insmod "$module" || { fail "no module $module"; return; }
    done </etc/modules.later
    quiet mount -t debugfs debug /sys/kernel/debug || return
    [ -b $zram ] || fail "this kernel has no $zram"
}

# zram_write NAME HEX: in one write, as a shell's echo does it.
step_zram_write() {
    # shellcheck disable=SC2059
    printf "$(echo "$2" | sed 's/../\\x&/g')" >/tmp/in
    zram_try dd if=/tmp/in of="$(zram_file "$1")" bs=64k conv=notrunc
}

step_zram_read() {
    zram_try dd if="$(zram_file "$1")" of=/tmp/text bs=64k || return
    [ $result != ok ] || put hex="$(od -An -v -tx1 /tmp/text | tr -d ' \n')"
}

# zram_fill KIND FIRST COUNT: pages of a content, of which each page of the disk has its own.
step_zram_fill() { zram_try dd if="/pages.$1" of=$zram bs=4096 skip="$2" seek="$2" count="$3" oflag=direct conv=notrunc; }

step_zram_discard() { zram_try blkdiscard -o $(($1 * 4096)) -l $(($2 * 4096)) $zram; }

# zram_check KIND FIRST COUNT: same or other.
step_zram_check() {
    zram_try dd if=$zram of=/tmp/got bs=4096 skip="$2" count="$3" iflag=direct || return
    [ $result = ok ] || return 0
    # The caller of the steps, guest-main.sh, prints this; what is read again is the result that counts.
    # shellcheck disable=SC2034
    figures=
    dd if="/pages.$1" of=/tmp/wanted bs=4096 skip="$2" count="$3" 2>/dev/null
    if cmp -s /tmp/got /tmp/wanted; then put result=same; else put result=other; fi
}

# Something has the device open.
step_zram_open() { zram_try exec_open; }
exec_open() { exec 9<>$zram; }
step_zram_close() {
    exec 9>&-
    put result=ok
}
