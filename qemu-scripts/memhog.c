/*
 * memhog: asks for more memory than there is and proves that every page comes back as it was.
 *
 * usage: memhog MIB SECONDS [PROCESSES]
 *
 * Each process fills its share page by page with content that can be computed again from the
 * page's number and generation, then goes over its pages in random order, checks and rewrites
 * them, until the time is over, and checks all of them once more at the end. So pages go out to
 * swap and come back many times. Exit 0 if not one byte was wrong.
 *
 * The mix is what anonymous memory looks like to a compressing disk: mostly compressible, some
 * same-filled pages, some that do not compress.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096
#define WORDS (PAGE / 8)

static uint64_t mix(uint64_t x)
{
	x += 0x9e3779b97f4a7c15ull;
	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
	x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
	return x ^ (x >> 31);
}

/* Word i of a page: a function of page, generation and place, so nothing has to be remembered. */
static uint64_t word(uint64_t seed, unsigned kind, unsigned i)
{
	if (kind == 0)
		return 0; /* a zero page, the commonest of all */
	if (kind == 1)
		return seed * 0x0101010101010101ull; /* same-filled */
	if (kind == 2)
		return mix(seed + i); /* incompressible */
	/* Like a heap: small integers, pointers into few places, zeroes. */
	switch (i & 3) {
	case 0:
		return seed & 0xffff;
	case 1:
		return 0x00007f0000000000ull | (mix(seed ^ (i >> 4)) & 0xfff8);
	case 2:
		return i;
	default:
		return (mix(seed + i) & 7) ? 0 : seed;
	}
}

static unsigned kind_of(uint64_t page)
{
	unsigned k = mix(page) & 15;

	return k < 2 ? 0 : k < 4 ? 1 : k < 6 ? 2 : 3;
}

static void fill(uint64_t *p, uint64_t page, uint32_t gen)
{
	uint64_t seed = mix(page * 65537 + gen);
	unsigned kind = kind_of(page);

	for (unsigned i = 0; i < WORDS; i++)
		p[i] = word(seed, kind, i);
}

static int check(const uint64_t *p, uint64_t page, uint32_t gen)
{
	uint64_t seed = mix(page * 65537 + gen);
	unsigned kind = kind_of(page);

	for (unsigned i = 0; i < WORDS; i++)
		if (p[i] != word(seed, kind, i)) {
			printf("memhog: page %llu generation %u word %u: %016llx, not %016llx\n",
			       (unsigned long long)page, gen, i, (unsigned long long)p[i],
			       (unsigned long long)word(seed, kind, i));
			return 1;
		}
	return 0;
}

static int hog(uint64_t base, uint64_t pages, int seconds, int cpu)
{
	cpu_set_t set;
	uint32_t *gens = calloc(pages, sizeof(*gens));
	char *mem = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	uint64_t wrong = 0, checked = 0, r = base + 1;
	time_t end;

	if (!gens || mem == MAP_FAILED) {
		perror("memhog: mmap");
		return 2;
	}
	/* One process on each CPU makes each of the disk's queues carry swap. */
	CPU_ZERO(&set);
	CPU_SET(cpu % (int)sysconf(_SC_NPROCESSORS_ONLN), &set);
	sched_setaffinity(0, sizeof(set), &set);

	for (uint64_t i = 0; i < pages; i++)
		fill((uint64_t *)(mem + i * PAGE), base + i, 0);
	end = time(NULL) + seconds;
	while (time(NULL) < end) {
		for (int n = 0; n < 256; n++) {
			uint64_t i = (r = mix(r)) % pages;
			uint64_t *p = (uint64_t *)(mem + i * PAGE);

			wrong += check(p, base + i, gens[i]);
			checked++;
			if (r & (1ull << 40))
				fill(p, base + i, ++gens[i]);
		}
		if (wrong > 16)
			break;
	}
	for (uint64_t i = 0; i < pages && wrong <= 16; i++, checked++)
		wrong += check((uint64_t *)(mem + i * PAGE), base + i, gens[i]);
	printf("memhog: %llu MiB, %llu pages checked, %llu wrong\n",
	       (unsigned long long)(pages * PAGE >> 20), (unsigned long long)checked,
	       (unsigned long long)wrong);
	return wrong ? 1 : 0;
}

int main(int argc, char **argv)
{
	int procs = argc > 3 ? atoi(argv[3]) : 2, status, bad = 0;
	uint64_t pages;

	if (argc < 3 || procs < 1) {
		fprintf(stderr, "usage: memhog MIB SECONDS [PROCESSES]\n");
		return 2;
	}
	pages = strtoull(argv[1], NULL, 0) * (1 << 20) / PAGE / (uint64_t)procs;
	setvbuf(stdout, NULL, _IOLBF, 0);
	for (int i = 0; i < procs; i++) {
		pid_t pid = fork();

		if (pid < 0) {
			perror("memhog: fork");
			return 2;
		}
		if (pid == 0)
			_exit(hog((uint64_t)i << 32, pages, atoi(argv[2]), i));
	}
	while (wait(&status) > 0 || errno == EINTR)
		if (!WIFEXITED(status) || WEXITSTATUS(status)) {
			printf("memhog: a process ended badly (wait status %#x)\n", status);
			bad = 1;
		}
	return bad;
}
