/*
 * addpart: tells the kernel of a partition, without a partition table on the disk.
 *
 * usage: addpart DEVICE NUMBER START LENGTH      (in sectors of 512 bytes)
 *
 * util-linux has this program, too, but not every distribution installs it.
 */
#include <fcntl.h>
#include <linux/blkpg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>

int main(int argc, char **argv)
{
	struct blkpg_partition part = { 0 };
	struct blkpg_ioctl_arg arg = { .op = BLKPG_ADD_PARTITION, .datalen = sizeof(part), .data = &part };
	int fd;

	if (argc != 5) {
		fprintf(stderr, "usage: addpart DEVICE NUMBER START LENGTH\n");
		return 2;
	}
	part.pno = atoi(argv[2]);
	part.start = strtoll(argv[3], NULL, 0) * 512;
	part.length = strtoll(argv[4], NULL, 0) * 512;
	fd = open(argv[1], O_RDONLY);
	if (fd < 0 || ioctl(fd, BLKPG, &arg)) {
		perror(argv[1]);
		return 1;
	}
	return 0;
}
