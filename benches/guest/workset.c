/*
 * workset: a job of a fixed size and a fixed amount of work on memory that looks like a program's, for
 * comparing what it is swapped to.
 *
 * usage: workset FILE MIB TOUCHES SEED
 *        workset lock MIB
 *
 * Fills MIB of memory with pages of FILE (a disk, read past the page cache), each made different by its
 * number; looks at TOUCHES pages in random order, and changes a few words in every second one; looks at all
 * pages once more, in order. Each look compares the page's checksum. Prints a line after each phase,
 * "held" when all is done, and then keeps its memory until there is a line on stdin.
 *
 * "workset lock" keeps MIB of memory that cannot be swapped out, in the same way.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096
#define WORDS (PAGE / 8)
#define PIECE (256 * PAGE)

static void fail(const char *what)
{
	fprintf(stderr, "workset: %s: %s\n", what, strerror(errno));
	exit(2);
}

static uint64_t mix(uint64_t x)
{
	x += 0x9e3779b97f4a7c15ull;
	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
	x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
	return x ^ (x >> 31);
}

static uint64_t checksum(const uint64_t *page)
{
	uint64_t sum = 0xcbf29ce484222325ull;

	for (int i = 0; i < WORDS; i++)
		sum = (sum ^ page[i]) * 0x100000001b3ull;
	return sum;
}

static double seconds(void)
{
	static struct timespec last;
	struct timespec now;
	double passed;

	clock_gettime(CLOCK_MONOTONIC, &now);
	passed = (double)(now.tv_sec - last.tv_sec) + (double)(now.tv_nsec - last.tv_nsec) / 1e9;
	last = now;
	return passed;
}

static char *memory(uint64_t bytes)
{
	char *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (p == MAP_FAILED)
		fail("mmap");
	return p;
}

/* What a program writes is not random: a counter, and a few words beside it. */
static void change(uint64_t *page, uint64_t r)
{
	unsigned at = (unsigned)(r % (WORDS - 4));

	page[at] += 1;
	page[at + 1] = r & 0xffff;
	page[at + 3] ^= 1;
}

static void fill(char *mem, uint64_t pages, const char *name)
{
	int fd = open(name, O_RDONLY | O_DIRECT);
	off_t size, at = 0;

	if (fd < 0 || (size = lseek(fd, 0, SEEK_END)) < PIECE)
		fail(name);
	for (uint64_t done = 0; done < pages * PAGE; done += PIECE, at += PIECE) {
		uint64_t left = pages * PAGE - done;
		size_t len = left < PIECE ? left : PIECE;

		if (at + PIECE > size)
			at = 0;
		for (size_t got = 0; got < len;) {
			ssize_t n = pread(fd, mem + done + got, len - got, at + (off_t)got);

			if (n <= 0)
				fail("read");
			got += (size_t)n;
		}
	}
	close(fd);
}

static void hold(void)
{
	puts("held");
	while (getchar() != '\n' && !feof(stdin))
		;
}

int main(int argc, char **argv)
{
	uint64_t pages, touches, r, wrong = 0, *sums;
	char *mem;

	setvbuf(stdout, NULL, _IOLBF, 0);
	if (argc == 3 && !strcmp(argv[1], "lock")) {
		pages = strtoull(argv[2], NULL, 0) * (1 << 20) / PAGE;
		mem = memory(pages * PAGE + 1);
		if (mlock(mem, pages * PAGE + 1))
			fail("mlock");
		hold();
		return 0;
	}
	if (argc != 5) {
		fprintf(stderr, "usage: workset FILE MIB TOUCHES SEED | workset lock MIB\n");
		return 2;
	}
	pages = strtoull(argv[2], NULL, 0) * (1 << 20) / PAGE;
	touches = strtoull(argv[3], NULL, 0);
	r = mix(strtoull(argv[4], NULL, 0));
	mem = memory(pages * PAGE);
	sums = (uint64_t *)memory(pages * 8);

	seconds();
	fill(mem, pages, argv[1]);
	for (uint64_t i = 0; i < pages; i++) {
		uint64_t *page = (uint64_t *)(mem + i * PAGE);

		page[mix(i) % WORDS] ^= i;
		sums[i] = checksum(page);
	}
	printf("filled pages=%llu seconds=%.2f\n", (unsigned long long)pages, seconds());

	for (uint64_t n = 0; n < touches; n++) {
		uint64_t i = (r = mix(r)) % pages, *page = (uint64_t *)(mem + i * PAGE);

		wrong += checksum(page) != sums[i];
		if (r & (1ull << 40)) {
			change(page, r >> 8);
			sums[i] = checksum(page);
		}
	}
	printf("touched pages=%llu wrong=%llu seconds=%.2f\n", (unsigned long long)touches,
	       (unsigned long long)wrong, seconds());

	for (uint64_t i = 0; i < pages; i++)
		wrong += checksum((uint64_t *)(mem + i * PAGE)) != sums[i];
	printf("checked pages=%llu wrong=%llu seconds=%.2f\n", (unsigned long long)pages,
	       (unsigned long long)wrong, seconds());
	hold();
	return wrong ? 1 : 0;
}
