/*
 * blkgen: writes blocks that can be recognised, and recognises them.
 *
 * usage: blkgen write  DEV OFFSET LENGTH SEED        write the region, two threads, then fdatasync
 *        blkgen verify DEV OFFSET LENGTH SEED [LAST] each block has the content of SEED .. LAST
 *        blkgen zeros  DEV OFFSET LENGTH             the region reads as zeroes
 *        blkgen load   DEV OFFSET LENGTH SEED        write the region with SEED, SEED+1, ... until
 *                                                    killed; says "@@ load done=N" after each
 *
 * Content is a function of block number and seed, so a lost, misplaced, torn or mixed-up write
 * shows, and nothing has to be remembered over a crash: after "done=N" each block must be of
 * seed N or N+1, as pass N+1 may have been under way. OFFSET and LENGTH may be anything for
 * verify and zeros; else multiples of 4096. All I/O is O_DIRECT, so that it is the disk
 * that is tested and not the guest's page cache. Exit 0 if all is well.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define BLOCK 4096ull
#define MAX_IO (256 << 10)
#define THREADS 4 /* two on each CPU: each queue has more than one request in flight */

static const char *dev;
static uint64_t offset, length, seed;
static int failed;

static uint64_t mix(uint64_t x)
{
	x += 0x9e3779b97f4a7c15ull;
	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
	x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
	return x ^ (x >> 31);
}

/* Every way a page can be stored: same-filled by a narrow and by a wide word, raw, compressed. */
static void content(char *out, uint64_t block, uint64_t s)
{
	uint64_t r = mix(block * 1000003 + s), *w = (uint64_t *)out;
	unsigned kind = mix(r) & 7;

	for (unsigned i = 0; i < BLOCK / 8; i++)
		switch (kind) {
		case 0:
			w[i] = (r & 0xffffffff) * 0x100000001ull;
			break;
		case 1:
			w[i] = r;
			break;
		case 2:
		case 3:
			w[i] = mix(r + i);
			break;
		default: /* about a quarter of the words carries entropy */
			w[i] = (i & 3) ? r >> (i & 31) : mix(r + i);
			break;
		}
}

static int open_dev(int flags)
{
	int fd = open(dev, flags | O_DIRECT | O_CLOEXEC);

	if (fd < 0) {
		fprintf(stderr, "blkgen: %s: %s\n", dev, strerror(errno));
		exit(2);
	}
	return fd;
}

static char *buffer(void)
{
	void *p;

	if (posix_memalign(&p, BLOCK, MAX_IO))
		exit(2);
	return p;
}

static void io_error(const char *what, uint64_t at)
{
	printf("blkgen: %s at %llu failed: %s\n", what, (unsigned long long)at, strerror(errno));
	failed = 1;
}

/* Thread n of THREADS writes its share of the region in pieces of 4 KiB to 256 KiB. */
static void *writer(void *arg)
{
	uint64_t n = (uintptr_t)arg, share = length / BLOCK / THREADS * BLOCK;
	uint64_t at = offset + n * share, end = n == THREADS - 1 ? offset + length : at + share;
	uint64_t r = seed * THREADS + n;
	int fd = open_dev(O_RDWR);
	char *buf = buffer(), *back = buffer();
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(n % (uint64_t)sysconf(_SC_NPROCESSORS_ONLN), &set);
	sched_setaffinity(0, sizeof(set), &set);
	while (at < end && !failed) {
		uint64_t len = BLOCK << ((r = mix(r)) % 7);

		if (len > end - at)
			len = end - at;
		for (uint64_t o = 0; o < len; o += BLOCK)
			content(buf + o, (at + o) / BLOCK, seed);
		if (pwrite(fd, buf, len, (off_t)at) != (ssize_t)len)
			io_error("write", at);
		/* Every fourth is read back at once: reads beside writes, and no stale answer. */
		if ((r & 3) == 0) {
			if (pread(fd, back, len, (off_t)at) != (ssize_t)len)
				io_error("read", at);
			else if (memcmp(buf, back, len)) {
				printf("blkgen: read after write differs at %llu\n",
				       (unsigned long long)at);
				failed = 1;
			}
		}
		at += len;
	}
	if (fdatasync(fd))
		io_error("fdatasync", at);
	close(fd);
	free(buf);
	free(back);
	return NULL;
}

static int write_pass(void)
{
	pthread_t t[THREADS];

	for (uintptr_t i = 0; i < THREADS; i++)
		if (pthread_create(&t[i], NULL, writer, (void *)i))
			exit(2);
	for (int i = 0; i < THREADS; i++)
		pthread_join(t[i], NULL);
	return failed;
}

/* Reads the region; blank: wants zeroes, else content of one of the seeds seed .. last. */
static int verify(int blank, uint64_t last)
{
	uint64_t at = offset / BLOCK * BLOCK, end = (offset + length + BLOCK - 1) / BLOCK * BLOCK;
	uint64_t bad = 0, blocks = 0;
	int fd = open_dev(O_RDONLY);
	char *buf = buffer(), want[BLOCK];

	while (at < end) {
		uint64_t len = end - at < MAX_IO ? end - at : MAX_IO;

		if (pread(fd, buf, len, (off_t)at) != (ssize_t)len) {
			io_error("read", at);
			return 1;
		}
		for (uint64_t o = 0; o < len; o += BLOCK, blocks++) {
			/* Only the bytes of the region count at its two ends. */
			uint64_t b = at + o, from = b < offset ? offset - b : 0;
			uint64_t to = b + BLOCK > offset + length ? offset + length - b : BLOCK;
			uint64_t s = blank ? last : seed;
			int good = 0;

			for (; s <= last && !good; s++) {
				if (blank)
					memset(want, 0, sizeof(want));
				else
					content(want, b / BLOCK, s);
				good = !memcmp(buf + o + from, want + from, to - from);
			}
			if (good)
				continue;
			if (bad++ == 0) {
				while (from < to && buf[o + from] == want[from])
					from++;
				printf("blkgen: first wrong block at %llu, byte %llu, is %016llx...\n",
				       (unsigned long long)b, (unsigned long long)from,
				       (unsigned long long)*(uint64_t *)(buf + o));
			}
		}
		at += len;
	}
	printf("blkgen: %llu blocks, %llu wrong\n", (unsigned long long)blocks,
	       (unsigned long long)bad);
	return bad != 0;
}

int main(int argc, char **argv)
{
	setvbuf(stdout, NULL, _IOLBF, 0);
	if (argc < 5 || (argc < 6 && strcmp(argv[1], "zeros"))) {
		fprintf(stderr, "usage: blkgen write|verify|zeros|load DEV OFFSET LENGTH SEED [LAST]\n");
		return 2;
	}
	dev = argv[2];
	offset = strtoull(argv[3], NULL, 0);
	length = strtoull(argv[4], NULL, 0);
	seed = argc > 5 ? strtoull(argv[5], NULL, 0) : 0;
	if (!strcmp(argv[1], "verify"))
		return verify(0, argc > 6 ? strtoull(argv[6], NULL, 0) : seed);
	if (!strcmp(argv[1], "zeros"))
		return verify(1, 0);
	if (offset % BLOCK || length % BLOCK) {
		fprintf(stderr, "blkgen: offset and length must be multiples of 4096\n");
		return 2;
	}
	if (!strcmp(argv[1], "write"))
		return write_pass();
	if (!strcmp(argv[1], "load")) {
		while (write_pass() == 0)
			printf("@@ load done=%llu\n", (unsigned long long)seed++);
		return 1;
	}
	fprintf(stderr, "blkgen: unknown command '%s'\n", argv[1]);
	return 2;
}
