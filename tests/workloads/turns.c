/* How quickly work gets done: counts turns of a fixed length at the bottom of 70 nested calls, in each
 * twentieth of a second for so many seconds of wall time, after others that are not counted, and prints the
 * median: what else the machine does meanwhile disturbs few of them.
 *
 *     gcc -O2 -fomit-frame-pointer -o turns turns.c
 *     ./turns SECONDS [BEFORE] */
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#define SLICES_A_SECOND 20
#define MAX_SLICES 6000

static volatile unsigned long long sink;
static long long slices[MAX_SLICES];

static double now(void)
{
	struct timespec time;
	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec + time.tv_nsec / 1e9;
}

__attribute__((noinline)) int nested(int depth, double seconds)
{
	int count = 0;
	if (depth) {
		count = nested(depth - 1, seconds);
	} else {
		double begin = now();
		for (; count < MAX_SLICES && count < seconds * SLICES_A_SECOND; count++) {
			double end = begin + (count + 1.0) / SLICES_A_SECOND;
			long long turns = 0;
			for (; now() < end; turns++)
				for (int i = 0; i < 1000; i++)
					sink += i;
			slices[count] = turns;
		}
	}
	/* Work after the call keeps it from being a jump. */
	__asm__ volatile("");
	return count;
}

static int compare(const void *one, const void *other)
{
	long long a = *(const long long *)one, b = *(const long long *)other;
	return (a > b) - (a < b);
}

int main(int argc, char **argv)
{
	if (argc > 2)
		nested(69, atof(argv[2]));
	int count = nested(69, argc > 1 ? atof(argv[1]) : 1);
	qsort(slices, count, sizeof slices[0], compare);
	printf("%lld\n", slices[count / 2]);
	return 0;
}
