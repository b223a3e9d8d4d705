/* A program whose CPU time is split 50/30/20 by construction: three functions, each at the bottom
 * of 24 nested calls of its own, busy-wait on the thread's CPU clock for 50, 30 and 20
 * microseconds in turn. The turns are much shorter than the time between two samples, so that no
 * sampling rate can keep step with them.
 *
 *     gcc -O2 -fno-omit-frame-pointer -fno-optimize-sibling-calls -o split split.c
 *     ./split [SECONDS]
 *
 * Prints "ready" when it has begun. */
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static long long thread_cpu_ns(void)
{
	struct timespec now;
	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
	return now.tv_sec * 1000000000LL + now.tv_nsec;
}

static volatile unsigned long long sink;

/* Spins until the thread has used ns more nanoseconds of CPU time. Inlined, so that the time is
 * spent in the named functions; the clock is asked seldom, so that little of it is the kernel's. */
static inline __attribute__((always_inline)) void burn(long long ns)
{
	long long end = thread_cpu_ns() + ns;
	do
		for (int i = 0; i < 2000; i++)
			sink += i;
	while (thread_cpu_ns() < end);
}

#define SPLIT_BOTTOM(name, ns) \
	__attribute__((noinline)) void name(void) { burn(ns); __asm__ volatile(""); }

/* Calls itself until it is deep, and then the function at the bottom. */
#define SPLIT_NEST(name, bottom) \
	__attribute__((noinline)) void name(int depth) \
	{ \
		if (depth == 0) \
			bottom(); \
		else \
			name(depth - 1); \
		/* Work after the call keeps it from being a jump. */ \
		__asm__ volatile(""); \
	}

SPLIT_BOTTOM(spend_fifty, 50000)
SPLIT_BOTTOM(spend_thirty, 30000)
SPLIT_BOTTOM(spend_twenty, 20000)
SPLIT_NEST(nest_fifty, spend_fifty)
SPLIT_NEST(nest_thirty, spend_thirty)
SPLIT_NEST(nest_twenty, spend_twenty)

int main(int argc, char **argv)
{
	long long end = thread_cpu_ns() + (argc > 1 ? atoll(argv[1]) : 10) * 1000000000LL;
	puts("ready");
	fflush(stdout);
	while (thread_cpu_ns() < end) {
		nest_fifty(24);
		nest_thirty(24);
		nest_twenty(24);
	}
	return 0;
}
