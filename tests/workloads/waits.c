/* A program that waits: 30 ms and 10 ms in turn, each at the bottom of 20 nested calls of its own.
 *
 *     gcc -O2 -g -fomit-frame-pointer -o waits waits.c
 *     ./waits [SECONDS]
 *
 * Prints "ready" when it has begun. */
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static void sleep_ms(long ms)
{
	struct timespec time = { .tv_nsec = ms * 1000000 };
	nanosleep(&time, NULL);
}

#define NEST(name, ms) \
	__attribute__((noinline)) void name(int depth) \
	{ \
		if (depth == 0) \
			sleep_ms(ms); \
		else \
			name(depth - 1); \
		/* Work after the call keeps it from being a jump. */ \
		__asm__ volatile(""); \
	}
NEST(wait_long, 30)
NEST(wait_short, 10)

int main(int argc, char **argv)
{
	time_t end = time(NULL) + (argc > 1 ? atoi(argv[1]) : 10);
	puts("ready");
	fflush(stdout);
	while (time(NULL) < end) {
		wait_long(19);
		wait_short(19);
	}
	return 0;
}
