/* How much work gets done: counts turns of a fixed length at the bottom of 70 nested calls, for so
 * many seconds of wall time, and prints how many there were.
 *
 *     gcc -O2 -fomit-frame-pointer -o turns turns.c
 *     ./turns SECONDS */
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static volatile unsigned long long sink;

static double now(void)
{
	struct timespec time;
	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec + time.tv_nsec / 1e9;
}

__attribute__((noinline)) long long nested(int depth, double seconds)
{
	long long turns = 0;
	if (depth) {
		turns = nested(depth - 1, seconds);
	} else {
		double end = now() + seconds;
		for (; now() < end; turns++)
			for (int i = 0; i < 10000; i++)
				sink += i;
	}
	/* Work after the call keeps it from being a jump. */
	__asm__ volatile("");
	return turns;
}

int main(int argc, char **argv)
{
	printf("%lld\n", nested(69, argc > 1 ? atof(argv[1]) : 1));
	return 0;
}
