/* A program whose CPU time is split 50/30/20 by construction: three functions, each at the bottom
 * of 25 nested calls of its own (DEPTH), busy-wait on the thread's CPU clock in turn. What one overshoots
 * its time by, it waits less the next time, so that the split is exact however slow the clock is.
 * The turns' lengths are random, so that no sampling rate can keep step with them.
 *
 *     gcc -O2 -g -fno-omit-frame-pointer -o split split.c
 *     ./split [SECONDS]
 *
 * Prints "ready" when it has begun. */
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#ifndef DEPTH
#define DEPTH 25
#endif

static long long thread_cpu_ns(void)
{
	struct timespec now;
	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
	return now.tv_sec * 1000000000LL + now.tv_nsec;
}

static volatile unsigned long long sink;

/* Both are inlined, so that the time is spent in the named functions, two levels deep. */
static inline __attribute__((always_inline)) void spin(void)
{
	for (int i = 0; i < 10000; i++)
		sink += i;
}

/* Spins until the thread has used *owed_ns more nanoseconds of CPU time; asks the clock seldom, so
 * that little of it is the kernel's. */
static inline __attribute__((always_inline)) void burn(long long *owed_ns)
{
	long long begin = thread_cpu_ns(), used;
	do {
		spin();
		used = thread_cpu_ns() - begin;
	} while (used < *owed_ns);
	*owed_ns -= used;
}

#define BOTTOM(name) \
	static long long name##_owed_ns; \
	__attribute__((noinline)) void name(long long ns) \
	{ \
		name##_owed_ns += ns; \
		burn(&name##_owed_ns); \
	}

/* Calls itself until it is deep, and then the function at the bottom. */
#define NEST(name, bottom) \
	__attribute__((noinline)) void name(int depth, long long ns) \
	{ \
		if (depth == 0) \
			bottom(ns); \
		else \
			name(depth - 1, ns); \
		/* Work after the call keeps it from being a jump. */ \
		__asm__ volatile(""); \
	}

BOTTOM(spend_fifty)
BOTTOM(spend_thirty)
BOTTOM(spend_twenty)
NEST(nest_fifty, spend_fifty)
NEST(nest_thirty, spend_thirty)
NEST(nest_twenty, spend_twenty)

int main(int argc, char **argv)
{
	long long end = thread_cpu_ns() + (argc > 1 ? atoll(argv[1]) : 10) * 1000000000LL;
	unsigned long long random = 88172645463325252ULL;
	puts("ready");
	fflush(stdout);
	while (thread_cpu_ns() < end) {
		/* Marsaglia's xorshift64. */
		random ^= random << 13;
		random ^= random >> 7;
		random ^= random << 17;
		/* 1 to 3 ms a tenth. */
		long long tenth_ns = 1000000 + (long long)(random % 2000000);
		nest_fifty(DEPTH - 1, 5 * tenth_ns);
		nest_thirty(DEPTH - 1, 3 * tenth_ns);
		nest_twenty(DEPTH - 1, 2 * tenth_ns);
	}
	return 0;
}
