/* Calls from one function to another and back, down to a small one: ./recursion SECONDS
 *
 * even(2) > odd(1) > even(0) > last(0). Prints "ready" when it has begun. */
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

__attribute__((noipa)) int last(int n)
{
	return (n * 7 + (n >> 3)) ^ (n << 2);
}

__attribute__((noipa)) int odd(int n);

__attribute__((noipa)) int even(int n)
{
	return n == 0 ? last(n) + 1 : odd(n - 1) + 1;
}

__attribute__((noipa)) int odd(int n)
{
	return even(n - 1) + 1;
}

int main(int count, char **arguments)
{
	static volatile int sum;
	time_t end = time(NULL) + (count > 1 ? atoi(arguments[1]) : 1);

	puts("ready");
	fflush(stdout);
	while (time(NULL) < end)
		for (int turn = 0; turn < 1000; turn++)
			sum += even(2);
	return 0;
}
