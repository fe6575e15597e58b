#!/bin/sh
# shellcheck shell=dash
# /main of a guest that the firmware booted from the disk: says what it finds there.
while read -r module; do
    insmod "$module"
done </etc/modules.later
echo
echo "@@ ready kernel=$(uname -r)"
mount -t ext4 -o ro /dev/vda1 /mnt
echo "@@ booted block=$(cat /sys/block/vda/queue/logical_block_size) md5=$(md5sum </mnt/vmlinuz | cut -d' ' -f1)"
# The host ends this machine.
while :; do sleep 1000; done
