/* Two threads that keep a CPU busy, each in a function of its own, under names of their own.
 *
 *     gcc -O2 -g -fno-omit-frame-pointer -pthread -o threads threads.c
 *     ./threads [SECONDS]
 *
 * Prints "ready" when both have begun, and the numbers of the threads. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

static volatile unsigned long long sink;
static long long end_s;

static int is_over(void)
{
	struct timespec now;
	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec >= end_s;
}

#define BUSY(function, comm) \
	__attribute__((noinline)) static void *function(void *ready) \
	{ \
		pthread_setname_np(pthread_self(), comm); \
		printf(comm " %d\n", gettid()); \
		pthread_barrier_wait(ready); \
		while (!is_over()) \
			for (int i = 0; i < 1000000; i++) \
				sink += i; \
		return NULL; \
	}

BUSY(spin_one, "spinner-one")
BUSY(spin_other, "spinner-other")

int main(int argc, char **argv)
{
	struct timespec now;
	pthread_barrier_t ready;
	pthread_t one, other;
	clock_gettime(CLOCK_MONOTONIC, &now);
	end_s = now.tv_sec + (argc > 1 ? atoll(argv[1]) : 10);
	pthread_barrier_init(&ready, NULL, 3);
	pthread_create(&one, NULL, spin_one, &ready);
	pthread_create(&other, NULL, spin_other, &ready);
	pthread_barrier_wait(&ready);
	puts("ready");
	fflush(stdout);
	pthread_join(one, NULL);
	pthread_join(other, NULL);
}
