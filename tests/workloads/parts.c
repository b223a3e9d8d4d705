/* A program that works in a function that the compiler splits: what seldom runs of it lies elsewhere, so
 * that its debug information gives it two ranges and no begin.
 *
 *     gcc -O2 -g -fno-omit-frame-pointer -o parts parts.c
 *     ./parts SECONDS
 *
 * Prints "ready" when it has begun. */
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

__attribute__((noinline, cold)) static void complain(const char *what)
{
	fprintf(stderr, "%s\n", what);
}

__attribute__((noinline)) long in_two_parts(long limit)
{
	volatile long sum = 0;
	for (long number = 0; number < limit; number++) {
		sum += number ^ sum;
		if (__builtin_expect(number < 0, 0)) {
			complain("a number is negative");
			complain("and so is its sum");
			exit(1);
		}
	}
	if (__builtin_expect(limit < 0, 0)) {
		complain("nothing to do");
		exit(1);
	}
	return sum;
}

int main(int argc, char **argv)
{
	time_t end = time(NULL) + (argc > 1 ? atol(argv[1]) : 10);
	puts("ready");
	fflush(stdout);
	while (time(NULL) < end)
		in_two_parts(100000);
	return 0;
}
